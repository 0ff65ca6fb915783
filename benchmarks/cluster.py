"""What `plato node` costs over Ray's own start, and how training grows with machines.

Three machines are Linux network namespaces (root and iproute2 needed). The launcher and plain `ray start` take turns;
then one project, whose sim sleeps 5 ms a step, trains on 1, 2 and 3 machines with the same batch and the same runners
for each machine. Prints the table and writes it, with machine, commit and command, into benchmarks/RESULTS.md.

    .venv/bin/python benchmarks/cluster.py --rounds 3
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import startup

sys.path.insert(0, str(startup.ROOT))
from tests.compute.machines import TOKEN, Machine, can_make_machines, machines, start_node

MAX_OVERHEAD_S = 3.0
MAX_LEAVING_S = 10.0
MIN_SCALING = 0.9
MAX_LEARNING = 0.05
RUNNERS = 2
"""On each machine."""
BATCH = 1000
"""Steps for each machine and iteration."""
WARM_UP = 2
"""Iterations that are not counted."""
STEP_S = 0.005
SMOOTHING = 0.01
"""The weight of the newest value in RLlib's timers: `ema_coeff` of `ray.rllib.utils.metrics.stats.EmaStats`."""

COMMAND = (sys.executable, "-c", "import time; print('began', time.time(), flush=True)")
SIM = f"""\
import time
from gymnasium.envs.classic_control import CartPoleEnv

class SlowCart(CartPoleEnv):
    def step(self, action):
        time.sleep({STEP_S})
        return super().step(action)
"""
PLATO_YAML = """\
name: slow-cart
sim: sim:SlowCart
algorithm: PPO
training: {minibatch_size: 250, num_epochs: 2}
env_runners: {num_envs_per_env_runner: 1}
checkpoint: {every: 1000}
tracking: {mlflow: false}
"""
PLAIN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True)
class Trained:
    """One training: env steps a second, and what its learner took."""

    steps_per_s: float
    learner_s: float
    learner_share: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of each side, taking turns")
    parser.add_argument("--iterations", type=int, default=8, help="of each training, beside two to warm up")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    if not can_make_machines():
        parser.error("needs root and iproute2")
    load = os.getloadavg()[0]
    starts = [(start_with_launcher(), start_with_ray()) for _ in range(options.rounds)]
    trained: dict[int, list[Trained]] = {1: [], 2: [], 3: []}
    for at in range(options.rounds):
        for nodes in sorted(trained, reverse=bool(at % 2)):
            trained[nodes].append(train(nodes, options.iterations))
    text = report(starts, trained, load)
    print(text)
    if not options.no_write:
        startup.write_section(startup.RESULTS, "cluster", text)
    return 0


def start_with_launcher() -> tuple[float, float]:
    """Seconds from starting `plato node` on three machines to the command's first line, and to the workers' leaving."""
    with tempfile.TemporaryDirectory() as name, machines(3, Path(name)) as made:
        began = time.time()
        head, *workers = [start_node(machine, rank, 3, *COMMAND) for rank, machine in enumerate(made)]
        for machine, worker in zip(made[1:], workers, strict=True):
            require(worker.wait(180) == 0, machine)
        left_s = time.time() - began_at(made[0])  # the command ends as soon as it has begun
        require(head.wait(60) == 0, made[0])
        return began_at(made[0]) - began, left_s


def start_with_ray() -> float:
    """The same with `ray start` alone: each machine as soon as it can, the command once all three are there."""
    with tempfile.TemporaryDirectory() as name, machines(3, Path(name)) as made:
        began = time.time()
        for rank, machine in enumerate(made):
            ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
            ray += [f"--node-ip-address={machine.address}", "--num-cpus=1", f"--temp-dir={name}/r{rank}"]
            ray += ["--object-store-memory=80000000"]
            head = ["--head", "--port=6379", "--include-dashboard=false"]
            wait = 'until (exec 3<>/dev/tcp/10.77.0.1/6379) 2>/dev/null; do sleep 0.1; done; exec "$@"'
            if rank == 0:
                machine.start(*ray, *head, **PLAIN)
            else:
                machine.start("bash", "-c", wait, "bash", *ray, "--address=10.77.0.1:6379", **PLAIN)
        until(lambda: all("Ray runtime started" in machine.said() for machine in made), made[0])
        command = made[0].start(*COMMAND, **PLAIN)
        require(command.wait(60) == 0, made[0])
        return began_at(made[0]) - began


