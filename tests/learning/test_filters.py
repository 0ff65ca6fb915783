"""The observation filter: what it touches, what it learns, and that statistics add up exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.registry import _get_algorithm_class
from ray.rllib.connectors.env_to_module import EnvToModulePipeline, MeanStdFilter
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from platotk.errors import CheckpointError
from platotk.learning.algorithm import build_config
from platotk.learning.filters import FrozenFilter, NumericFilter, share_filters
from platotk.project import Project
from platotk.sims.loading import sim_spec
from platotk.spaces import adapt

NUMERIC = np.array([True, False, True])
VECTOR = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
TWO = gym.spaces.Discrete(2)


class Drifting(gym.Env[Any, Any]):
    """A sim that remembers every observation it gave: a far-off number, a flag, and a small number."""

    given: list[Any] = []  # noqa: RUF012
    observation_space = VECTOR
    action_space = TWO

    def __init__(self, config: Any = None) -> None:
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self._obs(), 1.0, self.steps >= 9, False, {}

    def _obs(self) -> Any:
        row = [self.np_random.normal(1000, 5), self.np_random.integers(2), self.np_random.normal(0, 0.01)]
        obs = np.array(row, dtype=np.float32)
        Drifting.given.append(obs.copy())
        return obs


def config_for(algorithm: str = "PPO", *, num_env_runners: int = 0) -> AlgorithmConfig:
    config = _get_algorithm_class(algorithm).get_default_config()
    config.environment(Drifting).learners(num_learners=0)
    config.env_runners(
        num_env_runners=num_env_runners,
        num_envs_per_env_runner=4,
        env_to_module_connector=lambda *_, **__: NumericFilter(numeric=NUMERIC),
    )
    config.training(train_batch_size_per_learner=80).rl_module(model_config={"fcnet_hiddens": [8]})
    if algorithm == "PPO":
        config.training(minibatch_size=40, num_epochs=1)
    else:
        config.env_runners(rollout_fragment_length=10).reporting(min_time_s_per_iteration=0.3)
    return config.debugging(log_level="ERROR")


def episodes_of(rows: Any) -> list[SingleAgentEpisode]:
    """One episode per row, which begins with it."""
    episodes = []
    for row in rows:
        episodes.append(SingleAgentEpisode())
        episodes[-1].add_env_reset(observation=row)
    return episodes


def seen(filter_: NumericFilter, rows: Any, *, explore: bool | None = True) -> np.ndarray[Any, Any]:
    """What becomes of observations that go through a filter together."""
    episodes = episodes_of(rows)
    filter_(rl_module=None, batch={}, episodes=episodes, explore=explore)
    return np.stack([episode.get_observations(-1) for episode in episodes])


def random_rows(size: int, seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    return np.stack([rng.normal(1000, 5, size), rng.integers(0, 2, size), rng.normal(0, 0.01, size)], axis=1).astype(
        np.float32
    )


def assert_learned(frozen: FrozenFilter, rows: Any) -> None:
    """Exactly these rows, each once."""
    rows = np.asarray(rows, dtype=np.float64)
    assert frozen.count == len(rows)
    np.testing.assert_allclose(frozen.mean[NUMERIC], rows.mean(axis=0)[NUMERIC], rtol=1e-9)
    np.testing.assert_allclose(frozen.std[NUMERIC], rows.std(axis=0, ddof=1)[NUMERIC], rtol=1e-9)


@pytest.fixture(scope="module")
def ray_session() -> None:
    if not ray.is_initialized():
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def test_numbers_are_normalised_and_flags_left_alone() -> None:
    filter_ = NumericFilter(numeric=NUMERIC)
    rows = random_rows(500)
    for start in range(0, 500, 5):
        seen(filter_, rows[start : start + 5])
    assert_learned(filter_.frozen(), rows)

    new = random_rows(1000, seed=1)
    filtered = seen(filter_, new, explore=False)
    assert filtered.dtype == np.float32
    np.testing.assert_array_equal(filtered[:, 1], new[:, 1])
    np.testing.assert_allclose(filtered[:, NUMERIC].mean(axis=0), 0, atol=0.2)
    np.testing.assert_allclose(filtered[:, NUMERIC].std(axis=0), 1, atol=0.1)
    assert abs(seen(filter_, [[1e9, 1, 0]], explore=False)[0, 0]) == 10  # clipped


def test_the_formula_is_rllibs() -> None:
    ours, theirs = NumericFilter(numeric=[True, True, True]), MeanStdFilter()
    theirs.input_observation_space = VECTOR
    for row in random_rows(100):
        mine = seen(ours, [row])[0]
        episodes = episodes_of([row])
        theirs(rl_module=None, batch={}, episodes=episodes)
        np.testing.assert_allclose(mine, episodes[0].get_observations(-1), rtol=1e-3, atol=1e-3)


def test_only_the_vector_of_a_dict_is_touched() -> None:
    filter_ = NumericFilter(numeric=NUMERIC)
    image, mask = np.full((1, 8, 8), 200, np.uint8), np.array([1, 0], np.float32)
    for row in random_rows(50):
        given = {"vector": row, "image_0": image, "action_mask": mask}
        episodes = episodes_of([given])
        filter_(rl_module=None, batch={}, episodes=episodes, explore=True)
        obs = episodes[0].get_observations(-1)
        assert obs["image_0"] is image
        assert obs["action_mask"] is mask
        assert abs(obs["vector"][0]) <= 10
        assert given["vector"][0] > 900  # the sim's own object is not changed


def test_nothing_is_learned_while_evaluating_or_when_frozen() -> None:
    filter_ = NumericFilter(numeric=NUMERIC)
    seen(filter_, random_rows(50))
    before = filter_.frozen()
    seen(filter_, random_rows(50, seed=1), explore=False)
    filter_._update_stats = False
    seen(filter_, random_rows(50, seed=2), explore=True)
    assert filter_.frozen().count == before.count == 50


def test_it_learns_from_as_many_as_it_may_those_of_others_included() -> None:
    rows = np.random.default_rng(0).normal(5, 2, (90, 3)).astype(np.float32)
    made = NumericFilter(VECTOR, TWO, numeric=NUMERIC, max_count=50)
    other = NumericFilter(VECTOR, TWO, numeric=NUMERIC, max_count=50)
    other.filtered(rows[:30], learn=True)
    made.merge_states([other.get_state()])
    made.filtered(rows[30:60], learn=True)
    known = made.frozen()
    assert known.count == 60
    again = made.filtered(rows[60:], learn=True)
    assert made.frozen().count == 60
    np.testing.assert_allclose(again, known.apply(rows[60:]), rtol=1e-5)
    np.testing.assert_array_equal(again, made.filtered(rows[60:], learn=True))


@pytest.mark.parametrize(
    ("fields", "max_count"),
    [
        ({}, None),
        ({"algorithm": "APPO"}, None),
        ({"algorithm": "SAC"}, 1000),
        ({"algorithm": "DQN", "training": {"num_steps_sampled_before_learning_starts": 5000}}, 5000),
        ({"algorithm": "DQN", "training": {"num_steps_sampled_before_learning_starts": 10}}, 1000),
    ],
)
def test_with_replay_it_stands_still_once_learning_begins(fields: dict[str, Any], max_count: int | None) -> None:
    project = Project(sim="Pendulum-v1" if fields.get("algorithm") == "SAC" else "CartPole-v1", **fields)
    spec = sim_spec(project)
    sim = spec.make()
    adapter = adapt(sim.observation_space, sim.action_space, algorithm=project.algorithm)
    config = build_config(project, adapter, spec)
    made = config._env_to_module_connector(sim.observation_space, sim.action_space)
    assert made.get_ctor_args_and_kwargs()[1]["max_count"] == max_count


def test_a_filter_that_has_seen_nothing_passes_observations_on() -> None:
    rows = np.array([[3.0, 1.0, -2.0]], np.float32)
    np.testing.assert_array_equal(seen(NumericFilter(numeric=NUMERIC), rows, explore=False), rows)


def test_the_frozen_filter_does_what_the_filter_does() -> None:
    filter_ = NumericFilter(numeric=NUMERIC)
    seen(filter_, random_rows(300))
    frozen = FrozenFilter.from_state(filter_.get_state())
    rows = random_rows(20, seed=3)
    np.testing.assert_allclose(frozen.apply(rows), seen(filter_, rows, explore=False), rtol=1e-6, atol=1e-6)
    assert (frozen.mean[1], frozen.std[1], frozen.eps, frozen.clip) == (0.0, 1.0, 1e-8, 10.0)


def test_merging_is_exact_however_often_and_in_whatever_order() -> None:
    """RLlib 2.60's own filter is at a mean of 25 after five such rounds over numbers whose mean is 100."""
    driver = NumericFilter(numeric=NUMERIC)
    runners = [NumericFilter(numeric=NUMERIC) for _ in range(3)]
    everything: list[Any] = []
    for round_ in range(5):
        for number, runner in enumerate(runners):
            rows = random_rows(20 * (number + 1), seed=10 * round_ + number)
            everything.extend(rows)
            seen(runner, rows)
        states = [runner.get_state() for runner in runners]
        driver.merge_states(states)
        merged = driver.merge_states(states[::-1])  # twice
        assert_learned(driver.frozen(), everything)
        driver.set_state(merged)
        for runner in runners[: 2 + round_ % 2]:  # one runner misses every other broadcast
            runner.set_state(merged)
            assert_learned(runner.frozen(), everything)


