"""Doing things again: the same seed, other seeds, no seed, two sims side by side, hundreds of resets.

Each function is one phase of a check; slow sims get fewer steps, or are let off.
"""

from __future__ import annotations

import gc
import os
import random
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import SimError
from .playing import Failed, reset, step
from .trial import RAISED, Actions, Trial

NUM_STEPS = 40
NUM_RESETS = 200
MIN_RESETS = 40


def after_end(trial: Trial, budget_s: float) -> None:
    """Step once more after an episode has ended."""
    actions = Actions(trial, seed=3)
    obs, info = reset(trial, trial.sim, seed=3)
    deadline = time.perf_counter() + budget_s
    limit = min(trial.request.max_episode_steps or 1000, trial.request.last_step or 10**9)
    for _ in range(limit):
        if time.perf_counter() > deadline:
            return
        obs, _, terminated, truncated, info = step(trial, trial.sim, _action(actions, obs, info))
        if terminated or truncated:
            break
    else:
        return
    try:
        value = trial.step(trial.sim, _action(actions, obs, info))
    except Exception:
        return  # refusing is the best answer
    if isinstance(value, tuple) and len(value) == 5 and not (value[2] or value[3]):
        message = "after the end of an episode, step() goes on with terminated=False and truncated=False"
        trial.found("step-after-end", message, where=trial.places.method("step"))


def seeding(trial: Trial, budget_s: float) -> None:
    """The same seed twice, another seed, no seed, the global generators."""
    if not trial.takes["seed"]:
        return  # reported already
    share_s = budget_s / 6
    global_before = _global_random()
    first = _trajectory(trial, trial.sim, 11, share_s)
    if _global_random() != global_before:
        message = "reset() or step() changes the global generator of numpy or Python"
        trial.found("global-random", message, where=trial.places.method("reset"))
    number = len(first)
    again = _trajectory(trial, trial.sim, 11, share_s * 2, number)
    difference = _first_difference(first, again)
    if difference is not None:
        message = f"seed 11 twice, with the same actions: {difference}"
        trial.found("unseeded", message, where=trial.places.method("reset"))
        return
    other = _trajectory(trial, trial.sim, 12, share_s * 2, number)
    has_same_start = _difference(first[0], other[0], "observation") is None
    if has_same_start:
        if _first_difference(first, other) is None and len(first) > 1:
            message = "seeds 11 and 12 give the same episode for the same actions"
            trial.found("seed-no-effect", message, where=trial.places.method("reset"))
        return
    starts = []
    for seed in (11, None, None, None):
        starts.append(_copied(reset(trial, trial.sim, seed=seed)[0]))
        if trial.reset_s[-1] > share_s:
            return
    if all(_difference(starts[1], one, "observation") is None for one in starts[2:]):
        message = "seeds 11 and 12 start differently, but reset() without a seed gave the same start three times"
        trial.found("start-repeats", message, where=trial.places.method("reset"))


def instances(trial: Trial, budget_s: float) -> None:
    """A second sim beside the first, and close()."""
    share_s = budget_s / 4
    alone = _trajectory(trial, trial.sim, 21, share_s)
    is_repeatable = _first_difference(alone, _trajectory(trial, trial.sim, 21, share_s * 2, len(alone))) is None
    try:
        second = trial.make()
    except RAISED as error:
        message = f"{type(error).__name__}: {error}"
        trial.found("second-instance", message, where=trial.places.raised(error.__traceback__))
    else:
        if is_repeatable:
            _side_by_side(trial, alone, second, share_s * 2)
        _close(trial, second)
    _close(trial, trial.sim)
    trial.sim = None


