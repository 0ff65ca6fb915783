"""A sim in this process, with a deadline for each of its calls, and what it prints caught.

The same for training (`SupervisedSim`, `VectorisedSims`) and for playing episodes: an exception, a hang or `sys.exit`
in the sim comes out as a `SimFailure` that has the sim's traceback and the last lines it printed.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from time import monotonic
from typing import Any, Literal, Protocol

from ..errors import SimError
from .process import SimFailure, named


class Recipe(Protocol):
    """What makes a sim, or many as one: `SimSpec`, `Vectorised`."""

    def make(self) -> Any:
        """A new one."""


class SimHangs(BaseException):
    """Raised into a sim that runs past its deadline (a BaseException: its `except Exception` lets it by)."""


ENDS_OF_A_CALL = (Exception, SystemExit, SimHangs)
"""What a sim's call may end with; Ctrl-C is not the sim's."""


class InlineSim:
    """A sim in this process; what it prints is kept out of the way, last lines kept.

    A hang in Python code is ended by a timer signal; code that never returns to the interpreter (a loop in C) can only
    be survived in a process of its own.

    Args:
        spec: How to make it; made at the first call, and again after `close`.
        timeout_s: Deadline in seconds for one call.
    """

    def __init__(self, spec: Recipe, *, timeout_s: float) -> None:
        self._spec = spec
        self._timeout_s = timeout_s
        self._sim: Any = None
        self._said = Tail()
        self._action: Any = None

    def reset(self, seed: int | None, options: dict[str, Any] | None) -> Any:
        """What the sim's `reset` gives, whatever it is.

        Raises:
            SimFailure: The sim raised, or ran past the deadline.
            SimError: It cannot be made.
        """
        if self._sim is None:
            self._said = Tail()
        printed.tail = self._said
        _watchdog.start()
        try:
            _watchdog.deadline = monotonic() + self._timeout_s
            try:
                if self._sim is None:
                    self._sim = self._spec.make()
                return self._sim.reset(seed=seed, options=options)
            finally:
                _watchdog.deadline = None
        except ENDS_OF_A_CALL as error:
            if isinstance(error, SimError) and self._sim is None:
                raise  # it cannot be loaded at all: no use in trying again
            raise self._failure("reset", error) from error

    def step(self, action: Any) -> Any:
        """What the sim's `step` gives, whatever it is; raises as `reset` does.

        Every sim in this process pays for this call at every step: hence no call in it but the sim's and the clock's.
        """
        printed.tail = self._said
        try:
            _watchdog.deadline = monotonic() + self._timeout_s
            try:
                return self._sim.step(action)
            finally:
                _watchdog.deadline = None
        except ENDS_OF_A_CALL as error:
            raise self._failure("step", error) from error

    def send(self, call: Literal["step"], action: Any) -> None:
        """As `SimProcess.send`: here, the step is made in `receive`."""
        self._action = action

    def receive(self) -> Any:
        """The answer to the step that was sent."""
        return self.step(self._action)

    def close(self, *, kill: bool = False) -> None:
        """Close the sim, unless it has to be left where it hangs."""
        sim, self._sim = self._sim, None
        if sim is not None and not kill:
            with contextlib.suppress(Exception):
                sim.close()

    def _failure(self, call: str, error: BaseException) -> SimFailure:
        """How a call ended, to be asked while its exception is handled."""
        is_hang = isinstance(error, SimHangs)
        if is_hang:
            reason = f"{call}() did not return within {self._timeout_s:g} s (step_timeout_s)"
        elif isinstance(error, SystemExit):
            reason = f"{call}() called sys.exit({error.code!r})"
        else:
            reason = f"{call}() raised {named(error)}"
        return SimFailure(reason, details=traceback.format_exc(), output=self._said.last(), is_hang=is_hang)


class _Watchdog:
    """Raises `SimHangs` in the main thread when a watched call runs past its deadline.

    A thread looks at the deadline twice a second and sends the main thread a signal when it has passed; a call only
    notes its deadline, which costs no system call per step.
    """

    PERIOD_S = 0.5

    def __init__(self) -> None:
        self.deadline: float | None = None
        """By `time.monotonic`, when the call under way is late; None between calls."""
        self._pid = 0

    def start(self) -> None:
        """Look at deadlines from now on; once per process, and again in one that was forked from it."""
        if self._pid == os.getpid():
            return
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
        return deadline is not None and monotonic() > deadline


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
