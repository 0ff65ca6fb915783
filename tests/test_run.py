"""A run is a folder: how it is named, what stands in run.json, how it is found, and who may write it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from platotk import PlatoError, Project, ProjectError, RunNotFoundError
from platotk.journal import Journal
from platotk.process_lock import is_gone, this_process
from platotk.run import Run, create_run, find_run, runs


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "plato.yaml").write_text("name: cart\nsim: CartPole-v1\nseed: 7\n")
    return Project.load(tmp_path)


@pytest.fixture
def run(project: Project) -> Run:
    return create_run(project)


@contextmanager
def another_process(code: str, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has said "ready"; killed at the end."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


HOLDS = """
import sys, time
from platotk.run import Run
run = Run(sys.argv[1])
with run.lock():
    run.update(status="running")
    print("ready", flush=True)
    time.sleep(60)
"""


# --- creating


def test_a_run_is_named_by_when_what_and_how(project: Project) -> None:
    run = create_run(project)
    assert re.fullmatch(r"\d{8}-\d{6}-cart-ppo", run.name)
    then = datetime.strptime(run.name[:15], "%Y%m%d-%H%M%S").replace(tzinfo=timezone.utc)
    assert abs(datetime.now(timezone.utc) - then) < timedelta(seconds=60)
    assert run.path == project.root / "runs" / run.name


@pytest.mark.parametrize(
    ("algorithm", "resolved", "word"),
    [
        ("SAC", None, "sac"),
        ("train:config", None, "config"),
        ("train:config", "APPO", "appo"),
        (None, None, "ppo"),
    ],
)
def test_the_algorithm_ends_the_name(tmp_path: Path, algorithm: str | None, resolved: str | None, word: str) -> None:
    project = Project(name="cart", sim="CartPole-v1", algorithm=algorithm)
    run = create_run(project, runs_dir=tmp_path, algorithm=resolved)
    assert run.name.endswith(f"-cart-{word}")


def test_runs_of_the_same_second_have_names_of_their_own(project: Project) -> None:
    made = [create_run(project) for _ in range(4)]
    assert len({run.name for run in made}) == 4
    assert any(run.name.endswith("-2") for run in made)


def test_run_json_says_where_a_run_comes_from(project: Project) -> None:
    info = create_run(project, command=["plato", "train"]).info
    assert (info["status"], info["attempt"], info["seed"], info["backend"]) == ("created", 0, 7, "here")
    assert info["root"] == str(project.root)
    assert info["command"] == ["plato", "train"]
    assert {"python", "platotk", "ray", "torch", "gymnasium", "numpy"} <= set(info["versions"])
    assert datetime.fromisoformat(info["created"]).tzinfo is not None
    assert info["started"] is info["ended"] is info["parent"] is info["error"] is None


def test_the_resolved_project_is_kept_and_read_back(project: Project) -> None:
    run = create_run(project.override(["training.lr=1e-3"]))
    assert run.project.training == {"lr": 1e-3}
    assert run.project.root == project.root
    assert "stop:\n  iterations: 100" in (run.path / "plato.yaml").read_text()


def test_git_is_recorded_and_runs_do_not_make_it_dirty(project: Project) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
        done = subprocess.run(["git", *who, *words], cwd=project.root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert create_run(project).info["git"] is None  # no checkout
    git("init", "--initial-branch", "pumps")
    git("add", "plato.yaml")
    git("commit", "-m", "first")
    clean = {"commit": git("rev-parse", "HEAD"), "branch": "pumps", "dirty": False}
    assert create_run(project).info["git"] == clean
    (project.root / "sim.py").write_text("")
    assert create_run(project).info["git"] == {**clean, "dirty": True}


def test_without_git_a_run_is_made_all_the_same(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(project.root))
    assert create_run(project).info["git"] is None


def test_a_named_folder_is_created_once_and_then_continued(project: Project, tmp_path: Path) -> None:
    first = create_run(project, run=tmp_path / "out/night")
    assert first.path == tmp_path / "out/night"
    first.update(attempt=3)
    again = create_run(project.override(["seed=9"]), run=tmp_path / "out/night")
    assert again.info["attempt"] == 3
    assert again.project.seed == 7


def test_what_a_killed_creation_left_undone_is_done_by_the_next(project: Project, tmp_path: Path) -> None:
    made = create_run(project, run=tmp_path / "night")
    (made.path / "plato.yaml").unlink()
    assert create_run(project, run=made.path).project.name == "cart"


def test_a_folder_with_other_things_in_it_is_never_made_a_run(project: Project) -> None:
    """`--run .` would otherwise write over the user's own plato.yaml."""
    before = (project.root / "plato.yaml").read_text()
    with pytest.raises(ProjectError, match=r"not a run, and not empty: it holds plato\.yaml"):
        create_run(project, run=project.root)
    assert (project.root / "plato.yaml").read_text() == before
    with pytest.raises(ProjectError, match="is a file"):
        create_run(project, run=project.root / "plato.yaml")


