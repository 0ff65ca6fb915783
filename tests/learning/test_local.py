"""Training without Ray's processes: where a config has no remote env runners and learners, none is started."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from tests.uncovered import uncovered

from platotk.learning import local
from platotk.learning.algorithm import default_config
from platotk.project import Project

TRAINS_ALL = '''
import json, os, pathlib, sys
import ray
from platotk import Project
from platotk.assessment.assess import assess
from platotk.learning.policies import load_policy
from platotk.learning.training import train

def children():
    """Child processes of this one: pid and command line."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            command = entry.joinpath("cmdline").read_text()
        except OSError:
            continue
        if parent == os.getpid():
            found.append(command)
    return found

told, seen = {}, []
for name, sim in (("PPO", "CartPole-v1"), ("SAC", "Pendulum-v1"), ("DQN", "CartPole-v1")):
    training = {"train_batch_size_per_learner": 64}
    if name == "PPO":
        training |= {"minibatch_size": 32, "num_epochs": 1}
    else:
        training |= {"num_steps_sampled_before_learning_starts": 20}
    project = Project(
        sim=sim, algorithm=name, training=training, max_episode_steps=30, tracking={"mlflow": False},
        reporting={} if name == "PPO" else {"min_sample_timesteps_per_iteration": 64},
        evaluation={"evaluation_interval": 1, "evaluation_duration": 2}, stop={"iterations": 1}, seed=3,
    )

    def look(event):
        if event["event"] in ("iteration", "checkpoint"):
            seen.append((ray.is_initialized(), children()))

    run = train(project, run=pathlib.Path(sys.argv[1]) / name, on_event=look)
    again = train(project.override(["stop.iterations=2"]), run=run, on_event=look)
    policy = load_policy(again, "last")
    result = assess(again, episodes=2)
    told[name] = {
        "lines": [line["iteration"] for line in again.metrics()],
        "evaluated": [line["rllib"]["evaluation"]["env_runners"]["num_episodes"] for line in again.metrics()],
        "started_ray": ray.is_initialized() or any(is_up for is_up, _ in seen),
        "children": [child for _, found in seen for child in found],
        "has_compiler": "torch._dynamo" in sys.modules,
    }
print(json.dumps(told))
'''


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each algorithm trained, evaluated, saved, restored, assessed, in one Python that never saw a Ray."""
    folder = tmp_path_factory.mktemp("local")
    done = subprocess.run(
        [sys.executable, "-c", TRAINS_ALL, str(folder)],
        env=uncovered(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("name", local.ALGORITHMS)
def test_train_evaluate_save_restore_and_assess_start_no_ray(trained: dict[str, Any], name: str) -> None:
    told = trained[name]
    assert told["lines"] == [1, 2]
    assert all(episodes >= 1 for episodes in told["evaluated"])
    assert told["started_ray"] is False
    assert told["has_compiler"] is False
    assert not [child for child in told["children"] if "raylet" in child or "gcs_server" in child or "ray::" in child]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        ({"algorithm": "sac"}, True),
        ({"env_runners": {"num_env_runners": 0}}, True),
        ({"env_runners": {"num_env_runners": "auto"}}, False),
        ({"env_runners": {"num_env_runners": 2}}, False),
        ({"learners": {"num_learners": 1}}, False),
        ({"evaluation": {"evaluation_interval": 1, "evaluation_num_env_runners": 1}}, False),
        ({"algorithm": "IMPALA"}, False),
        ({"algorithm": "BC", "offline_data": {"input_": "episodes"}}, False),
        ({"algorithm": "train:config"}, None),
    ],
)
def test_what_a_project_tells_before_rllib_is_there(fields: dict[str, Any], expected: bool | None) -> None:
    assert local.may_be_local(Project(sim="CartPole-v1", **fields)) is expected


def test_a_config_with_anything_remote_keeps_ray() -> None:
    assert local.is_local(default_config("PPO").env_runners(num_env_runners=0))
    assert not local.is_local(default_config("PPO").env_runners(num_env_runners=1))
    assert not local.is_local(default_config("PPO").env_runners(num_env_runners=0).learners(num_learners=1))
    assert not local.is_local(default_config("SAC").env_runners(num_env_runners=0).offline_data(output="somewhere"))
    assert not local.is_local(default_config("IMPALA").env_runners(num_env_runners=0))


def test_the_group_is_rllibs_own_and_only_while_it_is_built() -> None:
    import ray.rllib.algorithms.algorithm as module
    from ray.rllib.env.env_runner_group import EnvRunnerGroup

    assert module.EnvRunnerGroup is EnvRunnerGroup
    assert issubclass(local.local_group_class(), EnvRunnerGroup)
    # Should RLlib learn to put something elsewhere, this names the method that is missing.
    putting = [
        name for name, method in vars(EnvRunnerGroup).items() if "put" in getattr(method, "__code__", _NONE).co_names
    ]
    assert sorted(putting) == sorted(local._PUTTING)


class _NONE:
    co_names = ()
