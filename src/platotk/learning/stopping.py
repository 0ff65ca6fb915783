"""When training stops: by its own rules, or because somebody asked.

`StopRules` reads journal lines and says which rule of `stop:` is met and how far the nearest one is. `Interrupts` turns
SIGTERM, Ctrl-C and the end of the terminal into an early but consistent stop.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any


class StopRules:
    """The project's `stop:` section at work.

    Args:
        iterations: Stop after this many iterations.
        env_steps: Stop after this many environment steps.
        return_mean: Stop when the windowed mean return reaches this.
        time_s: Stop after this many seconds of training, saving and evaluating included, resumed attempts counted
            together.
        plateau: Stop when the best mean return has not risen for this many iterations.
    """

    def __init__(
        self,
        *,
        iterations: int | None = None,
        env_steps: int | None = None,
        return_mean: float | None = None,
        time_s: float | None = None,
        plateau: int | None = None,
    ) -> None:
        self._limits = {"iterations": iterations, "env_steps": env_steps, "time": time_s}
        self._return_mean = return_mean
        self._plateau = plateau
        self._best: float | None = None
        self._best_iteration = 0

    def add(self, line: Mapping[str, Any]) -> str | None:
        """Take in a journal line; the reason to stop, or None."""
        value = line["return_mean"]
        if value is not None and (self._best is None or value > self._best):
            self._best, self._best_iteration = value, line["iteration"]
        for rule, at in _positions(line).items():
            limit = self._limits[rule]
            if limit is not None and at >= limit:
                return f"{rule} reached {_shown(rule, limit)}"
        if self._return_mean is not None and value is not None and value >= self._return_mean:
            return f"return_mean reached {self._return_mean:g}"
        since = line["iteration"] - self._best_iteration
        if self._plateau is not None and self._best is not None and since >= self._plateau:
            return f"plateau: no better return_mean than {self._best:.4g} in {since} iterations"
        return None

    def progress(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """The rule that will be met first at the present speed: `rule`, `fraction` in 0..1 and `eta_s`."""
        elapsed = max(float(line["time_s"]), 1e-9)
        fractions = {
            rule: min(1.0, at / limit)
            for rule, at in _positions(line).items()
            if (limit := self._limits[rule]) is not None
        }
        if not fractions:
            return {
                "rule": "return_mean" if self._return_mean is not None else "plateau",
                "fraction": None,
                "eta_s": None,
            }
        rule, fraction = max(fractions.items(), key=lambda item: item[1])
        eta_s = elapsed * (1.0 - fraction) / fraction if fraction > 0 else None
        return {"rule": rule, "fraction": fraction, "eta_s": eta_s}


def _positions(line: Mapping[str, Any]) -> dict[str, float]:
    return {"iterations": line["iteration"], "env_steps": line["env_steps"], "time": line["time_s"]}


def _shown(rule: str, limit: float) -> str:
    return f"{limit:g} s" if rule == "time" else f"{limit:,}"


class StopRequested(BaseException):
    """Raised in the main thread to end an iteration early (a BaseException: RLlib swallows others)."""


def stop_signals() -> list[signal.Signals]:
    """What asks a training to stop: Ctrl-C, SIGTERM, and a terminal that hangs up, unless `nohup` has it go on."""
    is_left = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if is_left else [signal.SIGHUP])]


class Interrupts:
    """SIGTERM, Ctrl-C and a closed terminal as a request to stop at the next consistent point.

    While sampling, nothing has been learned yet: the iteration is dropped at once. While learning, the iteration is
    finished first, for at most `grace_s` seconds. A second Ctrl-C is an ordinary KeyboardInterrupt.
    """

    def __init__(self, grace_s: float) -> None:
        self.signal_name: str | None = None
        self._grace_s = grace_s
        self._is_interruptible = False
        self._asked_at = 0.0
        self._previous: dict[int, Any] = {}
        self._timer: threading.Timer | None = None

    @property
    def is_requested(self) -> bool:
        """Whether somebody asked to stop."""
        return self.signal_name is not None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in stop_signals():
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        """An iteration that may be broken off; `learning` marks the part that may not."""
        self._is_interruptible = True
        try:
            if self.is_requested:
                raise StopRequested
            yield
        except SystemError as error:
            if isinstance(error.__cause__, StopRequested):
                raise error.__cause__ from None  # the signal came while Ray waited, which wraps what the handler raises
            raise
        finally:
            self._is_interruptible = False

    def learning(self) -> None:
        """From here on, until the iteration ends, only the end of the grace breaks it off."""
        self._is_interruptible = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        if not self.is_requested:
            self.signal_name = signal.Signals(number).name
            self._asked_at = time.monotonic()
            if self._is_interruptible:
                self._is_interruptible = False
                raise StopRequested
            ident = threading.main_thread().ident
            if ident is not None:
                self._timer = threading.Timer(self._grace_s, signal.pthread_kill, (ident, signal.SIGTERM))
                self._timer.daemon = True
                self._timer.start()
        elif time.monotonic() - self._asked_at >= self._grace_s:
            raise StopRequested
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