def test_a_late_broadcast_loses_nothing() -> None:
    """An asynchronous algorithm broadcasts while a runner has sampled on already."""
    driver, runner = NumericFilter(numeric=NUMERIC), NumericFilter(numeric=NUMERIC)
    empty = driver.get_state()
    first, second, third = random_rows(30, 1), random_rows(40, 2), random_rows(50, 3)
    seen(runner, first)
    early = driver.merge_states([runner.get_state()])
    seen(runner, second)
    late = runner.get_state()
    runner.set_state(early)
    seen(runner, third)
    driver.merge_states([late])
    assert_learned(driver.frozen(), np.concatenate([first, second]))
    driver.merge_states([runner.get_state()])
    assert_learned(driver.frozen(), np.concatenate([first, second, third]))
    # Even one from before the driver had heard of the runner at all: RLlib drops states between broadcasts.
    runner.set_state(empty)
    seen(runner, first)
    driver.merge_states([runner.get_state()])
    assert_learned(driver.frozen(), np.concatenate([first, second, third, first]))


def test_what_was_learned_before_a_restore_stays_out(tmp_path: Path) -> None:
    driver, runner = NumericFilter(numeric=NUMERIC), NumericFilter(numeric=NUMERIC)
    seen(runner, random_rows(30, 1))
    driver.merge_states([runner.get_state()])
    driver.save_to_path(tmp_path / "filter")
    seen(runner, random_rows(40, 2))
    driver.merge_states([runner.get_state()])
    assert driver.frozen().count == 70
    driver.restore_from_path(tmp_path / "filter")
    assert_learned(driver.frozen(), random_rows(30, 1))
    runner.set_state(driver.merge_states([runner.get_state()]))
    assert_learned(runner.frozen(), random_rows(30, 1))
    seen(runner, random_rows(10, 3))
    driver.merge_states([runner.get_state()])
    assert_learned(driver.frozen(), np.concatenate([random_rows(30, 1), random_rows(10, 3)]))


