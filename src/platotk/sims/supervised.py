"""A sim that training can rely on: bounded, seeded, restarted when it fails.

`SupervisedSim` runs one sim, in this process or in its own, and turns every misbehaviour (an exception, a hang, a
crash, a NaN) into the truncation of that one episode. The next reset starts the sim again with a fresh seed. It gives
up with a clear `SimError` when failures come faster than steps.

RLlib's own `restart_failed_sub_environments` recreates every sub-environment, throws the fragment away and reuses the
seed, so that a seeded sim can fail for ever at the same step; that is why this exists.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..errors import SimError
from .loading import SimSpec
from .process import NOTHING_ALLOWED, SimFailure, SimProcess, named

FAILURE_BUDGET = 20
"""Failures a sim may have before training gives up ..."""
STEPS_PER_REFUND = 50
"""... where this many good steps pay for one of them (so 2 % of steps may fail for ever)."""
MAX_FAILURES_IN_A_ROW = 10
"""Without a single good step between them ..."""
MAX_HANGS_IN_A_ROW = 3
"""... and so many where each was a call that did not return: at 60 s a call, ten would take ten minutes."""
MAX_BACKOFF_S = 0.5


@dataclass(slots=True)
class StepResult:
    """What one step (or reset) of a sim gave; after a failure, `observation` is None and `truncated` is True."""

    observation: Any
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: dict[str, Any] = field(default_factory=dict)
    failure: SimFailure | None = None


class SupervisedSim:
    """One sim with deadlines, restarts, a step limit and a stream of seeds of its own.

    Args:
        spec: How to make the sim.
        seeds: The source of this sim's seeds; two sims never share one.
        max_episode_steps: Truncate an episode at this many steps; None never does.
        step_timeout_s: Deadline in seconds for one `step` or `reset`.
        own_process: Run the sim in a process of its own (any hang or crash is survived), else in this one.
    """

    def __init__(
        self,
        spec: SimSpec,
        *,
        seeds: np.random.SeedSequence,
        max_episode_steps: int | None = None,
        step_timeout_s: float = 60.0,
        own_process: bool = False,
    ) -> None:
        self.num_failures = 0
        self.last_failure: SimFailure | None = None
        self._spec = spec
        self._seeds = seed_stream(seeds)
        self._max_episode_steps = max_episode_steps
        self._host: SimProcess | InlineSim
        make = SimProcess if own_process else InlineSim
        self._host = make(spec, timeout_s=step_timeout_s)
        self._needs_seed = True
        self._budget = FailureBudget(spec.label)
        self._num_steps = 0

    @property
    def num_steps(self) -> int:
        """Steps of this episode."""
        return self._num_steps

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> StepResult:
        """Start an episode; a failing reset is tried again with fresh seeds until the budget is spent.

        Args:
            seed: The sim's seed; None draws one for the first episode of a (re)started sim and leaves later episodes to
                the sim's own generator, as Gymnasium recommends.
            options: Passed to the sim's `reset`.
        """
        self._num_steps = 0
        while True:
            if seed is None and self._needs_seed:
                seed = next(self._seeds)
            try:
                self._host.send("reset", seed, options)
                observation, info = _unpack(self._host.receive(), 2, "reset", "(observation, info)")
            except SimFailure as failure:
                self.fail(failure)
                seed = None
                continue
            self._needs_seed = False
            return StepResult(observation, info=_as_info(info))

    def send(self, action: Any) -> None:
        """Begin a step; `receive` gives its result (apart, so that sims in their own processes step at once)."""
        try:
            self._host.send("step", action)
            self._send_failure: SimFailure | None = None
        except SimFailure as failure:
            self._send_failure = failure

    def receive(self) -> StepResult:
        """The result of the step begun with `send`; a failure comes back as a truncated step."""
        try:
            if self._send_failure is not None:
                raise self._send_failure
            observation, reward, terminated, truncated, info = _unpack(
                self._host.receive(), 5, "step", "(observation, reward, terminated, truncated, info)"
            )
            reward = _as_reward(reward)
        except SimFailure as failure:
            self.fail(failure)
            return StepResult(None, truncated=True, info={"sim_failure": failure.reason}, failure=failure)
        self._num_steps += 1
        self._budget.refund()
        if self._max_episode_steps is not None and self._num_steps >= self._max_episode_steps:
            truncated = truncated or not terminated
        return StepResult(observation, reward, bool(terminated), bool(truncated), _as_info(info))

    def step(self, action: Any) -> StepResult:
        """`send` and `receive` in one."""
        self.send(action)
        return self.receive()

    def fail(self, failure: SimFailure) -> None:
        """Count a failure, drop the sim, wait a little; the next reset makes a new one with a fresh seed.

        Raises:
            SimError: The failure budget is spent.
        """
        self.num_failures += 1
        self.last_failure = failure
        self._needs_seed = True
        self._host.close(kill=True)
        self._budget.spend(failure, self.num_failures)
        if pause_s := self._budget.pause_s():
            time.sleep(pause_s)

    def close(self) -> None:
        """Close the sim; never raises."""
        with contextlib.suppress(Exception):
            self._host.close()


class FailureBudget:
    """How many more failures of a sim training survives.

    Args:
        label: The sim's name for people.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._left = float(FAILURE_BUDGET)
        self._in_a_row = self._hangs_in_a_row = 0

    def refund(self) -> None:
        """A good step."""
        if self._left < FAILURE_BUDGET:
            self._in_a_row = self._hangs_in_a_row = 0
            self._left = min(self._left + 1.0 / STEPS_PER_REFUND, FAILURE_BUDGET)

    def spend(self, failure: SimFailure, num_failures: int) -> None:
        """A failure, the sim's `num_failures`-th.

        Raises:
            SimError: It was one too many, or one that another start of the sim does not cure.
        """
        if failure.reason.startswith(NOTHING_ALLOWED):
            raise SimError(
                f"the sim {self._label}: {failure.reason}.",
                hint="Allow at least one action; when none is left, end the episode (terminated=True).",
            )
        self._in_a_row += 1
        self._hangs_in_a_row = self._hangs_in_a_row + 1 if failure.is_hang else 0
        self._left -= 1.0
        hint = f"Training survives one failure in {STEPS_PER_REFUND} steps. Find the cause with: plato check"
        if self._hangs_in_a_row >= MAX_HANGS_IN_A_ROW:
            hint = "If it is slow and does not hang, give it longer: step_timeout_s. Find the cause with: plato check"
        elif self._left > 0 and self._in_a_row < MAX_FAILURES_IN_A_ROW:
            return
        raise SimError(
            f"the sim {self._label} failed {num_failures} times, the last time: {failure.reason}"
            + (f"\n{failure.details.rstrip()}" if failure.details else "")
            + (f"\nThe last lines it printed:\n{failure.output}" if failure.output else ""),
            hint=hint,
        )

    def pause_s(self) -> float:
        """Seconds to wait before the sim is made again: none after a single failure."""
        return min(0.02 * 2 ** (self._in_a_row - 2), MAX_BACKOFF_S) if self._in_a_row > 1 else 0.0


