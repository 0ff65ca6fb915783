"""Sims that step in one call (`vector_entry_point`): the same to learning as sims one by one, and errors that teach."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from tests.sims.tanks import ACTIONS, OBSERVATIONS

import platotk
from platotk import Project, ProjectError, SimError
from platotk.learning.algorithm import build_config
from platotk.sims.loading import sim_spec
from platotk.sims.vectorised import VectorisedSims
from platotk.spaces import adapt

MODE = {"gym_env_vectorize_mode": "vector_entry_point"}
SIM = "tests.sims.tanks:Tanks-v0"


def project_of(sim: str = SIM, **fields: Any) -> Project:
    small = {"train_batch_size_per_learner": 400, "minibatch_size": 200, "num_epochs": 1}
    runners = {"num_envs_per_env_runner": 10, "num_env_runners": 0, **MODE}
    given = {"stop": {"iterations": 2}, "tracking": {"mlflow": False}, "action_mask": "info", "env_runners": runners}
    return Project(**{"sim": sim, "training": small, **given, **fields})


def sims_of(project: Project, num_envs: int = 4) -> VectorisedSims:
    adapter = adapt(OBSERVATIONS, ACTIONS, action_mask=project.action_mask)
    given = {"spec": sim_spec(project), "adapter": adapter, "num_envs": num_envs, "seed": (3, 1)}
    return VectorisedSims({**given, "max_episode_steps": project.max_episode_steps, "step_timeout_s": 1.0})


def test_learning_sees_what_the_sims_give_encoded() -> None:
    adapter = adapt(gym.make("CartPole-v1").observation_space, gym.spaces.Discrete(2))
    spec = sim_spec(Project(sim="CartPole-v1"))
    sims = VectorisedSims({"spec": spec, "adapter": adapter, "num_envs": 5, "seed": (3, 1), "max_episode_steps": 30})
    sims.assign(2)
    observations, _ = sims.reset()
    raw = gym.make_vec("CartPole-v1", 5, vectorization_mode="vector_entry_point", max_episode_steps=30)
    seed = np.random.default_rng(
        np.random.SeedSequence(
            [
                3,
                1,
                2,
            ]
        )
    ).integers(2**31)
    np.testing.assert_array_equal(observations, raw.reset(seed=int(seed))[0])
    actions = np.random.default_rng(0).integers(2, size=(120, 5))
    ends = 0
    for chosen in actions:
        found, expected = sims.step(chosen), raw.step(chosen)
        for one, other in zip(found[:4], expected[:4], strict=True):
            np.testing.assert_array_equal(one, other)
        ends += int((found[2] | found[3]).sum())
    assert ends > 5
    sims.close()


def test_streams_differ_and_repeat() -> None:
    firsts = []
    for stream in ((0,), (1,), (0,)):
        sims = sims_of(project_of())
        sims.assign(*stream)
        firsts.append(sims.reset()[0]["vector"])
    assert not np.array_equal(firsts[0], firsts[1])
    np.testing.assert_array_equal(firsts[0], firsts[2])


@pytest.mark.parametrize("engine", ["auto", "rllib"])
def test_it_trains_with_dict_spaces_and_masks_and_counts_every_step(engine: Any, tmp_path: Any) -> None:
    """The sims themselves assert that no forbidden action arrives, and that actions are of their own space."""
    run = platotk.train(project_of(engine=engine), runs_dir=tmp_path)
    lines = run.metrics()
    assert [line["env_steps"] for line in lines] == pytest.approx([400, 800], abs=20)
    # RLlib's own runner counts a step more of an episode that goes on in the next iteration.
    longest = 20 + (engine == "rllib")
    assert all(1 <= line["rllib"]["env_runners"]["episode_len_max"] <= longest for line in lines)
    assert run.status == "finished"


def test_a_limit_of_the_project_is_the_sims_too() -> None:
    sims = sims_of(project_of(max_episode_steps=3, action_mask=None))
    sims.reset()
    truncated = [sims.step(np.full(4, 1))[3] for _ in range(3)]  # the category of action 0: nothing moves
    assert [flags.all() for flags in truncated] == [False, False, True]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raises", "the pump is gone"),
        ("hangs", "did not return within 1 s"),
        ("reward", "the reward nan for sim 2"),
        ("observation", "nan"),
    ],
)
def test_a_failure_is_told_with_the_way_out(fault: str, said: str) -> None:
    sims = sims_of(project_of(sim_config={"fault": fault}))
    sims.reset()
    with pytest.raises(SimError, match=said) as raised:
        _ = [sims.step(np.full(4, 1)) for _ in range(10)]
    assert "all its 4 episodes" in raised.value.message
    assert "gym_env_vectorize_mode" in (raised.value.hint or "")


def test_a_failure_ends_the_training_as_that_error(tmp_path: Any) -> None:
    with pytest.raises(SimError, match="the pump is gone"):
        platotk.train(project_of(sim_config={"fault": "raises"}), runs_dir=tmp_path)


def first_reset(project: Project) -> None:
    config = build_config(project, adapt(OBSERVATIONS, ACTIONS), sim_spec(project))
    config.env({**config.env_config, "num_envs": 2}).reset()


@pytest.mark.parametrize(
    ("sim", "config", "said"),
    [
        ("Tank-v0", {}, "has no vector_entry_point"),
        ("Tanks-v0", {"fault": "spaces"}, "the action_space of the vectorised"),
        ("Tanks-v0", {"fault": "autoreset"}, "reset themselves in the step after"),
    ],
)
def test_what_cannot_be_vectorised_is_refused(sim: str, config: dict[str, Any], said: str) -> None:
    with pytest.raises(SimError, match=said):
        first_reset(project_of(sim, sim_config=config))


@pytest.mark.parametrize("fields", [{"sim_process": "own"}, {"env_runners": {"gym_env_vectorize_mode": "async"}}])
def test_processes_are_sim_process(fields: dict[str, Any]) -> None:
    project = project_of(**fields)
    with pytest.raises(ProjectError, match="gym_env_vectorize_mode is") as raised:
        build_config(project, adapt(OBSERVATIONS, ACTIONS), sim_spec(project))
    assert "sim_process: own" in (raised.value.hint or "")


@pytest.mark.parametrize(
    ("sim", "fault", "said"),
    [("tests.sims.tanks:Tank-v0", "", "has no vector_entry_point"), (SIM, "spaces", "action_space"), (SIM, "", None)],
)
def test_check_finds_it_first(sim: str, fault: str, said: str | None) -> None:
    findings = platotk.check(project_of(sim, sim_config={"fault": fault} if fault else {}), probe_steps=200)
    found = [finding for finding in findings if finding.id == "project-setting"]
    assert [said in finding.message for finding in found] == ([True] if said else [])
