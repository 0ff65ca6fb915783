"""What a cluster of `plato node` survives: a worker that dies, a cable that is pulled, a head that is killed."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.compute.machines import TOKEN, Machine, machines, needs_machines, start_node

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), needs_machines]

STEPS = 1800
"""Of an iteration, 600 from the runner on each machine: over a second, and longer when one is missing."""
PLATO_YAML = f"""\
name: slow-cart
sim: sim:SlowCart
algorithm: PPO
training: {{train_batch_size_per_learner: {STEPS}, minibatch_size: 200, num_epochs: 1}}
env_runners: {{num_env_runners: 3, num_envs_per_env_runner: 1}}
stop: {{iterations: ITERATIONS}}
checkpoint: {{every: 5}}
tracking: {{mlflow: false}}
"""
MADE = "made.txt"
SIM = f"""\
import pathlib, socket, time
from gymnasium.envs.classic_control import CartPoleEnv

class SlowCart(CartPoleEnv):
    def __init__(self):
        super().__init__()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("10.77.0.9", 9))
            address = probe.getsockname()[0]
        with pathlib.Path(__file__).with_name({MADE!r}).open("a") as made:
            made.write(address + "\\n")

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
    is_so: Callable[[], bool], process: subprocess.Popen[bytes], machine: Machine, limit_s: float = 240
) -> None:
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert process.poll() is None, machine.said()
        assert time.monotonic() < deadline, machine.said()
        time.sleep(0.1)


def runners(line: dict[str, Any]) -> int:
    """How many env runners worked at the end of an iteration."""
    return int(line["rllib"]["fault_tolerance"]["num_healthy_workers"])


def num_made(root: Path, machine: Machine) -> int:
    """How many sims have been made on a machine so far."""
    return (root / MADE).read_text().splitlines().count(machine.address)


def require_exact(lines: list[dict[str, Any]]) -> None:
    """No iteration is missing or twice, and env steps are those that runners sampled for it, whoever was lost."""
    assert [line["iteration"] for line in lines] == list(range(1, len(lines) + 1))
    assert {line["attempt"] for line in lines} == {1}
    before = [0, *(line["env_steps"] for line in lines)]
    new = [line["env_steps"] - steps for line, steps in zip(lines, before, strict=False)]
    assert new == [line["rllib"]["env_runners"]["num_env_steps_sampled"] for line in lines]
    # Each runner gives its third; while one is missing, the others give theirs until it is enough.
    whole = [runners(line) == runners(after) == 3 for after, line in itertools.pairwise([lines[0], *lines])]
    assert {steps for steps, is_whole in zip(new, whole, strict=True) if is_whole} == {STEPS}
    assert {steps for steps, is_whole in zip(new, whole, strict=True) if not is_whole} <= {STEPS, STEPS * 4 // 3}


def since(number: int, lines: list[dict[str, Any]], is_so: Callable[[dict[str, Any]], bool]) -> int:
    """The first iteration after so many of which something is so."""
    return next(line["iteration"] for line in lines[number:] if is_so(line))


def test_training_goes_on_when_a_worker_dies_and_takes_it_back(tmp_path: Path) -> None:
    root, run = project(tmp_path / "project", 1000), tmp_path / "run"
    train = (sys.executable, "-m", "platotk", "train", "-C", str(root), "--run", str(run))
    with machines(3, tmp_path) as (first, second, third):
        head = start_node(first, 0, 3, *train)
        workers = [start_node(second, 1, 3, *train), start_node(third, 2, 3, *train)]
        wait_until(lambda: len(journal(run)) >= 3, head, first)
        assert runners(journal(run)[-1]) == 3
        third.kill()
        workers[1].wait()
        killed_at, made = len(journal(run)), num_made(root, third)
        wait_until(lambda: len(journal(run)) >= killed_at + 3, head, first)
        workers[1] = start_node(third, 2, 3, *train)
        wait_until(lambda: num_made(root, third) > made, head, first)
        time.sleep(1.0)  # from its sim to the whole runner
        up_at = len(journal(run))
        wait_until(lambda: len(journal(run)) >= up_at + 4, head, first)
        head.terminate()
        assert head.wait(60) == 75, first.said()
        assert [worker.wait(20) for worker in workers] == [0, 0]
    lines = journal(run)
    require_exact(lines)
    lost = since(killed_at, lines, lambda line: runners(line) == 2)
    joined = since(lost, lines, lambda line: line["cluster"]["nodes"] == 3)
    back = since(lost, lines, lambda line: runners(line) == 3)
    took_s = lines[back - 1]["time_s"] - lines[joined - 1]["time_s"]
    print(
        f"\nkilled in {killed_at + 1}, missed in {lost}; its node back in {joined}, its runner up in {up_at + 1}, ",
        end="",
    )
    print(f"at work in {back}, {took_s:.1f} s after the node; {[round(line['time_s'], 1) for line in lines]}")
    # The iteration under way when the runner was up ends without it; the next one has it.
    assert back <= up_at + 2
    assert {(runners(line), line["cluster"]["nodes"]) for line in lines[back:]} == {(3, 3)}
    assert lines[-1]["rllib"]["fault_tolerance"]["num_remote_worker_restarts"] == 1


def test_training_goes_on_while_a_cable_is_pulled(tmp_path: Path) -> None:
    root, run = project(tmp_path / "project", 1000), tmp_path / "run"
    train = (sys.executable, "-m", "platotk", "train", "-C", str(root), "--run", str(run))
    patient = ("--num-cpus", "1", "--start-within", "90", "--patience", "300")
    with machines(3, tmp_path) as (first, second, third):
        head, *workers = [
            start_node(one, rank, 3, *train, options=patient) for rank, one in enumerate((first, second, third))
        ]
        wait_until(lambda: len(journal(run)) >= 3, head, first)
        third.link("down")
        cut_at, cut = len(journal(run)), time.monotonic()
        wait_until(lambda: any(runners(line) == 2 for line in journal(run)[cut_at:]), head, first)
        waited_s, lost = time.monotonic() - cut, len(journal(run))
        wait_until(lambda: len(journal(run)) >= lost + 2, head, first)
        third.link("up")
        mended = time.monotonic()
        wait_until(lambda: runners(journal(run)[-1]) == 3, head, first)
        back, back_s = len(journal(run)), time.monotonic() - mended
        wait_until(lambda: len(journal(run)) >= back + 3, head, first)
        head.terminate()
        assert head.wait(60) == 75, first.said()
        assert [worker.wait(20) for worker in workers] == [0, 0], third.said()  # nobody started them again
    lines = journal(run)
    require_exact(lines)
    print(
        f"\ncut in {cut_at + 1}; {waited_s:.1f} s until it went on without; whole {back_s:.1f} s after the cable, ",
        end="",
    )
    print(f"in {back}; {[round(line['time_s'], 1) for line in lines]}")
    assert {line["cluster"]["nodes"] for line in lines[lost : lost + 2]} == {2}
    assert {(runners(line), line["cluster"]["nodes"]) for line in lines[back:]} == {(3, 3)}


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
