"""Azure when it misbehaves: every fault ends in success after asking again, or in one AzureError with the next step."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.azure_emulator.emulator import Emulator
from tests.azure_emulator.fixtures import running
from tests.compute.places import Place

from platotk import Project, Run
from platotk.azure.options import AzureOptions
from platotk.compute import following
from platotk.compute.azure_ml import AzureBackend
from platotk.compute.base import Job, JobStatus
from platotk.errors import AzureError

ALWAYS = 10**6
AT_ONCE = {"Retry-After": "0"}
STEPS = {
    "signing in": "POST login",
    "the cluster": "GET .*/computes/",
    "the datastore": "GET .*/datastores/",
    "its key": "POST .*/listSecrets",
    "the run's files": "PUT .*platotk/runs/",
    "whether the environment is there": "GET .*/environments/",
    "the environment": "PUT .*/environments/",
    "where the code goes": "POST .*/startPendingUpload",
    "the code": "PUT .*/codes/",
    "the job": "PUT .*/jobs/",
    "the job as it stands": "GET .*/jobs/",
}
"""Of a submission, in their order: the requests that it makes."""
CALLS: dict[str, Callable[[AzureBackend, Job, Run], object]] = {
    "status": lambda backend, job, run: backend.status(job),
    "logs": lambda backend, job, run: backend.logs(job),
    "stop": lambda backend, job, run: backend.stop(job),
    "fetch": lambda backend, job, run: backend.fetch(job, run),
}
"""What is asked of a job that is there."""
ASKED = {
    "status": {"the job": "GET .*/jobs/"},
    "logs": {
        "the datastore": "GET .*/datastores/",
        "its key": "POST .*/listSecrets",
        "which logs there are": r"GET .*\.blob\.core\.windows\.net/[^/]+$",
        "the log": "GET .*/user_logs/std_log",
    },
    "stop": {"the job": "GET .*/jobs/", "a note": "GET .*/notes/stop-", "our note": "PUT .*/notes/stop-"},
    "fetch": {"the files": r"GET .*\.blob\.core\.windows\.net/[^/]+$", "a file": "GET .*platotk/runs/.*/told.txt"},
}
"""Of each of them, in their order: requests that it makes."""
NEXT_STEPS = {401: "az login", 403: "ask for AzureML Data Scientist", 429: "wait a minute"}
CHOSEN = [("the run's files", 429), ("the job", 500), ("the environment", 403)]
"""Tried every time; the others are slow."""
RESUMING = """
import pathlib, sys, time
run = pathlib.Path(sys.argv[1])
done = len(list(run.glob("checkpoints/*/MANIFEST.json")))
print("from", done, "checkpoints on" if done else "the very beginning, as nothing is there", flush=True)
for number in range(done + 1, 6):
    folder = run / f"checkpoints/{number:06}"
    folder.mkdir(parents=True)
    (folder / "MANIFEST.json").write_text("{}")
    if number == 3:
        time.sleep(1000)
