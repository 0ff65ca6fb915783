"""`train`: a run that learns, stops, resumes and survives bad sims."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from platotk.errors import ProjectError, SimError
from platotk.learning.policies import load_policy
from platotk.learning.preparation import needs_own_process
from platotk.learning.training import train
from platotk.project import Project
from platotk.sims.probe import Probe

TINY = {
    "training": {"train_batch_size_per_learner": 256, "minibatch_size": 64, "num_epochs": 1},
    "env_runners": {"num_envs_per_env_runner": 4},
    "tracking": {"mlflow": False},
}

pytestmark = pytest.mark.usefixtures("ray_session")


class Flaky(gym.Env):
    """Raises with probability 0.01 a step, from its own seeded generator."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        if self.np_random.random() < 0.01:
            raise RuntimeError("the solver did not converge")
        return np.full(2, self.t / 100, np.float32), float(action), False, self.t >= 50, {}


class NaNAt(gym.Env):
    """Gives NaN at its 30th step, for ever after restarting an episode it is fine again."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        value = np.nan if self.t == 70 else self.t / 100
        return np.array([value, 0.0], np.float32), 1.0, False, self.t >= 100, {}


class Hangs(gym.Env):
    """Sleeps for an hour at step 300 of its life."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self):
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        self.steps += 1
        if self.steps == 300:
            time.sleep(3600)
        return np.zeros(2, np.float32), 1.0, False, self.t >= 50, {}


class Broken(Flaky):
    """Raises at every step."""

    def step(self, action):
        raise RuntimeError("no licence")


def project(sim, tmp_path: Path, **fields) -> Project:
    stop = fields.pop("stop", {"iterations": 2})
    made = Project(sim=sim, name="test", stop=stop, **{**TINY, **fields})
    return made


def test_a_run_holds_journal_checkpoints_and_a_policy_that_acts(tmp_path):
    run = train(project("CartPole-v1", tmp_path), runs_dir=tmp_path)
    assert run.status == "finished"
    lines = run.metrics()
    assert [line["iteration"] for line in lines] == [1, 2]
    assert lines[0]["env_steps"] < lines[1]["env_steps"]
    assert lines[1]["rllib"]["learners"]["default_policy"]["total_loss"] is not None
    assert run.latest is not None
    assert (run.latest / "MANIFEST.json").is_file()
    assert run.best is not None
    assert run.info["mapping"]
    policy = load_policy(run)
    action = policy.act(np.zeros(4, np.float32))
    assert policy.action_space.contains(action)
    best = json.loads((run.path / "best.json").read_text())
    # Evaluation has a tenth of the run's time; on a busy machine the training return may have to do.
    assert best["by"] in ("evaluation", "training")
    assert bool(run.evaluations()) == (best["by"] == "evaluation")


def test_resume_goes_on_with_iterations_steps_and_attempts(tmp_path):
    run = train(project("CartPole-v1", tmp_path), runs_dir=tmp_path)
    steps = run.metrics()[-1]["env_steps"]
    longer = project("CartPole-v1", tmp_path, stop={"iterations": 4})
    resumed = train(longer, resume=run)
    lines = resumed.metrics()
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4]
    assert [line["attempt"] for line in lines] == [1, 1, 2, 2]
    assert steps < lines[2]["env_steps"] < lines[3]["env_steps"]
    assert np.all(np.diff([line["env_steps"] for line in lines]) >= 256)


def test_time_counts_saving_and_evaluating_and_goes_on_when_resumed(tmp_path):
    every = {"checkpoint": {"every": 1}}
    run = train(project("CartPole-v1", tmp_path, stop={"iterations": 3}, **every), runs_dir=tmp_path)
    lines = run.metrics()
    steps = np.diff([0, *(line["env_steps"] for line in lines)])
    iterations_s = sum(steps[1:] / [line["env_steps_per_s"] for line in lines[1:]])
    assert lines[2]["time_s"] - lines[0]["time_s"] > iterations_s + 0.01
    longer = project("CartPole-v1", tmp_path, stop={"time": lines[2]["time_s"] + 0.001}, **every)
    resumed = train(longer, resume=run)
    assert resumed.info["reason"].startswith("time reached")
    assert len(resumed.metrics()) == 4, "the time of the first attempt counts"


