"""Whole algorithms with memory: checkpoints both ways, metrics, remote runners, learners, evaluation, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns as Names
from tests.learning.engine.sims import Counting, Everything
from tests.learning.engine.test_engine_runs import algorithm_for, assert_same_state, keys
from tests.learning.engine.test_memory import assert_remembered

from platotk.agents.agent import Agent
from platotk.agents.export import export
from platotk.learning import checkpoints
from platotk.learning.engine.columns import mapped
from platotk.learning.engine.learner import NUM_SKIPPED, EngineLearner
from platotk.learning.engine.runner import EngineRunner
from platotk.learning.training import train
from platotk.project import Project

pytestmark = pytest.mark.usefixtures("ray_session")

LSTM = {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 5, "fcnet_hiddens": [8]}
MEMORY = {"rl_module": {"model_config": LSTM}}


class Episodes(RLlibCallback):
    """Notes how long RLlib's episodes are, and whether they hold what the network remembered."""

    seen: list[tuple[int, bool]] = []  # noqa: RUF012

    def on_episode_end(self, *, episode: Any, **_: Any) -> None:
        Episodes.seen.append((len(episode), Names.STATE_OUT in episode.extra_model_outputs))


def test_checkpoints_go_both_ways_and_metrics_have_rllibs_keys(tmp_path: Path) -> None:
    ours, rllibs = (algorithm_for(Counting, engine=engine, **MEMORY) for engine in ("auto", "rllib"))
    assert isinstance(ours.env_runner, EngineRunner)
    assert isinstance(ours.learner_group._learner, EngineLearner)
    assert not isinstance(rllibs.env_runner, EngineRunner)
    Counting.forget()
    said = ours.train()
    steps = int(said["env_runners"]["num_env_steps_sampled_lifetime"])
    assert steps == Counting.num_steps
    assert steps in range(200, 208)
    expected = rllibs.train()
    extra = f"/learners/{DEFAULT_MODULE_ID}/{NUM_SKIPPED}"
    groups = ("env_runners", "learners")
    assert keys({name: said[name] for name in groups}) - {extra} == keys({name: expected[name] for name in groups})

    first = checkpoints.save(ours, tmp_path, 1, extra={"iteration": 1})
    checkpoints.restore(rllibs, first)
    assert_same_state(rllibs, ours)
    rllibs.train()
    second = checkpoints.save(rllibs, tmp_path, 2, extra={"iteration": 2})
    checkpoints.restore(ours, second)
    assert_same_state(ours, rllibs)
    # Whoever goes on in place keeps episodes and memory, as RLlib does; a run that is resumed begins its episodes anew,
    # and with them the memory: RLlib's checkpoints have no states of sims.
    assert not ours.env_runner.needs_reset
    assert ours.train()["learners"][DEFAULT_MODULE_ID][NUM_SKIPPED] == 0
    resumed = algorithm_for(Counting, **MEMORY)
    checkpoints.restore(resumed, second)
    assert resumed.env_runner.needs_reset
    (fragment,) = resumed.env_runner.sample(num_timesteps=80)
    assert assert_remembered(resumed.env_runner, fragment) > 3
    begun = np.isin(fragment.state_steps, [0, *(np.flatnonzero(fragment.ends)[:-1] + 1)])
    mapped(lambda column: np.testing.assert_array_equal(column[begun], 0.0), fragment.states)
    assert resumed.train()["learners"][DEFAULT_MODULE_ID][NUM_SKIPPED] == 0
    for algo in (ours, rllibs, resumed):
        algo.stop()


@pytest.mark.parametrize("share", [True, False])
def test_images_masks_and_mixed_actions_are_learned_from_with_memory(share: bool) -> None:
    algo = algorithm_for(Everything, rl_module={"model_config": {**LSTM, "vf_share_layers": share}})
    learner = algo.learner_group._learner
    before = [parameter.detach().clone() for parameter in learner.module[DEFAULT_MODULE_ID].parameters()]
    Everything.forbidden_chosen = 0
    learned = algo.train()["learners"][DEFAULT_MODULE_ID]
    assert Everything.forbidden_chosen == 0
    assert learned[NUM_SKIPPED] == 0
    assert np.isfinite(learned["total_loss"])
    moved = [
        float((new.detach() - old).abs().max())
        for old, new in zip(before, learner.module[DEFAULT_MODULE_ID].parameters(), strict=True)
    ]
    assert min(moved) > 0
    # A critic with a memory of its own remembers for the learner, so the runner has all of the weights.
    acting = dict(algo.env_runner.module.named_parameters())
    for name, parameter in learner.module[DEFAULT_MODULE_ID].named_parameters():
        if not name.startswith("vf."):
            np.testing.assert_array_equal(parameter.detach(), acting[name].detach())
    algo.stop()