def test_a_reset_forgets_what_runners_still_hold() -> None:
    driver, runner = NumericFilter(numeric=NUMERIC), NumericFilter(numeric=NUMERIC)
    seen(runner, random_rows(30))
    driver.merge_states([runner.get_state()])
    driver.reset_state()
    driver.merge_states([runner.get_state()])
    assert driver.frozen().count == 0


def test_a_pipeline_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    pipeline = EnvToModulePipeline(VECTOR, TWO, connectors=[NumericFilter(numeric=NUMERIC, clip=5.0)])
    seen(pipeline.connectors[0], random_rows(100))
    pipeline.save_to_path(tmp_path / "pipeline")
    again = EnvToModulePipeline.from_checkpoint(tmp_path / "pipeline").connectors[0]
    rows = random_rows(10, seed=5)
    np.testing.assert_array_equal(seen(again, rows, explore=False), seen(pipeline.connectors[0], rows, explore=False))
    assert again.frozen().clip == 5.0


def test_a_state_of_another_sim_is_refused() -> None:
    state = NumericFilter(numeric=[True, True]).get_state()
    with pytest.raises(CheckpointError, match="2 numbers in a vector of 2, now 2 in 3"):
        NumericFilter(numeric=NUMERIC).set_state(state)


def test_a_learner_sees_what_the_module_saw(ray_session: None) -> None:
    algo = config_for().build_algo()
    Drifting.given.clear()
    episodes = algo.env_runner.sample(num_timesteps=400, explore=True)
    rows = np.concatenate([episode.get_observations() for episode in episodes])
    assert np.abs(rows[:, NUMERIC]).max() <= 10
    assert set(np.unique(rows[:, 1])) == {0.0, 1.0}
    assert_learned(algo.env_runner._env_to_module[NumericFilter][0].frozen(), Drifting.given)
    algo.env_runner.sample(num_timesteps=100, explore=False)
    assert algo.env_runner._env_to_module[NumericFilter][0].frozen().count < len(Drifting.given)
    algo.stop()