def test_the_same_seed_gives_the_same_run(tmp_path):
    first = train(project("CartPole-v1", tmp_path, seed=3), runs_dir=tmp_path / "a")
    second = train(project("CartPole-v1", tmp_path, seed=3), runs_dir=tmp_path / "b")
    other = train(project("CartPole-v1", tmp_path, seed=4), runs_dir=tmp_path / "c")
    returns = [[line["return_mean"] for line in run.metrics()] for run in (first, second, other)]
    assert returns[0] == returns[1]
    assert returns[0] != returns[2]


def test_a_flaky_sim_loses_one_episode_at_a_time(tmp_path):
    run = train(
        project(
            Flaky,
            tmp_path,
            training={**TINY["training"], "train_batch_size_per_learner": 4096},
            sim_process="inline",
        ),
        runs_dir=tmp_path,
    )
    lines = run.metrics()
    assert run.status == "finished"
    assert lines[-1]["env_steps"] >= 2 * 4096
    assert 20 < lines[-1]["sim_failures"] < 200


def test_nan_truncates_that_episode(tmp_path):
    run = train(
        project(
            NaNAt,
            tmp_path,
            sim_process="inline",
            training={**TINY["training"], "train_batch_size_per_learner": 1024},
        ),
        runs_dir=tmp_path,
    )
    assert run.status == "finished"
    assert run.metrics()[-1]["sim_failures"] > 0


def test_a_sim_that_always_fails_ends_with_its_own_traceback(tmp_path):
    with pytest.raises(SimError, match="no licence") as raised:
        train(project(Broken, tmp_path, sim_process="inline"), runs_dir=tmp_path)
    assert "plato check" in str(raised.value)


@pytest.mark.parametrize("where", ["inline", "own"])
def test_a_hang_costs_one_episode(tmp_path, where):
    began = time.monotonic()
    run = train(
        project(
            Hangs,
            tmp_path,
            sim_process=where,
            step_timeout_s=1.0,
            env_runners={"num_envs_per_env_runner": 1},
            stop={"env_steps": 512},
        ),
        runs_dir=tmp_path,
    )
    assert run.status == "finished"
    assert run.metrics()[-1]["sim_failures"] >= 1
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(("steps_per_s", "is_own"), [(900.0, True), (1100.0, False), (None, False)])
def test_a_sim_of_a_millisecond_a_step_gets_a_process_of_its_own(steps_per_s: float | None, is_own: bool) -> None:
    told: list[Any] = []
    measured = Probe(gym.spaces.Discrete(2), gym.spaces.Discrete(2), steps_per_s=steps_per_s, is_well_behaved=True)
    assert needs_own_process(Project(sim="CartPole-v1"), measured, told.append) == is_own
    note = "1.11 ms a step: each sim runs in a process of its own"
    assert [event["text"] for event in told] == ([note] if is_own else [])


def test_more_cpus_than_the_ray_cluster_has_is_an_error(tmp_path):
    with pytest.raises(ProjectError, match=r"64 env runners .* need 64 CPUs; the Ray cluster has 2"):
        train(project("CartPole-v1", tmp_path, env_runners={"num_env_runners": 64}), runs_dir=tmp_path)


def alone(tmp_path: Path, **variables: str) -> dict[str, str]:
    """An environment in which no cluster is known."""
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return {**kept, "RAY_TMPDIR": str(tmp_path), **variables}