def train(nodes: int, iterations: int) -> Trained:
    """Train the slow sim on so many machines."""
    with tempfile.TemporaryDirectory() as name, machines(nodes, Path(name)) as made:
        project, run = Path(name) / "project", Path(name) / "run"
        project.mkdir()
        (project / "plato.yaml").write_text(PLATO_YAML)
        (project / "sim.py").write_text(SIM)
        settings = {
            "env_runners.num_env_runners": RUNNERS * nodes,
            "training.train_batch_size_per_learner": BATCH * nodes,
            "stop.iterations": WARM_UP + iterations,
        }
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        command = (sys.executable, "-m", "platotk", "train", "-C", str(project), "--run", str(run), *words)
        cpus = ("--num-cpus", str(RUNNERS), "--start-within", "90")
        head, *_ = [start_node(machine, rank, nodes, *command, options=cpus) for rank, machine in enumerate(made)]
        require(head.wait(400) == 0, made[0])
        return figures([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()])


def figures(lines: list[dict]) -> Trained:
    """Of a journal, less the iterations that warm up."""
    first, last = lines[WARM_UP - 1], lines[-1]
    time_s = last["time_s"] - first["time_s"]
    told = [line["rllib"]["timers"]["learner_update_timer"] for line in lines[WARM_UP - 1 :]]
    # RLlib tells a moving average; each iteration's own time is what moved it.
    learner_s = [(now - (1 - SMOOTHING) * before) / SMOOTHING for before, now in itertools.pairwise(told)]
    return Trained(
        steps_per_s=(last["env_steps"] - first["env_steps"]) / time_s,
        learner_s=statistics.median(learner_s),
        learner_share=sum(learner_s) / time_s,
    )


def began_at(machine: Machine) -> float:
    """When the command said that it began."""
    return float(next(line.split()[1] for line in machine.said().splitlines() if line.startswith("began ")))


def until(is_so: Callable[[], bool], machine: Machine, limit_s: float = 120) -> None:
    deadline = time.monotonic() + limit_s
    while not is_so():
        require(time.monotonic() < deadline, machine)
        time.sleep(0.05)


def require(is_so: bool, machine: Machine) -> None:
    if not is_so:
        raise RuntimeError(f"{machine.name} said:\n{machine.said()}")


def report(starts: list[tuple[tuple[float, float], float]], trained: dict[int, list[Trained]], load: float) -> str:
    """The section: where, what and how, then the tables."""
    ours, left, rays = [one[0][0] for one in starts], [one[0][1] for one in starts], [one[1] for one in starts]
    over_s = statistics.median(ours) - statistics.median(rays)
    is_busy = load > 0.5 * (os.cpu_count() or 1)
    warning = " - **the machine was busy with other work: measure again before leaning on these figures**"
    rate = {nodes: statistics.median(one.steps_per_s for one in runs) for nodes, runs in trained.items()}
    rows = []
    for nodes, runs in trained.items():
        scaling = rate[nodes] / (nodes * rate[1])
        share = statistics.median(one.learner_share for one in runs)
        learner_ms = [1000 * one.learner_s for one in runs]
        rows.append(
            f"| {nodes} | {spread([one.steps_per_s for one in runs], '.0f')} | {scaling:.3f} "
            f"| {verdict(scaling >= MIN_SCALING) if nodes > 1 else ''} | {spread(learner_ms, '.0f')} | {share:.1%} "
            f"| {verdict(share <= MAX_LEARNING)} |"
        )
    return "\n".join(
        [
            "## A cluster of machines",
            "",
            "Machines are network namespaces that share this machine's cores. Median (least to most).",
            f"The slow sim sleeps {1000 * STEP_S:g} ms a step; {RUNNERS} env runners with one sim each and a batch of",
            f"{BATCH:,} steps for each machine.",
            "",
            f"- command: `{' '.join(['.venv/bin/python benchmarks/cluster.py', *sys.argv[1:]])}`",
            f"- machine: {startup.machine()}",
            f"- versions: {startup.versions()}",
            f"- commit: {startup.commit()}",
            f"- when: {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
            f"- load before and after: {load:.1f}, {os.getloadavg()[0]:.1f}{warning if is_busy else ''}",
            "",
            "| three machines | s | bound | |",
            "| --- | --- | --- | --- |",
            f"| `plato node`: first process to the command's start | {spread(ours, '.2f')} | | |",
            f"| `ray start` on each, then the command | {spread(rays, '.2f')} | | |",
            f"| the launcher's own share | {over_s:.2f} | under {MAX_OVERHEAD_S:g} s "
            f"| {verdict(over_s < MAX_OVERHEAD_S)} |",
            f"| workers gone after the command's end | {spread(left, '.2f')} | under {MAX_LEAVING_S:g} s "
            f"| {verdict(max(left) < MAX_LEAVING_S)} |",
            "",
            f"| machines | env steps/s | of linear | at least {MIN_SCALING} | learner, ms an iteration | of the time "
            f"| at most {MAX_LEARNING:.0%} |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
        ]
    )


def spread(values: list[float], form: str) -> str:
    low, middle, high = (format(value, form) for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high}, n={len(values)})"


def verdict(is_kept: bool) -> str:
    return "kept" if is_kept else "**NOT kept**"


if __name__ == "__main__":
    sys.exit(main())
