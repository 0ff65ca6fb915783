"""`plato train --simulate-eviction`: the machine vanishes, and the training comes out whole all the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from platotk import Project, Run, SubmitError
from platotk.compute.eviction import MOMENTS, Eviction, Simulation, problems_of, simulate
from platotk.run import create_run

EXAMPLE = Path(__file__).parents[2] / "examples/simple-adder"
SHORT = ("training.train_batch_size_per_learner=1000", "training.num_epochs=3", "training.minibatch_size=250")


@pytest.fixture
def adder(tmp_path: Path) -> Path:
    """The example, whose sim is a module of the project's folder."""
    folder = tmp_path / "adder"
    folder.mkdir()
    for file in EXAMPLE.glob("*.[py]*"):
        shutil.copy(file, folder)
    return folder


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    changes = [word for change in SHORT for word in ("--set", change)]
    # A name of its own, by which whatever it leaves behind is found.
    environment = {**os.environ, "TMPDIR": str(folder.parent), "EVICTED_FROM": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-m", "platotk", "train", *changes, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left_behind(folder: Path) -> list[str]:
    """Processes and folders that are still there."""
    found = [str(path) for path in folder.parent.glob("platotk-*")]
    for process in psutil.process_iter():
        try:
            if process.environ().get("EVICTED_FROM") == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


@pytest.mark.slow  # in short, with machines that really vanish: tests/azure/test_faults.py
def test_a_training_outlives_its_machine(adder: Path) -> None:
    with start(adder, "--simulate-eviction", "1", "--json", "--set", "stop.iterations=6") as process:
        out, told = process.communicate(timeout=200)
    assert process.returncode == 0, told
    answer = json.loads(out)
    assert (answer["status"], answer["iteration"], answer["evicted"]) == ("finished", 6, 1)
    assert (answer["env_steps_exact"], answer["problems"]) == (True, [])
    (eviction,) = answer["evictions"]
    assert 1 <= eviction["resumed_from"] < eviction["reached"]
    assert answer["iterations_again"] == eviction["again"] == eviction["reached"] - eviction["resumed_from"]

    run = Run(answer["path"])
    assert [line["iteration"] for line in run.metrics()] == [1, 2, 3, 4, 5, 6]
    sampled = [line["rllib"]["env_runners"]["num_env_steps_sampled"] for line in run.metrics()]
    assert sum(sampled) == answer["env_steps"]
    assert [line["attempt"] for line in run.metrics()] == [1] * eviction["resumed_from"] + [2] * (
        6 - eviction["resumed_from"]
    )
    assert run.latest is not None
    assert run.project.root == adder
    assert "eviction 1 of 1, after a checkpoint" in told
    assert str(run.path) in told  # not the disk that was deleted
    assert (adder / "mlruns").is_dir()
    assert run.info["mlflow"]["uri"] == (adder / "mlruns").as_uri()
    assert left_behind(adder) == []


@pytest.mark.slow
def test_three_evictions_at_three_kinds_of_moments(adder: Path) -> None:
    more = ("--set", "stop.iterations=24", "--set", "checkpoint.every=2", "--set", "env_runners.num_env_runners=1")
    with start(adder, "--simulate-eviction", "3", *more) as process:
        _, told = process.communicate(timeout=280)
    assert process.returncode == 0, told
    assert "Evicted 3 times: training finished all the same" in told
    assert ", each counted once" in told
    assert [moment for moment in MOMENTS if f", {moment}: the machine" in told]
    assert "plato assess" in told
    assert left_behind(adder) == []  # not even Ray's processes
    (run,) = [Run(path) for path in (adder / "runs").iterdir()]
    assert run.status == "finished"
    assert sorted({line["attempt"] for line in run.metrics()}) == [1, 2, 3, 4]


@pytest.fixture
def interrupted(adder: Path, request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with start(adder, "--simulate-eviction", "9", "--json") as process:
        lines = []
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if line.startswith("iteration "):
                break
        time.sleep(0.5)
        process.send_signal(request.param)
        told = "".join(lines) + process.stderr.read()
        yield process, told


@pytest.mark.slow
@pytest.mark.parametrize("interrupted", [signal.SIGINT, signal.SIGTERM], indirect=True)
def test_asked_to_stop_it_saves_the_run_and_leaves_nothing(
    interrupted: tuple[subprocess.Popen[str], str], adder: Path
) -> None:
    process, told = interrupted
    assert process.stdout is not None
    answer = json.loads(process.stdout.read())
    assert process.wait(60) == 75, told
    run = Run(answer["path"])
    assert (run.status, answer["status"]) == ("stopped", "stopped")
    assert run.latest is not None
    assert int(run.latest.name) == answer["iteration"] > 0
    assert left_behind(adder) == []


# --- what is said of it


def journal(*lines: tuple[int, int, int | None]) -> list[dict[str, Any]]:
    return [
        {"iteration": iteration, "env_steps": steps, "rllib": {"env_runners": {"num_env_steps_sampled": sampled}}}
        for iteration, steps, sampled in lines
    ]


def test_a_journal_that_counts_twice_or_leaves_out_is_found_out() -> None:
    assert problems_of(journal((1, 100, 100), (2, 205, 105), (3, 300, None))) == []
    assert problems_of(journal((1, 100, 100), (3, 205, 105))) == ["iteration 3 follows 1"]
    assert problems_of(journal((1, 100, 100), (2, 305, 105))) == ["iteration 2 counts 205 env steps, 105 were sampled"]


def test_what_is_told_in_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from platotk import console

    run = create_run(Project(sim="CartPole-v1"), run=tmp_path / "runs/night")
    (run.metrics_path).write_text(json.dumps({"iteration": 9, "env_steps": 900, "return_mean": 21.5}) + "\n")
    evictions = [Eviction(MOMENTS[0], 3, 2, 9.0), Eviction(MOMENTS[1], 8, 4, 9.0)]
    console.evicted(Simulation(run, 2, 0, evictions))
    told = capsys.readouterr().err
    assert "Evicted 2 times: training finished all the same" in told
    assert "while a checkpoint was written, at iteration 8; went on from 4: 4 done again" in told
    assert "iterations   9, 5 of them done again" in told
    assert "env steps    900, each counted once" in told
    console.evicted(Simulation(run, 3, 0, evictions, ["iteration 3 follows 1"]))
    told = capsys.readouterr().err
    assert "NOT counted right" in told
    assert "over before the machine could vanish 3 times" in told


def test_it_is_tried_with_a_new_run_and_here(tmp_path: Path, adder: Path) -> None:
    run = create_run(Project(sim="CartPole-v1"), run=tmp_path / "night")
    with pytest.raises(SubmitError, match="is a run already"):
        simulate(Project(sim="CartPole-v1"), times=1, run=run.path)
    with start(adder, "--simulate-eviction", "1", "--on", "local") as process:
        _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "takes neither --on nor --resume" in told


def test_short_trainings_save_often_enough() -> None:
    from platotk.compute.eviction import _often_enough

    def every(**stop: Any) -> int:
        return _often_enough(Project(sim="CartPole-v1", stop=stop), 3)

    assert (every(iterations=100), every(iterations=16), every(iterations=2), every(env_steps=1000)) == (5, 2, 1, 5)
