"""From a project to RLlib's own AlgorithmConfig: defaults first, the project's words on top, errors that teach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import pytest

from platotk import Project, ProjectError
from platotk.learning.algorithm import build_config, choose_algorithm
from platotk.sims.loading import sim_spec
from platotk.spaces import adapt


def config_of(num_cpus: float | None = None, **fields: Any) -> Any:
    """The config of a project on CartPole."""
    project = Project(**{"sim": "CartPole-v1", **fields})
    sim = gymnasium.make("CartPole-v1")
    name, _ = choose_algorithm(project)
    adapter = adapt(sim.observation_space, sim.action_space, algorithm=name)
    return build_config(project, adapter, sim_spec(project), num_cpus=num_cpus)


def test_no_algorithm_is_ppo_and_says_why() -> None:
    name, why = choose_algorithm(Project(sim="CartPole-v1"))
    assert name == "PPO"
    assert why is not None
    assert "none was named" in why
    assert type(config_of()).__name__ == "PPOConfig"


def test_sections_are_passed_on_word_for_word() -> None:
    config = config_of(
        training={"lr": 1e-3, "gamma": 0.9}, env_runners={"num_envs_per_env_runner": 3}, learners={"num_learners": 1}
    )
    assert (config.lr, config.gamma) == (1e-3, 0.9)
    assert config.num_envs_per_env_runner == 3
    assert config.num_learners == 1


def test_a_count_written_as_1e4_arrives_as_a_whole_number() -> None:
    config = config_of(training={"train_batch_size_per_learner": 1e4, "grad_clip": 40.0})
    assert isinstance(config.train_batch_size_per_learner, int)
    assert config.train_batch_size_per_learner == 10_000
    assert isinstance(config.grad_clip, float)


def test_dqn_with_a_memory_replays_without_priorities() -> None:
    config = config_of(algorithm="DQN", rl_module={"model_config": {"use_lstm": True}})
    assert config.replay_buffer_config["type"] == "EpisodeReplayBuffer"
    assert "Prioritized" in config_of(algorithm="DQN").replay_buffer_config["type"]


@pytest.mark.parametrize(("num_cpus", "runners"), [(1, 0), (2, 1), (8, 7)])
def test_auto_takes_the_cpus_less_the_driver(num_cpus: int, runners: int) -> None:
    assert config_of(num_cpus, env_runners={"num_env_runners": "auto"}).num_env_runners == runners


def test_auto_leaves_a_cpu_to_each_learner() -> None:
    config = config_of(8, env_runners={"num_env_runners": "auto"}, learners={"num_learners": 2})
    assert config.num_env_runners == 5


def test_an_unknown_key_names_its_place_and_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "plato.yaml").write_text("sim: CartPole-v1\ntraining:\n  learning_rat: 1\n  gama: 0.9\n")
    project = Project.load(tmp_path)
    sim = gymnasium.make("CartPole-v1")
    with pytest.raises(ProjectError, match=r"plato\.yaml:\d: unknown key '(learning_rat|gama)' in training") as caught:
        build_config(project, adapt(sim.observation_space, sim.action_space), sim_spec(project))
    assert "gamma" in str(caught.value) + str(caught.value.hint)


def test_an_unknown_algorithm_names_the_nearest_one() -> None:
    with pytest.raises(ProjectError, match=r"unknown algorithm 'PPPO'\. Did you mean 'PPO'"):
        config_of(algorithm="PPPO")


def test_a_function_opens_all_of_rllib(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "from ray.rllib.algorithms.ppo import PPOConfig\n\n\ndef config():\n    return PPOConfig().training(lr=0.123)\n"
    )
    (tmp_path / "plato.yaml").write_text("sim: CartPole-v1\nalgorithm: train:config\ntraining: {gamma: 0.5}\n")
    project = Project.load(tmp_path)
    sim = gymnasium.make("CartPole-v1")
    config = build_config(project, adapt(sim.observation_space, sim.action_space), sim_spec(project))
    assert (config.lr, config.gamma) == (0.123, 0.5)
    assert config.num_epochs == 30  # RLlib's own: the user's config is taken as it is


def test_a_function_that_gives_something_else_is_refused() -> None:
    with pytest.raises(ProjectError, match="gave int, not an AlgorithmConfig"):
        build_config(
            Project(sim="CartPole-v1", algorithm=lambda: 3),
            adapt(gymnasium.make("CartPole-v1").observation_space, gymnasium.make("CartPole-v1").action_space),
            sim_spec(Project(sim="CartPole-v1")),
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"training": {"lr": "fast"}}, r"Project\(training.lr\): lr is 'fast'; expected a number of 0 or more"),
        ({"training": {"lr": -1}}, "lr is -1; expected a number of 0 or more"),
        ({"training": {"lr": [[0, 1e-3], [1e5, -1]]}}, "lr is .*; expected .* or a list of"),
        ({"training": {"gamma": 2.0}}, "gamma is 2.0; expected a number from 0 to 1"),
        ({"training": {"clip_param": 0}}, "clip_param is 0; expected a number above 0"),
        ({"training": {"num_epochs": 2.5}}, "num_epochs is 2.5; expected a whole number of 1 or more"),
        ({"training": {"minibatch_size": 9000}}, r"Project\(training.minibatch_size\): RLlib refuses .*\(4096\)"),
        ({"env_runners": {"rollout_fragment_length": "many"}}, "expected a whole number of 1 or more, or auto"),
        ({"algorithm": "SAC", "training": {"lr": 1e-3}}, r"Project\(training.lr\): RLlib refuses training.lr"),
        ({"algorithm": "BC"}, "BC learns from recorded episodes, and offline_data names none"),
    ],
)
def test_values_that_cannot_be_are_refused_before_training(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ProjectError, match=message) as caught:
        config_of(**fields)
    assert "_validate_config" not in str(caught.value)


def test_values_that_may_be_are_left_alone() -> None:
    config_of(
        training={
            "lr": [[0, 1e-3], [1e5, 1e-4]],
            "vf_clip_param": float("inf"),
            "grad_clip": None,
            "gamma": 1,
            "lambda_": 0.0,
            "num_epochs": 3.0,
        },
        env_runners={"rollout_fragment_length": "auto"},
    )
    config_of(algorithm="DQN", training={"n_step": [1, 5]})


@pytest.mark.parametrize("name", ["BC", "MARWIL", "CQL", "IQL"])
def test_what_learns_from_recorded_episodes_is_valid_by_name(name: str) -> None:
    project = Project(sim="Pendulum-v1", algorithm=name, offline_data={"input_": ["episodes"]})
    sim = gymnasium.make("Pendulum-v1")
    config = build_config(project, adapt(sim.observation_space, sim.action_space, algorithm=name), sim_spec(project))
    assert config.dataset_num_iters_per_learner == (100 if name == "CQL" else 1)
    assert config.input_ == ["episodes"]


def test_one_update_an_iteration_which_cql_cannot_is_refused() -> None:
    project = Project(
        sim="Pendulum-v1", algorithm="CQL", offline_data={"input_": ["x"], "dataset_num_iters_per_learner": 1}
    )
    sim = gymnasium.make("Pendulum-v1")
    with pytest.raises(ProjectError, match=r"RLlib's CQL fails with dataset_num_iters_per_learner: 1"):
        build_config(project, adapt(sim.observation_space, sim.action_space, algorithm="CQL"), sim_spec(project))


def test_dreamer_is_refused_by_name() -> None:
    with pytest.raises(ProjectError, match="DreamerV3 has batches and networks of its own kind"):
        config_of(algorithm="DreamerV3")
