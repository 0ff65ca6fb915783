"""From a batch of observations to a batch of actions: one forward pass, one draw, one mapping into the sim's bounds.

`Actor` wraps an RLModule and gives back, for the N observations of a vector step, the columns that learning needs;
`ActionMapping` makes of the chosen actions those that the sims are sent, as RLlib's `NormalizeAndClipActions` does for
one action at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.dqn.default_dqn_rl_module import QF_PREDS
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.core.columns import Columns as Names
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule

from .columns import Array, Columns, learnable, mapped
from .heads import heads_of


class Actor:
    """An RLModule that acts for many sims at once.

    Args:
        module: Any torch RLModule.
        device: Where it is.
        explore: Draw actions from the distribution, or take the likeliest.
    """

    def __init__(self, module: Any, device: Any, *, explore: bool) -> None:
        self._device = torch.device(device) if device is not None else torch.device("cpu")
        self._explore = explore
        kind = "forward_exploration" if explore else "forward_inference"
        # RLlib's public methods go through all submodules at every call, to switch dropout and the like off and on.
        is_overridden = getattr(type(module), kind) is not getattr(TorchRLModule, kind)
        self._forward = getattr(module, kind if is_overridden else f"_{kind}")
        if explore and getattr(self._forward, "__func__", None) is DefaultDQNTorchRLModule._forward_exploration:
            self._forward = EpsilonGreedy(module)
        self._dist_class = (
            module.get_exploration_action_dist_cls() if explore else module.get_inference_action_dist_cls()
        )
        self._heads = heads_of(self._dist_class, module.action_space)

    def begin(self) -> None:
        """The module may have new weights; to be called before each sample."""

    def act(self, observations: Columns, num_steps: int, states: Columns = None) -> dict[str, Columns]:
        """Columns by RLlib's names: `actions`, `action_logp`, `action_dist_inputs`, and what else the module gives.

        Args:
            observations: Columns of N rows.
            num_steps: Environment steps so far, for modules whose exploration changes.
            states: Of a module with memory: columns of N rows; the next ones come back as `state_out`.
        """
        batch = {Names.OBS: mapped(self._tensor, observations)}
        if states is not None:
            batch = mapped(lambda tensor: tensor.unsqueeze(1), batch)
            batch[Names.STATE_IN] = mapped(self._tensor, states)
        with torch.inference_mode():
            out = self._forward(batch, t=num_steps) if self._explore else self._forward(batch)
            given = {name: value for name, value in out.items() if value is not None}
            if states is not None:
                given = {name: value if name == Names.STATE_OUT else _at_once(value) for name, value in given.items()}
            if Names.ACTIONS not in given:
                self._choose(given)
        return {name: _numpy(value) for name, value in given.items()}

    def _choose(self, given: dict[str, Any]) -> None:
        inputs = given[Names.ACTION_DIST_INPUTS]
        if self._heads is not None:
            rows = inputs.cpu().numpy()
            given[Names.ACTIONS], given[Names.ACTION_LOGP] = self._heads.sample(rows, self._explore)
            given[Names.ACTION_DIST_INPUTS] = rows
            return
        dist = self._dist_class.from_logits(inputs)
        dist = dist if self._explore else dist.to_deterministic()
        given[Names.ACTIONS] = dist.sample()
        given[Names.ACTION_LOGP] = dist.logp(given[Names.ACTIONS])

    def _tensor(self, array: Array) -> torch.Tensor:
        tensor = torch.from_numpy(learnable(array))
        return tensor if self._device.type == "cpu" else tensor.to(self._device)


class EpsilonGreedy:
    """`forward_exploration` of RLlib's DQN module, drawn in numpy, which takes a tenth of the time.

    Args:
        module: RLlib's own; one that explores in another way is asked itself.
    """

    def __init__(self, module: Any) -> None:
        self._module = module

    def __call__(self, batch: dict[str, Any], t: int) -> dict[str, Any]:
        """Actions for N observations.

        Args:
            batch: `obs`, and `state_in` of a module with memory.
            t: Environment steps so far; epsilon depends on it.
        """
        given = self._module.compute_q_values(batch)
        values = given[QF_PREDS].cpu().numpy()
        actions = values.argmax(axis=-1)
        schedule = self._module.epsilon_schedule
        schedule.update(t)
        is_random = np.random.random_sample(actions.shape) < float(schedule.get_current_value())
        if is_random.any():
            actions[is_random] = np.random.randint(values.shape[-1], size=int(is_random.sum()))
        chosen = {Names.ACTIONS: actions}
        return chosen | ({Names.STATE_OUT: given[Names.STATE_OUT]} if Names.STATE_OUT in given else {})


class ActionMapping:
    """What the sims are sent: RLlib's unsquashing or clipping, for a whole batch.

    Args:
        space: The action space of one sim.
        normalize: Bounded numbers are meant as -1 to 1 and stretched to the bounds (`normalize_actions`).
        clip: Numbers are cut off at the bounds (`clip_actions`).
    """

    def __init__(self, space: gym.Space[Any], *, normalize: bool, clip: bool) -> None:
        self._functions = _functions(space, normalize, clip)

    def __call__(self, actions: Columns) -> Columns:
        """Actions of the module, as columns, to those of the sims; the given arrays stay as they are."""
        if isinstance(self._functions, dict):
            return {key: self._functions[key](part) for key, part in actions.items()}
        return self._functions(actions)


def _functions(space: gym.Space[Any], normalize: bool, clip: bool) -> Any:
    if isinstance(space, gym.spaces.Dict):
        return {key: _functions(part, normalize, clip) for key, part in space.spaces.items()}
    if not isinstance(space, gym.spaces.Box):
        return _same
    return _unsquashing(space) if normalize else _clipping(space) if clip else _same


def _unsquashing(space: gym.spaces.Box) -> Callable[[Array], Array]:
    """As `ray.rllib.utils.spaces.space_utils.unsquash_action`: a Box with any open side is left alone."""
    low, high = space.low, space.high
    if not (space.bounded_below.all() and space.bounded_above.all()):
        return _same
    if np.issubdtype(space.dtype, np.integer):
        return lambda actions: low + actions
    return lambda actions: np.clip(low + (actions + 1.0) * (high - low) / 2.0, low, high)


def _clipping(space: gym.spaces.Box) -> Callable[[Array], Array]:
    return lambda actions: np.clip(actions, space.low, space.high)


def _same(actions: Array) -> Array:
    return actions


def _at_once(value: Any) -> Any:
    """Rows (N, 1, ...) of one step without their time dimension."""
    return mapped(lambda rows: rows[:, 0], value)


def _numpy(value: Any) -> Columns:
    if isinstance(value, dict):
        return {key: _numpy(part) for key, part in value.items()}
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
