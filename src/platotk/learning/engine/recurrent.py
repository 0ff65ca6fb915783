"""RLlib's own LSTM networks without what surrounds them: acting in numpy, and a lean forward pass for learning.

`actor_for` is given an RLModule and gives back who acts: a `RecurrentActor` where the module is RLlib's default one of
PPO with an LSTM on observations of one vector, else torch (`Actor`). `RecurrentForward` is such a module's forward pass
in training. What comes out is the same to float32's rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns as Names
from ray.rllib.core.models.base import ACTOR, CRITIC
from ray.rllib.core.models.torch.encoder import TorchLSTMEncoder, TorchMLPEncoder, TorchStatefulActorCriticEncoder
from ray.rllib.core.models.torch.heads import TorchMLPHead
from torch.nn import functional

from ..modules import PPOModule
from .acting import Actor
from .columns import Columns
from .network import ELU, LINEAR, RELU, SILU, TANH, NotCovered, linears

Floats = NDArray[np.float32]
ACTIVATIONS: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {
    LINEAR: lambda rows: rows,
    TANH: torch.tanh,
    RELU: torch.relu,
    ELU: functional.elu,
    SILU: functional.silu,
}


def actor_for(module: Any, device: Any, *, explore: bool) -> Actor:
    """Who acts for a module; see `Actor`."""
    return (RecurrentActor if is_covered(module) else Actor)(module, device, explore=explore)


def is_covered(module: Any) -> bool:
    """Whether numpy can act for a module."""
    if type(module) not in (DefaultPPOTorchRLModule, PPOModule) or not module.is_stateful():
        return False
    space, encoder = module.observation_space, module.encoder
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1 or type(module.pi) is not TorchMLPHead:
        return False
    if type(encoder) is not TorchStatefulActorCriticEncoder or next(module.parameters()).device.type != "cpu":
        return False
    parts = [encoder.encoder] if encoder.config.shared else [encoder.actor_encoder, encoder.critic_encoder]
    try:
        linears(module.pi)
        return all(_is_plain(part) for part in parts)
    except NotCovered:
        return False


class RecurrentActor(Actor):
    """The same as `Actor`, for a module that `is_covered`."""

    def __init__(self, module: Any, device: Any, *, explore: bool) -> None:
        super().__init__(module, device, explore=explore)
        self._module = module
        self.begin()

    def begin(self) -> None:
        """Read the weights anew."""
        encoder, head = self._module.encoder, self._module.pi
        self._actor = _Recurrent(encoder.encoder if encoder.config.shared else encoder.actor_encoder)
        self._critic = None if encoder.config.shared else _Recurrent(encoder.critic_encoder)
        self._head = _Layers(head)
        self._clip = float(head.log_std_clip_param[0]) if head.clip_log_std else None

    def act(self, observations: Columns, num_steps: int, states: Columns = None) -> dict[str, Columns]:
        """See `Actor.act`."""
        if self._heads is None or states is None:
            return super().act(observations, num_steps, states)
        seen = np.asarray(observations, np.float32)
        after: Columns
        if self._critic is None:
            features, after = self._actor(seen, states)
        else:
            features, remembered = self._actor(seen, states[ACTOR])
            # The critic's memory is what learning begins its sequences with.
            after = {ACTOR: remembered, CRITIC: self._critic(seen, states[CRITIC])[1]}
        inputs = self._head(features)
        if self._clip is not None:
            log_std = inputs[:, inputs.shape[1] // 2 :]
            np.clip(log_std, -self._clip, self._clip, out=log_std)
        actions, logp = self._heads.sample(inputs, self._explore)
        return {
            Names.ACTION_DIST_INPUTS: inputs,
            Names.STATE_OUT: after,
            Names.ACTIONS: actions,
            Names.ACTION_LOGP: logp,
        }


class RecurrentForward:
    """`_forward_train` of a module that `is_covered`: the same operations, without the calls around them.

    Args:
        module: The RLModule that learns, on a CPU.
    """

    def __init__(self, module: Any) -> None:
        encoder = module.encoder
        self._actor = encoder.encoder if encoder.config.shared else encoder.actor_encoder
        self._critic = None if encoder.config.shared else encoder.critic_encoder
        self._before = {
            id(part): [] if part.tokenizer is None else linears(part.tokenizer)
            for part in (self._actor, self._critic)
            if part is not None
        }
        self._pi = module.pi

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The distribution's inputs and the critic's embeddings, [sequences, time].

        Args:
            batch: `obs` [sequences, time, width] and `state_in` [sequences].
        """
        seen, states = batch[Names.OBS], batch[Names.STATE_IN]
        if self._critic is None:
            features = embeddings = self._features(self._actor, seen, states)
        else:
            features = self._features(self._actor, seen, states[ACTOR])
            embeddings = self._features(self._critic, seen, states[CRITIC])
        return {Names.ACTION_DIST_INPUTS: self._pi(features), Names.EMBEDDINGS: embeddings}

    def _features(self, encoder: Any, rows: torch.Tensor, states: dict[str, torch.Tensor]) -> torch.Tensor:
        for weight, bias, activation in self._before[id(encoder)]:
            rows = functional.linear(rows, weight, bias)
            rows = ACTIVATIONS[activation](rows)
        initial = (states["h"].transpose(0, 1), states["c"].transpose(0, 1))
        # What `torch.nn.LSTM.forward` comes down to: one layer, no dropout, batch first.
        result: torch.Tensor = torch.lstm(rows, initial, encoder.lstm.all_weights[0], True, 1, 0.0, True, False, True)[
            0
        ]
        return result


