"""Jobs of runs at the command line: submitted, followed, stopped, resumed, from one shell or another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from platotk import Project, ProjectError, Run, SubmitError, submit
from platotk.cli import app
from platotk.formats import plato_command
from platotk.run import runs

TINY = """\
name: tiny
sim: CartPole-v1
algorithm: PPO
training: {train_batch_size_per_learner: 400, minibatch_size: 200, num_epochs: 1}
env_runners: {num_env_runners: 0}
stop: {iterations: 2}
tracking: {mlflow: false}
"""


def plato(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "platotk", *map(str, words)],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def interrupted(*words: str, cwd: Path) -> str:
    """What it says when Ctrl-C, which reaches every process of the terminal, ends the following."""
    with subprocess.Popen(
        [sys.executable, "-m", "platotk", *words],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What a shell starts in the background ignores Ctrl-C, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as following:
        assert following.stderr is not None
        said = following.stderr.readline()
        os.killpg(following.pid, signal.SIGINT)
        said += following.stderr.read()
        assert following.wait(30) == 130, said
    return said


def test_a_training_is_followed_stopped_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plato.yaml").write_text(TINY)
    sent = plato("train", "--on", "local", "--detach", "--json", "--set", "stop.iterations=100000", cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    told = json.loads(sent.stdout)
    assert (told["backend"], told["job_status"]) == ("local", "PENDING")
    run = Run(told["path"])
    deadline = time.monotonic() + 120
    while len(run.metrics()) < 2:
        assert time.monotonic() < deadline, plato("logs", cwd=tmp_path).stdout
        time.sleep(0.2)
    again = plato("train", "--on", "local", "--run", run.path, cwd=tmp_path)
    assert again.returncode == 1
    assert "has a job that has not ended" in again.stderr
    told = interrupted("logs", "-f", cwd=tmp_path)
    assert f"The job goes on. Come back with:\n  {plato_command()} logs {run.name} -f" in told
    reached = len(run.metrics())
    while len(run.metrics()) < reached + 2:
        assert time.monotonic() < deadline, plato("logs", cwd=tmp_path).stdout
        time.sleep(0.2)
    assert plato("stop", cwd=tmp_path).returncode == 0
    followed = plato("logs", "-f", "--json", cwd=tmp_path)
    assert followed.returncode == 75, followed.stderr
    assert json.loads(followed.stdout)["job_status"] == "STOPPED"
    assert run.status == "stopped"
    reached = run.metrics()[-1]["iteration"]
    assert run.latest is not None
    limit = f"stop.iterations={reached + 1}"
    done = plato("train", "--resume", "--on", "local", "--json", "--set", limit, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "finished"
    assert [line["iteration"] for line in run.metrics()] == list(range(1, reached + 2))
    assert [job["ended"]["status"] for job in run.info["jobs"]] == ["STOPPED", "SUCCEEDED"]
    assert plato("stop", cwd=tmp_path).stderr.strip().endswith("had ended already")


def test_a_failing_job_gives_its_exit_code_and_the_reason(tmp_path: Path) -> None:
    (tmp_path / "plato.yaml").write_text("sim: sim:Broken\n")
    (tmp_path / "sim.py").write_text("raise ImportError('no licence')\n")
    said = plato("train", "--on", "local", cwd=tmp_path)
    assert said.returncode == 1
    assert "no licence" in said.stderr
    assert [run.status for run in runs(tmp_path / "runs")] == ["failed"]


def test_a_dry_run_prints_what_would_be_sent_and_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "plato.yaml").write_text(TINY)
    said = CliRunner().invoke(app, ["train", "--on", "local", "--dry-run", "-C", str(tmp_path)])
    assert said.exit_code == 0
    assert json.loads(said.stdout)["command"][1:4] == ["-m", "platotk", "train"]
    assert os.listdir(tmp_path) == ["plato.yaml"]


def test_options_of_backends_are_checked_where_they_stand(tmp_path: Path) -> None:
    for options, what in [
        ("{type: ray, storage: /s, adress: x}", r"plato\.yaml:2: unknown key 'adress' in backends\.cluster\. Did you"),
        ("{type: ray, sync: 0}", r"plato\.yaml:2: backends\.cluster\.sync is 0\.0; expected more than 0"),
        ("{type: rya}", r"no kind of backend is called 'rya'\. Did you mean 'ray'"),
        ("{type: local, grace_s: soon}", r"backends\.cluster\.grace_s is 'soon'; expected a duration"),
    ]:
        (tmp_path / "plato.yaml").write_text(f"sim: CartPole-v1\nbackends: {{cluster: {options}}}\n")
        with pytest.raises(ProjectError, match=what):
            Project.load(tmp_path)


def test_a_ray_cluster_needs_storage(tmp_path: Path) -> None:
    project = Project(sim="CartPole-v1", backends={"cluster": {"type": "ray"}})
    with pytest.raises(SubmitError, match="has no storage"):
        submit("train", project, on="cluster", runs_dir=tmp_path)
    assert os.listdir(tmp_path) == []


def test_what_makes_no_sense_without_on(tmp_path: Path) -> None:
    (tmp_path / "plato.yaml").write_text(TINY)
    for word in ("--detach", "--dry-run", "--nodes=2"):
        said = CliRunner().invoke(app, ["train", word, "-C", str(tmp_path)])
        assert said.exit_code == 2
        assert "needs --on NAME" in said.stderr


def test_a_sim_that_no_job_can_import_is_refused(tmp_path: Path) -> None:
    class Local:
        pass

    with pytest.raises(ProjectError, match="that a job cannot import"):
        submit("train", Project(sim=Local), on="local", runs_dir=tmp_path)
    assert os.listdir(tmp_path) == []
