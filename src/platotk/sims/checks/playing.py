"""Playing random episodes: what reset() and step() return, and what episodes and rewards look like.

`play` is the longest phase of a check. It goes on after every problem that can be gone on after: an old
four-value step is understood, an episode whose step raised is given up and the sim made anew, as training
does.
"""

from __future__ import annotations

import pickle
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import SimError
from .observing import Observed
from .trial import RAISED, Actions, Trial

MAX_RAISED = 20
LONG_EPISODE = 20


class Failed(Exception):
    """The episode cannot go on: a call raised, or returned what cannot be understood (already counted)."""


@dataclass
class Episode:
    """One episode: length, return, and its end: terminated, truncated, limit, or empty when broken off."""

    length: int = 0
    return_: float = 0.0
    end: str = ""


@dataclass
class Played:
    """What random play has shown.

    Attributes:
        episodes: Whole episodes, and those broken off at the project's step limit.
        rewards: All rewards that are numbers.
        num_steps: Steps played.
        seconds: How long it took.
        is_cut: Whether time ran out before the steps were played.
        needs_seed: Whether the sim is new, so that its first reset is to be seeded.
    """

    episodes: list[Episode] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    num_steps: int = 0
    seconds: float = 0.0
    is_cut: bool = False
    needs_seed: bool = True


def play(trial: Trial, *, num_steps: int, budget_s: float) -> Played:
    """Play random episodes, look at everything, and report."""
    played = Played()
    observed = Observed(trial, trial.sim.observation_space)
    actions = Actions(trial)
    began = time.perf_counter()
    first_step = trial.num_steps
    while trial.num_steps - first_step < num_steps and not played.is_cut:
        episode = Episode()
        try:
            _play_episode(trial, played, episode, observed, actions, first_step + num_steps, began + budget_s)
        except Failed:
            if not episode.length and trial.num_raised >= 3:
                break  # it cannot even begin
            if trial.num_raised > MAX_RAISED or not _renew(trial):
                break
            played.needs_seed = True
        if episode.end:
            played.episodes.append(episode)
        played.is_cut |= time.perf_counter() - began > budget_s
    played.num_steps = trial.num_steps - first_step
    played.seconds = time.perf_counter() - began
    observed.conclude()
    trial.report_counted()
    judge(trial, played)
    return played


def _play_episode(
    trial: Trial,
    played: Played,
    episode: Episode,
    observed: Observed,
    actions: Actions,
    last_step: int,
    deadline: float,
) -> None:
    # A sim made anew after a failure gets a fresh seed, or it would fail at the same step for ever.
    obs, info = reset(trial, trial.sim, seed=1 + trial.num_raised if played.needs_seed else None)
    played.needs_seed = False
    _see(trial, observed, obs, info, is_reset=True)
    limit = trial.request.max_episode_steps
    while trial.num_steps < last_step and time.perf_counter() < deadline:
        try:
            action = actions.sample(obs, info)
        except (SimError, KeyError, TypeError) as error:
            message = error.message if isinstance(error, SimError) else f"no action mask was found: {error!r}"
            trial.count("mask-invalid", "", message, where=trial.places.returns("step"))
            raise Failed from None
        obs, reward, terminated, truncated, info = step(trial, trial.sim, action)
        episode.length += 1
        if reward is not None:
            episode.return_ += reward
            played.rewards.append(reward)
        _see(trial, observed, obs, info, is_reset=False)
        if terminated or truncated:
            episode.end = "terminated" if terminated else "truncated"
            return
        if limit is not None and episode.length >= limit:
            episode.end = "limit"
            return
    played.is_cut |= trial.num_steps < last_step


def reset(trial: Trial, sim: Any, *, seed: int | None = None) -> tuple[Any, Any]:
    """Reset a sim; the observation and info, whatever form they come in.

    Raises:
        Failed: It raised.
    """
    try:
        value = trial.reset(sim, seed=seed)
    except RAISED as error:
        trial.raised("reset()", error)
        raise Failed from None
    where = trial.places.returns("reset")
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict):
        return value
    if isinstance(value, tuple) and len(value) == 2 and not _is_tuple_space(sim):
        message = f"reset() returns {_names(value)}; the second must be the info dict"
        trial.count("info-type", "reset", message, where=where, cure="return obs, {}")
        return value[0], {}
    if not isinstance(value, tuple) or _is_tuple_space(sim):
        is_observation = _is_in(sim, value) or not isinstance(value, tuple)
        if is_observation and value is not None:
            message = f"reset() returns the observation alone ({type(value).__name__}), without info"
            trial.count("old-gym-reset", "", message, where=where)
            return value, {}
    message = f"reset() returns {_names(value)}; it must return (observation, info)"
    trial.count("reset-return", "", message, where=where)
    if isinstance(value, tuple) and value:
        return value[0], {}
    raise Failed


def step(trial: Trial, sim: Any, action: Any) -> tuple[Any, float | None, bool, bool, Any]:
    """Step a sim; its five values, whatever form they come in. The reward is None when it is no number.

    Raises:
        Failed: It raised, or returned what cannot be understood.
    """
    try:
        value = trial.step(sim, action)
    except RAISED as error:
        trial.raised("step()", error)
        raise Failed from None
    where = trial.places.returns("step")
    if isinstance(value, (tuple, list)) and len(value) == 4:
        message = "step() returns four values (observation, reward, done, info), as old gym did"
        trial.count("old-gym-step", "", message, where=where)
        obs, reward, done, info = value
        value = (obs, reward, done, False, info)
    if not isinstance(value, (tuple, list)) or len(value) != 5:
        what = f"{len(value)} values" if isinstance(value, (tuple, list)) else type(value).__name__
        message = f"step() returns {what}; it must return five (observation, reward, terminated, truncated, info)"
        trial.count("step-return", "", message, where=where)
        raise Failed
    if not isinstance(value, tuple):
        trial.count("step-return", "", "step() returns a list of five; it must be a tuple", where=where)
    obs, reward, terminated, truncated, info = value
    if not isinstance(info, dict):
        trial.count("info-type", "step", f"step(): info is {info!r:.60}, not a dict", where=where)
    ends = _flag(trial, "terminated", terminated, where), _flag(trial, "truncated", truncated, where)
    return obs, _reward(trial, reward, where), *ends, info


