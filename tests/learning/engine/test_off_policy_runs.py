"""Whole SAC and DQN with the engine: exact counts, RLlib's metrics, checkpoints both ways, env runners elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from tests.learning.engine.sims import Counting
from tests.learning.engine.test_engine_runs import keys

from platotk.learning import checkpoints
from platotk.learning.algorithm import SimSettings, build_config
from platotk.learning.engine.acting import Actor
from platotk.learning.engine.learner import NUM_SKIPPED
from platotk.learning.engine.off_policy import DQN, SAC, _LocalRounds
from platotk.learning.engine.replay import ReplayColumns
from platotk.learning.engine.runner import EngineRunner
from platotk.project import Project
from platotk.sims.loading import sim_spec
from platotk.spaces import adapt

pytestmark = pytest.mark.usefixtures("ray_session")

WARM_UP = 40
STEPS = 60
"""Of an iteration: RLlib's own takes a twentieth of a second for each."""
TINY = {"train_batch_size_per_learner": 32, "num_steps_sampled_before_learning_starts": WARM_UP}
MODEL = {"model_config": {"fcnet_hiddens": [16, 16], "head_fcnet_hiddens": [16]}}


class Steered(Counting):
    """Counting with an action that SAC can choose."""

    action_space = gym.spaces.Box(-2, 2, (1,), np.float32)


SIMS: dict[str, Any] = {"SAC": Steered, "DQN": Counting}


def algorithm_for(name: str, **fields: Any) -> Any:
    sim = SIMS[name]
    project = Project(
        **{
            "sim": sim,
            "algorithm": name,
            "training": TINY,
            "rl_module": MODEL,
            "reporting": {"min_sample_timesteps_per_iteration": STEPS, "min_time_s_per_iteration": None},
            **fields,
        }
    )
    made = sim_spec(project).make()
    adapter = adapt(made.observation_space, made.action_space, algorithm=name)
    return build_config(project, adapter, sim_spec(project), SimSettings()).build_algo()


def learned(algo: Any) -> dict[str, Any]:
    state: dict[str, Any] = algo.learner_group.get_state()["learner"]["rl_module"][DEFAULT_MODULE_ID]
    return state


@pytest.mark.parametrize("name", ["SAC", "DQN"])
def test_steps_are_exact_and_checkpoints_go_both_ways(name: str, tmp_path: Path) -> None:
    ours, rllibs = (algorithm_for(name, engine=engine) for engine in ("auto", "rllib"))
    assert isinstance(ours, {"SAC": SAC, "DQN": DQN}[name])
    assert isinstance(ours.env_runner, EngineRunner)
    Counting.forget()
    results = [ours.train()]
    steps = int(results[0]["num_env_steps_sampled_lifetime"])
    assert steps == Counting.num_steps == len(ours.local_replay_buffer)
    assert steps in range(STEPS, STEPS + 2)
    results.append(ours.train())
    assert results[1]["num_env_steps_sampled_lifetime"] == Counting.num_steps
    mine = results[1]["learners"][DEFAULT_MODULE_ID]
    # One update for each step after the warm-up.
    updates = mine["num_module_steps_trained_lifetime"] / 32
    assert updates in range(Counting.num_steps - WARM_UP, Counting.num_steps - WARM_UP + 2)
    assert mine[NUM_SKIPPED] == 0
    for _ in range(2):
        theirs = rllibs.train()
    said, expected = (
        keys({part: result[part] for part in ("env_runners", "learners", "replay_buffer") if part in result})
        for result in (results[1], theirs)
    )
    # No learner connectors, so nothing that they took.
    lacking = {key for key in expected - said if "learner_connector" not in key}
    assert not lacking, sorted(lacking)
    assert {key for key in said - expected if NUM_SKIPPED not in key} == set()

    first = checkpoints.save(ours, tmp_path, 1, extra={"iteration": 1})
    notes = checkpoints.restore(rllibs, first)
    assert notes is not None
    for key, value in learned(ours).items():
        np.testing.assert_array_equal(value, learned(rllibs)[key])
    rllibs.train()
    second = checkpoints.save(rllibs, tmp_path, 2, extra={"iteration": 2})
    checkpoints.restore(ours, second)
    for key, value in learned(ours).items():
        np.testing.assert_array_equal(value, learned(rllibs)[key])
    ours.train()
    for algo in (ours, rllibs):
        algo.stop()


