"""Whole algorithms with the engine: metrics, checkpoints both ways, remote runners, several learners, early stops."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from tests.learning.engine.sims import Counting, Everything
from tests.learning.engine.test_learner import TIMESTEPS, for_rllib, sampled

from platotk.learning import checkpoints
from platotk.learning.algorithm import SimSettings, build_config
from platotk.learning.engine import compilation
from platotk.learning.engine.learner import NUM_SKIPPED, EngineLearner
from platotk.learning.engine.runner import EngineRunner
from platotk.learning.engine.used import engine_used
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
    group = algo.env_runner_group

    def learned(runner: Any) -> tuple[str, int, int, list[float]]:
        frozen = runner._env_to_module[NumericFilter][0].frozen()
        return type(runner).__name__, runner._weights_seq_no, frozen.count, frozen.mean.tolist()

    result = algo.train()
    assert result["env_runners"]["num_env_steps_sampled"] in range(200, 208)
    before = learned(algo.env_runner)[2]
    assert before >= 200
    ray.kill(group._worker_manager.actors()[group.healthy_env_runner_ids()[0]], no_restart=False)
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        algo.train()
        if group.num_remote_worker_restarts() and len(group.healthy_env_runner_ids()) == 2:
            break
    assert group.num_remote_worker_restarts() == 1
    assert len(group.healthy_env_runner_ids()) == 2
    known = learned(algo.env_runner)[2]
    assert known > before
    steps = algo.train()["env_runners"]["num_env_steps_sampled"]
    states = group.foreach_env_runner(learned)
    assert len(states) == 3  # that of this process too
    assert {name for name, _, _, _ in states} == {"EngineRunner"}
    assert len({number for _, number, _, _ in states[1:]}) == 1
    # All know what all have seen, the one that came back too; nothing that was known before is lost.
    assert len({count for _, _, count, _ in states}) == 1
    assert states[0][2] >= known + steps
    for _, _, _, mean in states[1:]:
        np.testing.assert_allclose(mean, states[0][3], rtol=1e-9)
    algo.stop()


@pytest.fixture
def four_cpus() -> None:
    """Ray with room for learners of their own."""
    ray.shutdown()
    ray.init(num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)


def of_learners(algo: Any, func: Any) -> list[Any]:
    results = list(algo.learner_group.foreach_learner(func))
    assert all(result.ok for result in results), [result.get() for result in results]
    return [result.get() for result in results]


def weights_of(learner: Any) -> dict[str, Any]:
    state: dict[str, Any] = learner.module[DEFAULT_MODULE_ID].unwrapped().get_state()
    return state


@pytest.mark.slow
@pytest.mark.parametrize("num_learners", [1, 2])
def test_learners_of_their_own_keep_step(num_learners: int, four_cpus: None) -> None:
    algo = algorithm_for("CartPole-v1", learners={"num_learners": num_learners, "num_cpus_per_learner": 1})

    def watch(learner: Any) -> None:
        assert isinstance(learner, EngineLearner)
        learner.rows, update = [], learner._update_from

        def watched(fragment: Any, **given: Any) -> Any:
            learner.rows.append(fragment.observations[fragment.rows])
            return update(fragment, **given)

        learner._update_from = watched

    of_learners(algo, watch)
    for _ in range(3):
        result = algo.train()
    assert result["learners"][DEFAULT_MODULE_ID][NUM_SKIPPED] == 0
    # What was sampled is learned from once and by one of them: rows of this sim are all different.
    rows = of_learners(algo, lambda learner: learner.rows[-1])
    assert len(rows) == num_learners
    assert all(len(part) >= 190 for part in rows)
    num_steps = int(result["env_runners"]["num_env_steps_sampled"])
    assert num_steps in range(200 * num_learners, 200 * num_learners + 8)
    assert len(np.unique(np.concatenate(rows), axis=0)) == sum(map(len, rows)) == num_steps
    states = of_learners(algo, weights_of)
    for state in states[1:]:
        for name, value in states[0].items():
            np.testing.assert_array_equal(value, state[name])
    kernels = of_learners(algo, lambda learner: (learner._kernel.native is not None, learner._kernel.reason))
    assert kernels == [(True, None)] if num_learners == 1 else [(False, "several learners share each update")] * 2
    used = engine_used(algo)
    assert (used.engine, used.is_settled) == ("kernel" if num_learners == 1 else "torch", True)
    algo.stop()


@pytest.mark.slow
def test_two_learners_end_where_rllibs_two_do(four_cpus: None) -> None:
    learners = {"num_learners": 2, "num_cpus_per_learner": 1}
    ours, rllibs = (algorithm_for("CartPole-v1", engine=engine, learners=learners) for engine in ("auto", "rllib"))
    rllibs.learner_group.set_state(ours.learner_group.get_state())
    first = of_learners(ours, weights_of)[0]
    acting = SimpleNamespace(module={DEFAULT_MODULE_ID: ours.env_runner.module})
    fragments = [sampled(acting, seed=seed) for seed in range(2)]
    how = {"num_epochs": 2, "minibatch_size": 32, "num_total_minibatches": 8, "timesteps": TIMESTEPS}
    batches = dict(of_learners(ours, partial(batch_of, fragments=fragments)))
    of_learners(ours, partial(learn, how=how, data=[{"episodes": [fragment]} for fragment in fragments]))
    of_learners(rllibs, partial(learn, how=how, data=[{"batch": batches[rank]} for rank in range(2)]))
    mine, theirs = of_learners(ours, weights_of), of_learners(rllibs, weights_of)
    assert len(mine) == len(theirs) == 2
    for state in (mine[1], *theirs):
        for name, value in mine[0].items():
            np.testing.assert_allclose(value, state[name], rtol=0, atol=1e-5, err_msg=name)
    assert max(np.abs(value - first[name]).max() for name, value in mine[0].items()) > 1e-3
    for algo in (ours, rllibs):
        algo.stop()


def batch_of(learner: Any, *, fragments: list[Any]) -> tuple[int, Any]:
    rank = torch.distributed.get_rank()
    return rank, for_rllib(learner, fragments[rank])


def learn(learner: Any, *, how: dict[str, Any], data: list[dict[str, Any]]) -> None:
    """Each of several learners from its own part."""
    learner.update(**data[torch.distributed.get_rank()], **how, shuffle_batch_per_epoch=False)
