"""RLlib's keywords, read from its source, are those that its classes really take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from platotk.project import Project
from platotk.sims.checks import check, rllib_source
from platotk.sims.checks.rllib import SECTIONS, examine


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
    problems = examine(algorithm, sections, root)
    assert [one[0] for one in problems] == ([check_id] if check_id else [])
    assert all(message in one[2] for one in problems)
