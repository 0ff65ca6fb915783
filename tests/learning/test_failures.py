"""Failures of sims are said while they come, once for each kind, and at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from platotk import Project, console
from platotk.learning.failures import EVERY_S, SimFailures
from platotk.run import create_run


class Sims:
    """What the env runners would say, and the time."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.now = 0.0
        self.reason: str | None = "step() raised SimBroke: valve 3 is stuck"
        self.num_asked = 0
        self.failures = SimFailures(self.events.append, clock=lambda: self.now)

    def ask(self) -> str | None:
        self.num_asked += 1
        return self.reason

    def count(self, number: int) -> None:
        self.failures.count(number, self.ask)


def test_the_first_failure_is_told_and_the_same_one_with_other_numbers_is_not() -> None:
    sims = Sims()
    sims.count(0)
    assert sims.num_asked == 0
    sims.count(2)
    assert len(sims.events) == 1
    assert "a sim failed: step() raised SimBroke: valve 3 is stuck" in sims.events[0]["text"]
    assert "failures so far: 2" in sims.events[0]["text"]
    sims.now, sims.reason = EVERY_S, "step() raised SimBroke: valve 4 is stuck"
    sims.count(3)
    assert len(sims.events) == 1
    assert sims.failures.last == "step() raised SimBroke: valve 4 is stuck"


def test_another_kind_is_told_but_not_at_once_and_nobody_is_asked_while_nothing_fails() -> None:
    sims = Sims()
    sims.count(1)
    sims.reason = "reset() did not return within 2 s (step_timeout_s)"
    sims.count(5)
    assert len(sims.events) == 1
    sims.now = EVERY_S
    sims.count(5)
    assert len(sims.events) == 2, "what failed meanwhile is not forgotten"
    sims.now = 10 * EVERY_S
    sims.count(5)
    assert sims.num_asked == 2


def test_at_the_end_the_last_reason_is_known_whenever_it_was() -> None:
    sims = Sims()
    sims.count(1)
    sims.reason = "the last one"
    sims.count(2)
    sims.failures.end(sims.ask)
    assert sims.failures.last == "the last one"
    sims.failures.end(sims.ask)
    assert sims.num_asked == 2


def test_the_view_says_how_many_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = create_run(Project(sim="CartPole-v1"), run=tmp_path / "run")
    run.update(status="finished", last_sim_failure="step() raised SimBroke: the valve is stuck")
    line = {"iteration": 1, "env_steps": 1, "env_steps_per_s": 1.0, "episodes": 1, "return_mean": None}
    progress = {"rule": "iterations", "fraction": 1.0, "eta_s": 0.0}
    with console.TrainingView(run.path / "log.txt") as view:
        view({"event": "iteration", **line, "sim_failures": 83, "progress": progress})
        view.ended(run, None)
    said = "warning: 83 sim failures, the last: step() raised SimBroke: the valve is stuck"
    assert said in capsys.readouterr().err.splitlines()
    assert said in (run.path / "log.txt").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("num_env_runners", [0, 1])
def test_a_sim_that_fails_is_seen_on_the_screen_in_the_log_and_in_the_answer(
    tmp_path: Path, num_env_runners: int
) -> None:
    (tmp_path / "plato.yaml").write_text(
        f"sim: tests.adversarial:RaisesSometimes\nstop: {{iterations: 2}}\ntracking: {{mlflow: false}}\n"
        f"env_runners: {{num_env_runners: {num_env_runners}}}\n"
        "training: {train_batch_size_per_learner: 1000, minibatch_size: 250, num_epochs: 1}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "platotk", "train", "--run", str(tmp_path / "run"), "-C", str(tmp_path), "--json"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    log = (tmp_path / "run" / "log.txt").read_text()
    reason = "step() raised SimBroke: the valve is stuck"
    assert answer["sim_failures"] >= 5
    assert answer["last_sim_failure"] == reason
    for told in (done.stderr, log):
        assert told.count(f"warning: a sim failed: {reason}") == 1
        assert f"{answer['sim_failures']} sim failures, the last: {reason}" in told
