"""Episode bookkeeping of the engine's env runner: what metrics need, and RLlib's episodes where callbacks ask for them.

`EpisodeCounter` adds up returns, lengths and durations of N sims at once. `EpisodeMirror` is only made when the project
has episode callbacks: it keeps RLlib's own `SingleAgentEpisode`s in step with what is sampled, as RLlib's runner does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from .columns import Array, Columns, taken

EPISODE_EVENTS = ("on_episode_created", "on_episode_start", "on_episode_step", "on_episode_end")


class EpisodeCounter:
    """Return, length and duration of the episode under way in each of N sims."""

    def __init__(self, num_sims: int) -> None:
        self._returns = np.zeros(num_sims)
        self._lengths = np.zeros(num_sims, dtype=np.int64)
        self._began = np.zeros(num_sims)
        self.finished: list[tuple[int, float, float]] = []
        """Length, return and seconds of the episodes that ended, oldest first."""

    @property
    def num_steps(self) -> int:
        """Steps so far of the episodes under way."""
        return int(self._lengths.sum())

    def restart(self) -> None:
        """All sims begin new episodes; those that are finished stay counted."""
        self._returns[:], self._lengths[:] = 0.0, 0
        self._began[:] = time.perf_counter()

    def add(
        self,
        was_step: NDArray[np.bool_],
        rewards: Array,
        is_done: NDArray[np.bool_],
        sims: NDArray[np.int64] | None = None,
    ) -> None:
        """Take in a vector step of all sims, or of those that are given."""
        rows = slice(None) if sims is None else sims
        self._returns[rows] += np.where(was_step, rewards, 0.0)
        self._lengths[rows] += was_step
        if was_step.all() and not is_done.any():
            return
        sims = np.arange(len(self._returns)) if sims is None else sims
        now = time.perf_counter()
        self._began[sims[~was_step]] = now
        ended = sims[is_done]
        for sim in ended:
            self.finished.append((int(self._lengths[sim]), float(self._returns[sim]), now - self._began[sim]))
        self._returns[ended], self._lengths[ended] = 0.0, 0

    def taken(self) -> list[tuple[int, float, float]]:
        """The finished episodes, which are then forgotten."""
        finished, self.finished = self.finished, []
        return finished


def has_episode_callbacks(config: Any) -> bool:
    """Whether anything is to be told of single episodes or steps."""
    return any(getattr(config, f"callbacks_{event}", None) or overrides(config, event) for event in EPISODE_EVENTS)


def overrides(config: Any, event: str) -> bool:
    """Whether a config's callbacks class (or one of several) has a method of its own for an event."""
    classes = config.callbacks_class
    classes = classes if isinstance(classes, (list, tuple)) else [classes]
    return any(getattr(one, event, None) is not getattr(RLlibCallback, event) for one in classes)


class EpisodeMirror:
    """RLlib's episodes of an env runner, in step with the sims, and the callbacks that see them.

    Args:
        runner: The env runner; its `_ongoing_episodes` are those of RLlib's runner.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def restart(self, observations: Columns, infos: list[dict[str, Any]]) -> None:
        """All sims begin new episodes."""
        runner = self._runner
        runner._ongoing_episodes = [None] * runner.num_envs
        runner._ongoing_episodes_for_metrics.clear()
        for sim in range(runner.num_envs):
            runner._new_episode(sim)
        for sim, episode in enumerate(runner._ongoing_episodes):
            episode.add_env_reset(observation=taken(observations, sim), infos=infos[sim])
        for sim in range(runner.num_envs):
            runner._make_on_episode_callback("on_episode_start", sim, runner._ongoing_episodes)

    def add(
        self,
        was_step: NDArray[np.bool_],
        chosen: Mapping[str, Columns],
        rewards: Array,
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        observations: Columns,
        infos: list[dict[str, Any]],
    ) -> None:
        """Take in a vector step; each episode's callbacks come after all episodes have grown, as in RLlib."""
        runner = self._runner
        episodes = runner._ongoing_episodes
        for sim, episode in enumerate(episodes):
            row = {name: taken(column, sim) for name, column in chosen.items()}
            if not was_step[sim]:
                episode.add_env_reset(observation=taken(observations, sim), infos=infos[sim])
                continue
            episode.add_env_step(
                observation=taken(observations, sim),
                action=row.pop("actions"),
                reward=rewards[sim],
                infos=infos[sim],
                terminated=bool(terminated[sim]),
                truncated=bool(truncated[sim]),
                extra_model_outputs={**row, WEIGHTS_SEQ_NO: runner._weights_seq_no},
            )
        for sim in range(runner.num_envs):
            event = "on_episode_step" if was_step[sim] else "on_episode_start"
            runner._make_on_episode_callback(event, sim, episodes)
            if episodes[sim].is_done:
                runner._make_on_episode_callback("on_episode_end", sim, episodes)
                runner._ongoing_episodes_for_metrics.pop(episodes[sim].id_, None)
                runner._new_episode(sim, episodes)

    def cut(self) -> None:
        """The end of a sample: episodes under way go on in a new chunk, the old ones are kept for `on_episode_end`."""
        runner = self._runner
        chunks = runner._ongoing_episodes
        lookback = runner.config.episode_lookback_horizon
        runner._ongoing_episodes = [chunk.cut(len_lookback_buffer=lookback) for chunk in chunks]
        for chunk in chunks:
            if chunk.t > 0:
                runner._ongoing_episodes_for_metrics[chunk.id_].append(chunk)
