"""How busy the machines were: measured here, on several Ray nodes, in the journal, and what it means in words."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from platotk import Project
from platotk.journal import Journal
from platotk.learning.metrics import CLUSTER_METRICS, chosen_metrics
from platotk.learning.right_size import advice, usage_of
from platotk.learning.training import train
from platotk.learning.usage import Reading, Usage, reading
from platotk.run import Run, create_run


def burn(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


# --- measuring


def test_this_machines_cpus_and_memory_are_those_of_psutil() -> None:
    now = reading()
    memory = psutil.virtual_memory()
    assert 0 < now.cpus <= (psutil.cpu_count() or 1)
    assert 0 < now.busy_s < now.total_s
    assert 0 < now.memory_used < now.memory_total <= memory.total


def test_a_busy_cpu_is_seen_and_an_idle_one_too() -> None:
    usage = Usage(with_cluster=False)
    burn(0.5)
    told = usage.take()
    assert told["nodes"] == 1
    assert told["cpus"] == reading().cpus
    # This process alone kept one CPU busy; what else runs here comes on top.
    assert told["cpu_percent"] >= 0.6 * 100 / told["cpus"]
    assert 0 < told["memory_percent"] == told["fullest_percent"] < 100
    assert set(CLUSTER_METRICS) <= set(told)


def test_it_costs_no_iteration_anything() -> None:
    began = time.perf_counter()
    for _ in range(100):
        reading()
    assert time.perf_counter() - began < 2.0


def test_iterations_too_quick_to_measure_have_the_last_figures() -> None:
    usage = Usage(with_cluster=False)
    burn(0.3)
    assert usage.take() is usage.take()


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_container_with_limits_is_measured_by_them(tmp_path: Path) -> None:
    """As Docker and Kubernetes show them, cgroup version 2."""
    limits = {"cpu.max": "150000 100000\n", "memory.max": "1000000000\n", "memory.current": "600000000\n"}
    stat = {"cpu.stat": "usage_usec 4000000\nuser_usec 1\n", "memory.stat": "anon 1\ninactive_file 100000000\n"}
    now = reading(write(tmp_path, **limits, **stat))
    assert (now.cpus, now.busy_s, now.memory_used, now.memory_total) == (1.5, 4.0, 500_000_000, 1_000_000_000)


def test_the_older_cgroups_are_known_too(tmp_path: Path) -> None:
    cpu = {
        "cpu__cpu.cfs_quota_us": "200000",
        "cpu__cpu.cfs_period_us": "100000",
        "cpuacct__cpuacct.usage": "7000000000",
    }
    memory = {"memory__memory.limit_in_bytes": "1000000000", "memory__memory.usage_in_bytes": "600000000"}
    stat = {"memory__memory.stat": "cache 5\ntotal_inactive_file 100000000\n"}
    now = reading(write(tmp_path, **cpu, **memory, **stat))
    assert (now.cpus, now.busy_s, now.memory_used, now.memory_total) == (2.0, 7.0, 500_000_000, 1_000_000_000)


def test_a_container_without_limits_is_its_machine(tmp_path: Path) -> None:
    unlimited = {"cpu.max": "max 100000", "memory.max": "max", "memory.current": "6"}
    assert reading(write(tmp_path, **unlimited)).memory_total == psutil.virtual_memory().total
    assert reading(write(tmp_path, **{"cpu__cpu.cfs_quota_us": "-1", "cpu__cpu.cfs_period_us": "100000"})).busy_s > 4.0


NODES = """
import json, os, time
import ray
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
others = [cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)]
ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
from platotk.learning.usage import Usage

usage = Usage(with_cluster=True)
taken, seconds = [], []
def take():
    began = time.perf_counter()
    taken.append(dict(usage.take()))
    seconds.append(time.perf_counter() - began)

first = time.monotonic()
while not (len(usage._others) == 2 and all(node.before and node.now for node in usage._others.values())):
    assert time.monotonic() - first < 60, usage._others
    time.sleep(0.3)
    take()
for _ in range(5):
    time.sleep(0.3)
    take()
used = ray.available_resources().get("CPU")
cluster.remove_node(others[0], allow_graceful=False)
since = time.monotonic()
while taken[-1]["nodes"] != 2 and time.monotonic() - since < 60:
    time.sleep(0.3)
    take()
late = taken[-1]
cluster.add_node(num_cpus=1)
since = time.monotonic()
while taken[-1]["nodes"] != 3 and time.monotonic() - since < 60:
    time.sleep(0.3)
    take()
usage.close()

# A training in one process, on a machine that was made part of the cluster: the others are there all the same.
ray.shutdown()
os.environ["RAY_ADDRESS"] = cluster.address
from platotk import Project, train
project = Project(
    sim="CartPole-v1", stop={"time": "12s"}, tracking={"mlflow": False}, checkpoint={"every": 99},
    training={"train_batch_size_per_learner": 256, "minibatch_size": 64, "num_epochs": 1},
)
alone = train(project, runs_dir=os.environ["RAY_TMPDIR"] + "/runs").metrics()
is_left_alone = not ray.is_initialized()
print(json.dumps({"taken": taken, "late": late, "seconds": seconds, "free": used, "left": is_left_alone,
    "alone": [line["cluster"] for line in alone]}))
