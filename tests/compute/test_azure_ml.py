"""The backend azure_ml: what it would send, without a network; what the SDK makes of it; how a job's state reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.azure.wire import as_sent

from platotk import Project, Run
from platotk.azure import jobs as azure_jobs
from platotk.compute import jobs
from platotk.compute.base import JobSpec, JobStatus
from platotk.errors import SubmitError
from platotk.run import create_run

AZURE: dict[str, Any] = {
    "type": "azure_ml",
    "subscription": "01234567-89ab-cdef-0123-456789abcdef",
    "resource_group": "rl",
    "workspace": "rl-ws",
    "size": "Standard_E8ds_v5",
    "nodes": 2,
    "environment": {"name": "mine", "version": "3", "variables": {"MOOD": "good"}},
}


def project_at(folder: Path, **azure: Any) -> Project:
    options = {"sim": "sim:Sim", "name": "adder", "backends": {"azure": {**AZURE, **azure}}}
    (folder / "plato.yaml").write_text(yaml.safe_dump(options))
    (folder / "sim.py").write_text("class Sim: ...\n")
    return Project.load(folder)


def test_a_dry_run_prints_the_job_as_az_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing answers there
    request = jobs.request("train", project_at(tmp_path), on="azure")
    assert request["type"] == "command"
    assert request["compute"] == "azureml:rl-cpu"
    assert request["environment"] == "azureml:mine:3"
    assert request["resources"] == {"instance_count": 2, "shm_size": "8g"}
    assert request["distribution"] == {"type": "pytorch", "process_count_per_instance": 1}
    assert request["outputs"]["run"]["path"] == "azureml://datastores/workspaceblobstore/paths/platotk/runs/<new run>"
    assert "python -m platotk node -- python -m platotk.compute.carried" in request["command"]
    assert request["command"].endswith("-- '{python}' -m platotk train --resume '{run}'")
    assert request["environment_variables"]["RAY_AUTH_TOKEN"] == "<secret>"
    assert request["environment_variables"]["MOOD"] == "good"
    assert "limits" not in request
    assert [path.name for path in tmp_path.iterdir()] == ["plato.yaml", "sim.py"]


@pytest.mark.parametrize("distribution", ["pytorch", "mpi", "ray"])
def test_the_sdk_reads_it_and_puts_it_on_the_wire(tmp_path: Path, distribution: str) -> None:
    ml = pytest.importorskip("azure.ai.ml", reason="needs the extra azure")
    from azure.ai.ml.entities._job.to_rest_functions import to_rest_job_object

    project = project_at(tmp_path, distribution=distribution, timeout="12h", shm="16g")
    request = jobs.request("train", project, on="azure")
    (tmp_path / "job.yml").write_text(json.dumps({**request, "code": "."}))
    job = ml.load_job(tmp_path / "job.yml")
    job.environment, job.code, job.compute = "/e/versions/3", "/c/versions/1", "/cluster"  # as the service names them
    sent = as_sent(to_rest_job_object(job))["properties"]
    assert sent["jobType"] == "Command"
    assert sent["command"] == request["command"]
    assert sent["outputs"]["run"]["mode"] == "ReadWriteMount"
    assert sent["outputs"]["run"]["uri"] == request["outputs"]["run"]["path"]
    assert sent["resources"]["instanceCount"] == 2
    assert sent["resources"]["shmSize"] == "16g"
    assert sent["limits"]["timeout"] == "PT12H16M"
    names = {"pytorch": "PyTorch", "mpi": "Mpi", "ray": "Ray"}
    assert sent["distribution"]["distributionType"] == names[distribution]
    assert ("RAY_AUTH_TOKEN" in sent["environmentVariables"]) is (distribution != "ray")


def test_one_node_needs_no_distribution_and_no_token(tmp_path: Path) -> None:
    request = jobs.request("train", project_at(tmp_path), on="azure", nodes=1)
    assert "distribution" not in request
    assert "RAY_AUTH_TOKEN" not in request["environment_variables"]


def test_more_nodes_than_the_cluster_has_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    project = project_at(tmp_path)
    with pytest.raises(SubmitError) as caught:
        jobs.submit("train", project, on="azure", nodes=9)
    assert "9 nodes were asked for; compute 'rl-cpu' has at most 4" in str(caught.value)
    assert "plato azure up" in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_run_keeps_its_folder_on_the_datastore_and_shares_it_with_no_other(tmp_path: Path) -> None:
    project = project_at(tmp_path)
    backend = jobs.get_backend(project, "azure")

    def path(run: Run) -> str:
        spec = JobSpec(name=run.name, run=run.path, command=("true",), working_dir=tmp_path)
        return str(backend.request(spec)["outputs"]["run"]["path"])

    mine = create_run(project, run=tmp_path / "runs/night")
    once = path(mine)
    mine.update(jobs=[{"id": "x", "backend": "azure"}], status="stopped")
    assert path(mine) == once
    assert path(create_run(project, run=tmp_path / "elsewhere/night")) != once


def test_advice_is_given_before_submitting(tmp_path: Path) -> None:
    project = project_at(tmp_path)
    (line,) = jobs.advice(project, on="azure")
    assert line.startswith("2 x Standard_E8ds_v5 have 16 CPUs")
    assert jobs.advice(project.override(["env_runners.num_env_runners=auto"]), on="azure") == []
    assert jobs.advice(project, on="local") == []


def wire(status: str, **properties: Any) -> dict[str, Any]:
    return {
        "properties": {"status": status, "resources": {"instanceCount": 2}, **properties},
        "systemData": {"createdAt": "2020-01-01T00:00:00.1234567+00:00"},
    }


def test_a_waiting_job_says_what_for() -> None:
    cluster = json.dumps({"AllocationState": "steady", "PreparingNodeCount": 1, "RunningNodeCount": 0})
    queued = azure_jobs.state(wire("Queued", tags={"_aml_system_ComputeTargetStatus": cluster}), None)
    assert queued.status is JobStatus.PENDING
    assert queued.message.startswith("waiting for 2 nodes, ")
    assert queued.message.endswith(" h (0 running, 1 being prepared)")
    assert "environment" in azure_jobs.state(wire("Preparing"), None).message


@pytest.mark.parametrize(
    ("status", "note", "ours", "code"),
    [
        ("Running", None, JobStatus.RUNNING, None),
        ("Finalizing", None, JobStatus.RUNNING, None),
        ("Completed", {"code": 0}, JobStatus.SUCCEEDED, 0),
        ("Completed", None, JobStatus.SUCCEEDED, 0),
        ("Completed", {"code": 3}, JobStatus.FAILED, 3),
        ("Failed", {"code": 3}, JobStatus.FAILED, 3),
        ("Failed", {"code": 0}, JobStatus.SUCCEEDED, 0),
        ("Failed", {"code": 75}, JobStatus.STOPPED, 75),
        ("Failed", {"code": 137, "asked": True}, JobStatus.STOPPED, 137),
        ("Failed", None, JobStatus.FAILED, None),
        ("Canceled", None, JobStatus.STOPPED, None),
    ],
)
def test_the_end_of_a_job_is_what_its_command_said(
    status: str, note: dict[str, Any] | None, ours: JobStatus, code: int | None
) -> None:
    found = azure_jobs.state(wire(status), note)
    assert (found.status, found.exit_code) == (ours, code)
