"""A short trial of a sim in a process of its own: its spaces, its speed, and whether it behaves.

Training begins with one, beside the loading of Ray: it decides whether the sims run inside the env runner or each in a
process of its own, and keeps a sim that hangs or crashes out of the training process.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from ..errors import SimError
from ..spaces import space_from_json, space_to_json
from .loading import SimSpec
from .process import SimFailure, SimProcess


@dataclass(frozen=True)
class Probe:
    """What a short trial showed.

    Attributes:
        observation_space: The sim's.
        action_space: The sim's.
        has_mask_in_info: Whether `reset` gives `info["action_mask"]`.
        steps_per_s: Random steps per second, resets not counted; None when none succeeded.
        reset_s: Mean seconds of a reset; None when none succeeded.
        num_steps: Steps taken.
        is_well_behaved: It neither hung, crashed, exited nor raised.
        reason: What went wrong, or empty.
    """

    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    has_mask_in_info: bool = False
    steps_per_s: float | None = None
    reset_s: float | None = None
    num_steps: int = 0
    is_well_behaved: bool = False
    reason: str = ""


def probe(spec: SimSpec, *, steps: int = 200, seconds: float = 1.0, timeout_s: float = 60.0) -> Probe:
    """Try a sim with random actions.

    Args:
        spec: How to make it.
        steps: At most this many steps.
        seconds: At most about this long.
        timeout_s: Deadline for the whole trial; a sim that runs past it hangs.

    Raises:
        SimError: The sim cannot be made, or its spaces are not Gymnasium's.
    """
    host = SimProcess(spec, timeout_s=timeout_s)
    try:
        host.send("spaces")
        spaces = host.receive()
        observation_space, action_space = (space_from_json(space) for space in spaces)
        try:
            host.send("measure", steps, seconds)
            return Probe(observation_space, action_space, is_well_behaved=True, **host.receive())
        except SimFailure as failure:
            return Probe(observation_space, action_space, reason=failure.reason)
    except SimFailure as failure:
        raise SimError(
            f"the sim {spec.label} could not be tried: {failure.reason}"
            + (f"\n{failure.details.rstrip()}" if failure.details else ""),
            hint="Find the cause and its cure with: plato check",
        ) from failure
    finally:
        host.close(kill=True)


def answer(sim: gym.Env[Any, Any], call: str, args: tuple[Any, ...]) -> Any:
    """The far side, inside the sim's process."""
    if call == "spaces":
        for name in ("observation_space", "action_space"):
            if not isinstance(getattr(sim, name, None), gym.Space):
                raise SimError(f"the sim has no {name} of gymnasium.spaces", hint="See: plato check")
        return space_to_json(sim.observation_space), space_to_json(sim.action_space)
    return measure(sim, *args)


def measure(sim: gym.Env[Any, Any], steps: int, seconds: float) -> dict[str, Any]:
    """Random episodes within the limits; keyword arguments of `Probe`."""
    sim.action_space.seed(0)
    deadline = time.perf_counter() + seconds
    in_reset = in_step = 0.0
    num_resets = num_steps = 0
    has_mask = False
    while num_steps < steps and time.perf_counter() < deadline:
        began = time.perf_counter()
        _, info = sim.reset(seed=num_resets)
        in_reset += time.perf_counter() - began
        num_resets += 1
        mask = info.get("action_mask") if isinstance(info, dict) else None
        has_mask = has_mask or mask is not None
        is_over = False
        while not is_over and num_steps < steps and time.perf_counter() < deadline:
            action = _sample(sim.action_space, mask)
            began = time.perf_counter()
            _, _, terminated, truncated, info = sim.step(action)
            in_step += time.perf_counter() - began
            mask = info.get("action_mask") if isinstance(info, dict) else None
            num_steps += 1
            is_over = bool(terminated or truncated)
    return {
        "has_mask_in_info": has_mask,
        "steps_per_s": num_steps / in_step if in_step > 0 else None,
        "reset_s": in_reset / num_resets if num_resets else None,
        "num_steps": num_steps,
    }


def _sample(space: gym.Space[Any], mask: Any) -> Any:
    """A random action, an allowed one where Gymnasium understands the mask."""
    if mask is not None:
        with contextlib.suppress(Exception):
            return space.sample(mask=mask)
    return space.sample()
