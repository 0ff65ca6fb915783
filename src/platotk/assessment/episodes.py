"""Plays whole episodes of a sim with a policy.

`play` is given a policy, some sims and the starts (seed and options of each episode) and gives back one row per
episode. As many episodes run side by side as there are sims, with one forward pass for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..agents.policy import Policy
from ..errors import SimError
from ..sims.encoding import MASK_KEY
from ..sims.inline import printed
from ..sims.process import SimFailure
from ..sims.supervised import SupervisedSim


@dataclass(frozen=True)
class Start:
    """How an episode begins: what the sim's `reset` is given."""

    seed: int
    options: dict[str, Any] | None = None


@dataclass(frozen=True)
class Episode:
    """One played episode; `return_` is the undiscounted sum of rewards, `failure` why the sim broke off (or None)."""

    episode: int
    seed: int
    options: dict[str, Any] | None
    return_: float
    length: int
    terminated: bool
    truncated: bool
    failure: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The row, with the key `return`."""
        row = asdict(self)
        row["return"] = row.pop("return_")
        return row


def starts(num_episodes: int, seed: int, options: Sequence[dict[str, Any]] | None = None) -> list[Start]:
    """The starts of an assessment: the same seed gives the same starts, for every policy.

    Args:
        num_episodes: How many episodes.
        seed: Entropy of the episodes' seeds.
        options: Reset options, taken in turn, or None.
    """
    seeds = np.random.default_rng(np.random.SeedSequence([seed, 1])).integers(2**31, size=num_episodes)
    return [
        Start(int(episode_seed), None if not options else options[index % len(options)])
        for index, episode_seed in enumerate(seeds)
    ]


def play(
    policy: Policy,
    sims: Sequence[SupervisedSim],
    episodes: Iterable[Start],
    *,
    mask_from_info: bool = False,
    time_limit_s: float | None = None,
    on_episode: Callable[[Episode], None] | None = None,
) -> list[Episode]:
    """Play every start once; rows come back in the order of the starts.

    Args:
        policy: Acts greedily.
        sims: Episodes run side by side, one per sim.
        episodes: The starts.
        mask_from_info: Hand `info["action_mask"]` to the policy.
        time_limit_s: Stop early after this many seconds, with the rows there are.
        on_episode: Called with each finished row.
    """
    queue = list(enumerate(episodes))[::-1]
    deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
    sessions = policy.sessions(len(sims))
    playing: dict[int, _Playing] = {}
    done: list[Episode] = []

    def begin(row: int) -> None:
        playing.pop(row, None)
        if queue:
            number, start = queue.pop()
            sessions.reset(row)
            playing[row] = _Playing(number, start, *sims[row].reset(seed=start.seed, options=start.options))

    with printed.capture():
        for row in range(len(sims)):
            begin(row)
        while playing and (deadline is None or time.monotonic() < deadline):
            try:
                actions = _act(sessions, playing, mask_from_info)
            except SimError:
                for row in _refused(policy, playing, mask_from_info, sims):
                    done.append(playing[row].finish(False, True, sims[row].failure))
                    begin(row)
                continue
            for row, action in actions.items():
                sims[row].send(action)
            for row in actions:
                observation, reward, terminated, truncated, info = sims[row].receive()
                current, failure = playing[row], sims[row].failure
                if failure is None:
                    current.add(observation, reward, info)
                if terminated or truncated:
                    episode = current.finish(terminated, truncated, failure)
                    done.append(episode)
                    if on_episode is not None:
                        on_episode(episode)
                    begin(row)
    return sorted(done, key=lambda episode: episode.episode)


class _Playing:
    """An episode under way."""

    def __init__(self, number: int, start: Start, observation: Any, info: dict[str, Any]) -> None:
        self.number, self.start, self.observation, self.info = number, start, observation, info
        self.return_, self.length = 0.0, 0

    def add(self, observation: Any, reward: float, info: dict[str, Any]) -> None:
        self.observation, self.info = observation, info
        self.return_ += reward
        self.length += 1

    def finish(self, terminated: bool, truncated: bool, failure: SimFailure | None) -> Episode:
        return Episode(
            self.number,
            self.start.seed,
            self.start.options,
            self.return_,
            self.length,
            terminated,
            truncated,
            None if failure is None else failure.reason,
        )


def _act(sessions: Any, playing: dict[int, _Playing], mask_from_info: bool) -> dict[int, Any]:
    masks = {row: current.info.get(MASK_KEY) for row, current in playing.items()} if mask_from_info else None
    return dict(sessions.act({row: current.observation for row, current in playing.items()}, masks=masks))


def _refused(
    policy: Policy, playing: dict[int, _Playing], mask_from_info: bool, sims: Sequence[SupervisedSim]
) -> list[int]:
    """The rows whose observation the policy refuses; their sims are counted as failed."""
    rows = []
    for row, current in playing.items():
        mask = current.info.get(MASK_KEY) if mask_from_info else None
        try:
            policy.session().act(current.observation, mask=mask)
        except SimError as error:
            sims[row].fail(SimFailure(error.message))
            rows.append(row)
    return rows