def memory(trial: Trial, budget_s: float) -> None:
    """Memory over hundreds of resets."""
    typical_s = float(np.median(trial.reset_s)) if trial.reset_s else 0.0
    step_s = trial.step_s / max(1, trial.num_steps)
    number = min(NUM_RESETS, int(budget_s / max(1e-9, typical_s + 3 * step_s)))
    number = min(number, (trial.request.last_step or 10**9) // 5)
    if number < MIN_RESETS:
        return
    _reset_often(trial, number // 4)
    sizes = [_resident_bytes()]
    for _ in range(2):
        _reset_often(trial, number // 2)
        sizes.append(_resident_bytes())
    if sizes[0] is None or sizes[1] is None or sizes[2] is None:
        return
    halves = sizes[1] - sizes[0], sizes[2] - sizes[1]
    per_reset = sum(halves) / (2 * (number // 2))
    if min(halves) > 500_000 and per_reset > 8_000 and min(halves) > 0.2 * max(halves):
        message = (
            f"memory grew by {sum(halves) / 1e6:,.1f} MB over {2 * (number // 2)} resets, "
            f"{per_reset / 1e3:,.0f} kB each: {per_reset * 1e5 / 1e9:,.1f} GB over 100,000 episodes"
        )
        trial.found("leaks", message, where=trial.places.method("reset"))


def _trajectory(trial: Trial, sim: Any, seed: int, budget_s: float, num_observations: int = NUM_STEPS + 1) -> list[Any]:
    """Observations, rewards and flags of the first steps after a seeded reset, with seeded actions."""
    actions = Actions(trial, seed=5)
    deadline = time.perf_counter() + budget_s
    seen: list[Any] = []
    try:
        obs, info = reset(trial, sim, seed=seed)
        seen.append(_copied(obs))
        while len(seen) < num_observations and time.perf_counter() < deadline:
            obs, reward, terminated, truncated, info = step(trial, sim, _action(actions, obs, info))
            seen.append((_copied(obs), reward, terminated, truncated))
            if terminated or truncated:
                break
    except Failed:
        if not seen:
            raise
        seen.append("raised")
    return seen


def _action(actions: Actions, obs: Any, info: Any) -> Any:
    try:
        return actions.sample(obs, info)
    except (SimError, KeyError, TypeError):
        raise Failed from None


def _side_by_side(trial: Trial, alone: list[Any], second: Any, budget_s: float) -> None:
    """Play the first sim's episode again, with the second stepping in between."""
    mine, others = Actions(trial, seed=5), Actions(trial, seed=6)
    deadline = time.perf_counter() + budget_s
    obs, info = reset(trial, trial.sim, seed=21)
    other_obs, other_info = reset(trial, second, seed=22)
    seen: list[Any] = [_copied(obs)]
    is_over = False
    while len(seen) < len(alone) and time.perf_counter() < deadline:
        if alone[len(seen)] == "raised":
            break
        if not is_over:
            other_obs, _, ended, cut, other_info = step(trial, second, _action(others, other_obs, other_info))
            is_over = ended or cut
        obs, reward, terminated, truncated, info = step(trial, trial.sim, _action(mine, obs, info))
        seen.append((_copied(obs), reward, terminated, truncated))
        if terminated or truncated:
            break
    difference = _first_difference(alone[: len(seen)], seen)
    if difference is not None:
        message = f"with a second sim stepping in between, the same seed gives other values: {difference}"
        trial.found("shared-state", message, where=trial.places.sim())


def _close(trial: Trial, sim: Any) -> None:
    if not callable(getattr(sim, "close", None)):
        return
    try:
        trial.close(sim)
    except RAISED as error:
        message = f"close() raised {type(error).__name__}: {error}"
        trial.found("close-fails", message, where=trial.places.raised(error.__traceback__))


def _reset_often(trial: Trial, number: int) -> None:
    actions = Actions(trial, seed=7)
    for _ in range(number):
        obs, info = reset(trial, trial.sim)
        for _ in range(3):
            obs, _, terminated, truncated, info = step(trial, trial.sim, _action(actions, obs, info))
            if terminated or truncated:
                break
    gc.collect()


def _first_difference(first: list[Any], second: list[Any]) -> str | None:
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if isinstance(one, str) or isinstance(other, str):
            break  # one of them raised, which is a finding of its own
        if index == 0:
            difference = _difference(one, other, "observation")
            if difference:
                return f"reset gave {difference}"
            continue
        for name, mine, others in zip(("observation", "reward", "terminated", "truncated"), one, other, strict=True):
            difference = _difference(mine, others, name)
            if difference:
                return f"at step {index} {difference}"
    return None


def _difference(one: Any, other: Any, path: str) -> str | None:
    """The first leaf that differs, with both values; None when all are the same (to a rounding)."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in one:
            found = _difference(one[key], other[key], f"{path}.{key}") if key in other else f"{path}.{key} is missing"
            if found:
                return found
        return None
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)) and len(one) == len(other):
        for index, (mine, others) in enumerate(zip(one, other, strict=True)):
            found = _difference(mine, others, f"{path}[{index}]")
            if found:
                return found
        return None
    try:
        mine, others = np.asarray(one), np.asarray(other)
        if mine.shape == others.shape and mine.dtype.kind in "biuf" and others.dtype.kind in "biuf":
            if np.allclose(mine, others, rtol=1e-6, atol=1e-9, equal_nan=True):
                return None
            at = int(np.flatnonzero(~np.isclose(mine, others, rtol=1e-6, atol=1e-9, equal_nan=True).reshape(-1))[0])
            element = f"{path}[{at}]" if mine.ndim else path
            return f"{element} = {mine.reshape(-1)[at]:g} and {others.reshape(-1)[at]:g}"
        is_same = bool(np.array_equal(mine, others))
    except (TypeError, ValueError):
        is_same = one is other
    return None if is_same else f"{path} = {str(one)[:40]} and {str(other)[:40]}"


def _copied(obs: Any) -> Any:
    if isinstance(obs, np.ndarray):
        return obs.copy()
    if isinstance(obs, Mapping):
        return {key: _copied(value) for key, value in obs.items()}
    if isinstance(obs, (tuple, list)):
        return [_copied(value) for value in obs]
    return obs


def _global_random() -> tuple[Any, ...]:
    state: Any = np.random.get_state(legacy=True)
    return (np.asarray(state[1]).tobytes(), state[2], hash(random.getstate()))


def _resident_bytes() -> int | None:
    """Resident memory of this process in bytes; None where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pass
    try:
        import psutil

        return int(psutil.Process().memory_info().rss)
    except ImportError:
        return None
