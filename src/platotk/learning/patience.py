"""When iterations that bring no env step are too many."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

MIN_S = 60.0
BATCHES = 10.0


class Patience:
    """How long iterations that bring no env step are borne.

    One alone says little: those of APPO and IMPALA are over every ten seconds, be their learner still starting or a
    batch of slow sims still under way. Env runners that end and are started again, to end again, say more.

    Args:
        limit_s: Seconds without a step.
        clock: Seconds.
    """

    MAX_LOSSES = 3
    """Empty iterations in a row in which env runners were lost."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s, self._clock = limit_s, clock
        self._since = clock()
        self._num_losses = self._num_restarts = 0

    def fed(self, num_restarts: int) -> None:
        """An iteration brought steps.

        Args:
            num_restarts: Of env runners, so far.
        """
        self._since, self._num_losses, self._num_restarts = self._clock(), 0, num_restarts

    def starved(self, num_restarts: int, num_away: int) -> str | None:
        """An iteration brought none; why that is one too many, or None.

        Args:
            num_restarts: Of env runners, so far.
            num_away: Env runners that are not there now.
        """
        if num_away or num_restarts > self._num_restarts:
            self._num_losses += 1
        self._num_restarts = num_restarts
        if self._num_losses >= self.MAX_LOSSES:
            return f"no env runner delivered a single step in {self._num_losses} iterations: they end and are restarted"
        if (waited_s := self._clock() - self._since) >= self._limit_s:
            return f"no env runner delivered a single step in {waited_s:.0f} s"
        return None


def patience_s(config: Any, step_s: float) -> float:
    """How long there may be no step: what RLlib waits for a sample, ten times what a batch takes, a minute at least.

    Args:
        config: An `AlgorithmConfig`.
        step_s: Seconds that a sim takes for a step.
    """
    batch_s = float(config.total_train_batch_size) * step_s / max(1, int(config.num_env_runners or 1))
    return max(MIN_S, float(config.sample_timeout_s), BATCHES * batch_s)


def lost_runners(algo: Any) -> tuple[int, int]:
    """How often remote env runners were started again so far, and how many are not there now."""
    group = getattr(algo, "env_runner_group", None)
    if group is None:
        return 0, 0
    return group.num_remote_worker_restarts(), group.num_remote_env_runners() - group.num_healthy_remote_env_runners()
