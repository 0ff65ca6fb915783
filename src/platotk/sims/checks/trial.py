"""A sim on trial: every call to it is timed, marked for the watcher outside, and its errors are collected.

`Trial` is what the checks inside the worker process share: the sim, its spaces, its adapter, a source of
random actions, and the way to report. The progress of each call is written to shared memory, so that the
parent process can tell which step of which call a sim hangs or dies in.
"""

from __future__ import annotations

import contextlib
import inspect
import mmap
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces as gym_spaces

from ...errors import PlatoError
from ...spaces import Adapter
from ..loading import SimSpec
from .catalogue import Severity
from .findings import Finding, finding
from .places import NoPlaces, Places

PHASES = ("steps", "after-end", "seeding", "instances", "memory")
CALLS = ("", "importing", "the constructor", "reset()", "step()", "close()")
_LAYOUT = struct.Struct("<dQQQ")
PROGRESS_SIZE = _LAYOUT.size
RAISED = (Exception, SystemExit, KeyboardInterrupt)
"""What a sim may raise and be told of; Ctrl-C itself does not come here, the process has a session of its own."""


@dataclass(frozen=True)
class Request:
    """What a worker is asked to do.

    Attributes:
        spec: How to make the sim.
        algorithm: RLlib's name of the algorithm that will learn.
        is_named: Whether the project names it; otherwise its own function will say which it is.
        action_scale, action_mask, max_episode_steps: As in the project.
        guard: The project's guards as plain data, and where each of their keys stands.
        units: The same of the project's units.
        is_limit_given: Whether the project itself sets max_episode_steps.
        num_steps: Random steps to play.
        budget_s: Seconds all checks may take together; slow sims are tried for fewer steps.
        frame_stack: As in the project.
        replay: Steps that the project wants replayed, where it says so, and how grave it is when they do not fit.
        vectorised: Where the project asks for sims that step in one call, if it does.
        phases: Names of the phases to run, in order.
        last_step: Play no further than this step, where an earlier worker hung or died; None: no limit.
    """

    spec: SimSpec
    algorithm: str
    action_scale: Any
    action_mask: str | None
    max_episode_steps: int | None
    is_limit_given: bool
    num_steps: int
    budget_s: float
    phases: tuple[str, ...]
    last_step: int | None = None
    is_named: bool = True
    vectorised: str | None = None
    frame_stack: int = 1
    replay: tuple[int, str, Severity] | None = None
    guard: tuple[dict[str, Any], dict[str, str]] = field(default_factory=lambda: ({}, {}))
    units: tuple[dict[str, Any], dict[str, str]] = field(default_factory=lambda: ({}, {}))


@dataclass(frozen=True)
class Progress:
    """What the worker was doing: since when (monotonic seconds, 0: in no call), in which call, which step."""

    since: float
    call: str
    step: int
    episode_step: int

    @classmethod
    def read(cls, memory: mmap.mmap) -> Progress:
        """From shared memory."""
        since, call, step, episode_step = _LAYOUT.unpack_from(memory)
        return cls(since, CALLS[call] if call < len(CALLS) else "", step, episode_step)


