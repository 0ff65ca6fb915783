"""What the backend `ray` says of clusters that are just starting, of another Python, or away."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.compute.places import Place, ray_cluster

from platotk import BackendError, Project, SubmitError, fetch, follow, submit
from platotk.compute import jobs
from platotk.compute.base import Job, JobStatus
from platotk.compute.glance import job_states
from platotk.compute.ray_jobs import RayBackend, RayOptions
from platotk.run import create_run


class Answers(http.server.BaseHTTPRequestHandler):
    """The dashboard of a cluster whose head node's agent comes late; it notes what was submitted."""

    python = platform.python_version()
    not_ready = 0
    why_it_waits = ""
    submitted: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        if self.path.startswith("/api/jobs/"):
            job = {"type": "SUBMISSION", "entrypoint": "", "status": "PENDING", "message": self.why_it_waits}
            return self._answer(200, json.dumps({**job, "submission_id": self.path.rpartition("/")[2]}))
        about = {"data": {"pythonVersion": self.python}, "ray_version": version("ray"), "version": "4"}
        return self._answer(200, json.dumps(about))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if type(self).not_ready:
            type(self).not_ready -= 1
            return self._answer(500, "No available agent to submit job, please try again later.")
        if any(asked["submission_id"] == one["submission_id"] for one in self.submitted):
            return self._answer(500, f"Traceback: Job with submission_id {asked['submission_id']} already exists.")
        self.submitted.append(asked)
        return self._answer(200, json.dumps({"submission_id": asked["submission_id"], "job_id": None}))

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, "")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing to stderr."""


@contextlib.contextmanager
def cluster(**answers: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A dashboard that answers like this: its address, and what was submitted to it."""

    class Handler(Answers):
        submitted: ClassVar[list[dict[str, Any]]] = []

    for name, value in answers.items():
        setattr(Handler, name, value)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", Handler.submitted
        server.shutdown()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    pytest.importorskip("aiohttp", reason="the Jobs API comes with ray[default]")
    (tmp_path / "plato.yaml").write_text("sim: CartPole-v1\n")
    return Project.load(tmp_path)


def place_at(address: str, project: Project) -> Place:
    options = RayOptions(type="ray", address=address, storage=str(project.root / "storage"))
    return Place(lambda: RayBackend("cluster", options), project, project.root / "runs")


def test_a_cluster_that_is_just_starting_is_asked_again(project: Project) -> None:
    with cluster(not_ready=2) as (address, submitted):
        job = place_at(address, project).submit("print(1)")
    assert [one["submission_id"] for one in submitted] == [job.id]