@pytest.mark.parametrize("name", ["SAC", "DQN"])
def test_a_restored_run_has_its_replay_buffer(name: str, tmp_path: Path) -> None:
    one = algorithm_for(name)
    one.train()
    saved = checkpoints.save(one, tmp_path, 1, extra={"iteration": 1})
    other = algorithm_for(name)
    checkpoints.restore(other, saved)
    before, after = (algo.local_replay_buffer for algo in (one, other))
    assert isinstance(after, ReplayColumns)
    assert len(after) == len(before) > WARM_UP
    drawn = [replay.draw(40, gamma=0.9, beta=0.4) for replay in (before, after)]
    for key, column in drawn[0].columns.items():
        np.testing.assert_array_equal(column, drawn[1].columns[key], err_msg=key)
    steps = Counting.num_steps
    result = other.train()
    assert result["num_env_steps_sampled_lifetime"] == len(before) + Counting.num_steps - steps
    for algo in (one, other):
        algo.stop()


@pytest.mark.parametrize("name", ["SAC", "DQN"])
def test_each_update_is_acted_on_at_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first one on, also of a run that goes on: the learner moves its tensors when it begins."""
    hand_on, num_handed = _LocalRounds.hand_on, 0

    def watched(rounds: _LocalRounds) -> None:
        nonlocal num_handed
        hand_on(rounds)
        num_handed += 1
        acting = rounds.algo.env_runner.module.state_dict()
        learning = rounds.learner.module[DEFAULT_MODULE_ID].state_dict()
        for key, tensor in acting.items():
            torch.testing.assert_close(tensor, learning[key], rtol=0, atol=0, msg=f"{key}, hand-on {num_handed}")

    monkeypatch.setattr(_LocalRounds, "hand_on", watched)
    one, other = algorithm_for(name), algorithm_for(name)
    one.train()
    assert num_handed >= STEPS - WARM_UP
    before = {key: value.copy() for key, value in learned(one).items()}
    checkpoints.restore(other, checkpoints.save(one, tmp_path, 1, extra={"iteration": 1}))
    other.train()
    assert num_handed >= 2 * STEPS - WARM_UP
    assert any(not np.array_equal(value, before[key]) for key, value in learned(other).items())
    checkpoints.restore(one, checkpoints.save(other, tmp_path, 2, extra={"iteration": 2}))
    one.train()
    for algo in (one, other):
        algo.stop()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SAC", "DQN"])
def test_env_runners_in_other_processes(name: str) -> None:
    algo = algorithm_for(name, env_runners={"num_env_runners": 2})
    for _ in range(2):
        result = algo.train()
    assert result["learners"][DEFAULT_MODULE_ID][NUM_SKIPPED] == 0
    assert len(algo.local_replay_buffer) == result["num_env_steps_sampled_lifetime"] >= 2 * STEPS
    weights = learned(algo)
    states = algo.env_runner_group.foreach_env_runner(
        lambda runner: (type(runner).__name__, runner.module.get_state()), local_env_runner=False
    )
    assert [kind for kind, _ in states] == ["EngineRunner"] * 2
    for _, state in states:
        for key, value in state.items():
            np.testing.assert_array_equal(value, weights[key])
    algo.stop()


def test_dqn_explores_by_epsilon_as_scheduled() -> None:
    algo = algorithm_for("DQN", training={**TINY, "epsilon": [[0, 1.0], [1000, 0.0]]})
    module = algo.env_runner.module
    actor = Actor(module, None, explore=True)
    rows = np.random.default_rng(0).normal(size=(4000, *module.observation_space.shape)).astype(np.float32)
    with torch.no_grad():
        greedy = module.compute_q_values({"obs": torch.from_numpy(rows)})["qf_preds"].argmax(-1).numpy()
    num_actions = int(module.action_space.n)
    assert np.array_equal(actor.act(rows, 1000)["actions"], greedy)
    drawn = actor.act(rows, 0)["actions"]
    assert np.bincount(drawn, minlength=num_actions) == pytest.approx(np.full(num_actions, 4000 / num_actions), rel=0.1)
    # Half at random, of which one in `num_actions` is the greedy one all the same.
    share = np.mean(actor.act(rows, 500)["actions"] == greedy)
    assert share == pytest.approx(0.5 + 0.5 / num_actions, abs=0.04)
    algo.stop()
