"""The learners of SAC and DQN with the engine: RLlib's networks and losses, without what RLlib does around them.

A batch arrives as arrays. RLlib's forward pass and loss are called as they are, so that masks, images, Rainbow's
options and RLModules of the user's own are learned as ever; then one backward pass for all losses, one fused step per
optimiser, one operation for all target networks. State, schedules, metrics and checkpoints are RLlib's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.dqn.dqn_learner import DQNLearner
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.algorithms.sac.torch.sac_torch_learner import SACTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.apis import TargetNetworkAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.utils.metrics import (
    LAST_TARGET_UPDATE_TS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_TARGET_UPDATES,
    TD_ERROR_KEY,
)

from .columns import Columns, learnable, mapped
from .learner import NUM_SKIPPED
from .optimisation import Descent, descent_for
from .timing import log_steps


class OffPolicyLearning:
    """Mixin left of RLlib's learners.

    `begin_updates`, any number of `update_from`, `end_updates`: RLlib's `update` stays what it is.
    """

    config: Any
    metrics: Any
    module: Any

    def begin_updates(self, num_steps_sampled: int) -> None:
        """To be called before some updates: weights, moments and schedules may have changed since the last.

        Args:
            num_steps_sampled: Environment steps so far.
        """
        self._check_is_built()  # type: ignore[attr-defined]
        self.before_gradient_based_update(timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: num_steps_sampled})  # type: ignore[attr-defined]
        module = self.module[DEFAULT_MODULE_ID]
        module.train()
        is_plain = type(module).forward_train is TorchRLModule.forward_train
        self._forward = module._forward_train if is_plain else module.forward_train
        optimizers = dict(self.get_optimizers_for_module(DEFAULT_MODULE_ID))  # type: ignore[attr-defined]
        if getattr(self, "_descents", None) is None:
            self._descents: dict[str, Descent] = {
                name: descent_for(optimizer, self.config) for name, optimizer in optimizers.items()
            }
        for descent in self._descents.values():
            descent.begin()
        self._targets = _target_tensors(module.unwrapped())
        self._num_rows = self._num_updates = self._num_skipped = self._num_target_updates = 0
        self._last_size = 0
        self._said = _Said()

    def update_from(self, columns: dict[str, Columns], num_steps_sampled: int, *, needs_errors: bool) -> Any:
        """Learn from one batch.

        Args:
            columns: Of B rows, by RLlib's names.
            num_steps_sampled: Environment steps so far.
            needs_errors: Whether somebody wants to know the TD errors.

        Returns:
            The TD errors, float32 (B,), or None.
        """
        batch = mapped(self._tensor, columns)
        out = self._forward(batch)
        said, metrics = _Said(), self.metrics
        self.metrics = said
        try:
            loss = self.compute_loss_for_module(  # type: ignore[attr-defined]
                module_id=DEFAULT_MODULE_ID,
                config=self.config.get_config_for_module(DEFAULT_MODULE_ID),
                batch=batch,
                fwd_out=out,
            )
        finally:
            self.metrics = metrics
        said.log_value((DEFAULT_MODULE_ID, Learner.TOTAL_LOSS_KEY), loss, window=1)
        self._said = said
        self._descend(loss)
        self._num_updates += 1
        self._last_size = len(columns["rewards"])
        self._num_rows += self._last_size
        self._weights_seq_no: int = getattr(self, "_weights_seq_no", 0) + 1
        self._follow(num_steps_sampled)
        return said.td_error.detach().cpu().numpy() if needs_errors and said.td_error is not None else None

    def end_updates(self, num_steps_sampled: int) -> Any:
        """RLlib's metrics of all updates since `begin_updates`: sums of all, statistics of the last.

        Args:
            num_steps_sampled: Environment steps so far.
        """
        for descent in self._descents.values():
            descent.finish()
        self._said.tell(self.metrics)
        module = DEFAULT_MODULE_ID
        if self._num_target_updates:
            self.metrics.log_value((module, NUM_TARGET_UPDATES), self._num_target_updates, reduce="lifetime_sum")
            last = self.last_update_ts_by_mid[module]  # type: ignore[attr-defined]
            self.metrics.log_value((module, LAST_TARGET_UPDATE_TS), last, reduce="max")
        self.metrics.log_value((module, NUM_SKIPPED), self._num_skipped, reduce="sum")
        log_steps(self, self._num_rows, self._last_size)
        # Not DQNLearner's own, which is about target networks: those have followed already.
        after = super(DQNLearner, self).after_gradient_based_update  # type: ignore[misc]
        after(timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: num_steps_sampled})
        return self.metrics.reduce()

    def _descend(self, loss: torch.Tensor) -> None:
        """One backward pass of the sum: no loss reaches the parameters of another's optimiser."""
        for descent in self._descents.values():
            descent.zero()
        torch.autograd.backward(loss)
        norms = {name: descent.step() for name, descent in self._descents.items()}
        self._num_skipped += any(norm is None for norm in norms.values())
        config = self.config
        if config.log_gradients or (config.grad_clip and config.grad_clip_by == "global_norm"):
            for name, norm in norms.items():
                self._said.norms[name] = norm

    def _follow(self, num_steps_sampled: int) -> None:
        """The target networks follow, as often as RLlib's."""
        last = self.last_update_ts_by_mid  # type: ignore[attr-defined]
        if num_steps_sampled - last[DEFAULT_MODULE_ID] < self.config.target_network_update_freq:
            return
        mains, targets = self._targets
        with torch.no_grad():
            torch._foreach_lerp_(targets, mains, self.config.tau)
        last[DEFAULT_MODULE_ID] = num_steps_sampled
        self._num_target_updates += 1

    def _tensor(self, array: Any) -> torch.Tensor:
        device = self._device  # type: ignore[attr-defined]
        tensor = torch.from_numpy(np.ascontiguousarray(learnable(array)))
        return tensor if device.type == "cpu" else tensor.to(device, non_blocking=True)


