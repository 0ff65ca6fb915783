"""What a cluster of `plato node` survives: a worker that dies, a cable that is pulled, a head that is killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.compute.machines import TOKEN, Machine, machines, needs_machines, start_node

pytestmark = [pytest.mark.slow, needs_machines]

STEPS = 400
PLATO_YAML = f"""\
name: slow-cart
sim: sim:SlowCart
algorithm: PPO
training: {{train_batch_size_per_learner: {STEPS}, minibatch_size: 200, num_epochs: 1}}
env_runners: {{num_env_runners: 2, num_envs_per_env_runner: 1}}
stop: {{iterations: ITERATIONS}}
checkpoint: {{every: 5}}
tracking: {{mlflow: false}}
"""
SIM = """\
import time
from gymnasium.envs.classic_control import CartPoleEnv

class SlowCart(CartPoleEnv):
    def step(self, action):
        time.sleep(0.002)
        return super().step(action)
"""


def project(folder: Path, iterations: int) -> Path:
    folder.mkdir()
    (folder / "plato.yaml").write_text(PLATO_YAML.replace("ITERATIONS", str(iterations)))
    (folder / "sim.py").write_text(SIM)
    return folder


def journal(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def wait_until(
    is_so: Callable[[], bool], process: subprocess.Popen[bytes], machine: Machine, limit_s: float = 120
) -> None:
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert process.poll() is None, machine.said()
        assert time.monotonic() < deadline, machine.said()
        time.sleep(0.1)


def test_training_goes_on_when_a_worker_dies_and_takes_it_back(tmp_path: Path) -> None:
    root, run = project(tmp_path / "project", 40), tmp_path / "run"
    train = (sys.executable, "-m", "platotk", "train", "-C", str(root), "--run", str(run))
    with machines(3, tmp_path) as (first, second, third):
        head = start_node(first, 0, 3, *train)
        workers = [start_node(second, 1, 3, *train), start_node(third, 2, 3, *train)]
        wait_until(lambda: len(journal(run)) >= 5, head, first)
        third.kill()
        workers[1].wait()
        killed_at = len(journal(run))
        wait_until(lambda: len(journal(run)) >= killed_at + 3, head, first)
        workers[1] = start_node(third, 2, 3, *train)
        wait_until(lambda: first.said().count("node 2 (10.77.0.3) is here") == 2, head, first)
        assert head.wait(200) == 0, first.said()
        assert [worker.wait(20) for worker in workers] == [0, 0]
    lines = journal(run)
    assert [line["iteration"] for line in lines] == list(range(1, 41))
    assert [line["env_steps"] for line in lines] == [STEPS * number for number in range(1, 41)]
    restarts = [line["rllib"].get("env_runner_group", {}).get("actor_manager_num_remote_restarts") for line in lines]
    print("\nrestarts by iteration", restarts, "\nseconds", [round(line["time_s"], 1) for line in lines])


def test_a_worker_whose_cable_was_pulled_comes_back(tmp_path: Path) -> None:
    look = """
import ray, sys, time
ray.init(logging_level="ERROR")
def alive():
    return sum(node["Alive"] for node in ray.nodes())
def wait_for(number):
    began = time.monotonic()
    while alive() != number:
        assert time.monotonic() - began < 90, ray.nodes()
        time.sleep(0.2)
    print("alive:", number, f"after {time.monotonic() - began:.1f} s", flush=True)
wait_for(2)
wait_for(1)
wait_for(2)
"""
    with machines(2, tmp_path) as (first, second):
        head = start_node(first, 0, 2, sys.executable, "-c", look)
        worker = start_node(second, 1, 2, "unused")
        wait_until(lambda: "alive: 2" in first.said(), head, first)
        second.link("down")
        wait_until(lambda: "alive: 1" in first.said(), head, first)
        second.link("up")
        assert head.wait(120) == 0, first.said() + second.said()
        assert worker.wait(20) == 0
        print("\n" + first.said())


def test_a_head_that_was_killed_is_started_again_and_training_resumes(tmp_path: Path) -> None:
    root, run = project(tmp_path / "project", 14), tmp_path / "run"
    train = (sys.executable, "-m", "platotk", "train", "-C", str(root), "--run", str(run))
    with machines(3, tmp_path) as (first, second, third):
        head = start_node(first, 0, 3, *train)
        workers = [start_node(machine, rank, 3, *train) for rank, machine in ((1, second), (2, third))]
        wait_until(lambda: len(journal(run)) >= 7, head, first)
        first.kill()
        head.wait()
        time.sleep(2)
        head = start_node(first, 0, 3, *train)  # the platform repeats the command; the workers never left
        assert head.wait(200) == 0, first.said()
        assert [worker.wait(20) for worker in workers] == [0, 0]
    lines = journal(run)
    assert [line["iteration"] for line in lines] == list(range(1, 15))
    assert [line["env_steps"] for line in lines] == [STEPS * number for number in range(1, 15)]
    assert {line["attempt"] for line in lines} == {1, 2}


def test_who_is_missing_is_named_and_who_knows_no_token_is_refused(tmp_path: Path) -> None:
    soon = ("--num-cpus", "1", "--start-within", "25")
    with machines(3, tmp_path) as (first, second, third):
        head = start_node(first, 0, 3, sys.executable, "-c", "print('never')", options=soon)
        stranger = start_node(second, 1, 3, "unused", options=soon, RAY_AUTH_TOKEN="f" * 64)
        assert stranger.wait(60) == 1
        assert "the token is not that of this job" in second.said()
        late = start_node(second, 1, 3, "unused", options=soon)
        assert head.wait(90) == 1
        said = first.said()
        assert "after 25 s 2 of 3 nodes are there" in said
        assert "node 2: has not been heard of" in said
        assert "never\n" not in said
        assert "does not know this job's token tried to join as node 1; refused" in said
        assert late.wait(20) == 0
        assert third.processes() == []


def test_fewer_nodes_will_do_and_a_late_one_joins(tmp_path: Path) -> None:
    soon = ("--num-cpus", "1", "--start-within", "20", "--least-nodes", "1")
    wait = "import ray, time; ray.init(logging_level='ERROR')\nwhile len(ray.nodes()) < 2: time.sleep(1)\nprint('two')"
    with machines(2, tmp_path) as (first, second):
        head = start_node(first, 0, 2, sys.executable, "-c", wait, options=soon)
        wait_until(lambda: "going on without the others" in first.said(), head, first)
        worker = start_node(second, 1, 2, "unused", RAY_AUTH_TOKEN=TOKEN)
        assert head.wait(60) == 0, first.said()
        assert "two" in first.said()
        assert worker.wait(20) == 0
