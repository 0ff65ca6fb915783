"""The failures of sims while training, said as they come: the first, and those that fail in another way.

The journal has their number. Why they failed is known to the env runners, each of which keeps the last reason
(`keep_reason`); they are asked when the number has risen.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable
from typing import Any

EVERY_S = 60.0
"""Env runners are asked, and people told, at most this often."""
ASK_FOR_S = 5.0
"""Remote env runners that are in the middle of a sample are waited for this long."""
NAME = "last_sim_failure"


class SimFailures:
    """Tells of failures of sims.

    Args:
        tell: Where events go.
        num_before: Failures that are known already, of a run that is resumed.
        clock: Seconds.

    Attributes:
        last: Why a sim failed last; None as long as none has.
    """

    def __init__(
        self, tell: Callable[[dict[str, Any]], None], num_before: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.last: str | None = None
        self._tell, self._clock = tell, clock
        self._num = num_before
        self._told: set[str] = set()
        self._asked_at = -math.inf
        self._is_stale = False

    def count(self, number: int, ask: Callable[[], str | None]) -> None:
        """Take in how many there were so far.

        Args:
            number: Of the whole run.
            ask: Gives the reason of a late one.
        """
        self._is_stale, self._num = self._is_stale or number > self._num, number
        if not self._is_stale or self._clock() - self._asked_at < EVERY_S:
            return
        self._asked_at = self._clock()
        self.end(ask)
        kind = re.sub(r"\d+", "0", self.last or "")
        if kind in self._told:
            return
        self._told.add(kind)
        text = (
            f"a sim failed: {self.last or 'see the log'}; its episode ends there and it is started again "
            f"(failures so far: {number:,}). Find the cause with: plato check"
        )
        self._tell({"event": "warning", "text": text})

    def end(self, ask: Callable[[], str | None]) -> None:
        """Learn why the last one failed, if that is not known; nothing is told."""
        if self._is_stale:
            self.last, self._is_stale = ask() or self.last, False


def keep_reason(env_runner: Any, reasons: list[str]) -> None:
    """In an env runner: keep the last reason for `reason_of`."""
    if reasons:
        setattr(env_runner, NAME, reasons[-1])


def reason_of(algo: Any) -> str | None:
    """The last reason of an algorithm's env runners, of one of them where there are many."""
    group = getattr(algo, "env_runner_group", None)
    if group is None:
        return None
    local = _reason(group.local_env_runner)
    if local is not None or not group.num_remote_env_runners():
        return local
    with contextlib.suppress(Exception):  # a runner that is away is no reason to end training
        reasons = group.foreach_env_runner(_reason, local_env_runner=False, timeout_seconds=ASK_FOR_S)
        return next((reason for reason in reasons if isinstance(reason, str)), None)
    return None


def _reason(env_runner: Any) -> str | None:
    reason: str | None = getattr(env_runner, NAME, None)
    return reason