@pytest.mark.slow  # in short: tests/learning/engine/test_engine_runs.py, a filter that stays shared
@pytest.mark.parametrize("algorithm", ["PPO", "APPO"])
def test_two_remote_env_runners_statistics_add_up_exactly(ray_session: None, algorithm: str) -> None:
    algo = config_for(algorithm, num_env_runners=2).build_algo()
    steps = 0
    while steps < 240:
        steps = algo.train()["num_env_steps_sampled_lifetime"]

    def state_and_given(runner: Any) -> tuple[Any, Any]:
        sims = [sim.unwrapped for sim in runner.env.unwrapped.envs]
        return runner.get_state(components=["env_to_module_connector"]), type(sims[0]).given

    answers = algo.env_runner_group.foreach_env_runner(state_and_given, local_env_runner=False)
    everything = [obs for _, given in answers for obs in given]
    assert len(answers) == 2
    assert all(len(given) > 20 for _, given in answers)
    algo.env_runner_group.sync_env_runner_states(
        config=algo.config, connector_states=[state for state, _ in answers], from_worker=algo.env_runner
    )
    filter_ = algo.env_runner._env_to_module[NumericFilter][0]
    assert_learned(filter_.frozen(), everything)
    if algorithm == "PPO":
        # One observation per step, and one more for each time a sim was reset.
        assert steps < len(everything) <= steps + steps / 9 + 8
    algo.stop()


def test_a_resumed_run_and_its_evaluation_go_on_with_the_same_filter(ray_session: None, tmp_path: Path) -> None:
    config = config_for().evaluation(
        evaluation_interval=100, evaluation_duration=2, evaluation_config={"explore": True}
    )
    config.callbacks(on_evaluate_start=share_filters)
    algo = config.build_algo()
    algo.train()
    before = algo.env_runner._env_to_module[NumericFilter][0].frozen()
    algo.save_to_path(tmp_path / "checkpoint")
    algo.stop()

    again = config.copy(copy_frozen=False).build_algo()
    again.restore_from_path(tmp_path / "checkpoint")
    filter_ = again.env_runner._env_to_module[NumericFilter][0]
    np.testing.assert_array_equal(filter_.frozen().mean, before.mean)
    np.testing.assert_array_equal(filter_.frozen().std, before.std)
    again.evaluate()
    evaluating = again.eval_env_runner_group.local_env_runner._env_to_module[NumericFilter][0]
    assert evaluating.frozen().count == filter_.frozen().count == before.count
    again.train()
    assert filter_.frozen().count > before.count
    again.evaluate()
    assert evaluating.frozen().count == filter_.frozen().count
    again.stop()


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_remote_evaluation_sees_what_training_has_seen(ray_session: None, num_env_runners: int) -> None:
    evaluation = {"evaluation_interval": 1, "evaluation_duration": 2, "evaluation_num_env_runners": 1}
    config = config_for(num_env_runners=num_env_runners).evaluation(**evaluation, evaluation_config={"explore": True})
    config.callbacks(on_evaluate_start=share_filters)
    algo = config.build_algo()

    def count(runner: Any) -> int:
        return int(runner._env_to_module[NumericFilter][0].frozen().count)

    for iteration in range(1, 4):
        assert algo.train()["evaluation"]["env_runners"]["num_episodes"] == 2
        counts = algo.eval_env_runner_group.foreach_env_runner(count)
        assert set(counts) == {count(algo.env_runner)}
        assert counts[0] > 80 * iteration
    algo.stop()
