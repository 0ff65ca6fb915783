"""Action masks inside RLlib's torch modules: what is not allowed has no probability and is never the best.

Given a batch whose observations carry an "action_mask" (1 allowed, 0 not; one entry per categorical logit),
the mixins here change what RLlib's own modules give back: logits of the policies, Q-values of DQN,
probabilities of discrete SAC. They stand left of RLlib's module in a class's bases and do nothing when there
is no mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.algorithms.dqn.default_dqn_rl_module import QF_PREDS
from ray.rllib.algorithms.sac.sac_learner import (
    ACTION_LOG_PROBS,
    ACTION_LOG_PROBS_NEXT,
    ACTION_PROBS,
    ACTION_PROBS_NEXT,
    QF_TARGET_NEXT,
    QF_TWIN_PREDS,
)
from ray.rllib.algorithms.sac.sac_learner import (
    QF_PREDS as SAC_QF_PREDS,
)
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.rl_module.apis import TARGET_NETWORK_ACTION_DIST_INPUTS
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor

from .encoders import MASK

# A finite number, so that log-probability, entropy and KL divergence stay finite (0 times this is 0, 0 times
# -inf is not a number); as a float32, exp(FORBIDDEN - any logit) is exactly 0.
FORBIDDEN = -1e9


def categorical_slice(action_space: gym.Space[Any]) -> slice:
    """Where the categorical logits stand among the inputs of RLlib's action distribution for this space.

    RLlib concatenates the inputs of a Dict action's parts in sorted order of their keys; a Box takes two
    numbers per element (mean and log of the standard deviation), a Discrete or MultiDiscrete one per value.
    """
    if not isinstance(action_space, gym.spaces.Dict):
        return slice(0, _num_inputs(action_space))
    start = 0
    for key in sorted(action_space.spaces):
        part = action_space.spaces[key]
        if not isinstance(part, gym.spaces.Box):
            return slice(start, start + _num_inputs(part))
        start += _num_inputs(part)
    return slice(start, start)


def num_categorical_logits(action_space: gym.Space[Any]) -> int:
    """How many logits a mask must speak of; 0 for an action without categories."""
    if isinstance(action_space, gym.spaces.Box):
        return 0
    where = categorical_slice(action_space)
    return int(where.stop - where.start)


def mask_logits(logits: Tensor, mask: Tensor, where: slice, fill: float = FORBIDDEN) -> Tensor:
    """The logits, with `fill` wherever the mask is 0; no gradient flows into what is masked.

    Args:
        logits: (..., k).
        mask: (..., where.stop - where.start), 1 allowed and 0 not.
        where: Which of the k entries the mask speaks of.
        fill: What a forbidden entry becomes.
    """
    masked = logits[..., where].masked_fill(mask < 0.5, fill)
    if masked.shape[-1] == logits.shape[-1]:
        return masked
    return torch.cat([logits[..., : where.start], masked, logits[..., where.stop :]], dim=-1)


class _Masked(TorchRLModule):  # type: ignore[misc]
    """What the mixins share: finding the mask in a batch, and the place of the logits it speaks of."""

    def setup(self) -> None:
        super().setup()
        self._masked_slice = categorical_slice(self.action_space)

    def _apply_mask(self, values: Tensor, batch: Mapping[str, Any], fill: float = FORBIDDEN) -> Tensor:
        mask = _mask_of(batch)
        return values if mask is None else mask_logits(values, mask, self._masked_slice, fill)


class MaskedPolicy(_Masked):
    """Masks the policies of PPO, IMPALA, MARWIL and BC."""

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._masked_output(super()._forward(batch, **kwargs), batch, Columns.ACTION_DIST_INPUTS)

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._masked_output(super()._forward_train(batch, **kwargs), batch, Columns.ACTION_DIST_INPUTS)

    def _masked_output(self, output: dict[str, Any], batch: Mapping[str, Any], key: str) -> dict[str, Any]:
        output[key] = self._apply_mask(output[key], batch)
        return output


class MaskedOldPolicy(MaskedPolicy):
    """Masks APPO's target network too: a KL divergence makes sense only when both sides are masked."""

    def forward_target(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Distribution inputs (..., k) of the old policy, masked."""
        return self._masked_output(super().forward_target(batch), batch, TARGET_NETWORK_ACTION_DIST_INPUTS)


class MaskedQ(_Masked):
    """Masks DQN: greedy and random actions, and the next action in the target, double or not, dueling or not.

    Forbidden Q-values become -inf, RLlib's own convention: its loss reads -inf as 0 where all actions are
    forbidden.
    """

    def compute_q_values(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Q-values (..., num_actions) of the online network under `QF_PREDS`, masked."""
        return self._masked_q(super().compute_q_values(batch), batch)

    def forward_target(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Q-values (..., num_actions) of the target network under `QF_PREDS`, masked."""
        return self._masked_q(super().forward_target(batch), batch)

    def _masked_q(self, output: dict[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        output[QF_PREDS] = self._apply_mask(output[QF_PREDS], batch, float("-inf"))
        return output

    def _forward_exploration(self, batch: dict[str, Any], t: int) -> dict[str, Any]:
        """Epsilon-greedy among the allowed actions, one coin per row.

        RLlib's own never draws an action whose value is exactly 0, and mixes up rows that have a time
        dimension.
        """
        output: dict[str, Any] = self._forward_inference(batch)
        self.epsilon_schedule.update(t)
        greedy: Tensor = output[Columns.ACTIONS]
        mask = _mask_of(batch)
        if mask is None:
            mask = torch.ones((*greedy.shape, int(self.action_space.n)), device=greedy.device)
        allowed = mask.reshape(-1, mask.shape[-1])
        # Where nothing is allowed (padding) any action will do; multinomial needs a positive sum.
        allowed = torch.where(allowed.sum(dim=-1, keepdim=True) > 0, allowed, torch.ones_like(allowed))
        uniform = torch.multinomial(allowed, num_samples=1).reshape(greedy.shape)
        explore = torch.rand(greedy.shape, device=greedy.device) < self.epsilon_schedule.get_current_value()
        output[Columns.ACTIONS] = torch.where(explore, uniform.to(greedy.dtype), greedy)
        return output


class MaskedSoftQ(_Masked):
    """Masks discrete SAC: the policy that acts, and the expectations over its actions in both losses."""

    def _forward_inference(self, batch: dict[str, Any]) -> dict[str, Any]:
        output: dict[str, Any] = super()._forward_inference(batch)
        if isinstance(self.action_space, gym.spaces.Discrete):
            key = Columns.ACTION_DIST_INPUTS
            output[key] = self._apply_mask(output[key], batch)
        return output

    def _forward_train_discrete(self, batch: dict[str, Any]) -> dict[str, Any]:
        """As RLlib's, but by log_softmax: log(softmax) makes 0 times -inf of an action of probability 0."""
        now, later = {Columns.OBS: batch[Columns.OBS]}, {Columns.OBS: batch[Columns.NEXT_OBS]}
        probs, log_probs = self._masked_probs(now)
        probs_next, log_probs_next = self._masked_probs(later)
        output = {
            ACTION_PROBS: probs,
            ACTION_LOG_PROBS: log_probs,
            ACTION_PROBS_NEXT: probs_next,
            ACTION_LOG_PROBS_NEXT: log_probs_next,
            QF_TARGET_NEXT: self.forward_target(later, squeeze=False),
            SAC_QF_PREDS: self._qf_forward_train_helper(now, self.qf_encoder, self.qf, squeeze=False),
        }
        if self.twin_q:
            twin = self._qf_forward_train_helper(now, self.qf_twin_encoder, self.qf_twin, squeeze=False)
            output[QF_TWIN_PREDS] = twin
        return output

    def _masked_probs(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Probabilities and their logs, (..., num_actions); both 0 where forbidden, so p log p is 0."""
        logits = self._apply_mask(self.pi(self.pi_encoder(batch)[ENCODER_OUT]), batch)
        log_probs = torch.log_softmax(logits, dim=-1)
        return log_probs.exp(), log_probs.masked_fill(logits <= FORBIDDEN, 0.0)


def _mask_of(batch: Mapping[str, Any]) -> Tensor | None:
    obs = batch[Columns.OBS]
    mask: Tensor | None = obs.get(MASK) if isinstance(obs, Mapping) else None
    return mask


def _num_inputs(space: gym.Space[Any]) -> int:
    if isinstance(space, gym.spaces.Discrete):
        return int(space.n)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return int(space.nvec.sum())
    return 2 * int(space.shape[0]) if space.shape else 0
