"""Sims for the tests of workers: slow ones, uneven ones, and ones that go wrong; imported anew in each process."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tests.learning.engine.sims import Counting


class Uneven(Counting):
    """As Counting, and notes every step in a file; some of its sims are slower than others, some go wrong.

    Args:
        log: Where each step is noted, by one byte.
        at: Goes wrong when this much of an episode is over; None never does.
        how: What goes wrong: "hang", "exit", "crash", "raise" or "nan"; only in the first sim to be made.
    """

    def __init__(self, log: str = "", at: int | None = None, how: str = "") -> None:
        self.log, self.at, self.how = log, at, how
        self.is_first = bool(how) and _is_in_a_worker() and _is_first(log + ".first")
        self.sleep_s = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(seed=seed)
        self.sleep_s = float(self.np_random.uniform(0, 0.003))
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(self.sleep_s)
        if self.is_first and self.step_ == self.at:
            return self._go_wrong()
        result = super().step(action)
        with open(self.log, "ab") as log:
            log.write(b".")
        return result

    def _go_wrong(self) -> Any:
        print("something is about to go wrong")
        if self.how == "hang":
            time.sleep(60)
        if self.how == "exit":
            sys.exit(3)
        if self.how == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.how == "raise":
            raise ValueError("no solution")
        return np.full(3, np.nan, np.float32), 1.0, False, False, {}


def _is_first(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class Unmakeable(Counting):
    def __init__(self) -> None:
        if _is_in_a_worker():
            raise OSError("no licence")


def _is_in_a_worker() -> bool:
    return b"platotk.sims.worker" in Path(f"/proc/{os.getpid()}/cmdline").read_bytes()


class Hopeless(Counting):
    def step(self, action: Any) -> Any:
        raise ValueError("never converges")
