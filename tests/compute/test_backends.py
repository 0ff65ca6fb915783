"""What every backend does: the same tests for each place that can run a command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.compute.places import Place, ray_cluster

from platotk import Project, Run
from platotk.compute.base import JobStatus
from platotk.compute.local import LocalBackend, LocalOptions
from platotk.compute.ray_jobs import RayBackend, RayOptions

SAVE_ON_SIGTERM = """
import pathlib, signal, sys, time
def save(*_):
    (pathlib.Path(sys.argv[1]) / "log.txt").write_text("saved")
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("rea" + "dy", flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    root = tmp_path_factory.mktemp("project")
    (root / "plato.yaml").write_text("name: adder\nsim: sim:Adder\n")
    (root / "sim.py").write_text("ANSWER = 42\n")
    return Project.load(root)


@pytest.fixture(scope="module")
def ray_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One Ray cluster of this machine, with its Jobs API, for all tests of this module."""
    pytest.importorskip("aiohttp", reason="the Jobs API comes with ray[default]")
    with ray_cluster() as address:
        yield address


@pytest.fixture(scope="module")
def azure_options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Azure as an emulator of this machine, for all tests of this module."""
    pytest.importorskip("azure.ai.ml", reason="needs the extra azure")
    from tests.azure_emulator.fixtures import running

    with running(tmp_path_factory.mktemp("azure")) as emulator:
        yield emulator.options


@pytest.fixture(params=["local", "ray", "azure_ml"])
def place(request: pytest.FixtureRequest, project: Project, tmp_path: Path) -> Place:
    if request.param == "local":
        return Place(lambda: LocalBackend("local", LocalOptions(type="local", grace_s=5)), project, tmp_path)
    if request.param == "azure_ml":
        from platotk.azure.options import AzureOptions
        from platotk.compute.azure_ml import AzureBackend

        azure = AzureOptions(**request.getfixturevalue("azure_options"), sync=0.5, grace=5)
        return Place(lambda: AzureBackend("azure", azure), project, tmp_path)
    options = RayOptions(
        type="ray",
        address=request.getfixturevalue("ray_address"),
        storage=str(tmp_path / "storage"),
        sync=0.5,
        grace=5,
    )
    return Place(lambda: RayBackend("cluster", options), project, tmp_path)


def test_a_command_runs_in_the_project_and_its_output_is_followed(place: Place) -> None:
    job = place.submit(
        "import sim, os; print('the answer is', sim.ANSWER, os.environ['MOOD'])", environment={"MOOD": "ü"}
    )
    ended, text = place.end(job)
    assert (ended.status, ended.exit_code) == (JobStatus.SUCCEEDED, 0)
    assert text.count("the answer is 42 ü") == 1


def test_its_exit_code_is_kept(place: Place) -> None:
    job = place.submit("import sys; print('so sad'); sys.exit(3)")
    ended, text = place.end(job)
    assert (ended.status, ended.exit_code) == (JobStatus.FAILED, 3)
    assert "so sad" in text
    assert place.make().status(place.again(job)) == ended


def test_stopping_lets_it_save_itself(place: Place) -> None:
    run = place.run()
    job = place.submit(SAVE_ON_SIGTERM, run)
    place.wait_for(job, "ready")
    assert place.make().status(job).status is JobStatus.RUNNING
    place.make().stop(place.again(job))
    ended, _ = place.end(job)
    assert ended.status is JobStatus.STOPPED
    place.make().fetch(job, run)
    assert run.log_path.read_text() == "saved"
    place.make().stop(job)  # once more changes nothing


def test_what_it_writes_into_the_run_arrives_here(place: Place) -> None:
    write = """
import json, pathlib, sys
run = pathlib.Path(sys.argv[1])
print(json.loads((run / "run.json").read_text())["name"])
folder = run / "checkpoints/000005"
folder.mkdir(parents=True)
(folder / "state.bin").write_bytes(bytes(range(256)))
(folder / "MANIFEST.json").write_text("{}")
(run / "metrics.jsonl").write_text('{"iteration": 1}\\n')
"""
    run = place.run()
    job = place.submit(write, run)
    ended, text = place.end(job)
    assert ended.status is JobStatus.SUCCEEDED, text
    assert run.name in text  # the run travels to the job
    place.make().fetch(job, run)
    place.make().fetch(job, run)
    assert (run.path / "checkpoints/000005/state.bin").read_bytes() == bytes(range(256))
    assert run.metrics() == [{"iteration": 1}]
    assert run.info["root"] == str(place.project.root)


def test_a_time_limit_is_kept(place: Place) -> None:
    job = place.submit("import time; print('begun', flush=True); time.sleep(60)", timeout_s=0.5)
    ended, _ = place.end(job)
    assert ended.status in (JobStatus.FAILED, JobStatus.STOPPED)


def test_what_would_be_sent_is_plain_and_makes_nothing(place: Place) -> None:
    run = place.run()
    before = sorted(run.path.rglob("*"))
    request = place.make().request(place.spec("print(1)", run, environment={"MOOD": "good"}))
    assert "print(1)" in json.dumps(request)
    assert "good" in json.dumps(request)
    assert sorted(run.path.rglob("*")) == before


def test_a_log_is_read_on_from_where_one_stopped(place: Place) -> None:
    job = place.submit("print('eins'); print('zwei')")
    place.end(job)
    text, end = place.make().logs(job)
    assert text.endswith("eins\nzwei\n")
    assert place.make().logs(job, end) == ("", end)
    assert place.make().logs(job, end - 5)[0] == "zwei\n"


def test_a_command_that_cannot_start_has_failed(place: Place) -> None:
    run: Run = place.run()
    job = place.submit("import no_such_module", run)
    ended, text = place.end(job)
    assert ended.status is JobStatus.FAILED
    assert "No module named 'no_such_module'" in text
