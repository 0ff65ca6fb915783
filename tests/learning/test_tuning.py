"""Tuning: what is drawn, who is ended early, and that nothing is lost when it is stopped or killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from platotk import JobFailedError, Project, ProjectError, Run, assess, tune
from platotk.learning.tuning import draw, num_side_by_side, trial_project
from platotk.trials import best_first, is_tuning, trained_run, trials
from uncovered import uncovered

SIM = """
import gymnasium as gym

class Level(gym.Env):
    observation_space = gym.spaces.Box(0, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, bonus=1.0):
        self.bonus = bonus

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), self.bonus, self.steps == 10, False, {}
"""
FIELDS: dict[str, Any] = {
    "name": "level",
    "sim": "level_sim:Level",
    "algorithm": "PPO",
    "training": {"train_batch_size_per_learner": 80, "minibatch_size": 40, "num_epochs": 1},
    "stop": {"iterations": 9},
    "checkpoint": {"every": 3},
    "tracking": {"mlflow": False},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "level_sim.py").write_text(SIM)
    return tmp_path


def project(folder: Path, param_space: dict[str, Any], **tuning: Any) -> Project:
    (folder / "plato.yaml").write_text(json.dumps({**FIELDS, "tune": {"param_space": param_space, **tuning}}))
    return Project.load(folder)


def test_what_is_drawn_is_plain_and_the_same_each_time(folder: Path) -> None:
    space = {
        "training.lr": {"loguniform": [1e-5, 1e-2]},
        "training.num_epochs": {"randint": [1, 5]},
        "training.gamma": {"quniform": [0.9, 0.99, 0.01]},
        "rl_module.model_config.fcnet_hiddens": {"choice": [[16], [32, 32]]},
    }
    five = draw(project(folder, space, num_samples=5))
    assert len(five) == 5
    assert json.loads(json.dumps(five)) == five
    for one in five:
        assert 1e-5 <= one["training.lr"] <= 1e-2
        assert one["training.num_epochs"] in range(1, 5)
        assert one["rl_module.model_config.fcnet_hiddens"] in ([16], [32, 32])
    assert len({one["training.lr"] for one in five}) == 5
    assert draw(project(folder, space, num_samples=8))[:5] == five
    assert draw(project(folder, space, num_samples=5).override(["seed=1"])) != five


def test_a_grid_is_gone_through_as_often_as_asked(folder: Path) -> None:
    space = {"seed": {"grid_search": [1, 2, 3]}, "training.gamma": {"grid_search": [0.9, 0.99]}}
    drawn = draw(project(folder, space, num_samples=2))
    assert len(drawn) == 12
    assert sorted((one["seed"], one["training.gamma"]) for one in drawn[:6]) == [
        (seed, gamma) for seed in (1, 2, 3) for gamma in (0.9, 0.99)
    ]


@pytest.mark.parametrize(
    ("domain", "what"),
    [
        (0.1, "expected one of uniform"),
        ({"normal": [0, 1]}, "expected one of uniform"),
        ({"loguniform": [0, 1]}, "a logarithm needs a lower bound above 0"),
        ({"uniform": [1, 0]}, "the lower bound is not below the upper one"),
        ({"uniform": [1]}, r"uniform takes \[lower, upper\]"),
        ({"quniform": [0, 1]}, r"quniform takes \[lower, upper, step\]"),
        ({"randint": [0.5, 2]}, "randint takes whole numbers"),
        ({"choice": []}, "choice takes a list"),
        ({"uniform": ["a", 1]}, "uniform takes numbers"),
    ],
)
def test_a_domain_that_is_none_is_refused_with_its_line(folder: Path, domain: Any, what: str) -> None:
    with pytest.raises(ProjectError, match=rf"plato\.yaml:1: tune\.param_space.*training\.lr is .*{what}"):
        project(folder, {"training.lr": domain})


@pytest.mark.parametrize(
    ("space", "what"),
    [
        ({}, "there is nothing to draw"),
        ({"trainning.lr": {"choice": [1]}}, "Did you mean 'training'"),
        ({"frame_stack": {"choice": [0]}}, "frame_stack"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_anything_is_made(folder: Path, space: Any, what: str) -> None:
    with pytest.raises(ProjectError, match=what):
        tune(project(folder, space, num_samples=1))
    assert not (folder / "runs").exists()


def test_trials_share_the_machine(folder: Path) -> None:
    made = project(folder, {"seed": {"choice": [1]}})
    cpus = os.cpu_count() or 1
    assert num_side_by_side([made], "auto") == cpus
    assert num_side_by_side([made], 3) == 3
    assert num_side_by_side([made.override([f"env_runners.num_env_runners={cpus}"])], "auto") == 1
    alone = trial_project(made.override(["env_runners.num_env_runners=auto"]), {"seed": 4})
    assert alone.env_runners == {"num_env_runners": 0}
    assert (alone.seed, alone.tune.param_space) == (4, {})


def test_the_best_comes_first_and_those_behind_are_ended_early(folder: Path) -> None:
    """Returns are 10 times the bonus whatever is learned, so who is ahead is known."""
    events = []
    space = {"sim_config.bonus": {"grid_search": [2.0, 1.0, 3.0]}}
    made = project(folder, space, num_samples=1, max_concurrent_trials=1, grace_period=3).override(
        ["stop.iterations=30"]  # long enough for a trial to be ended in
    )
    found = tune(made, on_event=events.append)
    assert [trial.name for trial in found] == ["0003", "0001", "0002"]
    assert [trial.info["params"] for trial in found] == [{"sim_config.bonus": bonus} for bonus in (3.0, 2.0, 1.0)]
    assert [bool(trial.info.get("pruned")) for trial in found] == [False, False, True]
    assert [len(trial.metrics()) for trial in found[:2]] == [30, 30]
    assert 3 <= len(found[2].metrics()) < 30
    assert found[2].latest is not None
    tuning = Run(found[0].path.parent.parent)
    assert is_tuning(tuning)
    assert tuning.status == "finished"
    assert {trial.info["parent"] for trial in found} == {tuning.name}
    assert trained_run(tuning).path == found[0].path
    lines = tuning.metrics()
    assert [line["best_trial"] for line in lines] == [1, 1, 3]
    assert [line["return_mean"] for line in lines] == [20.0, 20.0, 30.0]
    assert lines[-1]["env_steps"] == sum(trial.metrics()[-1]["env_steps"] for trial in found)
    ends = [event["status"] for event in events if event["event"] == "trial_ended"]
    assert ends == ["finished", "pruned", "finished"]
    assert assess(tuning, episodes=2).summary()["return_mean"] == 30.0


@pytest.mark.slow
def test_trials_that_all_fail_end_it_with_the_first_reason(folder: Path) -> None:
    made = project(folder, {"training.lrr": {"uniform": [0.1, 1.0]}}, num_samples=8, max_concurrent_trials=1)
    with pytest.raises(JobFailedError, match=r"trials failed and none has got anywhere; the first: .*lrr"):
        tune(made, run=folder / "runs/night")
    assert Run(folder / "runs/night").status == "failed"
    assert sum(trial.status == "failed" for trial in trials(Run(folder / "runs/night"))) == 3


def plato(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "platotk", *words],
        cwd=cwd,
        env=uncovered(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_stopped_or_killed_goes_on_where_it_was(folder: Path, number: int) -> None:
    space = {"sim_config.bonus": {"grid_search": [1.0, 2.0]}}
    project(folder, space, num_samples=1, max_concurrent_trials=2, scheduler="fifo")
    words = [sys.executable, "-m", "platotk", "tune", "--run", "runs/night", "--set", "stop.iterations=100000"]
    tuning = Run(folder / "runs/night")
    with subprocess.Popen(words, cwd=folder, env=uncovered(), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 100
        while len(trials(tuning)) < 2 or not all(trial.latest for trial in trials(tuning)):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(60) == (75 if number == signal.SIGTERM else -number)
    deadline = time.monotonic() + 60
    while any(trial.status == "running" for trial in trials(tuning)):
        assert time.monotonic() < deadline, "a trial outlived its tuning"
        time.sleep(0.1)
    assert tuning.status == ("stopped" if number == signal.SIGTERM else "interrupted")
    assert [trial.status for trial in trials(tuning)] == ["stopped", "stopped"]
    reached = max(trial.metrics()[-1]["iteration"] for trial in trials(tuning)) + 2
    done = plato("tune", "--resume", "--json", "--set", f"stop.iterations={reached}", cwd=folder)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [(row["trial"], row["status"], row["value"]) for row in told["trials"]] == [
        (2, "finished", 20.0),
        (1, "finished", 10.0),
    ]
    assert told["best"] == told["trials"][0]["path"]
    for trial in best_first(tuning):
        assert [line["iteration"] for line in trial.metrics()] == list(range(1, reached + 1))


@pytest.mark.slow
def test_it_is_a_job_like_any_other(folder: Path) -> None:
    project(folder, {"sim_config.bonus": {"grid_search": [1.0, 2.0]}}, num_samples=1)
    done = plato("tune", "--on", "local", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "trial 2 finished  return_mean 20 at best" in done.stderr
    told = json.loads(done.stdout)
    assert (told["job_status"], told["status"], told["return_mean"]) == ("SUCCEEDED", "finished", 20.0)
    shown = plato("show", "--json", cwd=folder)
    assert [row["trial"] for row in json.loads(shown.stdout)["trials"]] == [2, 1]