# --- reading and updating


def test_update_keeps_what_it_does_not_name(run: Run) -> None:
    run.update(status="running", best=np.float32(0.5), last=float("nan"))
    run.update(reason="iterations")
    assert (run.info["status"], run.info["best"], run.info["last"], run.info["reason"]) == (
        "running",
        0.5,
        None,
        "iterations",
    )
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "plato.yaml", "run.json"]


def test_threads_that_update_at_once_lose_nothing(run: Run) -> None:
    threads = [threading.Thread(target=Run(run.path).update, kwargs={f"key{n}": n}) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [run.info[f"key{n}"] for n in range(20)] == list(range(20))


def test_run_json_is_whole_at_every_moment_even_when_its_writer_is_killed(run: Run) -> None:
    code = (
        "import sys; from platotk.run import Run; run = Run(sys.argv[1]); print('ready', flush=True)\n"
        "n = 0\nwhile True: n += 1; run.update(count=n, pad='x' * 100_000)\n"
    )
    with another_process(code, run.path) as writer:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            assert run.info["name"] == run.name
        writer.send_signal(signal.SIGKILL)
    assert run.info["name"] == run.name


def test_best_latest_and_checkpoints_are_read_from_the_folder(run: Run) -> None:
    assert (run.checkpoints(), run.latest, run.best) == ([], None, None)
    for name in ("000010", "000005", "000015", "draft"):
        (run.path / "checkpoints" / name).mkdir()
    for name in ("000010", "000005"):
        (run.path / "checkpoints" / name / "MANIFEST.json").write_text("{}")
    (run.path / "best.json").write_text(json.dumps({"checkpoint": "checkpoints/000005", "return_mean": 1.0}))
    assert [path.name for path in run.checkpoints()] == ["000005", "000010"]
    assert run.latest == run.path / "checkpoints/000010"
    assert run.best == run.path / "checkpoints/000005"


def test_evaluations_are_those_of_iterations_that_are_still_there(run: Run) -> None:
    journal = Journal(run.metrics_path)
    for iteration in (5, 10, 15):
        journal.append({"iteration": iteration, "env_steps": iteration * 100, "attempt": 1})
    run.update(attempt=1)
    for iteration in (5, 10, 15):
        run.add_evaluation(iteration, env_steps=iteration * 100, return_mean=float(iteration), episodes=20)
    journal.discard_after(5)
    run.update(attempt=2)
    journal.append({"iteration": 10, "env_steps": 1000, "attempt": 2})
    assert [line["iteration"] for line in run.evaluations()] == [5]
    run.add_evaluation(10, env_steps=1000, return_mean=99.0, episodes=20)
    assert [(line["iteration"], line["return_mean"]) for line in run.evaluations()] == [(5, 5.0), (10, 99.0)]


def test_duration_is_that_of_the_last_attempt(run: Run) -> None:
    assert run.duration_s is None
    began = datetime.now(timezone.utc) - timedelta(minutes=10)
    run.update(started=began.isoformat(), ended=(began + timedelta(seconds=90)).isoformat(), status="finished")
    assert run.duration_s == pytest.approx(90)
    run.update(ended=None, status="running")
    assert run.duration_s == pytest.approx(600, abs=30)


# --- who writes it


def test_one_process_writes_a_run_at_a_time(run: Run) -> None:
    with another_process(HOLDS, run.path) as other:
        message = rf"run {run.name} is being written by process {other.pid} "
        with pytest.raises(PlatoError, match=message), run.lock():
            pass
        assert run.status == "running"
    with run.lock():
        assert run.info["process"]["pid"] == os.getpid()
    with run.lock(), pytest.raises(PlatoError, match=f"by process {os.getpid()} "), Run(run.path).lock():
        pass


def test_a_run_whose_process_was_killed_is_interrupted(run: Run) -> None:
    with another_process(HOLDS, run.path) as other:
        assert run.status == "running"
        other.kill()
        other.wait()
        assert run.status == "interrupted"
    assert run.info["status"] == "running"


def test_a_child_that_outlives_its_killed_parent_does_not_hold_the_run(run: Run) -> None:
    forks = HOLDS.replace('print("ready", flush=True)', "import os\n    if os.fork(): print('ready', flush=True)")
    with another_process(forks, run.path) as other:
        other.kill()
        other.wait()
        with run.lock():
            assert run.info["process"]["pid"] == os.getpid()


def test_another_process_with_the_same_number_is_not_taken_for_it(run: Run) -> None:
    me = this_process()
    assert not is_gone(me)
    assert is_gone({**me, "start": -1})
    assert is_gone({**me, "boot_id": "an earlier one"})
    assert not is_gone({**me, "host": "elsewhere", "pid": 1})
    run.update(status="running", process={**me, "start": -1})
    assert run.status == "interrupted"


# --- finding


@pytest.fixture
def three(project: Project) -> list[Run]:
    made = [create_run(project, run=project.root / "runs" / name) for name in ("pump-1", "pump-2", "valve")]
    for minute, run in enumerate(made):
        run.update(created=f"2026-11-22T10:0{minute}:00+00:00")
    return made


def test_runs_are_listed_newest_first_and_other_folders_passed_over(project: Project, three: list[Run]) -> None:
    (project.root / "runs/notes").mkdir()
    (project.root / "runs/curves.html").write_text("")
    assert [run.name for run in runs(project=project)] == ["valve", "pump-2", "pump-1"]
    assert runs(project.root / "nowhere") == []


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: path.unlink(), "cannot be read: No such file"),
        (lambda path: path.write_text(""), "cannot be read: Expecting value"),
        (lambda path: path.write_text("[]"), "is not a JSON object"),
    ],
)
def test_a_broken_run_is_listed_last_with_why_and_never_chosen(
    project: Project, three: list[Run], damage: Callable[[Path], None], why: str
) -> None:
    damage(three[2].path / "run.json")
    listed = runs(project=project)
    assert [run.name for run in listed] == ["pump-2", "pump-1", "valve"]
    assert listed[-1].status == "broken"
    assert why in (listed[-1].problem or "")
    assert find_run(runs_dir=project.root / "runs").name == "pump-2"
    with pytest.raises(RunNotFoundError, match="run valve is broken"):
        find_run("valve", runs_dir=project.root / "runs")