class _Layers:
    """The linear layers of an encoder or head, with their activations."""

    def __init__(self, model: Any) -> None:
        self._layers = [
            (np.ascontiguousarray(_array(weight).T), _array(bias), activation)
            for weight, bias, activation in linears(model)
        ]

    def __call__(self, rows: Floats) -> Floats:
        for weight, bias, activation in self._layers:
            rows = rows @ weight
            rows += bias
            if activation == TANH:
                np.tanh(rows, out=rows)
            elif activation == RELU:
                np.maximum(rows, 0.0, out=rows)
            elif activation == ELU:
                rows = np.where(rows > 0, rows, np.expm1(np.minimum(rows, 0.0)))
            elif activation == SILU:
                rows *= _sigmoid(rows)
        return rows


class _Recurrent:
    """One step of RLlib's LSTM encoder: layers, then a cell (Hochreiter and Schmidhuber 1997) with torch's weights."""

    def __init__(self, encoder: Any) -> None:
        self._before = None if encoder.tokenizer is None else _Layers(encoder.tokenizer)
        weight_in, weight_hidden, bias_in, bias_hidden = map(_array, encoder.lstm.all_weights[0])
        self._weights = np.ascontiguousarray(np.concatenate([weight_in, weight_hidden], axis=1).T)
        self._bias = bias_in + bias_hidden
        self._size = weight_hidden.shape[1]

    def __call__(self, rows: Floats, states: dict[str, Floats]) -> tuple[Floats, dict[str, Floats]]:
        """Features (N, H) and the next states, "h" and "c" (N, 1, H) as the given ones."""
        size = self._size
        rows = rows if self._before is None else self._before(rows)
        gates = np.concatenate([rows, states["h"][:, 0]], axis=1) @ self._weights
        gates += self._bias
        new = np.tanh(gates[:, 2 * size : 3 * size])
        opened = _sigmoid(gates)
        cell = opened[:, size : 2 * size] * states["c"][:, 0] + opened[:, :size] * new
        hidden = opened[:, 3 * size :] * np.tanh(cell)
        return hidden, {"h": hidden[:, None], "c": cell[:, None]}


def _is_plain(encoder: Any) -> bool:
    """Whether an encoder is RLlib's LSTM, of one layer, behind linear ones."""
    if type(encoder) is not TorchLSTMEncoder or type(encoder.tokenizer) not in (TorchMLPEncoder, type(None)):
        return False
    if encoder.tokenizer is not None:
        linears(encoder.tokenizer)
    lstm = encoder.lstm
    return bool(lstm.num_layers == 1 and lstm.bias and not lstm.bidirectional and not lstm.proj_size)


def _sigmoid(rows: Floats) -> Floats:
    """By tanh, which cannot overflow."""
    result: Floats = np.tanh(rows * np.float32(0.5))
    result += 1.0
    result *= 0.5
    return result


def _array(parameter: torch.Tensor) -> Floats:
    array: Floats = parameter.detach().numpy()
    return array