class Recipe(Protocol):
    """What makes a sim, or many as one: `SimSpec`, `Vectorised`."""

    def make(self) -> Any:
        """A new one."""


class InlineSim:
    """A sim in this process, same calls as `SimProcess`; what it prints is kept out of the way, last lines kept.

    A hang in Python code is ended by a timer signal; code that never returns to the interpreter (a loop in C) can only
    be survived in a process of its own.
    """

    def __init__(self, spec: Recipe, *, timeout_s: float) -> None:
        self._spec = spec
        self._timeout_s = timeout_s
        self._sim: Any = None
        self._request: tuple[str, tuple[Any, ...]] = ("", ())
        self._said = Tail()

    def send(self, call: str, *args: Any) -> None:
        """Remember the call; it runs in `receive`."""
        self._request = (call, args)

    def receive(self) -> Any:
        """Make the call."""
        call, args = self._request
        if self._sim is None:
            self._said = Tail()
        printed.tail = self._said
        try:
            _watchdog.begin(self._timeout_s)
            try:
                if call == "step" and self._sim is not None:
                    return self._sim.step(args[0])
                if self._sim is None:
                    self._sim = self._spec.make()
                if call == "reset":
                    return self._sim.reset(seed=args[0], options=args[1])
                return self._sim.step(args[0])
            finally:
                _watchdog.deadline = None
        except SimHangs as error:
            raise SimFailure(
                f"{call}() did not return within {self._timeout_s:g} s (step_timeout_s)",
                details=traceback.format_exc(),
                output=self._said.last(),
                is_hang=True,
            ) from error
        except SystemExit as error:
            raise SimFailure(
                f"{call}() called sys.exit({error.code!r})",
                details=traceback.format_exc(),
                output=self._said.last(),
            ) from error
        except SimError:
            if self._sim is None:  # it cannot be loaded at all: no use in trying again
                raise
            raise SimFailure(f"{call}() raised", details=traceback.format_exc(), output=self._said.last()) from None
        except Exception as error:
            raise SimFailure(
                f"{call}() raised {named(error)}",
                details=traceback.format_exc(),
                output=self._said.last(),
            ) from error

    def close(self, *, kill: bool = False) -> None:
        """Close the sim, unless it has to be left where it hangs."""
        sim, self._sim = self._sim, None
        if sim is not None and not kill:
            with contextlib.suppress(Exception):
                sim.close()


