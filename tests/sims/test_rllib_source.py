"""RLlib's keywords, read from its source, are those that its classes really take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from platotk.project import Project
from platotk.sims.checks import check, rllib_source
from platotk.sims.checks.rllib import SECTIONS


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
"""


@pytest.mark.parametrize(
    ("algorithm", "training", "check_id", "message"),
    [
        ("train:config", "{lr: 1e-3}", None, ""),
        ("train:config", "{gama: 0.9}", "rllib-key", "PPOConfig.training() takes no 'gama'"),
        ("train:wrong", "{}", "rllib-algorithm", "gave int, not an AlgorithmConfig"),
        ("train:confg", "{}", "rllib-algorithm", "has no 'confg'"),
    ],
)
def test_a_function_of_the_projects_own_is_called(
    project_folder: Callable[..., Path], algorithm: str, training: str, check_id: str | None, message: str
) -> None:
    project_folder(f"sim: CartPole-v1\nalgorithm: {algorithm}\ntraining: {training}\n", train=OWN)
    findings = [one for one in check(Project.load("."), time_limit_s=120.0) if one.severity == "error"]
    assert [one.id for one in findings] == ([check_id] if check_id else [])
    assert all(message in one.message for one in findings)
