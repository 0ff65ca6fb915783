"""A detached process: it outlives the shell, and any shell can say how it stands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.compute.places import Place

import platotk
from platotk import BackendError, Project, ProjectError, SubmitError
from platotk.compute import jobs
from platotk.compute.base import JobSpec, JobStatus
from platotk.compute.local import LocalBackend, LocalOptions

SLEEP = "import time; print('begun', flush=True); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('begun', flush=True); time.sleep(60)"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "plato.yaml").write_text("sim: CartPole-v1\n")
    project = Project.load(tmp_path)
    return Place(lambda: LocalBackend("local", LocalOptions(type="local", grace_s=0.5)), project, tmp_path / "runs")


def test_it_outlives_the_shell_that_started_it(place: Place) -> None:
    script = f"""
import pathlib
from platotk.compute.base import JobSpec
from platotk.compute.local import LocalBackend, LocalOptions
run = pathlib.Path({str(place.run().path)!r})
job = LocalBackend("local", LocalOptions(type="local")).submit(
    JobSpec(name="x", run=run, command=("{{python}}", "-c", {SLEEP!r}), working_dir=run))
import json
print(json.dumps(job.to_dict()), flush=True)
"""
    shell = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert shell.stdout is not None
    job = jobs.Job.from_dict(json.loads(shell.stdout.readline()))
    os.killpg(shell.pid, signal.SIGKILL)  # the terminal is closed
    shell.wait()
    place.wait_for(job, "begun")
    assert place.make().status(job).status is JobStatus.RUNNING
    place.make().stop(job)
    assert place.end(job)[0].status is JobStatus.STOPPED


def test_what_does_not_stop_is_killed_after_the_grace(place: Place) -> None:
    job = place.submit(STUBBORN)
    place.wait_for(job, "begun")
    place.make().stop(job)
    ended, text = place.end(job)
    assert (ended.status, ended.exit_code) == (JobStatus.STOPPED, 128 + signal.SIGKILL)
    assert "did not stop within 0.5 s; killed" in text


def test_a_pid_that_was_given_to_another_process_is_not_taken_for_the_job(place: Place) -> None:
    job = place.submit(SLEEP)
    path = Path(job.details["folder"]) / "process.json"
    processes = json.loads(path.read_text())
    os.kill(processes["keeper"]["pid"], signal.SIGKILL)
    os.kill(processes["child"]["pid"], signal.SIGKILL)
    mine = {
        "pid": os.getpid(),
        "host": processes["keeper"]["host"],
        "boot_id": processes["keeper"]["boot_id"],
        "start": 1,
    }
    path.write_text(json.dumps({"keeper": mine, "child": mine}))
    assert place.make().status(job).status is JobStatus.FAILED
    place.make().stop(job)  # and this process lives on


def test_without_its_keeper_it_still_runs_and_can_be_stopped(place: Place) -> None:
    job = place.submit(SLEEP)
    place.wait_for(job, "begun")
    processes = json.loads((Path(job.details["folder"]) / "process.json").read_text())
    os.kill(processes["keeper"]["pid"], signal.SIGKILL)
    while place.make().status(job).message == "":
        time.sleep(0.02)
    assert place.make().status(job).status is JobStatus.RUNNING
    place.make().stop(job)
    assert place.end(job)[0].status is JobStatus.FAILED


def test_more_than_one_node_is_refused_before_anything_is_made(place: Place) -> None:
    with pytest.raises(SubmitError, match="2 nodes were asked for"):
        platotk.submit("train", place.project, on="local", nodes=2)
    assert not (place.project.root / "runs").exists()


def test_a_name_that_is_no_backend(place: Place) -> None:
    with pytest.raises(ProjectError, match="no backend is called 'lokal'") as caught:
        platotk.submit("train", place.project, on="lokal")
    assert "Did you mean local?" in str(caught.value)


def test_files_that_are_gone_are_told(place: Place) -> None:
    with pytest.raises(BackendError, match="are gone"):
        place.make().status(jobs.Job(id="x", backend="local", details={"folder": "/no/where"}))


def test_a_program_that_is_not_there(place: Place) -> None:
    run = place.run()
    spec = JobSpec(name="x", run=run.path, command=("/no/such/program",), working_dir=run.path)
    ended, text = place.end(place.make().submit(spec))
    assert (ended.status, ended.exit_code) == (JobStatus.FAILED, 127)
    assert "/no/such/program cannot be started" in text