class SimHangs(BaseException):
    """Raised into a sim that runs past its deadline (a BaseException: its `except Exception` lets it by)."""


class _Watchdog:
    """Raises `SimHangs` in the main thread when a watched call runs past its deadline.

    A thread looks at the deadline twice a second and sends the main thread a signal when it has passed; a call only
    notes its deadline, which costs no system call per step.
    """

    PERIOD_S = 0.5

    def __init__(self) -> None:
        self.deadline: float | None = None
        self._pid = 0

    def begin(self, timeout_s: float) -> None:
        """Note the deadline of the call that begins now; clear `deadline` when it ends."""
        if self._pid != os.getpid():
            self._start()
        self.deadline = time.monotonic() + timeout_s

    def _start(self) -> None:
        self._pid = os.getpid()
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL:
            signal.signal(signal.SIGUSR2, self._interrupt)
            ident = threading.get_ident()
            threading.Thread(target=self._look, args=(ident,), name="sim-watchdog", daemon=True).start()

    def _look(self, main_thread: int) -> None:
        while True:
            time.sleep(self.PERIOD_S)
            if self._is_late():
                signal.pthread_kill(main_thread, signal.SIGUSR2)

    def _interrupt(self, *_: Any) -> None:
        if self._is_late():
            self.deadline = None
            raise SimHangs

    def _is_late(self) -> bool:
        deadline = self.deadline
        return deadline is not None and time.monotonic() > deadline


_watchdog = _Watchdog()


class Tail:
    """The end of what one sim has printed."""

    def __init__(self, num_chars: int = 8192) -> None:
        self._parts: deque[str] = deque()
        self._num_chars = num_chars
        self._size = 0

    def add(self, text: str) -> None:
        """Keep the text, forget what is older than the limit."""
        self._parts.append(text[-self._num_chars :])
        self._size += len(self._parts[-1])
        while self._size > self._num_chars and len(self._parts) > 1:
            self._size -= len(self._parts.popleft())

    def last(self, num_lines: int = 20) -> str:
        """The last lines."""
        return "\n".join("".join(self._parts).splitlines()[-num_lines:])


class Printed(io.TextIOBase):
    """Takes what the sims of this process print, for the one that is being called.

    Attributes:
        tail: Of that sim.
    """

    def __init__(self) -> None:
        self.tail = Tail()

    def write(self, text: str) -> int:
        """Keep the end of it."""
        self.tail.add(text)
        return len(text)

    def writable(self) -> bool:
        """Always."""
        return True

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """Take `print` and `sys.stdout` for the while: sims must not break progress lines or `--json`."""
        stdout = sys.stdout
        sys.stdout = self
        try:
            yield
        finally:
            sys.stdout = stdout


printed = Printed()


def seed_stream(seeds: np.random.SeedSequence) -> Iterator[int]:
    """Seeds without end."""
    rng = np.random.default_rng(seeds)
    while True:
        yield int(rng.integers(2**31))


def _unpack(value: Any, length: int, call: str, what: str) -> Any:
    if not isinstance(value, tuple) or len(value) != length:
        got = f"{len(value)} values" if isinstance(value, tuple) else type(value).__name__
        raise SimFailure(f"{call}() returned {got}; it must return {what}")
    return value


def _as_reward(reward: Any) -> float:
    if type(reward) is float and -math.inf < reward < math.inf:
        return reward
    try:
        value = float(reward)
    except (TypeError, ValueError):
        try:
            value = float(np.asarray(reward, dtype=np.float64).reshape(()))
        except (TypeError, ValueError):
            raise SimFailure(f"step() returned the reward {reward!r}; it must be one number") from None
    if not np.isfinite(value):
        raise SimFailure(f"step() returned the reward {value}; it must be a finite number")
    return value


def _as_info(info: Any) -> dict[str, Any]:
    return info if isinstance(info, dict) else {}
