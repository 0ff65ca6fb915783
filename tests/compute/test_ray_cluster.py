"""The Simple Adder on somebody's Ray cluster: three machines that share nothing but an object store.

Each node has its own network, its own disk and its own /dev/shm, and no platotk installed, as pods of KubeRay do; the
project is sent from a fifth machine through the Ray Jobs API.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tests.compute.machines import Machine, machines, needs_machines

import platotk
from platotk import Agent, Run

pytestmark = [pytest.mark.slow, needs_machines]

PACKAGE = Path(platotk.__file__).resolve().parent
ADDER = Path(__file__).resolve().parents[2] / "examples/simple-adder"
STORE = "http://10.77.0.4:5000"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key",  # each machine's own environment knows them; they do not travel
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}
# Its own disk (HOME is on it) and shared memory, and nothing where platotk is installed.
NODE = (
    "export HOME=/tmp; mount -t tmpfs tmpfs /tmp; mount -t tmpfs tmpfs /dev/shm; "
    f"mount -t tmpfs tmpfs '{PACKAGE}'; cd /; exec \"$@\""
)
SHORT = {
    "training": {"lr": 1e-3, "train_batch_size_per_learner": 600, "minibatch_size": 200, "num_epochs": 2},
    "env_runners": {"num_env_runners": 2},
    "stop": {"iterations": 3},
    "checkpoint": {"every": 1, "keep": 2},
    "tracking": {"mlflow": False},
}


@dataclass
class Cluster:
    """A laptop, and a cluster that it can reach; and the project on the laptop."""

    laptop: Machine
    nodes: list[Machine]
    project: Path

    def plato(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`plato` on the laptop."""
        return subprocess.run(
            ["ip", "netns", "exec", self.laptop.name, sys.executable, "-m", "platotk", *words],
            cwd=self.project,
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def nodes_of(self, what: str) -> set[str]:
        """On which nodes there have been actors of such a class, as the cluster's dashboard says."""
        ask = "import sys, urllib.request as web; print(web.urlopen(sys.argv[1]).read().decode())"
        url = "http://10.77.0.1:8265/api/v0/actors"
        told = subprocess.run(
            ["ip", "netns", "exec", self.laptop.name, sys.executable, "-c", ask, url],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        listed = json.loads(told.stdout)["data"]["result"]["result"]
        return {actor["node_id"] for actor in listed if what in actor["class_name"]}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    for package in ("aiohttp", "moto.server", "s3fs"):
        pytest.importorskip(package)
    if Path(sys.executable).is_relative_to("/tmp"):
        pytest.skip("each node has its own /tmp, and so no Python there")
    folder = tmp_path_factory.mktemp("cluster")
    project = folder / "simple-adder"
    shutil.copytree(ADDER, project, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    options = yaml.safe_load((ADDER / "plato.yaml").read_text("utf-8"))
    backend = {
        "type": "ray",
        "address": "http://10.77.0.1:8265",
        "storage": "s3://shared/runs",
        "storage_options": {"endpoint_url": STORE},
        "sync": 1,
    }
    backends = {"cluster": backend, "worker": {**backend, "cpus": 1}}
    (project / "plato.yaml").write_text(yaml.safe_dump({**options, **SHORT, "backends": backends}))
    with machines(5, folder) as (first, second, third, store, laptop):
        store.start(sys.executable, "-m", "moto.server", "-H", "10.77.0.4", "-p", "5000", **ENVIRONMENT)
        head = ("--head", "--port=6379", "--dashboard-host=0.0.0.0", "--include-dashboard=true")
        _start_ray(first, "--num-cpus=0", *head)  # it trains; what steps the sims has to go to the other two
        wait_for(first, "Ray runtime started")
        for machine in (second, third):
            _start_ray(machine, "--num-cpus=1", "--address=10.77.0.1:6379")
        wait_for(store, "Running on")
        make = f"import s3fs; s3fs.S3FileSystem(endpoint_url={STORE!r}).mkdir('shared')"
        assert laptop.start(sys.executable, "-c", make, **ENVIRONMENT).wait(30) == 0, laptop.said()
        for machine in (second, third):
            wait_for(machine, "Ray runtime started")
        yield Cluster(laptop, [first, second, third], project)


@pytest.fixture(scope="module")
def trained(cluster: Cluster) -> Run:
    done = cluster.plato("train", "--on", "cluster", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["status"], told["backend"], told["job_status"]) == ("finished", "cluster", "SUCCEEDED")
    return Run(told["path"])


def test_the_simple_adder_is_stepped_on_the_nodes_and_comes_back_as_if_trained_here(
    cluster: Cluster, trained: Run
) -> None:
    assert len(cluster.nodes_of("Runner")) == 2
    assert not cluster.nodes_of("Runner") & cluster.nodes_of("JobSupervisor")
    here = subprocess.run(
        [sys.executable, "-m", "platotk", "train", "--json"],
        cwd=cluster.project,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    local = Run(json.loads(here.stdout)["path"])
    assert _names(trained) == _names(local)
    there, near = trained.metrics(), local.metrics()
    assert [line["iteration"] for line in there] == [1, 2, 3]
    assert [line.keys() for line in there] == [line.keys() for line in near]
    same = ("iteration", "env_steps", "episodes", "return_mean", "return_max", "return_min", "episode_length_mean")
    assert [{key: line.get(key) for key in same} for line in there] == [
        {key: line.get(key) for key in same} for line in near
    ]
    agents = []
    for run in (trained, local):
        exported = cluster.plato("export", run.name, "--json")
        assert exported.returncode == 0, exported.stderr
        agents.append(Agent.load(run.path / "agent"))
    first, second = ([agent.act({"value": [value]})["addend"].item() for value in range(-100, 201)] for agent in agents)
    assert first == second


def test_a_run_is_assessed_on_a_worker_and_the_verdict_comes_back(cluster: Cluster, trained: Run) -> None:
    done = cluster.plato("assess", trained.name, "--on", "worker", "--episodes", "4", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["job_status"] == "SUCCEEDED"
    assert [job["what"] for job in trained.info["jobs"]] == ["train", "assess"]
    assert trained.status == "finished"
    assert list((trained.path / "assessments").rglob("*.json"))
    assert cluster.nodes_of("Runner") & cluster.nodes_of("JobSupervisor")


def test_runs_and_show_say_how_the_job_stands(cluster: Cluster, trained: Run) -> None:
    listed = json.loads(cluster.plato("runs", "--json").stdout)
    row = next(row for row in listed if row["run"] == trained.name)
    assert row["job_status"] == "SUCCEEDED"
    shown = json.loads(cluster.plato("show", trained.name, "--json").stdout)
    assert (shown["job"], shown["job_status"]) == (row["job"], "SUCCEEDED")


def _start_ray(machine: Machine, *words: str) -> None:
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={machine.address}"]
    ray += ["--object-store-memory=80000000", "--disable-usage-stats", *words]
    machine.start("unshare", "-m", "sh", "-ec", NODE, "sh", *ray, **ENVIRONMENT)


def wait_for(machine: Machine, what: str) -> None:
    """Until a machine has said something."""
    deadline = time.monotonic() + 60
    while what not in machine.said():
        assert machine.processes(), machine.said()
        assert time.monotonic() < deadline, machine.said()
        time.sleep(0.2)


def _names(run: Run) -> set[str]:
    """The files of a run, without the logs that a place adds and the runs' own exports."""
    left = ("jobs", "curves.html", ".lock", "agent", "assessments")
    names = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith((*left, "."))}
