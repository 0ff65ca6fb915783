"""Vector steps of an env runner one at a time, each straight into a replay buffer.

Algorithms that learn after every step or few would pay for a fragment, its metrics and its copies at each of them.
`StepStream` is given an `EngineRunner` of this process and a `ReplayColumns`; what RLlib logs at each sample is logged
once for many.
"""

from __future__ import annotations

from typing import Any

from ray.rllib.callbacks.utils import make_callback
from ray.rllib.utils.metrics import SAMPLE_TIMER, TIME_BETWEEN_SAMPLING, WEIGHTS_SEQ_NO

from .replay import ReplayColumns
from .runner import EngineRunner


class StepStream:
    """Steps the sims of a runner.

    Args:
        runner: The local env runner.
        replay: Where the steps go.
    """

    def __init__(self, runner: EngineRunner, replay: ReplayColumns) -> None:
        self._runner = runner
        self._replay = replay
        self._explore = bool(runner.config.explore)
        self._actor: Any = None
        self._lifetime = self.num_steps = self._num_done = 0

    def begin(self) -> None:
        """To be called before some steps: the runner may have a new module or new sims."""
        runner = self._runner
        self._actor = runner.ready(self._explore)
        if runner.needs_reset:
            runner.restart(self._explore)
            self._replay.begin(runner.observations)
        elif not self._replay.is_begun:
            self._replay.begin(runner.observations)
        self._lifetime = runner.num_env_steps_sampled_lifetime
        self.num_steps = self._num_done = 0

    def refresh(self) -> None:
        """The runner's module has new weights."""
        self._actor.begin()

    def step(self) -> int:
        """One vector step; how many steps it was: sims that reset themselves made none."""
        runner = self._runner
        stepped = runner.advance(self._actor, self._lifetime + self.num_steps, self._explore)
        if stepped is None:
            runner.restart(self._explore)
            self._replay.begin(runner.observations)
            return 0
        was_step = runner.settle(stepped)
        self._replay.add_step(
            was_step,
            stepped.chosen["actions"],
            stepped.rewards,
            stepped.terminated & was_step,
            stepped.truncated & was_step,
            runner.observations,
        )
        num_steps = int(was_step.sum())
        self.num_steps += num_steps
        self._num_done += int(runner.is_done.sum())
        return num_steps

    def end(self, sample_s: float, between_s: float) -> Any:
        """The runner's metrics of all steps since `begin`.

        Args:
            sample_s: Seconds that a sample took, on average.
            between_s: Seconds between two samples.
        """
        runner = self._runner
        runner.metrics.log_value(WEIGHTS_SEQ_NO, runner._weights_seq_no, window=1)
        runner.metrics.log_value(SAMPLE_TIMER, sample_s, reduce="ema")
        runner.metrics.log_value(TIME_BETWEEN_SAMPLING, between_s)
        runner.log_sampled(self.num_steps, self._num_done)
        make_callback(
            "on_sample_end",
            callbacks_objects=runner._callbacks,
            callbacks_functions=runner.config.callbacks_on_sample_end,
            kwargs={"env_runner": runner, "metrics_logger": runner.metrics, "samples": []},
        )
        return runner.get_metrics()