"""


def each(*statuses: int) -> list[Any]:
    pairs = [(step, status) for step in STEPS for status in statuses]
    return [pytest.param(*pair, marks=() if pair in CHOSEN else pytest.mark.slow) for pair in pairs]


def each_call(*statuses: int) -> list[Any]:
    """Each request of each call with the first status every time; with the others, which take longer, it is slow."""
    steps = [(call, step) for call, steps in ASKED.items() for step in steps]
    return [
        pytest.param(*where, status, marks=() if status == statuses[0] else pytest.mark.slow)
        for where in steps
        for status in statuses
    ]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    pytest.importorskip("azure.ai.ml", reason="needs the extra azure")
    with running(tmp_path_factory.mktemp("azure")) as made:
        yield made


@pytest.fixture
def azure(emulator: Emulator) -> Iterator[Emulator]:
    """Without the faults and the jobs of the test before."""
    yield emulator
    emulator.faults.clear()
    for run in emulator.runs.values():
        run.cancel()


@pytest.fixture
def place(azure: Emulator, tmp_path: Path) -> Place:
    """A project that nobody has submitted before: its code and its environment are new to Azure."""
    return project_at(azure, tmp_path)


def project_at(azure: Emulator, tmp_path: Path, **more: Any) -> Place:
    fields = {**azure.options, "sync": 0.5, "grace": 5, "environment": {"image": f"registry/{tmp_path.name}:1"}, **more}
    root = tmp_path / "project"
    root.mkdir()
    (root / "plato.yaml").write_text(json.dumps({"name": "adder", "sim": "sim:Sim", "backends": {"azure": fields}}))
    (root / "sim.py").write_text(f"PLACE = {str(tmp_path)!r}\n")
    options = AzureOptions(**fields)
    return Place(lambda: AzureBackend("azure", options), Project.load(root), tmp_path)


def number_of(azure: Emulator, pattern: str) -> int:
    """How many requests of a kind there have been."""
    lines = [f"{method} {host}{path}" for method, host, path, *_ in azure.requests]
    return sum(re.match(pattern, line, re.IGNORECASE) is not None for line in lines)


@pytest.mark.parametrize(("step", "status"), each(429, 500, 503))
def test_what_passes_is_waited_for(azure: Emulator, place: Place, step: str, status: int) -> None:
    before, jobs = number_of(azure, STEPS[step]), set(azure.state.jobs)
    azure.faults.add(STEPS[step], status=status, times=2, headers=AT_ONCE)
    job = place.submit("print('trained')")
    assert number_of(azure, STEPS[step]) - before > 2
    assert set(azure.state.jobs) - jobs == {job.id}  # asked three times, made once
    assert place.make().status(job).status in (JobStatus.PENDING, JobStatus.RUNNING)


@pytest.mark.parametrize(("step", "status"), each(*NEXT_STEPS))
def test_what_stays_is_one_error_with_the_next_step(azure: Emulator, place: Place, step: str, status: int) -> None:
    azure.faults.add(STEPS[step], status=status, times=ALWAYS, headers=AT_ONCE)
    with pytest.raises(AzureError) as caught:
        place.submit("print('trained')")
    # Who gets no token is not signed in, whatever the sign-in service answered.
    assert ("az login" if step == "signing in" else NEXT_STEPS[status]) in str(caught.value.hint)


@pytest.fixture(scope="module")
def running_job(emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, Job, Run]:
    """A job that has printed something and goes on: it looks for notes after an hour only."""
    place = project_at(emulator, tmp_path_factory.mktemp("running"), sync=3600, grace=3600)
    run = place.run()
    (run.path / "told.txt").write_text("whole")
    job = place.submit("import time; print('beg' + 'un', flush=True); time.sleep(1000)", run)
    place.wait_for(job, "begun")
    return place, job, run


@pytest.fixture
def asked(emulator: Emulator, running_job: tuple[Place, Job, Run]) -> Iterator[tuple[AzureBackend, Job, Run]]:
    """The job, and a backend that has not asked anything yet; nobody has asked the job to stop."""
    place, job, run = running_job
    yield place.make(), job, run
    emulator.faults.clear()
    container = emulator.blobs.container(emulator.blobs.container_of("workspaceblobstore"))
    for blob in container.list_blobs(name_starts_with=f"{job.details['path']}/.spare/notes/"):
        container.delete_blob(blob.name)
    assert place.make().status(job).status is JobStatus.RUNNING  # whatever it was asked


@pytest.mark.parametrize(("call", "step", "status"), each_call(429, 500, 503))
def test_what_passes_is_waited_for_by_every_call(
    emulator: Emulator, asked: tuple[AzureBackend, Job, Run], call: str, step: str, status: int
) -> None:
    pattern = ASKED[call][step]
    before = number_of(emulator, pattern)
    emulator.faults.add(pattern, status=status, times=2, headers=AT_ONCE)
    CALLS[call](*asked)
    assert number_of(emulator, pattern) - before > 2


@pytest.mark.parametrize(("call", "step", "status"), each_call(403, 500))
def test_what_stays_is_one_error_of_every_call(
    emulator: Emulator, asked: tuple[AzureBackend, Job, Run], call: str, step: str, status: int
) -> None:
    emulator.faults.add(ASKED[call][step], status=status, times=ALWAYS, headers=AT_ONCE)
    with pytest.raises(AzureError) as caught:
        CALLS[call](*asked)
    assert (NEXT_STEPS[403] if status == 403 else "try again in some minutes") in str(caught.value.hint)


def test_following_outlasts_what_no_call_does(emulator: Emulator, asked: tuple[AzureBackend, Job, Run]) -> None:
    backend, job, _ = asked
    emulator.faults.add("GET .*/jobs/", status=503, times=8, headers=AT_ONCE)  # a call asks six times
    emulator.faults.add("GET .*/user_logs/std_log", status=500, times=1, headers=AT_ONCE)
    told: list[str] = []

    def enough(text: str) -> None:
        told.append(text)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        following.follow(backend, job, on_text=enough)
    assert "begun" in told[0]
    emulator.faults.add("GET .*/jobs/", status=503, times=ALWAYS, headers=AT_ONCE)
    with pytest.raises(AzureError):
        following.follow(backend, job, on_text=told.append, patience_s=1.0)


@pytest.mark.parametrize(
    ("pattern", "status", "code", "message", "next_step"),
    [
        ("GET .*/computes/", 404, "ResourceNotFound", "The Resource 'rl-ws' was not found.", "plato azure up"),
        ("GET .*/computes/", 404, "ResourceGroupNotFound", "Resource group 'rl' could not be found.", "plato azure up"),
        ("PUT .*/jobs/", 400, "UserError", "The cluster exceeds the quota of family DSv2.", "more quota"),
        ("PUT .*/environments/", 400, "UserError", "Image build failed: conda unsatisfiable.", "the build's log"),
    ],
)
def test_what_azure_refuses_is_told_in_its_words(
    azure: Emulator, place: Place, pattern: str, status: int, code: str, message: str, next_step: str
) -> None:
    azure.faults.add(pattern, status=status, times=ALWAYS, body={"error": {"code": code, "message": message}})
    with pytest.raises(AzureError) as caught:
        place.submit("print('trained')")
    assert message in caught.value.message
    assert next_step in str(caught.value.hint)


def test_the_command_line_says_it_in_two_lines(azure: Emulator, place: Place) -> None:
    azure.faults.add("GET .*/computes/", status=403, times=ALWAYS)
    words = [sys.executable, "-m", "platotk", "train", "--on", "azure"]
    done = subprocess.run(words, cwd=place.project.root, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "AzureML Data Scientist" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_without_a_network_it_says_so(azure: Emulator, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platotk.azure.client.RETRIES", {"retry_total": 1})  # fifteen seconds otherwise
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nothing answers there
    with pytest.raises(AzureError, match="does not answer") as caught:
        place.submit("print('trained')")
    assert "proxy" in str(caught.value.hint)


def test_a_token_that_is_no_good_any_more_is_asked_for_anew(azure: Emulator, place: Place) -> None:
    backend = place.make()
    job = backend.submit(place.spec("import time; print('begun', flush=True); time.sleep(60)"))
    azure.faults.expire_tokens()
    assert backend.status(job).status in (JobStatus.PENDING, JobStatus.RUNNING)
    azure.faults.expire_tokens()
    azure.runs[job.id].cancel()
    azure.runs[job.id].wait()
    assert backend.status(job).status is JobStatus.STOPPED


def test_an_image_that_cannot_be_built_says_where_to_read_on(azure: Emulator, place: Place) -> None:
    job = place.submit("import time; time.sleep(60)")
    run = azure.runs[job.id]
    run.cancel()
    run.wait()
    # Nothing is built here: what the service then says is put in its place.
    run.why = json.dumps({"NonCompliant": "Image build failed. conda env create returned 1."})
    azure.state.jobs[job.id]["properties"]["status"] = "Failed"
    ended = place.make().status(job)
    assert ended.status is JobStatus.FAILED
    assert "conda env create returned 1." in ended.message
    assert "Read the build's log in the studio" in ended.message


def test_a_job_whose_machines_vanish_goes_on_from_the_newest_checkpoint(azure: Emulator, place: Place) -> None:
    run = place.run()
    job = place.submit(RESUMING, run)
    container = azure.blobs.container(azure.blobs.container_of("workspaceblobstore"))
    third = f"{job.details['path']}/checkpoints/000003/MANIFEST.json"
    deadline = time.monotonic() + 60
    while not container.get_blob_client(third).exists():
        assert time.monotonic() < deadline, azure.runs[job.id].log()
        time.sleep(0.2)
    azure.faults.evict(job.id)
    ended, text = place.end(job)
    assert ended.status is JobStatus.SUCCEEDED, text
    assert "from 3 checkpoints on" in text
    assert azure.runs[job.id].attempts == 2
    place.make().fetch(job, run)
    assert len(list(run.path.glob("checkpoints/*/MANIFEST.json"))) == 5


@pytest.mark.slow
def test_a_worker_may_be_late(azure: Emulator, place: Place) -> None:
    azure.faults.late_worker(1, seconds=5.0)
    ended, text = place.end(place.submit("print('trained')", nodes=2))
    assert ended.status is JobStatus.SUCCEEDED, text
    assert "trained" in text


@pytest.mark.slow
def test_a_worker_may_be_lost(azure: Emulator, place: Place) -> None:
    """Azure calls such a job failed; the run is whole, and that is what counts."""
    job = place.submit("import time; print('be' + 'gun', flush=True); time.sleep(8); print('trained')", nodes=2)
    place.wait_for(job, "begun")
    azure.faults.kill_node(job.id, rank=1)
    ended, text = place.end(job)
    assert "trained" in text
    assert azure.runs[job.id].status() == "Failed"
    assert (ended.status, ended.exit_code) == (JobStatus.SUCCEEDED, 0)


@pytest.mark.slow
def test_a_killed_head_fails_the_job(azure: Emulator, place: Place) -> None:
    job = place.submit("import time; print('be' + 'gun', flush=True); time.sleep(60)", nodes=2)
    place.wait_for(job, "begun")
    azure.faults.kill_node(job.id, rank=0)
    ended, _ = place.end(job)
    assert ended.status is JobStatus.FAILED
    assert "137" in ended.message


def test_the_log_of_a_job_that_began_anew_is_read_from_its_beginning(azure: Emulator, place: Place) -> None:
    """However far the new one has come by the time it is looked at."""
    backend, (name, first) = place.make(), ("anew", "trained up to 20\n")
    job = Job(id=name, backend="azure")
    blob = azure.blobs.container(azure.blobs.container_of("workspaceartifactstore")).get_blob_client(
        f"ExperimentRun/dcid.{name}/user_logs/std_log.txt"
    )
    blob.upload_blob(first)
    text, position = backend.logs(job)
    assert (text, position) == (first, len(first))
    blob.upload_blob(first + "and on\n", overwrite=True)
    text, position = backend.logs(job, position)
    assert (text, position) == ("and on\n", len(first) + 7)
    second = "resuming from 15\n" * 20
    blob.upload_blob(second, overwrite=True)
    assert backend.logs(job, position) == (second, len(second))
    blob.upload_blob("short\n", overwrite=True)
    assert backend.logs(job, len(second)) == ("short\n", 6)
    blob.upload_blob(first, overwrite=True)
    assert place.make().logs(job, 8) == (first[8:], len(first))  # another shell goes on at a position that it was told
