"""MLflow behind the emulator: azureml-mlflow logs to a real server, under a job's name and within Azure's limits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.azure_emulator.emulator import GROUP, SUBSCRIPTION, WORKSPACE, Emulator
from tests.azure_emulator.fixtures import running

pytest.importorskip("azureml.mlflow")

SCRIPT = """
import mlflow
from mlflow.exceptions import MlflowException
with mlflow.start_run():
    for step in range(3):
        mlflow.log_metrics({"return": step, "env_steps": 100 * step}, step=step)
    mlflow.log_params({f"p{at}": at for at in range(100)})
    mlflow.log_dict({"sim": "adder"}, "project.json")
client = mlflow.MlflowClient()
run = client.get_run("night")
print(run.info.run_id, run.data.metrics["return"], len(client.get_metric_history("night", "return")))
print([one.path for one in client.list_artifacts("night")])
for at in (100, 200):
    try:
        client.log_batch("night", params=[mlflow.entities.Param(f"p{at + i}", "1") for i in range(100)])
    except MlflowException as error:
        print("Limit=200" in str(error))
"""


@pytest.mark.slow
def test_a_job_logs_under_its_name_and_is_held_to_azures_limits(tmp_path: Path) -> None:
    with running(tmp_path / "azure") as azure:
        path = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}"
        path += f"/providers/Microsoft.MachineLearningServices/workspaces/{WORKSPACE}/jobs/night"
        azure.state.jobs["night"] = {"id": path, "name": "night", "properties": {"status": "Running"}}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**_environ(azure), **azure.tracking_environ("night")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-3:] == ["night 2.0 3", "['project.json']", "True"]


def _environ(azure: Emulator) -> dict[str, str]:
    keep = {name: value for name, value in azure.environ.items() if not name.startswith("AZURE_")}
    return {"PATH": "/usr/bin:/bin", "HOME": str(azure.folder), **keep}