def test_a_run_is_found_by_name_prefix_path_or_as_the_newest(project: Project, three: list[Run]) -> None:
    where = project.root / "runs"
    assert find_run(runs_dir=where).name == "valve"
    assert find_run("pump-1", runs_dir=where).name == "pump-1"
    assert find_run("val", runs_dir=where).name == "valve"
    assert find_run(three[0].path, runs_dir="elsewhere").path == three[0].path
    create_run(project, run=where / "pump")
    assert find_run("pump", runs_dir=where).name == "pump"  # a whole name is never ambiguous


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("pump", r"2 runs in .* begin with 'pump'\.\nWhich: pump-2, pump-1\?"),
        ("vlave", r"no run is called 'vlave' .*\nDid you mean valve\? There are: valve, pump-2, pump-1"),
    ],
)
def test_what_is_not_found_names_what_there_is(project: Project, three: list[Run], ref: str, says: str) -> None:
    with pytest.raises(RunNotFoundError) as raised:
        find_run(ref, runs_dir=project.root / "runs")
    assert re.search(says, str(raised.value))
    assert raised.value.exit_code == 2


def test_no_runs_at_all_says_how_to_make_one(project: Project) -> None:
    with pytest.raises(RunNotFoundError, match="plato train"):
        find_run(runs_dir=project.root / "runs")


def test_reading_runs_loads_neither_ray_nor_torch() -> None:
    heavy = "{'ray', 'torch', 'mlflow', 'altair'}"
    code = f"import sys, platotk.run, platotk.journal; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
