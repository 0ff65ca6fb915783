"""SAC and DQN with the engine: RLlib's algorithms around a training step of many rounds.

A round is what RLlib does in one training step: sample a fragment, store it, draw a batch, update, hand the weights to
the env runners. RLlib pays its metrics, copies and calls at every round; here they are paid once for up to `ROUNDS` of
them. The order within a round, and with it what is learned from when, is RLlib's.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from typing import Any

import torch
from ray.rllib.algorithms.dqn.dqn import DQN as RLlibDQN
from ray.rllib.algorithms.dqn.dqn import calculate_rr_weights
from ray.rllib.algorithms.sac.sac import SAC as RLlibSAC
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.execution.rollout_ops import synchronous_parallel_sample
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    REPLAY_BUFFER_ADD_DATA_TIMER,
    REPLAY_BUFFER_RESULTS,
    REPLAY_BUFFER_SAMPLE_TIMER,
    REPLAY_BUFFER_UPDATE_PRIOS_TIMER,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)

from .off_policy_learner import OffPolicyLearning
from .replay import ReplayColumns
from .stream import StepStream

ROUNDS = 100
"""At most so many rounds in one training step: what RLlib does between training steps costs a few milliseconds."""


class OffPolicyTraining:
    """Mixin left of RLlib's DQN and SAC."""

    config: Any
    metrics: Any
    env_runner: Any
    env_runner_group: Any
    learner_group: Any
    local_replay_buffer: ReplayColumns
    iteration: int

    def _create_local_replay_buffer_if_necessary(self, config: Any) -> ReplayColumns:
        """The engine's buffer in place of RLlib's, with its settings."""
        given = dict(config["replay_buffer_config"])
        kind = given.get("type", "")
        is_prioritised = "Prioritized" in (kind if isinstance(kind, str) else kind.__name__)
        return ReplayColumns(
            int(given.get("capacity", 10_000)),
            alpha=float(given.get("alpha", 1.0)) if is_prioritised else None,
            seed=self.config.seed,
            num_streams=self.config.num_envs_per_env_runner,
            smoothing=self.config.metrics_num_episodes_for_smoothing,
        )

    def training_step(self) -> None:
        """As many rounds as the iteration has left, at most `ROUNDS`; one, with env runners in other processes."""
        if self.config.num_env_runners:
            rounds: _Rounds = _RemoteRounds(self)
            rounds.run(1)
        else:
            rounds = _LocalRounds(self)
            rounds.run(self._num_rounds(rounds.steps_per_round))
        rounds.finish()

    def _num_rounds(self, steps_per_round: int) -> int:
        """Rounds until RLlib's iteration is long enough; it looks at that between training steps only."""
        sampled = self._num_sampled()
        began = getattr(self, "_iteration_began", None)
        if began is None or began[0] != self.iteration:
            began = self._iteration_began = (self.iteration, sampled)
        wanted = self.config.min_sample_timesteps_per_iteration or 0
        left = wanted - (sampled - began[1])
        return max(1, min(ROUNDS, -(-left // steps_per_round)))

    def _num_sampled(self) -> int:
        return int(self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0))


class SAC(OffPolicyTraining, RLlibSAC):  # type: ignore[misc]
    """RLlib's SAC, trained by the engine."""


class DQN(OffPolicyTraining, RLlibDQN):  # type: ignore[misc]
    """RLlib's DQN and its Rainbow options, trained by the engine."""


class _Rounds(ABC):
    """Rounds of one training step, and what is logged of them."""

    def __init__(self, algo: Any) -> None:
        self.algo = algo
        self.config = algo.config
        self.replay: ReplayColumns = algo.local_replay_buffer
        self.learner: OffPolicyLearning = algo.learner_group._learner
        self.num_store, self.num_train = calculate_rr_weights(self.config)
        self.num_sampled = algo._num_sampled()
        self.num_updates = 0
        self._num_rounds = 0
        self._sum_n_step = 0.0
        self._seconds: dict[str, float] = defaultdict(float)
        self._began = 0.0
        self._is_begun = False

    @property
    def steps_per_round(self) -> int:
        """How many steps a round samples."""
        runners = max(1, self.config.num_env_runners)
        each = self.config.get_rollout_fragment_length(worker_index=0) * self.config.num_envs_per_env_runner
        return int(self.num_store * each * runners)

    def run(self, num_rounds: int) -> None:
        """Sample, store, learn, hand on the weights, again and again."""
        self._began = time.perf_counter()
        for _ in range(num_rounds):
            self.sample()
            self._num_rounds += 1
            if self.num_sampled < self.config.num_steps_sampled_before_learning_starts:
                continue
            self._learn()
            began = time.perf_counter()
            self.hand_on()
            self._took(SYNCH_WORKER_WEIGHTS_TIMER, began)

    @abstractmethod
    def sample(self) -> None:
        """Put new steps into the buffer."""

    @abstractmethod
    def hand_on(self) -> None:
        """Give the env runners the learner's weights."""

    def finish(self) -> None:
        """Log what has happened, as RLlib does."""
        metrics = self.algo.metrics
        n_step = self._sum_n_step / max(1, self.num_updates)
        metrics.aggregate([self.replay.log_metrics(self.num_updates, n_step)], key=REPLAY_BUFFER_RESULTS)
        if self._is_begun:
            metrics.aggregate([self.learner.end_updates(self.num_sampled)], key=LEARNER_RESULTS)
        for name, seconds in self._seconds.items():
            metrics.log_value((TIMERS, name), seconds / max(1, self._num_rounds))

    def _learn(self) -> None:
        if not self._is_begun:
            self._begin_learning()
            self._is_begun = True
        config = self.config
        for _ in range(self.num_train):
            began = time.perf_counter()
            drawn = self.replay.draw(
                config.total_train_batch_size,
                n_step=config.n_step,
                gamma=config.gamma,
                beta=config.replay_buffer_config.get("beta"),
            )
            began = self._took(REPLAY_BUFFER_SAMPLE_TIMER, began)
            td_errors = self.learner.update_from(
                drawn.columns, self.num_sampled, needs_errors=self.replay.is_prioritised
            )
            began = self._took(LEARNER_UPDATE_TIMER, began)
            if td_errors is not None:
                self.replay.update_rows(drawn.rows, td_errors)
            self._took(REPLAY_BUFFER_UPDATE_PRIOS_TIMER, began)
            self.num_updates += 1
            self._sum_n_step += float(drawn.columns["n_step"].mean())

    def _begin_learning(self) -> None:
        self.learner.begin_updates(self.num_sampled)

    def _took(self, name: str, began: float) -> float:
        now = time.perf_counter()
        self._seconds[name] += now - began
        return now


class _LocalRounds(_Rounds):
    """The sims are stepped in this process, one vector step at a time."""

    def __init__(self, algo: Any) -> None:
        super().__init__(algo)
        stream = getattr(algo, "_step_stream", None)
        if stream is None:
            stream = algo._step_stream = StepStream(algo.env_runner, self.replay)
        self._stream: StepStream = stream
        self._stream.begin()
        self._theirs: list[torch.Tensor] = []
        self._ours: list[torch.Tensor] = []

    def sample(self) -> None:
        began = time.perf_counter()
        num_steps = 0
        while num_steps < self.steps_per_round:
            num_steps += self._stream.step()
        self.num_sampled += num_steps
        self._took(ENV_RUNNER_SAMPLING_TIMER, began)

    def hand_on(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self._theirs, self._ours)
        self._stream.refresh()

    def _begin_learning(self) -> None:
        super()._begin_learning()
        # Only now: what trains all tensors at once has moved the learner's to a place of its own.
        theirs = self.algo.env_runner.module.state_dict()
        ours = self.learner.module[DEFAULT_MODULE_ID].state_dict()
        self._theirs = list(theirs.values())
        self._ours = [ours[name] for name in theirs]

    def finish(self) -> None:
        rounds = max(1, self._num_rounds)
        sample_s = self._seconds[ENV_RUNNER_SAMPLING_TIMER] / rounds
        between_s = (time.perf_counter() - self._began) / rounds - sample_s
        self.algo.metrics.aggregate([self._stream.end(sample_s, between_s)], key=ENV_RUNNER_RESULTS)
        super().finish()
        if self._is_begun:
            _sync(self.algo)


class _RemoteRounds(_Rounds):
    """The sims are stepped by env runners in other processes, a fragment at a time."""

    def sample(self) -> None:
        began = time.perf_counter()
        for _ in range(self.num_store):
            fragments, results = synchronous_parallel_sample(
                worker_set=self.algo.env_runner_group,
                concat=True,
                sample_timeout_s=self.config.sample_timeout_s,
                _uses_new_env_runners=True,
                _return_metrics=True,
            )
            self.algo.metrics.aggregate(results, key=ENV_RUNNER_RESULTS)
            began = self._took(ENV_RUNNER_SAMPLING_TIMER, began)
            self.replay.add(fragments)
            began = self._took(REPLAY_BUFFER_ADD_DATA_TIMER, began)
        self.num_sampled = self.algo._num_sampled()

    def hand_on(self) -> None:
        _sync(self.algo)


def _sync(algo: Any) -> None:
    algo.env_runner_group.sync_weights(
        from_worker_or_learner_group=algo.learner_group,
        policies={DEFAULT_MODULE_ID},
        global_vars=None,
        inference_only=True,
    )
