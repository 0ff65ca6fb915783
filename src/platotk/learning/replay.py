"""The content of a replay buffer as plain data, and back.

RLlib leaves replay buffers out of its checkpoints. Given one of its episode buffers (uniform, prioritised
or multi-agent), or the engine's, this gives back a state of plain data, and makes a buffer of it again;
episodes come back with their columns, priorities and order of eviction as they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

MAX_REPLAY_BYTES = 512 * 1024**2
"""A larger replay buffer is not kept in checkpoints: writing it every few iterations would cost too much."""

COLUMNS = ("observations", "actions", "rewards", "infos")
PLAIN = (
    "id_",
    "agent_id",
    "module_id",
    "multi_agent_episode_id",
    "is_terminated",
    "is_truncated",
    "t_started",
    "t",
    "_start_time",
    "_last_step_time",
)


def find_buffers(algo: Any) -> dict[str, Any]:
    """The algorithm's episode replay buffers by attribute name; empty for on-policy algorithms."""
    from ray.rllib.utils.replay_buffers.episode_replay_buffer import EpisodeReplayBuffer

    found = {name: getattr(algo, name, None) for name in ("local_replay_buffer", "replay_buffer")}
    return {name: buffer for name, buffer in found.items() if isinstance(buffer, EpisodeReplayBuffer)}


def num_bytes(buffer: Any) -> int:
    """What the episodes of a buffer take, in bytes, give or take the bookkeeping."""
    if _is_columns(buffer):
        return int(buffer.num_bytes())
    return sum(_size(episode) for episode in buffer.episodes)


def buffer_state(buffer: Any) -> dict[str, Any]:
    """All of a buffer as nested data: episodes, indices, priorities, counters, random generator."""
    if _is_columns(buffer) or _is_multi_agent(buffer):
        state: dict[str, Any] = buffer.get_state()
    else:
        spaces = _Spaces()
        # RLlib's own episode state repeats both spaces in each episode, and again in each column.
        episodes = buffer.episodes
        try:
            buffer.episodes = ()
            state = buffer.get_state()
        finally:
            buffer.episodes = episodes
        state["episodes"] = [_episode_state(episode, spaces) for episode in episodes]
        state["spaces"] = [_space_to_dict(space) for space in spaces.different]
    state["class"] = type(buffer).__name__
    state["rng"] = buffer.rng.bit_generator.state
    return state


def set_buffer_state(buffer: Any, state: dict[str, Any]) -> None:
    """Make a buffer what it was when `buffer_state` was called.

    Raises:
        ValueError: It is another kind of buffer, or a smaller one, than the saved one.
    """
    state = dict(state)
    kind, rng = state.pop("class"), state.pop("rng")
    if kind != type(buffer).__name__:
        raise ValueError(f"it was a {kind} and is a {type(buffer).__name__} now")
    if "_sum_segment" in state and len(state["_sum_segment"]) != 2 * buffer._sum_segment.capacity:
        raise ValueError("its capacity has changed")
    if _is_columns(buffer):
        buffer.set_state(state)
    elif not _is_multi_agent(buffer):
        spaces = [_space_from_dict(space) for space in state.pop("spaces")]
        episodes = [_episode(saved, spaces) for saved in state.pop("episodes")]
        # A buffer that has episodes already keeps them in RLlib's set_state(), beside the saved indices.
        buffer.episodes.clear()
        buffer.episodes.extend(episodes)
        state["episodes"] = []
        buffer.set_state({**state, "episodes": []})
    else:
        buffer.episodes.clear()
        buffer.set_state(state)
    buffer.rng.bit_generator.state = rng


def _is_columns(buffer: Any) -> bool:
    """Whether it is the engine's, whose state is plain arrays already."""
    from .engine.replay import ReplayColumns

    return isinstance(buffer, ReplayColumns)


def _is_multi_agent(buffer: Any) -> bool:
    from ray.rllib.utils.replay_buffers.multi_agent_episode_buffer import MultiAgentEpisodeReplayBuffer

    return isinstance(buffer, MultiAgentEpisodeReplayBuffer)


class _Spaces:
    """A table of different spaces: each episode has copies of its own of the same few."""

    def __init__(self) -> None:
        self.different: list[Any] = []
        self._by_bounds: dict[Any, int] = {}

    def index(self, space: Any) -> int | None:
        """The number of a space in the table."""
        if space is None:
            return None
        if isinstance(space, gym.spaces.Box):
            # Box's == compares within a tolerance, and is slow.
            bounds = (space.shape, space.dtype, space.low.tobytes(), space.high.tobytes())
            index = self._by_bounds.setdefault(bounds, len(self.different))
        else:
            known = (index for index, other in enumerate(self.different) if other == space)
            index = next(known, len(self.different))
        if index == len(self.different):
            self.different.append(space)
        return index


def _episode_state(episode: Any, spaces: _Spaces) -> dict[str, Any]:
    columns = {name: _column_state(getattr(episode, name), spaces) for name in COLUMNS}
    outputs = {name: _column_state(column, spaces) for name, column in episode.extra_model_outputs.items()}
    return {
        **{name: getattr(episode, name) for name in PLAIN},
        "columns": columns,
        "outputs": outputs,
        "spaces": (spaces.index(episode.observation_space), spaces.index(episode.action_space)),
        "custom_data": episode.custom_data,
    }


def _episode(saved: dict[str, Any], spaces: list[Any]) -> Any:
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

    state = {
        **{name: saved[name] for name in PLAIN},
        **saved["columns"],
        "extra_model_outputs": saved["outputs"] or None,
        "_observation_space": None,
        "_action_space": None,
        "custom_data": saved["custom_data"],
    }
    episode = SingleAgentEpisode.from_state(state)
    observation, action = saved["spaces"]
    episode._observation_space = None if observation is None else spaces[observation]
    episode._action_space = None if action is None else spaces[action]
    columns = {**{name: getattr(episode, name) for name in COLUMNS}, **episode.extra_model_outputs}
    for name, column in {**saved["columns"], **saved["outputs"]}.items():
        if column["space_index"] is not None:
            columns[name].space = spaces[column["space_index"]]
    return episode


def _column_state(column: Any, spaces: _Spaces) -> dict[str, Any]:
    return {
        "data": column.data,
        "lookback": column.lookback,
        "finalized": column.finalized,
        "space": None,
        "space_index": spaces.index(column.space),
    }


def _space_to_dict(space: Any) -> Any:
    from ray.rllib.utils.serialization import gym_space_to_dict

    return gym_space_to_dict(space)


def _space_from_dict(data: Any) -> Any:
    from ray.rllib.utils.serialization import gym_space_from_dict

    return gym_space_from_dict(data)


def _size(episode: Any) -> int:
    """Bytes of one episode's columns; of a multi-agent one, of all its agents'."""
    if hasattr(episode, "agent_episodes"):
        return sum(_size(agent_episode) for agent_episode in episode.agent_episodes.values())
    columns = [episode.observations, episode.actions, episode.rewards, *episode.extra_model_outputs.values()]
    return sum(_column_size(column) for column in columns)


def _column_size(column: Any) -> int:
    if column.finalized:
        return sum(np.asarray(leaf).nbytes for leaf in _leaves(column.data))
    first = column.data[0] if column.data else None
    return len(column.data) * sum(np.asarray(leaf).nbytes for leaf in _leaves(first))


def _leaves(data: Any) -> Iterator[Any]:
    import tree  # type: ignore[import-untyped,unused-ignore]

    yield from tree.flatten(data)
