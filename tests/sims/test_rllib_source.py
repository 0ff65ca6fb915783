"""RLlib's keywords, read from its source, are those that its classes really take."""

from __future__ import annotations

import dataclasses
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from platotk.learning import section_values
from platotk.project import Project
from platotk.sims.checks import check, rllib_source
from platotk.sims.checks.rllib import SECTIONS, RLlibCheck, examine


def test_the_algorithms_are_those_of_the_registry() -> None:
    from ray.rllib.algorithms.registry import ALGORITHMS

    assert set(rllib_source.algorithms()) == set(ALGORITHMS)


@pytest.mark.parametrize("name", ["PPO", "APPO", "IMPALA", "SAC", "DQN", "BC", "MARWIL", "CQL", "IQL"])
def test_the_keywords_are_those_of_the_classes(name: str) -> None:
    from platotk.learning.algorithm import default_config, section_keys

    config = default_config(name)
    for section in SECTIONS:
        assert rllib_source.section_keywords(name, section) == section_keys(config, section), section


def test_the_model_keywords_are_those_of_the_dataclass() -> None:
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    assert rllib_source.model_keywords() == {field.name for field in dataclasses.fields(DefaultModelConfig)}


WITHOUT_DATA = "{} learns from recorded episodes, and offline_data names none"
BY_NAME = {
    "APPO": None,
    "BC": WITHOUT_DATA,
    "CQL": WITHOUT_DATA,
    "DQN": None,
    "DreamerV3": section_values.UNFIT["DreamerV3"],
    "IMPALA": None,
    "IQL": WITHOUT_DATA,
    "MARWIL": WITHOUT_DATA,
    "PPO": None,
    "SAC": None,
}
"""What is found of each algorithm when nothing but its name is given."""


@pytest.mark.parametrize("name", rllib_source.algorithms())
def test_every_name_of_the_registry_is_fine_or_says_what_it_needs(name: str) -> None:
    rllib = RLlibCheck(Project(sim="CartPole-v1", algorithm=name), time.monotonic() + 20.0)
    messages = [one.message for one in rllib.findings()]
    expected = BY_NAME[name]
    assert messages == ([] if expected is None else [expected.format(name)])


def test_what_needs_continuous_actions_is_refused_others(project_folder: Callable[..., Path]) -> None:
    project_folder("sim: CartPole-v1\nalgorithm: CQL\noffline_data: {input_: [x]}\n")
    errors = [one for one in check(Project.load("."), time_limit_s=120.0) if one.severity == "error"]
    assert [one.id for one in errors] == ["algorithm-misfit"]
    assert "1 choice; it takes continuous numbers only" in errors[0].message


def test_values_are_found_with_their_lines(project_folder: Callable[..., Path]) -> None:
    project_folder("sim: CartPole-v1\ntraining:\n  lr: fast\n  gamma: 2.0\n  clip_param: 0.2\n")
    errors = [one for one in check(Project.load("."), time_limit_s=60.0) if one.severity == "error"]
    assert [(one.id, one.where) for one in errors] == [("rllib-value", f"plato.yaml:{line}") for line in (3, 4)]
    assert "lr is 'fast'; expected a number of 0 or more" in errors[0].message


def test_what_only_rllib_knows_is_asked_of_it(project_folder: Callable[..., Path]) -> None:
    project_folder("sim: CartPole-v1\ntraining:\n  lr: 1e-3\n  minibatch_size: 9000\n")
    errors = [one for one in check(Project.load("."), time_limit_s=120.0) if one.severity == "error"]
    assert [(one.id, one.where) for one in errors] == [("rllib-value", "plato.yaml:4")]
    assert "(9000) must be <= `train_batch_size_per_learner` (4096)" in errors[0].message


def test_a_function_that_configures_what_does_not_fit_is_found(project_folder: Callable[..., Path]) -> None:
    sim = """
    import gymnasium
    class Switches(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (2,))
        action_space = gymnasium.spaces.MultiDiscrete([3, 3])
        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.np_random.uniform(-1, 1, 2).astype("float32"), {}
        def step(self, action):
            obs = self.np_random.uniform(-1, 1, 2).astype("float32")
            return obs, float(obs[0]), bool(obs[1] > 0.8), False, {}
    """
    own = "from ray.rllib.algorithms.sac import SACConfig\ndef config():\n    return SACConfig().training(lr=None)\n"
    project_folder("sim: sim:Switches\nalgorithm: train:config\n", sim=textwrap.dedent(sim), train=own)
    errors = [one for one in check(Project.load("."), time_limit_s=120.0) if one.severity == "error"]
    assert [one.id for one in errors] == ["algorithm-misfit"]
    assert "SAC cannot learn" in errors[0].message


OWN = """
from ray.rllib.algorithms.ppo import PPOConfig

def config():
    return PPOConfig()

def wrong():
    return 5

def broken():
    1 / 0
"""


def test_a_function_of_the_projects_own_is_called(project_folder: Callable[..., Path]) -> None:
    project_folder("sim: CartPole-v1\nalgorithm: train:config\ntraining: {lr: 1e-3, gama: 0.9}\n", train=OWN)
    errors = [one for one in check(Project.load("."), time_limit_s=120.0) if one.severity == "error"]
    assert [one.id for one in errors] == ["rllib-key"]
    assert errors[0].message == "PPOConfig.training() takes no 'gama'"
    assert errors[0].where == "plato.yaml:3"


@pytest.mark.parametrize(
    ("algorithm", "sections", "check_id", "message"),
    [
        ("train:config", {"training": {"lr": 1e-3}}, None, ""),
        ("train:wrong", {}, "rllib-algorithm", "gave int, not an AlgorithmConfig"),
        ("train:confg", {}, "rllib-algorithm", "has no 'confg'"),
        ("train:broken", {}, "rllib-algorithm", "raised ZeroDivisionError"),
        ("train:config", {"env_runners": {"rollout_fragment_length": -5}}, "rllib-value", "rollout_fragment"),
    ],
)
def test_what_is_wrong_with_it_is_told(
    project_folder: Callable[..., Path],
    algorithm: str,
    sections: dict[str, Any],
    check_id: str | None,
    message: str,
) -> None:
    root = project_folder("sim: CartPole-v1\n", train=OWN)
    name, problems = examine(algorithm, sections, root)
    assert name == ("PPO" if algorithm == "train:config" else None)
    assert [one[0] for one in problems] == ([check_id] if check_id else [])
    assert all(message in one[2] for one in problems)