def test_a_cluster_that_never_runs_jobs_is_refused_with_the_cause(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platotk.compute.ray_jobs.START_S", 0.2)
    with cluster(not_ready=99) as (address, _), pytest.raises(SubmitError, match="its head node runs no jobs") as told:
        place_at(address, project).submit("print(1)")
    assert "dashboard_agent.log" in (told.value.hint or "")


def test_another_python_is_refused_before_anything_is_sent(project: Project) -> None:
    with cluster(python="3.9.1") as (address, submitted), pytest.raises(SubmitError, match=r"runs Python 3\.9\.1"):
        place_at(address, project).submit("print(1)")
    assert submitted == []
    assert not (project.root / "storage").exists()


def test_runs_and_show_say_why_a_job_waits(project: Project) -> None:
    with cluster(why_it_waits="waiting for 2 CPUs") as (address, _):
        options = {"type": "ray", "address": address, "storage": str(project.root / "storage")}
        waits = create_run(Project(sim="CartPole-v1", backends={"cluster": options}), run=project.root / "runs/waits")
        waits.update(backend="cluster", jobs=[Job(id="waits-1", backend="cluster", what="train").to_dict()])
        ended = create_run(Project(sim="CartPole-v1"), run=project.root / "runs/ended")
        end = {"status": "FAILED", "message": "exit code 3", "exit_code": 3}
        ended.update(jobs=[{**Job(id="ended-1", backend="local", what="train").to_dict(), "ended": end}])

        def plato(*words: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "platotk", *words]
            wide = {**os.environ, "COLUMNS": "200"}
            return subprocess.run(
                command, cwd=project.root, env=wide, capture_output=True, text=True, timeout=60, check=True
            )

        rows = {row["run"]: row for row in json.loads(plato("runs", "--json").stdout)}
        assert (rows["waits"]["job_status"], rows["waits"]["job_message"]) == ("PENDING", "waiting for 2 CPUs")
        assert (rows["ended"]["job_status"], rows["ended"]["job_message"]) == ("FAILED", "exit code 3")
        assert json.loads(plato("show", "waits", "--json").stdout)["job_message"] == "waiting for 2 CPUs"
        assert "cluster: PENDING (waiting for 2 CPUs)" in plato("runs").stderr
        assert "job message   waiting for 2 CPUs" in plato("show", "waits").stderr


def test_a_place_that_never_answers_does_not_hold_up_a_list(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        options = {"type": "ray", "address": address, "storage": str(tmp_path / "storage")}
        run = create_run(Project(sim="CartPole-v1", backends={"cluster": options}), run=tmp_path / "runs/night")
        run.update(backend="cluster", jobs=[Job(id="night-1", backend="cluster", what="train").to_dict()])
        idle = create_run(Project(sim="CartPole-v1"), run=tmp_path / "runs/idle")
        began = time.monotonic()
        (told,) = job_states([run, idle], within_s=1.0).values()
        assert (told["job"], told["job_status"]) == ("night-1", "unknown")
        assert time.monotonic() - began < 3.0
        listed = subprocess.run(
            [sys.executable, "-m", "platotk", "runs", "--json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    rows = {row["run"]: row.get("job_status") for row in json.loads(listed.stdout)}
    assert rows == {"night": "unknown", "idle": None}


@pytest.mark.slow
def test_a_run_whose_cluster_is_gone_is_fetched_and_goes_on_elsewhere(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster of KubeRay is torn down, or its head starts anew and knows no job; the storage stays."""
    monkeypatch.setattr("platotk.compute.following.LAST_LINES_S", 1.0)
    write = "import pathlib, sys; (pathlib.Path(sys.argv[1]) / 'log.txt').write_text('all of it'); sys.exit({})"
    with ray_cluster() as address:
        options = f"{{type: ray, address: '{address}', storage: {project.root / 'storage'}}}"
        (project.root / "plato.yaml").write_text(f"sim: sim:NoSuch\nbackends: {{cluster: {options}}}\n")
        there = Project.load(project.root)
        place = place_at(address, there)
        done, lost = place.run(), place.run()
        hangs = place.submit("import time; print('begun', flush=True); time.sleep(600)", lost)
        first = place.submit(write.format(3), done)
        place.end(first)
        second = place.submit(write.format(0), done)
        place.end(second)
        place.wait_for(hangs, "begun")
        never = Job(id="never-1", backend="cluster", details=hangs.details)  # as a cluster that was started anew
        assert place.make().status(never).status is JobStatus.FAILED
        assert "no longer knows it" in place.make().status(never).message
    for run, job in ((done, second), (lost, hangs)):
        run.update(backend="cluster", jobs=[{**job.to_dict(), "what": "train"}])
    ends = [place.make().status(job) for job in (first, second)]
    assert [(end.status, end.exit_code) for end in ends] == [(JobStatus.FAILED, 3), (JobStatus.SUCCEEDED, 0)]
    said: list[str] = []
    assert follow(done, on_text=said.append).status is JobStatus.SUCCEEDED
    assert "the end of the job's log cannot be read" in "".join(said)
    assert done.info["jobs"][-1]["fetched"]
    assert done.log_path.read_text() == jobs.logs(done) == "all of it"

    said.clear()
    fetch(lost, tell=said.append)  # what the storage has comes, whatever is known of the job
    assert "is not known: no Ray cluster answers" in said[0]
    with pytest.raises(SubmitError, match="not known whether it goes on") as refused:
        submit("train", there, on="local", run=lost.path)
    assert f"plato stop {lost.name} --lost" in (refused.value.hint or "")
    assert jobs.write_off(lost) == ""
    assert (lost.status, lost.info["jobs"][-1]["fetched"]) == ("failed", True)
    again = submit("train", there, on="local", run=lost.path)
    assert [job["backend"] for job in again.info["jobs"]] == ["cluster", "local"]
    follow(again, on_text=said.append)


def test_a_job_that_goes_on_is_not_written_off(tmp_path: Path) -> None:
    (tmp_path / "sim.py").write_text("import time\ntime.sleep(60)\n")
    (tmp_path / "plato.yaml").write_text("sim: sim:Slow\n")
    run = submit("train", Project.load(tmp_path), on="local")
    with pytest.raises(BackendError, match="is not lost: its place says RUNNING"):
        jobs.write_off(run)
    jobs.stop(run)