class EngineSACLearner(OffPolicyLearning, SACTorchLearner):  # type: ignore[misc]
    """RLlib's SAC learner. Its losses have no parameter in common that an optimiser trains: one backward pass does."""

    def compute_loss_for_module(self, **kwargs: Any) -> Any:
        """RLlib's; what it keeps for one backward pass per optimiser is not needed after `update_from`."""
        loss = super().compute_loss_for_module(**kwargs)
        if isinstance(self.metrics, _Said):
            self._temp_losses.clear()
        return loss


class EngineDQNLearner(OffPolicyLearning, DQNTorchLearner):  # type: ignore[misc]
    """RLlib's DQN learner."""


class _Said:
    """Stands where RLlib's MetricsLogger does while a loss is computed: it keeps, and is only sometimes asked."""

    def __init__(self) -> None:
        self.td_error: Any = None
        self.norms: dict[str, float | None] = {}
        self._values: list[tuple[tuple[Any, ...], Any, dict[str, Any]]] = []
        self._dicts: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def log_value(self, key: Any, value: Any, **how: Any) -> None:
        """As MetricsLogger's."""
        if key[-1] == TD_ERROR_KEY:
            self.td_error = value
        else:
            self._values.append((key, value, how))

    def log_dict(self, values: dict[str, Any], **how: Any) -> None:
        """As MetricsLogger's."""
        self._dicts.append((values, how))

    def tell(self, metrics: Any) -> None:
        """Log what was kept."""
        for key, value, how in self._values:
            metrics.log_value(key, value, **how)
        for values, how in self._dicts:
            metrics.log_dict(values, **how)
        for name, norm in self.norms.items():
            if norm is not None:
                metrics.log_value((DEFAULT_MODULE_ID, f"gradients_{name}_global_norm"), norm, window=1)


def _target_tensors(module: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Tensors of the networks and, in the same order, of those that follow them."""
    mains: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    if not isinstance(module, TargetNetworkAPI):
        return mains, targets
    for main, target in module.get_target_network_pairs():
        state = main.state_dict()
        for name, tensor in target.state_dict().items():
            mains.append(state[name])
            targets.append(tensor)
    return mains, targets