def test_evaluation_plays_whole_episodes_and_callbacks_see_rllibs_own() -> None:
    Episodes.seen.clear()
    algo = algorithm_for(
        Counting,
        algorithm=PPOConfig().callbacks(Episodes),
        evaluation={"evaluation_interval": 1, "evaluation_duration": 7, "evaluation_num_env_runners": 0},
        **MEMORY,
    )
    assert isinstance(algo.env_runner, EngineRunner)
    result = algo.train()
    evaluated = result["evaluation"]["env_runners"]
    assert evaluated["num_episodes"] == 7
    assert 3 <= evaluated["episode_len_mean"] <= 12
    assert len(Episodes.seen) >= 7 + result["env_runners"]["num_episodes"]
    assert all(0 < length <= 12 and has_memory for length, has_memory in Episodes.seen)
    algo.stop()


def test_a_remote_runner_remembers_too() -> None:
    algo = algorithm_for("CartPole-v1", env_runners={"num_env_runners": 1, "num_envs_per_env_runner": 4}, **MEMORY)
    for number in (1, 2):
        result = algo.train()
        assert result["env_runners"]["num_env_steps_sampled_lifetime"] in range(200 * number, 208 * number)
    assert result["learners"][DEFAULT_MODULE_ID][NUM_SKIPPED] == 0
    algo.env_runner_group.sync_weights()

    def sampled(runner: Any) -> tuple[str, int]:
        (fragment,) = runner.sample(num_timesteps=200)
        return type(runner).__name__, assert_remembered(runner, fragment)

    ((kind, num_begun),) = algo.env_runner_group.foreach_env_runner(sampled, local_env_runner=False)
    assert kind == "EngineRunner"
    assert num_begun > 3
    algo.stop()


def test_states_are_carried_over_the_cut_between_two_fragments() -> None:
    algo = algorithm_for("CartPole-v1", env_runners={"num_envs_per_env_runner": 2}, **MEMORY)
    runner = algo.env_runner
    (first,) = runner.sample(num_timesteps=8)
    remembered = mapped(np.array, runner.memory.rows)
    (second,) = runner.sample(num_timesteps=8)
    assert first.num_episodes == 0
    sims = np.concatenate([[0], np.flatnonzero(second.ends)[:-1] + 1])
    begun = np.isin(second.state_steps, sims)
    mapped(lambda kept, row: np.testing.assert_array_equal(kept[begun], row), second.states, remembered)
    norms: list[float] = []
    mapped(lambda row: norms.append(float(np.abs(row).max())), remembered)
    assert min(norms) > 0
    algo.stop()


@pytest.mark.parametrize("num_learners", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_learners_of_their_own_keep_step(num_learners: int) -> None:
    if num_learners == 2:
        import ray

        ray.shutdown()
        ray.init(num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    algo = algorithm_for("CartPole-v1", learners={"num_learners": num_learners, "num_cpus_per_learner": 1}, **MEMORY)
    for _ in range(2):
        learned = algo.train()["learners"][DEFAULT_MODULE_ID]
    assert learned[NUM_SKIPPED] == 0

    def weights(learner: Any) -> Any:
        assert isinstance(learner, EngineLearner)
        return learner.module[DEFAULT_MODULE_ID].unwrapped().get_state()

    states = [result.get() for result in algo.learner_group.foreach_learner(weights)]
    assert len(states) == num_learners
    for state in states[1:]:
        for name, value in states[0].items():
            np.testing.assert_array_equal(value, state[name])
    algo.stop()


def test_an_agent_that_was_trained_with_memory_is_exported_and_equal(tmp_path: Path) -> None:
    said: list[dict[str, Any]] = []
    project = Project(
        sim="CartPole-v1",
        frame_stack=2,
        training={"train_batch_size_per_learner": 200, "minibatch_size": 64, "num_epochs": 1},
        stop={"iterations": 2},
        tracking={"mlflow": False},
        **MEMORY,
    )
    run = train(project, runs_dir=tmp_path, on_event=said.append)
    assert not any("fast engine" in str(event) for event in said)
    agent = Agent.load(export(run))  # which refuses where parity fails
    agent.verify()
    session = agent.session()
    sim = gym.make("CartPole-v1")
    assert session.act(sim.reset(seed=1)[0]) in (0, 1)
