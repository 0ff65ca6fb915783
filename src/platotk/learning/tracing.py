"""A trained module and everything RLlib does around it, as one torch module that can be traced.

Given a restored policy, `PolicyNetwork` takes an encoded observation (and the memory, for recurrent policies) and gives
the greedy encoded action: frame stack, frozen observation filter in float64, the module's own inference forward, the
deterministic action of its own distribution, clip. What cannot be folded into one graph is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from ray.rllib.algorithms.dqn.default_dqn_rl_module import QF_PREDS, DefaultDQNRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import CRITIC, ENCODER_OUT, ActorCriticEncoder, StatefulActorCriticEncoder
from torch import Tensor

from ..errors import AgentError
from .encoders import MASK
from .filters import FrozenFilter, NumericFilter
from .masking import MaskedQ, categorical_slice
from .policies import RLlibPolicy

VECTOR = "vector"


class PolicyNetwork(torch.nn.Module):
    """The greedy policy as one graph.

    Attributes:
        parts: Names of the parts of an observation, in the order of the inputs.
        input_names: Names of the inputs, in order: observation parts, then the memory.
        output_names: Names of the outputs, in order: action parts, then the memory.
        state: (input name, output name, shape without the batch) of each tensor of the memory.
    """

    filter_mean: Tensor
    filter_gain: Tensor
    filter_on: Tensor

    def __init__(self, policy: RLlibPolicy) -> None:
        super().__init__()
        self.module = policy.module
        self._space = policy.adapter.encoded_action_space
        observation_space = policy.adapter.frame_space
        self._is_dict = isinstance(observation_space, spaces.Dict)
        self.parts = list(observation_space.spaces) if isinstance(observation_space, spaces.Dict) else [VECTOR]
        self._add_filter(_filter_of(policy))
        self._is_q = isinstance(self.module, DefaultDQNRLModule)
        self._distribution = None if self._is_q else self.module.get_inference_action_dist_cls()
        self._categorical = None if isinstance(self._space, spaces.Box) else categorical_slice(self._space)
        self._stack = _Stack(policy.adapter.frame_stack, observation_space)
        memory = _memory(self.module) if self.module.is_stateful() else []
        self._state_paths = [path for path, _ in memory]
        self._unused_state = [entry for entry in memory if entry[0][0] == CRITIC and _has_critic(self.module)]
        self._is_recurrent = bool(memory)
        self.state = self._stack.state + [
            (f"{'_'.join(path)}_in", f"{'_'.join(path)}_out", shape)
            for path, shape in memory
            if (path, shape) not in self._unused_state
        ]
        self.actions = (
            ["continuous", "discrete"]
            if isinstance(self._space, spaces.Dict)
            else ["continuous" if isinstance(self._space, spaces.Box) else "discrete"]
        )
        self.input_names = [*self.parts, *(entry[0] for entry in self.state)]
        self.output_names = [*self.actions, *(entry[1] for entry in self.state)]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Action parts, then the memory after this step; every tensor has a leading batch axis."""
        scores, state = self.scores(*inputs)
        return (*self._greedy(scores), *state)

    def scores(self, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Distribution inputs (or Q-values) (B, k), and the memory after this step."""
        parts, frames = self._stack.push(dict(zip(self.parts, inputs, strict=False)), inputs[len(self.parts) :])
        if VECTOR in parts:
            parts[VECTOR] = self._filtered(parts[VECTOR])
        batch: dict[str, Any] = {}
        if self._is_recurrent:  # recurrent modules want a time axis
            parts = {name: value.unsqueeze(1) for name, value in parts.items()}
            batch[Columns.STATE_IN] = self._state_in(inputs)
        batch[Columns.OBS] = parts if self._is_dict else parts[VECTOR]
        output = self._q_values(batch) if self._is_q else self.module._forward_inference(batch)
        if Columns.ACTION_DIST_INPUTS not in output:
            raise AgentError(
                f"{type(self.module).__name__} gives no '{Columns.ACTION_DIST_INPUTS}' in its inference forward.",
                hint="Return the inputs of the action distribution from _forward_inference; export folds the rest.",
            )
        scores = output[Columns.ACTION_DIST_INPUTS]
        if not self._is_recurrent:
            return scores, frames
        after = dict(_flatten(output[Columns.STATE_OUT]))
        unused = {path for path, _ in self._unused_state}
        return scores.squeeze(1), frames + [after[path] for path in self._state_paths if path not in unused]

    def _state_in(self, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
        """The memory as the module takes it; what only the critic remembers is zero, nothing depends on it."""
        given = iter(inputs[len(self.parts) + len(self._stack.state) :])
        unused = dict(self._unused_state)
        batch = len(inputs[0])
        values = [torch.zeros((batch, *unused[path])) if path in unused else next(given) for path in self._state_paths]
        return _unflatten(self._state_paths, tuple(values))

    def _q_values(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What tells one action's Q-value from another's (B, k), and the memory.

        RLlib's dueling head adds the state's value and takes off the mean advantage, which moves all actions alike (and
        whose nanmean has no ONNX operator): the advantages alone are enough.
        """
        module = self.module
        if not module.uses_dueling or module.num_atoms > 1:
            output = module.compute_q_values(batch)
            return {**output, Columns.ACTION_DIST_INPUTS: output[QF_PREDS]}
        output = module.encoder(batch)
        advantages: Tensor = module.af(output[ENCODER_OUT])
        if isinstance(module, MaskedQ):
            advantages = module._apply_mask(advantages, batch)
        return {**output, Columns.ACTION_DIST_INPUTS: advantages}

    def margins(self, scores: Tensor) -> np.ndarray[Any, Any]:
        """How decided each row is: the smallest gap between the two best values of a choice; inf without choices."""
        if self._categorical is None:
            return np.full(len(scores), np.inf)
        gaps = []
        for part in torch.split(scores[:, self._categorical], self._sizes(), dim=-1):
            if part.shape[-1] > 1:
                best = part.topk(2, dim=-1).values
                gaps.append(torch.nan_to_num(best[:, 0] - best[:, 1], nan=torch.inf, posinf=torch.inf))
        return torch.stack(gaps).min(dim=0).values.double().numpy() if gaps else np.full(len(scores), np.inf)

    def _greedy(self, scores: Tensor) -> list[Tensor]:
        if self._is_q:
            return [scores.argmax(dim=-1)]
        assert self._distribution is not None
        action = self._distribution.from_logits(scores).to_deterministic().sample()
        if isinstance(action, Mapping):
            return [self._clipped(action["continuous"]), action["discrete"].long()]
        return [self._clipped(action)] if self.actions == ["continuous"] else [action.long()]

    def _clipped(self, action: Tensor) -> Tensor:
        """RLlib's unsquash of [-1, 1] to itself is a clip; unbounded encoded actions pass."""
        box: Any = self._space["continuous"] if isinstance(self._space, spaces.Dict) else self._space
        return action.clamp(-1.0, 1.0) if bool(np.isfinite(box.low).all()) else action

    def _sizes(self) -> list[int]:
        space: Any = self._space["discrete"] if isinstance(self._space, spaces.Dict) else self._space
        return [int(space.n)] if isinstance(space, spaces.Discrete) else [int(n) for n in space.nvec]

    def _add_filter(self, frozen: FrozenFilter | None) -> None:
        """The frozen filter, in float64: in float32 a pressure of 101325.3 +- 0.5 would be off by 6e-3."""
        self._has_filter = frozen is not None
        if frozen is None:
            return
        self._clip = frozen.clip
        self.register_buffer("filter_mean", torch.as_tensor(frozen.mean, dtype=torch.float64))
        self.register_buffer("filter_gain", torch.as_tensor(1.0 / (frozen.std + frozen.eps), dtype=torch.float64))
        self.register_buffer("filter_on", torch.as_tensor(frozen.numeric, dtype=torch.bool))

    def _filtered(self, vector: Tensor) -> Tensor:
        if not self._has_filter:
            return vector
        normal = (vector.double() - self.filter_mean) * self.filter_gain
        if self._clip is not None:
            normal = normal.clamp(-self._clip, self._clip)
        return torch.where(self.filter_on, normal.float(), vector)


class _Stack:
    """The frame stack (`spaces.frames`) with its frames as memory, which is zero at an episode's start.

    Attributes:
        state: As in `PolicyNetwork`: whether there were frames at all, then the frames of each part but the newest.
    """

    def __init__(self, num_frames: int, space: Any) -> None:
        boxes: dict[str, Any] = dict(space.spaces) if isinstance(space, spaces.Dict) else {VECTOR: space}
        self._past = num_frames - 1
        self._parts = [name for name in boxes if name != MASK] if self._past else []
        shapes = [(self._past * boxes[name].shape[0], *boxes[name].shape[1:]) for name in self._parts]
        memory = [("any", (1,)), *zip(self._parts, shapes, strict=True)] if self._past else []
        self.state = [(f"frames_{name}_in", f"frames_{name}_out", shape) for name, shape in memory]

    def push(self, parts: dict[str, Tensor], memory: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """What the network sees of the newest observation, and the frames to remember."""
        if not self._past:
            return parts, []
        is_later, after = memory[0], [torch.ones_like(memory[0])]
        seen = dict(parts)
        for name, held in zip(self._parts, memory[1:], strict=False):
            newest = parts[name]
            repeated = torch.cat([newest] * self._past, dim=1)
            flags = is_later.reshape(-1, *[1] * (newest.dim() - 1)) > 0.5
            past = torch.where(flags, held.to(newest.dtype), repeated)
            seen[name] = torch.cat([past, newest], dim=1)
            after.append(seen[name][:, newest.shape[1] :].to(held.dtype))
        return seen, after


def _filter_of(policy: RLlibPolicy) -> FrozenFilter | None:
    """What the observation filter has learned.

    Raises:
        AgentError: A connector that is neither RLlib's default nor ours.
    """
    found = None
    for piece in policy.env_to_module.connectors:
        if isinstance(piece, NumericFilter):
            found = piece.frozen()
        elif not _is_rllibs(piece, DEFAULTS):
            raise _cannot_fold(piece)
    for piece in policy.module_to_env.connectors:
        if not _is_rllibs(piece, DEFAULTS_TO_ENV):
            raise _cannot_fold(piece)
    return found


DEFAULTS = frozenset(
    {
        "AddObservationsFromEpisodesToBatch",
        "AddTimeDimToBatchAndZeroPad",
        "AddStatesFromEpisodesToBatch",
        "AgentToModuleMapping",
        "BatchIndividualItems",
        "NumpyToTensor",
    }
)
"""RLlib's own pieces that only bring an observation into batch form."""
DEFAULTS_TO_ENV = frozenset(
    {
        "GetActions",
        "TensorToNumpy",
        "UnBatchToIndividualItems",
        "RemoveSingleTsTimeRankFromBatch",
        "NormalizeAndClipActions",
        "ListifyDataForVectorEnv",
    }
)
"""RLlib's own pieces that take the greedy action, and clip it."""


def _is_rllibs(piece: Any, names: frozenset[str]) -> bool:
    return type(piece).__module__.startswith("ray.rllib.connectors.") and type(piece).__name__ in names


def _cannot_fold(piece: Any) -> AgentError:
    return AgentError(
        f"the connector {type(piece).__name__} cannot be folded into an agent.",
        hint="Move what it does into the sim (or a wrapper around it), train again, and export.",
    )


def _memory(module: Any) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Path and shape of each tensor that a module remembers.

    Raises:
        AgentError: An episode begins with a memory that is not zero.
    """
    leaves = _flatten(module.get_initial_state())
    for path, value in leaves:
        if np.any(np.asarray(value)):
            raise AgentError(
                f"{type(module).__name__} begins an episode with the memory {'.'.join(path)} other than zero.",
                hint="Let get_initial_state return zeros, and add what they should be in _forward_inference.",
            )
    return [(path, tuple(int(n) for n in np.shape(value))) for path, value in leaves]


def _has_critic(module: Any) -> bool:
    """Whether the module is RLlib's pair of an actor's and a critic's encoder, each with a memory of its own."""
    encoder = getattr(module, "encoder", None)
    return isinstance(encoder, ActorCriticEncoder | StatefulActorCriticEncoder) and not encoder.config.shared


def _flatten(state: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(state, Mapping):
        return [leaf for key in sorted(state) for leaf in _flatten(state[key], (*path, str(key)))]
    return [(path, state)]


def _unflatten(paths: list[tuple[str, ...]], values: tuple[Tensor, ...]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in zip(paths, values, strict=True):
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree
