"""Whole algorithms with the engine: metrics, checkpoints both ways, remote runners, several learners, early stops."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from tests.learning.engine.sims import Counting, Everything

from platotk.learning import checkpoints
from platotk.learning.algorithm import SimSettings, build_config
from platotk.learning.engine import compilation
from platotk.learning.engine.learner import NUM_SKIPPED, EngineLearner
from platotk.learning.engine.runner import EngineRunner
from platotk.learning.filters import NumericFilter
from platotk.learning.policies import open_policy
from platotk.project import Project
from platotk.sims.loading import sim_spec
from platotk.spaces import adapt

pytestmark = pytest.mark.usefixtures("ray_session", "compiled")

TINY = {"train_batch_size_per_learner": 200, "minibatch_size": 64, "num_epochs": 2}


@pytest.fixture(scope="module")
def compiled() -> None:
    """A run on a machine that has not compiled the kernel yet begins with torch: other last digits."""
    compilation.kernel()


def algorithm_for(sim: Any, **fields: Any) -> Any:
    project = Project(**{"sim": sim, "training": TINY, **fields})
    made = sim_spec(project).make()
    adapter = adapt(made.observation_space, made.action_space)
    return build_config(project, adapter, sim_spec(project), SimSettings()).build_algo()


def keys(value: Any, prefix: str = "") -> set[str]:
    if not isinstance(value, dict):
        return {prefix}
    return {key for name, inner in value.items() for key in keys(inner, f"{prefix}/{name}")}


def assert_same_state(one: Any, other: Any) -> None:
    """Weights, optimiser, filter and counters."""
    ours, theirs = one.learner_group.get_state()["learner"], other.learner_group.get_state()["learner"]
    for name, weights in ours["rl_module"][DEFAULT_MODULE_ID].items():
        np.testing.assert_array_equal(weights, theirs["rl_module"][DEFAULT_MODULE_ID][name])
    moments = [state["optimizer"]["default_policy_default_optimizer"]["state"]["state"] for state in (ours, theirs)]
    for index, state in moments[0].items():
        for name, array in state.items():
            np.testing.assert_array_equal(array, moments[1][index][name])
    filters = [algo.env_runner._env_to_module[NumericFilter][0].frozen() for algo in (one, other)]
    assert filters[0].count == filters[1].count > 0
    np.testing.assert_array_equal(filters[0].mean, filters[1].mean)
    lifetimes = [algo.metrics.peek(("env_runners", "num_env_steps_sampled_lifetime")) for algo in (one, other)]
    assert int(lifetimes[0]) == int(lifetimes[1])


def test_checkpoints_go_both_ways_and_metrics_have_rllibs_keys(tmp_path: Path) -> None:
    algos = {engine: algorithm_for(Counting, engine=engine) for engine in ("auto", "rllib")}
    ours, rllibs = algos["auto"], algos["rllib"]
    assert isinstance(ours.env_runner, EngineRunner)
    assert isinstance(ours.learner_group._learner, EngineLearner)
    Counting.forget()
    results = {"auto": ours.train()}
    steps = int(results["auto"]["env_runners"]["num_env_steps_sampled_lifetime"])
    assert steps == Counting.num_steps
    assert steps in range(200, 208)
    assert results["auto"]["learners"][DEFAULT_MODULE_ID][NUM_SKIPPED] == 0
    results["rllib"] = rllibs.train()
    said = keys({name: results["auto"][name] for name in ("env_runners", "learners")})
    extra = f"/learners/{DEFAULT_MODULE_ID}/{NUM_SKIPPED}"
    assert said - {extra} == keys({name: results["rllib"][name] for name in ("env_runners", "learners")})

    first = checkpoints.save(ours, tmp_path, 1, extra={"iteration": 1})
    checkpoints.restore(rllibs, first)
    assert_same_state(rllibs, ours)
    rllibs.train()
    second = checkpoints.save(rllibs, tmp_path, 2, extra={"iteration": 2})
    checkpoints.restore(ours, second)
    assert_same_state(ours, rllibs)
    ours.train()
    assert ours.learner_group._learner._kernel.native.num_updates > 0
    # The policy of either plays through RLlib's own inference path.
    made = Counting()
    adapter = adapt(made.observation_space, made.action_space)
    for path in (first, second):
        assert open_policy(path, adapter).act(made.reset(seed=0)[0]) in (0, 1)
    for algo in algos.values():
        algo.stop()


@pytest.mark.parametrize("share", [True, False])
def test_everything_that_spaces_can_hold_is_learned_from(share: bool) -> None:
    algo = algorithm_for(Everything, rl_module={"model_config": {"vf_share_layers": share}})
    before = [
        parameter.detach().clone() for parameter in algo.learner_group._learner.module[DEFAULT_MODULE_ID].parameters()
    ]
    learned = algo.train()["learners"][DEFAULT_MODULE_ID]
    assert learned[NUM_SKIPPED] == 0
    assert np.isfinite(learned["total_loss"])
    after = algo.learner_group._learner.module[DEFAULT_MODULE_ID].parameters()
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    acting = dict(algo.env_runner.module.named_parameters())
    for name, parameter in algo.learner_group._learner.module[DEFAULT_MODULE_ID].named_parameters():
        if name in acting:
            assert torch.equal(parameter, acting[name])
    algo.stop()


def test_a_seed_reproduces_a_run() -> None:
    def weights() -> Any:
        algo = algorithm_for("CartPole-v1", seed=11)
        for _ in range(2):
            algo.train()
        state = algo.learner_group.get_weights()[DEFAULT_MODULE_ID]
        algo.stop()
        return state

    one, other = weights(), weights()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_whole_episodes_only() -> None:
    algo = algorithm_for(Counting, env_runners={"batch_mode": "complete_episodes"})
    algo.train()
    (fragment,) = algo.env_runner.sample()
    np.testing.assert_array_equal(fragment.ends, fragment.steps["terminateds"] | fragment.steps["truncateds"])
    assert fragment.num_episodes >= 8
    algo.stop()


def test_rllibs_evaluation() -> None:
    algo = algorithm_for(
        Counting, evaluation={"evaluation_interval": 1, "evaluation_duration": 7, "evaluation_num_env_runners": 0}
    )
    evaluated = algo.train()["evaluation"]["env_runners"]
    assert evaluated["num_episodes"] == 7
    assert 3 <= evaluated["episode_len_mean"] <= 12
    frozen = [
        runner._env_to_module[NumericFilter][0].frozen()
        for runner in (algo.env_runner, algo.eval_env_runner_group.local_env_runner)
    ]
    assert frozen[0].count == frozen[1].count
    algo.stop()


@pytest.mark.slow
def test_evaluation_goes_on_for_as_long_as_training_does() -> None:
    evaluation = {
        "evaluation_interval": 1,
        "evaluation_duration": "auto",
        "evaluation_parallel_to_training": True,
        "evaluation_num_env_runners": 1,
        "evaluation_auto_duration_min_env_steps_per_sample": 8,
    }
    algo = algorithm_for("CartPole-v1", evaluation=evaluation, training={**TINY, "num_epochs": 30})
    measured: list[float] = []
    for _ in range(40):
        # What comes back when training is over already is left out by RLlib.
        evaluated = algo.train()["evaluation"].get("env_runners")
        if evaluated:
            measured.append(float(evaluated["num_env_steps_sampled"]))
        if len(measured) == 5:  # the first without, all others with a measured number of steps per second
            break
    assert len(measured) == 5
    assert min(measured) >= 1
    assert not algo.eval_env_runner_group.num_remote_worker_restarts()
    algo.stop()


def test_a_killed_runner_comes_back_and_the_filter_stays_shared() -> None:
    algo = algorithm_for(
        "CartPole-v1", env_runners={"num_env_runners": 2, "num_envs_per_env_runner": 4, "sample_timeout_s": 60.0}
    )
    result = algo.train()
    assert result["env_runners"]["num_env_steps_sampled"] in range(200, 208)
    count = algo.env_runner._env_to_module[NumericFilter][0].frozen().count
    assert count >= 200
    ids = algo.env_runner_group.healthy_env_runner_ids()
    ray.kill(algo.env_runner_group._worker_manager.actors()[ids[0]], no_restart=False)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        result = algo.train()
        if (
            algo.env_runner_group.num_remote_worker_restarts()
            and len(algo.env_runner_group.healthy_env_runner_ids()) == 2
        ):
            break
    assert len(algo.env_runner_group.healthy_env_runner_ids()) == 2
    algo.train()
    states = algo.env_runner_group.foreach_env_runner(
        lambda runner: (type(runner).__name__, runner._weights_seq_no), local_env_runner=False
    )
    assert {name for name, _ in states} == {"EngineRunner"}
    assert len({number for _, number in states}) == 1
    algo.stop()


@pytest.mark.slow
@pytest.mark.parametrize("num_learners", [1, 2])
def test_learners_of_their_own_keep_step(num_learners: int) -> None:
    if num_learners == 2:
        ray.shutdown()
        ray.init(num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    algo = algorithm_for("CartPole-v1", learners={"num_learners": num_learners, "num_cpus_per_learner": 1})
    for _ in range(3):
        learned = algo.train()["learners"]
    assert learned[DEFAULT_MODULE_ID][NUM_SKIPPED] == 0

    def weights(learner: Any) -> Any:
        assert isinstance(learner, EngineLearner)
        return learner.module[DEFAULT_MODULE_ID].unwrapped().get_state()

    results = list(algo.learner_group.foreach_learner(weights))
    assert all(result.ok for result in results), [result.get() for result in results]
    states = [result.get() for result in results]
    assert len(states) == num_learners
    for state in states[1:]:
        for name, value in states[0].items():
            np.testing.assert_array_equal(value, state[name])
    algo.stop()
