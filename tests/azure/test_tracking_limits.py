"""A training's metrics and parameters through azureml-mlflow into a workspace that refuses more than Azure takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.azure_emulator.emulator import GROUP, SUBSCRIPTION, WORKSPACE
from tests.azure_emulator.fixtures import running

pytest.importorskip("azureml.mlflow")

TRAINING = """
import json, sys
from platotk import Project
from platotk.journal import Journal
from platotk.learning.tracking import Trackers
from platotk.run import create_run

project = Project(sim="CartPole-v1", name="pump", sim_config={f"p{at:03d}": "x" * 700 for at in range(300)})
run = create_run(project, runs_dir=sys.argv[1])
run.update(algorithm="PPO")
warned = []
for attempt in (1, 2):
    trackers = Trackers(project, run, lambda event: warned.append(event["text"]))
    trackers.start()
    journal = Journal(run.metrics_path)
    for iteration in range(50 * attempt - 49, 50 * attempt + 1):
        line = {"iteration": iteration, "env_steps": 400 * iteration, "time_s": 1.0, "return_mean": float(iteration)}
        line["rllib"] = {
            "env_runners": {f"valve_{at:03d}": 1.0 for at in range(300)},
            "learners": {"default_policy": {"policy_loss": 0.1, "entropy": 0.5}},
        }
        journal.append(line)
        trackers.log(line)
    trackers.finish("finished")

import mlflow

client = mlflow.MlflowClient()
logged = client.get_run("night").data
steps = [one.step for one in client.get_metric_history("night", "return_mean")]
files = [one.path for one in client.list_artifacts("night")]
print(json.dumps([len(logged.params), sorted(logged.metrics), steps, files, warned]))
"""


@pytest.mark.slow
def test_a_training_with_hundreds_of_metrics_and_parameters_stays_within_what_azure_takes(tmp_path: Path) -> None:
    with running(tmp_path / "azure") as azure:
        path = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}"
        path += f"/providers/Microsoft.MachineLearningServices/workspaces/{WORKSPACE}/jobs/night"
        azure.state.jobs["night"] = {"id": path, "name": "night", "properties": {"status": "Running"}}
        environ = {name: value for name, value in azure.environ.items() if not name.startswith("AZURE_")}
        done = subprocess.run(
            [sys.executable, "-c", TRAINING, str(tmp_path / "runs")],
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **environ, **azure.tracking_environ("night")},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        asked = [(method, where) for method, _, where, *_ in azure.requests]
    num_params, metrics, steps, files, warned = json.loads(done.stdout.splitlines()[-1])
    assert num_params == 150
    assert len(metrics) <= 50
    assert {"return_mean", "env_steps", "learner/policy_loss"} <= set(metrics)
    assert steps == list(range(1, 101))
    assert set(files) == {"config.json", "plato.yaml"}
    assert [re.sub(r".* gets (\d+) (of|metrics).*", r"\1 \2", text) for text in warned] == [
        "150 of",
        "50 metrics",
        "50 metrics",
    ]
    assert not [where for _, where in asked if "logged-models" in where]
    # 100 iterations of 50 metrics, 250 a call: not a call for each metric, nor one for each iteration.
    assert len([where for _, where in asked if where.endswith("/runs/log-batch")]) < 60
