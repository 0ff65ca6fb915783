"""A sim that training can rely on: bounded, seeded, restarted when it fails.

`SupervisedSim` runs one sim, in this process or in its own, and turns every misbehaviour (an exception, a hang, a
crash, a NaN) into the truncation of that one episode. The next reset starts the sim again with a fresh seed. It gives
up with a clear `SimError` when failures come faster than steps.

RLlib's own `restart_failed_sub_environments` recreates every sub-environment, throws the fragment away and reuses the
seed, so that a seeded sim can fail for ever at the same step; that is why this exists.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import SimError
from .answers import Answer, of_reset, of_step
from .inline import InlineSim
from .loading import SimSpec
from .process import NOTHING_ALLOWED, SimFailure, SimProcess

FAILURE_BUDGET = 20
"""Failures a sim may have before training gives up ..."""
STEPS_PER_REFUND = 50
"""... where this many good steps pay for one of them (so 2 % of steps may fail for ever)."""
MAX_FAILURES_IN_A_ROW = 10
"""Without a single good step between them ..."""
MAX_HANGS_IN_A_ROW = 3
"""... and so many where each was a call that did not return: at 60 s a call, ten would take ten minutes."""
MAX_BACKOFF_S = 0.5


class SupervisedSim:
    """One sim with deadlines, restarts, a step limit and a stream of seeds of its own.

    Args:
        spec: How to make the sim.
        seeds: The source of this sim's seeds; two sims never share one.
        max_episode_steps: Truncate an episode at this many steps; None never does.
        step_timeout_s: Deadline in seconds for one `step` or `reset`.
        own_process: Run the sim in a process of its own (any hang or crash is survived), else in this one.

    Attributes:
        num_steps: Of this episode.
        failure: How this episode failed, if it did.
        num_failures: Of all episodes.
        last_failure: The last of those.
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
        self.failure: SimFailure | None = None
        self.last_failure: SimFailure | None = None
        self.num_steps = 0
        self._spec = spec
        self._seeds = seed_stream(seeds)
        self._max_episode_steps = max_episode_steps
        make = SimProcess if own_process else InlineSim
        self._host: SimProcess | InlineSim = make(spec, timeout_s=step_timeout_s)
        self._needs_seed = True
        self._budget = FailureBudget(spec.label)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; a failing reset is tried again with fresh seeds until the budget is spent.

        Args:
            seed: The sim's seed; None draws one for the first episode of a (re)started sim and leaves later episodes to
                the sim's own generator, as Gymnasium recommends.
            options: Passed to the sim's `reset`.

        Returns:
            Observation and info.
        """
        self.num_steps, self.failure = 0, None
        while True:
            if seed is None and self._needs_seed:
                seed = next(self._seeds)
            try:
                answer = of_reset(self._host.reset(seed, options))
            except SimFailure as failure:
                self.fail(failure)
                seed = None
                continue
            self._needs_seed, self.failure = False, None
            return answer

    def step(self, action: Any) -> Answer:
        """One step; after a failure the observation is None, and the episode truncated."""
        try:
            answer = of_step(self._host.step(action))
        except SimFailure as failure:
            return self.failed(failure)
        return self._counted(answer)

    def send(self, action: Any) -> None:
        """Begin a step; `receive` gives its answer (apart, so that sims in their own processes step at once)."""
        self._send_failure: SimFailure | None = None
        try:
            self._host.send("step", action)
        except SimFailure as failure:
            self._send_failure = failure

    def receive(self) -> Answer:
        """The answer to the step begun with `send`, as `step` gives it."""
        if self._send_failure is not None:
            return self.failed(self._send_failure)
        try:
            answer = of_step(self._host.receive())
        except SimFailure as failure:
            return self.failed(failure)
        return self._counted(answer)

    def _counted(self, answer: Answer) -> Answer:
        self.num_steps += 1
        if self._budget.is_touched:
            self._budget.refund()
        if self.num_steps == self._max_episode_steps:
            observation, reward, terminated, truncated, info = answer
            return observation, reward, terminated, truncated or not terminated, info
        return answer

    def failed(self, failure: SimFailure) -> Answer:
        """Count a failure of a step, as `fail`; what stands for the step's answer."""
        self.fail(failure)
        return None, 0.0, False, True, {"sim_failure": failure.reason}

    def fail(self, failure: SimFailure) -> None:
        """Count a failure, drop the sim, wait a little; the next reset makes a new one with a fresh seed.

        Raises:
            SimError: The failure budget is spent.
        """
        self.num_failures += 1
        self.failure = self.last_failure = failure
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
        self.is_touched = False
        """Whether a good step gives anything back."""

    def refund(self) -> None:
        """A good step."""
        if self.is_touched:
            self._in_a_row = self._hangs_in_a_row = 0
            self._left = min(self._left + 1.0 / STEPS_PER_REFUND, FAILURE_BUDGET)
            self.is_touched = self._left < FAILURE_BUDGET

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
        self.is_touched = True
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


def seed_stream(seeds: np.random.SeedSequence) -> Iterator[int]:
    """Seeds without end."""
    rng = np.random.default_rng(seeds)
    while True:
        yield int(rng.integers(2**31))