"""


@pytest.mark.slow
def test_every_live_node_of_a_ray_cluster_is_counted_and_a_lost_one_is_not() -> None:
    with tempfile.TemporaryDirectory(prefix="ptk", dir="/tmp") as temp:
        # A folder of its own, so that no other Ray of this machine takes this cluster for the one to join.
        environ = {**os.environ, "RAY_TMPDIR": temp}
        command = [sys.executable, "-c", NODES]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    here = reading().cpus
    assert told["taken"][0]["nodes"] == 3
    whole = [one for one in told["taken"] if one["nodes"] == 3 and one["cpus"] == 3 * here]
    assert whole  # each of the three "machines" is this one
    assert all(0 <= one["cpu_percent"] <= 100 for one in told["taken"])
    assert told["late"]["nodes"] == 2
    assert told["taken"][-1]["nodes"] == 3
    assert told["free"] == 3.0  # looking takes no CPU away from env runners
    assert max(told["seconds"]) < 1.0
    assert (told["alone"][-1]["nodes"], told["alone"][-1]["cpus"]) == (3, 3 * here)
    assert told["left"]


# --- in the journal


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    project = Project(
        sim="CartPole-v1",
        name="test",
        stop={"iterations": 3},
        training={"train_batch_size_per_learner": 256, "minibatch_size": 64, "num_epochs": 1},
        tracking={"mlflow": False},
    )
    return train(project, runs_dir=tmp_path_factory.mktemp("runs"))


def test_every_line_of_a_training_has_it(trained: Run) -> None:
    for line in trained.metrics():
        assert line["cluster"]["nodes"] == 1
        assert line["cluster"]["cpu_percent"] is None or 0 < line["cluster"]["cpu_percent"] <= 100
    assert chosen_metrics(trained.metrics()[-1])["cluster/memory_percent"] > 0
    assert usage_of(trained)["usage"].startswith("CPU ")


# --- in words


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ((31.0, 8, 20.0), "CPU 31 % busy: smaller nodes or more runners"),
        ((70.0, 8, 20.0), "CPU 70 % busy: a fair size"),
        ((95.0, 8, 20.0), "CPU 95 % busy: all in use, more CPUs would sample faster"),
        ((31.0, 8, 91.0), "CPU 31 % busy, memory of the machine 91 % full: more memory or fewer runners"),
        ((31.0, 2, 20.0), "CPU 31 % busy: the machine is as small as it gets"),
    ],
)
def test_what_usage_means(figures: tuple[float, float, float], words: str) -> None:
    assert advice(*figures) == words


def test_the_advice_knows_what_the_project_asked_for() -> None:
    assert advice(31, 16, 9, nodes=2, wish=2) == (
        "CPU 31 % busy: fewer or smaller nodes or more runners (now 2; env_runners: {num_env_runners: auto})"
    )
    assert (
        advice(31, 16, 9, nodes=2, wish="auto") == "CPU 31 % busy with a runner for every CPU: fewer or smaller nodes"
    )
    assert advice(31, 16, 90, nodes=2).startswith("CPU 31 % busy, memory of the fullest machine 90 % full")


def journal_of(run: Run, *clusters: dict[str, Any] | None, attempt: int = 1, start: int = 1) -> None:
    journal = Journal(run.metrics_path)
    for iteration, cluster in enumerate(clusters, start):
        line = {"iteration": iteration, "env_steps": iteration * 100, "time_s": iteration, "attempt": attempt}
        journal.append({**line, "cluster": cluster})


def figures(cpu_percent: float | None, nodes: int = 2) -> dict[str, Any]:
    return {
        "nodes": nodes,
        "cpus": 8.0 * nodes,
        "cpu_percent": cpu_percent,
        "memory_percent": 20.0,
        "memory_gb": 12.0,
        "fullest_percent": 25.0,
    }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(Project(sim="CartPole-v1", env_runners={"num_env_runners": 2}), run=tmp_path / "runs/night")


def test_the_mean_is_over_the_last_attempt(run: Run) -> None:
    journal_of(run, figures(100.0), figures(100.0))
    journal_of(run, figures(20.0), figures(None), figures(40.0), attempt=2, start=3)
    told = usage_of(run)
    assert {key: told[key] for key in ("nodes", "cpus", "cpu_percent", "memory_percent")} == {
        "nodes": 2,
        "cpus": 16.0,
        "cpu_percent": 30.0,
        "memory_percent": 20.0,
    }
    assert told["usage"].startswith("CPU 30 % busy: fewer or smaller nodes or more runners (now 2;")


def test_nodes_that_were_lost_are_spoken_of(run: Run) -> None:
    journal_of(run, figures(60.0, nodes=3), figures(60.0, nodes=2))
    assert usage_of(run)["usage"] == "CPU 60 % busy: a fair size; 2 of 3 nodes were alive at the end"


def test_a_run_of_before_says_nothing(run: Run) -> None:
    assert usage_of(run) == {}
    journal_of(run, None, None)
    assert usage_of(run) == {}


def test_show_says_it_in_a_line_and_json_has_the_figures(run: Run) -> None:
    journal_of(run, figures(31.0))
    (run.path.parents[1] / "plato.yaml").write_text("sim: CartPole-v1\n")

    def show(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "platotk", "show", str(run.path), *words]
        return subprocess.run(command, cwd=run.path.parents[1], capture_output=True, text=True, check=True, timeout=60)

    assert "CPU 31 % busy: fewer or smaller nodes or more runners" in show().stderr
    told = json.loads(show("--json").stdout)
    assert (told["nodes"], told["cpus"], told["cpu_percent"], told["memory_percent"]) == (2, 16.0, 31.0, 20.0)
    assert "31 %" in (run.path / "curves.html").read_text()


def test_readings_are_plain_enough_to_travel() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert isinstance(pool.apply(reading), Reading)