def _reward(trial: Trial, reward: Any, where: str | None) -> float | None:
    try:
        array = np.asarray(reward, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.asarray([])
    if array.size != 1:
        message = f"the reward is {reward!r:.80} ({type(reward).__name__}), not one number"
        trial.count("reward-type", "", message, where=where)
        return None
    if array.ndim:
        message = f"the reward is an array of shape {array.shape}, not a number"
        cure = "reward = float(reward.item())"
        trial.count("reward-type", "", message, where=where, cure=cure, severity="warning")
    value = float(array.reshape(()))
    if not np.isfinite(value):
        trial.count("reward-not-finite", "", f"the reward is {value}", where=where)
        return None
    return value


def _flag(trial: Trial, name: str, value: Any, where: str | None) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    trial.count("flag-type", name, f"{name} is {value!r:.60} ({type(value).__name__}), not a bool", where=where)
    try:
        return bool(value)
    except (TypeError, ValueError):
        return False


def _see(trial: Trial, observed: Observed, obs: Any, info: Any, *, is_reset: bool) -> None:
    """Look at an observation; and see that the adapter takes it, and that it can travel between processes."""
    where = trial.places.returns("reset" if is_reset else "step")
    is_usable = observed.see(obs, is_reset=is_reset)
    adapter = trial.adapter
    if is_usable and adapter is not None:
        try:
            mask = info.get("action_mask") if adapter.mask_source == "info" and isinstance(info, dict) else None
            adapter.encode(obs, mask)
        except SimError as error:
            if "mask" not in error.message:  # that, the next action tells
                trial.count("observation-refused", error.message, error.message, where=where, cure=error.hint)
    if observed.num_seen <= 3 or observed.num_seen % 100 == 0:
        try:
            pickle.dumps((obs, info))
        except Exception as error:
            culprit = _unpicklable_part(info) if isinstance(info, dict) else "the observation"
            message = f"{culprit} cannot be pickled: {error}"
            trial.count("info-unpicklable", culprit, message, where=where)


def _unpicklable_part(info: dict[Any, Any]) -> str:
    for key, value in info.items():
        try:
            pickle.dumps(value)
        except Exception:
            return f"info[{key!r}]"
    return "the observation"


def _renew(trial: Trial) -> bool:
    """Make the sim anew after a failure, as training does; False when that fails too."""
    try:
        trial.sim = trial.make()
    except RAISED as error:
        trial.raised("the constructor", error)
        return False
    return True


def judge(trial: Trial, played: Played) -> None:
    """Report what episodes and rewards look like over all of random play."""
    _judge_lengths(trial, played)
    _judge_rewards(trial, played)


def _judge_lengths(trial: Trial, played: Played) -> None:
    whole = [one for one in played.episodes if one.end != "limit"]
    terminated = Counter(one.length for one in whole if one.end == "terminated")
    longest, number = max(terminated.items(), default=(0, 0))
    total = sum(terminated.values())
    if longest >= LONG_EPISODE and number >= 3 and number >= 0.3 * len(whole):
        message = f"{number} of {total} terminated episodes ended after exactly {longest:,} steps, none later"
        trial.found("time-limit-terminated", message, where=trial.places.returns("step"))
    if len(whole) >= 10 and all(one.length == 1 for one in whole):
        message = f"all {len(whole):,} episodes ended at their first step"
        trial.found("ends-at-once", message, where=trial.places.returns("step"))
    limit = trial.request.max_episode_steps
    if whole or played.num_steps < (limit or 1000):
        return
    where = trial.places.returns("step")
    if limit is None:
        message = f"no episode ended within {played.num_steps:,} random steps, and max_episode_steps is null"
        trial.found("never-ends", message, where=where)
    else:
        message = f"no episode ended by itself within {limit:,} random steps; training truncates it there"
        is_given = trial.request.is_limit_given
        trial.found("never-ends", message, where=where, severity="note" if is_given else "warning")


def _judge_rewards(trial: Trial, played: Played) -> None:
    where = trial.places.returns("step")
    if len(played.rewards) >= 50:
        lowest, highest = min(played.rewards), max(played.rewards)
        lengths = {one.length for one in played.episodes}
        # One reward per step is a fine goal when episodes differ in length (CartPole).
        if lowest == highest and len(lengths) <= 1:
            message = f"every reward of {len(played.rewards):,} random steps was {lowest:g}"
            trial.found("reward-constant", message, where=where)
            return
        largest = max(abs(lowest), abs(highest))
        if largest > 1e4 or 0 < largest < 1e-4:
            returns = [abs(one.return_) for one in played.episodes]
            mean = f", the mean return {np.mean(returns):.3g} in size" if returns else ""
            message = f"rewards lie between {lowest:.3g} and {highest:.3g}{mean}"
            trial.found("reward-scale", message, where=where)


def _is_tuple_space(sim: Any) -> bool:
    return type(sim.observation_space).__name__ == "Tuple"


def _is_in(sim: Any, obs: Any) -> bool:
    try:
        return bool(sim.observation_space.contains(obs))
    except Exception:
        return False


def _names(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}: " + ", ".join(type(one).__name__ for one in value)
    return "None" if value is None else type(value).__name__
