"""The Simple Adder trained by `plato train --on azure`: the same files, metrics and agent as by `plato train` here.

Azure is the emulator of this machine: the unmodified SDKs talk to it, and it really starts the job on two nodes.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.azure_emulator.emulator import Emulator
from tests.azure_emulator.fixtures import running
from tests.uncovered import uncovered

import platotk
from platotk import Agent, Run

EXAMPLE = Path(__file__).parents[2] / "examples/simple-adder"
SHORT = ["training.train_batch_size_per_learner=1000", "training.num_epochs=5", "stop.env_steps=4000"]
CHANGES = [word for change in SHORT for word in ("--set", change)]


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with running(tmp_path_factory.mktemp("azure")) as emulator:
        # As mounted blob storage may: whole files, and neither rename nor append.
        emulator.refuses_rename = True
        # The unmodified azureml-mlflow logs each job to a real server.
        emulator.tracks = True
        yield emulator


@pytest.fixture(scope="module")
def project(azure: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, with the two lines that a user adds: where Azure is, and how many machines."""
    folder = tmp_path_factory.mktemp("project")
    for file in EXAMPLE.glob("*.[py]*"):
        shutil.copy(file, folder)
    fields = yaml.safe_load((folder / "plato.yaml").read_text())
    fields["backends"] = {"azure": {**azure.options, "nodes": 2, "sync": 1}}
    (folder / "plato.yaml").write_text(yaml.safe_dump(fields))
    return folder


@pytest.fixture(scope="module")
def local(project: Path) -> Run:
    """The run that was never anywhere else."""
    return Run(str(plato("train", *CHANGES, project=project)["path"]))


def plato(*words: str | Path, project: Path) -> dict[str, object]:
    """One command, as at the prompt; gives what it answers with --json."""
    done = subprocess.run(
        [sys.executable, "-m", "platotk", *map(str, words), "--json"],
        cwd=project,
        env=uncovered(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for noise in ("experimental class", "no tenant id", "\x1b[39m", "DeprecationWarning", "gputil"):
        assert noise not in done.stderr, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def files(run: Run) -> set[str]:
    names = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith((".", "jobs/"))}


def test_the_simple_adder_trains_on_azure_as_it_does_here(azure: Emulator, project: Path, local: Run) -> None:
    there = plato("train", "--on", "azure", *CHANGES, project=project)

    on_azure = Run(str(there["path"]))
    assert (there["job_status"], on_azure.status) == ("SUCCEEDED", local.status)
    assert on_azure.info["jobs"][0]["details"]["studio_url"].startswith("https://ml.azure.com/")
    assert files(on_azure) == files(local)
    assert [line["env_steps"] for line in on_azure.metrics()] == [line["env_steps"] for line in local.metrics()]
    assert [set(line) for line in on_azure.metrics()] == [set(line) for line in local.metrics()]
    assert on_azure.metrics()[-1]["cluster"]["nodes"] == 2
    assert on_azure.project.root == local.project.root

    logged, last = azure.tracked(on_azure.info["jobs"][0]["id"]), on_azure.metrics()[-1]
    assert logged["return_mean"] == pytest.approx([line["return_mean"] for line in on_azure.metrics()])
    assert logged["cluster/nodes"][-1] == last["cluster"]["nodes"] == 2

    agents = [Agent.load(platotk.export(run)) for run in (on_azure, local)]
    assert agents[0].observation_space == agents[1].observation_space
    assert agents[0].action_space == agents[1].action_space
    assert all(agent.verify() for agent in agents)
    assert {path.name for path in (on_azure.path / "agent").iterdir()} == {
        path.name for path in (local.path / "agent").iterdir()
    }


@pytest.mark.slow
def test_training_whose_machine_vanishes_goes_on_and_leaves_a_whole_run(azure: Emulator, project: Path) -> None:
    changes = [*CHANGES, "--set", "checkpoint.every=1"]
    sent = plato("train", "--on", "azure", "--nodes", "1", "--detach", *changes, project=project)
    run = Run(str(sent["path"]))
    (job,) = run.info["jobs"]
    container = azure.blobs.container(azure.blobs.container_of("workspaceblobstore"))
    checkpoints = f"{job['details']['path']}/checkpoints/"
    deadline = time.monotonic() + 90
    while not any(blob.name.endswith("MANIFEST.json") for blob in container.list_blobs(name_starts_with=checkpoints)):
        assert time.monotonic() < deadline, azure.runs[job["id"]].log()
        time.sleep(0.1)
    azure.faults.evict(job["id"])

    ended = plato("logs", run.name, "-f", project=project)
    assert ended["job_status"] == "SUCCEEDED"
    assert azure.runs[job["id"]].attempts == 2
    assert run.status == "finished"
    assert [line["iteration"] for line in run.metrics()] == [1, 2, 3, 4]
    steps = [0, *(line["env_steps"] for line in run.metrics())]
    # A batch ends with its last episodes, and those after the restart are others; none is counted twice or left out.
    assert all(1000 <= after - before < 1010 for before, after in itertools.pairwise(steps))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_tuning_is_a_job_of_one_machine_with_a_run_for_each_trial(azure: Emulator, project: Path) -> None:
    tried = ["tune.param_space={training.lr: {grid_search: [1e-4, 3e-3]}}", "tune.num_samples=1", "stop.env_steps=2000"]
    there = plato("tune", "--on", "azure", *CHANGES, *(w for one in tried for w in ("--set", one)), project=project)
    run = Run(str(there["path"]))
    assert (there["job_status"], run.status) == ("SUCCEEDED", "finished")
    assert azure.state.jobs[run.info["jobs"][0]["id"]]["properties"]["resources"]["instanceCount"] == 1
    trials = [Run(folder) for folder in sorted((run.path / "trials").iterdir())]
    assert [(trial.status, trial.info["params"]) for trial in trials] == [
        ("finished", {"training.lr": 1e-4}),
        ("finished", {"training.lr": 3e-3}),
    ]
    assert all(trial.metrics()[-1]["env_steps"] >= 2000 for trial in trials)
    assert plato("show", run.name, project=project)["trials"]
    best = max(trials, key=lambda trial: max(line["return_mean"] for line in trial.metrics()))
    assert Agent.load(platotk.export(best)).verify()