def test_more_cpus_than_this_machine_has_is_an_error_before_anything_is_loaded(tmp_path):
    (tmp_path / "plato.yaml").write_text("sim: CartPole-v1\nenv_runners:\n  num_env_runners: 640\n")
    done = subprocess.run(
        [sys.executable, "-m", "platotk", "train", "--set", "env_runners.num_cpus_per_env_runner=2"],
        cwd=tmp_path,
        env=alone(tmp_path, PYTHONPROFILEIMPORTTIME="1"),
        capture_output=True,
        text=True,
    )
    told = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == 2, done.stderr[-2000:]
    expected = f"plato.yaml:3: 640 env runners and 0 learners need 1280 CPUs; this machine has {os.cpu_count()}."
    assert any(expected in line for line in told), told
    assert "platotk.learning.training" in imported
    assert not {"ray", "torch"} & imported
    assert not (tmp_path / "runs").exists()


def test_what_fits_or_may_run_on_a_cluster_is_not_refused_at_once(tmp_path):
    script = (
        "import os, sys\n"
        "from platotk.learning.cluster import refuse_at_once\n"
        "from platotk.project import Project\n"
        "refuse_at_once(Project(sim='CartPole-v1', env_runners={'num_env_runners': 'auto'}))\n"
        "refuse_at_once(Project(sim='CartPole-v1', learners={'num_learners': 1, 'num_cpus_per_learner': 'auto'}))\n"
        "refuse_at_once(Project(sim='CartPole-v1', env_runners={'num_env_runners': 9, 'num_cpus_per_env_runner': 0}))\n"
        "many = Project(sim='CartPole-v1', env_runners={'num_env_runners': 640})\n"
        "os.environ['RAY_ADDRESS'] = 'auto'\n"
        "refuse_at_once(many)\n"
        "del os.environ['RAY_ADDRESS']\n"
        "os.makedirs(os.environ['RAY_TMPDIR'] + '/ray')\n"
        "open(os.environ['RAY_TMPDIR'] + '/ray/ray_current_cluster', 'w').close()\n"
        "refuse_at_once(many)\n"
    )
    environment = alone(tmp_path)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)


def test_an_unknown_key_of_rllib_is_named_with_its_line(tmp_path):
    (tmp_path / "plato.yaml").write_text("sim: CartPole-v1\ntraining:\n  lrr: 1e-3\n")
    with pytest.raises(ProjectError, match=r"plato.yaml:3: unknown key 'lrr'.*Did you mean 'lr'"):
        train(Project.load(tmp_path), runs_dir=tmp_path)


def test_sigterm_stops_at_a_checkpoint_and_resume_goes_on(tmp_path):
    (tmp_path / "plato.yaml").write_text(
        "sim: CartPole-v1\nstop: {iterations: 1000}\ncheckpoint: {every: 100}\ntracking: {mlflow: false}\n"
    )
    script = (
        "from platotk.learning.training import train\n"
        "from platotk.project import Project\n"
        "run = train(Project.load('.'), run='runs/one')\n"
        "print(run.status)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    journal = tmp_path / "runs" / "one" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.is_file() and len(journal.read_text().splitlines()) >= 2):
        time.sleep(0.1)
    os.kill(child.pid, signal.SIGTERM)
    output, _ = child.communicate(timeout=60)
    assert output.strip() == "stopped"
    lines = len(journal.read_text().splitlines())
    checkpoints = sorted(entry.name for entry in (tmp_path / "runs" / "one" / "checkpoints").iterdir())
    assert checkpoints[-1] == f"{lines:06d}"


def test_a_unit_of_a_leaf_that_is_not_there_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    project = Project(sim="CartPole-v1", units={"observation": {"postion": "m"}})
    with pytest.raises(ProjectError, match="no leaf 'postion'"):
        train(project, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_algorithm_that_cannot_learn_the_spaces_is_the_projects_mistake(project_folder: Callable[..., Path]) -> None:
    folder = project_folder("sim: Pendulum-v1\nalgorithm: DQN\n")
    with pytest.raises(ProjectError, match=r"plato\.yaml:2: DQN cannot learn continuous actions") as refused:
        train(Project.load(folder))
    assert refused.value.hint == "Use `algorithm: SAC` or PPO."
    assert not (folder / "runs").exists()