class Trial:
    """What the checks share.

    Args:
        request: What to do.
        memory: Shared memory for the progress.
        tell: Takes each event (a dict) for the parent.
    """

    def __init__(self, request: Request, memory: mmap.mmap, tell: Callable[[dict[str, Any]], None]) -> None:
        self.request = request
        self.tell = tell
        self.places: Places = NoPlaces(request.spec.root)
        self.creator: Any = None
        self.sim: Any = None
        self.adapter: Adapter | None = None
        self.takes = {"seed": True, "options": True}
        self.num_steps = 0
        self.episode_step = 0
        self.step_s = 0.0
        self.reset_s: list[float] = []
        self.num_raised = 0
        self._memory = memory
        self._tally: dict[tuple[str, str], list[Any]] = {}
        self._reported: set[str] = set()

    # -- reporting

    def found(self, check_id: str, message: str, **details: Any) -> None:
        """Report a finding."""
        self.report(finding(check_id, message, **details))

    def report(self, one: Finding) -> None:
        """Report a finding that is already made."""
        self.tell({"finding": one.to_dict()})

    def count(
        self,
        check_id: str,
        about: str,
        message: str,
        *,
        where: str | None = None,
        cure: str | None = None,
        severity: Severity | None = None,
    ) -> None:
        """Count a problem that may come at every step; it is reported once, by `report_counted`."""
        entry = self._tally.setdefault((check_id, about), [0, message, where, cure, severity, self.num_steps])
        entry[0] += 1

    def report_counted(self, *, only_new: bool = False) -> None:
        """Report everything counted since the last time, with how often and when first.

        Args:
            only_new: Leave out the kinds of findings that were reported before.
        """
        # Training survives sims that raise in up to 2 % of their steps.
        if self.num_raised <= 0.02 * self.num_steps:
            self._soften("raises", "training survives this: it truncates the episode and starts the sim again")
        known = set(self._reported) if only_new else set()
        for (check_id, _), (number, message, where, cure, severity, step) in self._tally.items():
            if check_id in known:
                continue
            self._reported.add(check_id)
            first = f"at step {step:,}" if step else "at reset"
            often = f" ({number:,} times, first {first})" if number > 1 else f" ({first})"
            self.found(check_id, message + often, where=where, cure=cure, severity=severity)
        self._tally.clear()

    def _soften(self, check_id: str, why: str) -> None:
        for (known, _), entry in self._tally.items():
            if known == check_id:
                entry[1], entry[4] = f"{entry[1]}; {why}", "warning"

    # -- calling the sim

    def make(self) -> Any:
        """Another instance of the sim."""
        with self._call("the constructor"):
            return self.request.spec.make()

    def load(self) -> Any:
        """Import what makes the sim."""
        with self._call("importing"):
            return self.request.spec.creator()

    def reset(self, sim: Any, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Reset a sim, with those of the arguments that it takes."""
        given = {"seed": seed, "options": options}
        arguments = {name: value for name, value in given.items() if self.takes[name]}
        self.episode_step = 0
        began = time.perf_counter()
        with self._call("reset()"):
            value = sim.reset(**arguments)
        self.reset_s.append(time.perf_counter() - began)
        return value

    def step(self, sim: Any, action: Any) -> Any:
        """Step a sim."""
        self.num_steps += 1
        self.episode_step += 1
        with self._call("step()"):
            began = time.perf_counter()
            value = sim.step(action)
            self.step_s += time.perf_counter() - began
        return value

    def close(self, sim: Any) -> None:
        """Close a sim."""
        with self._call("close()"):
            sim.close()

    def raised(self, call: str, error: BaseException) -> None:
        """Count what a call of the sim raised."""
        self.num_raised += 1
        place = self.places.raised(error.__traceback__)
        if isinstance(error, SystemExit):
            message = f"{call} called sys.exit({'' if error.code is None else repr(error.code)})"
            self.count("exits", "", message, where=place)
            return
        text = error.message if isinstance(error, PlatoError) else f"{type(error).__name__}: {error}"
        kind = type(error).__name__
        self.count("raises", f"{call} {kind} {place}", f"{call} raised {text}", where=place)

    @contextlib.contextmanager
    def _call(self, name: str) -> Iterator[None]:
        begun = (CALLS.index(name), self.num_steps, self.episode_step)
        _LAYOUT.pack_into(self._memory, 0, time.monotonic(), *begun)
        try:
            yield
        finally:
            _LAYOUT.pack_into(self._memory, 0, 0.0, *begun)


def takes_argument(function: Any, name: str) -> bool:
    """Whether a function can be called with this keyword; what cannot be inspected, can."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


class Actions:
    """Random actions of a sim: through the adapter, as training sends them, or sampled from the space.

    One in ten stands at a corner of the bounds, because random numbers hardly ever do.
    """

    def __init__(self, trial: Trial, seed: int = 0) -> None:
        self._adapter = trial.adapter
        self._space = trial.sim.action_space
        self._rng = np.random.default_rng(seed)
        if self._adapter is None:
            self._space.seed(seed)

    def sample(self, obs: Any, info: Any) -> Any:
        """An action that the mask allows.

        Raises:
            SimError: The mask does not fit, or allows nothing.
        """
        adapter = self._adapter
        if adapter is None:
            return self._space.sample()
        mask = None
        if adapter.mask_source == "info":
            mask = adapter.encode_mask(info.get("action_mask") if isinstance(info, dict) else None)
        elif adapter.mask_source is not None:
            mask = adapter.encode_mask(obs[adapter.mask_source])
        return adapter.decode(self._encoded(adapter.encoded_action_space, mask))

    def _encoded(self, space: Any, mask: Any) -> Any:
        if isinstance(space, gym_spaces.Dict):
            return {key: self._encoded(child, mask) for key, child in space.spaces.items()}
        if isinstance(space, gym_spaces.Box):
            if not np.isfinite(space.high).all():
                return self._rng.standard_normal(space.shape).astype(np.float32)
            values = self._rng.uniform(-1.0, 1.0, space.shape).astype(np.float32)
            return np.sign(values) if self._rng.random() < 0.1 else values
        nvec = [int(space.n)] if isinstance(space, gym_spaces.Discrete) else [int(n) for n in space.nvec]
        choices, start = [], 0
        for number in nvec:
            allowed = np.arange(number) if mask is None else np.flatnonzero(mask[start : start + number])
            choices.append(int(self._rng.choice(allowed)) if len(allowed) else 0)
            start += number
        return choices[0] if isinstance(space, gym_spaces.Discrete) else np.array(choices, dtype=np.int64)
