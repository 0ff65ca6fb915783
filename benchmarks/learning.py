"""How many steps until something is learned: CartPole, Pendulum and the Simple Adder, by platotk and by RLlib.

What is learned, when it is, and what the two sides are stands in `learning_tasks.py`. The sides take turns, seed by
seed. Every run is kept in benchmarks/results/learning.json as soon as it is over, and is not run again; the section of
benchmarks/RESULTS.md is written from that file.

    .venv/bin/python benchmarks/learning.py --seeds 10
    .venv/bin/python benchmarks/learning.py --tasks pendulum
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shlex
import statistics
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from learning_tasks import TASKS, play
from startup import RESULTS, ROOT, commit, machine, names_of, versions, write_section

KEPT = ROOT / "benchmarks/results/learning.json"
SECTION = "learning"
SIDES = ("platotk", "rllib")
NUM_SEEDS = 10
BOUND = 1.15
NUM_RESAMPLES = 10_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=NUM_SEEDS, help="pairs of runs, seeds 0, 1, 2 ...")
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"some of: {', '.join(TASKS)}")
    parser.add_argument("--report", action="store_true", help="run nothing, only write the section anew")
    options = parser.parse_args()
    if not options.report:
        run_all(names_of(parser, options.tasks, TASKS), options.seeds)
    kept = load()
    text = "\n\n".join(report(name, kept["runs"], kept["about"].get(name) or about()) for name in TASKS)
    print(text)
    write_section(RESULTS, SECTION, text)
    return 0


def run_all(names: list[str], num_seeds: int) -> None:
    """Both sides for every task and seed, taking turns; the side that goes first alternates too."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    for name, seed in itertools.product(names, range(num_seeds)):
        for side in SIDES[:: 1 if seed % 2 == 0 else -1]:
            kept = load()
            this = {"task": name, "side": side, "seed": seed}
            if any(this.items() <= run.items() for run in kept["runs"]):
                continue
            began = time.time()
            done = {**this, **play(name, side, seed), "seconds": round(time.time() - began, 1)}
            kept["runs"].append(done)
            kept["about"][name] = about()
            save(kept)
            print(json.dumps(done), flush=True)


def report(name: str, runs: list[dict[str, Any]], where: dict[str, Any]) -> str:
    """One task: what, where and how; medians, their ratio and its interval; then every run."""
    task = TASKS[name]
    runs = [run for run in runs if run["task"] == name]
    by_seed = {side: {run["seed"]: run for run in runs if run["side"] == side} for side in SIDES}
    seeds = sorted(set(by_seed["platotk"]) & set(by_seed["rllib"]))
    ours, others = ([by_seed[side][seed] for seed in seeds] for side in ("platotk", "rllib"))
    lines = [
        f"## Learning: {task.title}",
        "",
        f"Environment steps until {task.told} reaches {task.target:g}, looked at once an iteration; a window can hold",
        "fewer than 100 episodes when they are long. Then the mean return of 100 episodes without exploration.",
        "platotk with its defaults beside plain RLlib with the same values, network, 8 environments and own filter."
        if name == "cartpole"
        else "The same config on both sides: with the engine, and with RLlib's own runner and learner.",
        "",
        f"- command: `{where.get('command')}`",
        f"- machine: {where.get('machine')}",
        f"- versions: {where.get('versions')}",
        f"- commit: {where.get('commit')}",
        f"- when: {where.get('when')}",
        f"- paired seeds: {len(seeds)}"
        + (f" of the {NUM_SEEDS} that are called for: **too few to settle it**" if len(seeds) < NUM_SEEDS else ""),
        "",
    ]
    if not seeds:
        return "\n".join([*lines, "No pair of runs is whole yet: nothing can be said."])
    steps = [[_steps(run) for run in side] for side in (ours, others)]
    ratio, (low, high) = statistics.median(steps[0]) / statistics.median(steps[1]), interval(*steps)
    verdict = "kept" if ratio <= BOUND and low <= 1.0 else "NOT kept"
    if len(seeds) < NUM_SEEDS:
        verdict = "not settled, too few seeds"
    lines += [
        "| | platotk | RLlib |",
        "| --- | --- | --- |",
        f"| steps to solve, median (least to most) | {_spread(steps[0])} | {_spread(steps[1])} |",
        f"| solved within {task.max_steps:,} steps | {_solved(ours)} | {_solved(others)} |",
        f"| greedy return, median (least to most) | {_greedy(ours)} | {_greedy(others)} |",
        "",
        f"Ratio of the medians: **{ratio:.2f}**, bootstrap 90% interval {low:.2f} to {high:.2f}",
        f"({NUM_RESAMPLES:,} resamples of the pairs). Bound: at most {BOUND:g}, the interval including 1 or better:",
        f"**{verdict}**.",
        "",
        "| seed | platotk: steps | greedy | RLlib: steps | greedy |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {seed} | {_one(a)} | {a['greedy_mean']:.1f} | {_one(b)} | {b['greedy_mean']:.1f} |"
            for seed, a, b in zip(seeds, ours, others, strict=True)
        ),
    ]
    return "\n".join(lines)


def interval(ours: list[float], others: list[float]) -> tuple[float, float]:
    """Bootstrap 90% interval of the ratio of medians; pairs are drawn together."""
    rng, pairs, ratios = random.Random(0), list(zip(ours, others, strict=True)), []
    for _ in range(NUM_RESAMPLES):
        drawn = rng.choices(pairs, k=len(pairs))
        ratios.append(statistics.median(a for a, _ in drawn) / statistics.median(b for _, b in drawn))
    ratios.sort()
    return ratios[int(0.05 * NUM_RESAMPLES)], ratios[int(0.95 * NUM_RESAMPLES) - 1]


def load() -> dict[str, Any]:
    """What was measured so far."""
    if not KEPT.exists():
        return {"about": {}, "runs": []}
    kept: dict[str, Any] = json.loads(KEPT.read_text("utf-8"))
    return kept


def save(kept: dict[str, Any]) -> None:
    """Replace the file at once, so that an interruption loses nothing."""
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    part = KEPT.with_suffix(".part")
    part.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    part.replace(KEPT)


def about() -> dict[str, Any]:
    """Where, when and with what it ran."""
    return {
        "command": shlex.join([".venv/bin/python", "benchmarks/learning.py", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "when": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
    }


def _steps(run: dict[str, Any]) -> float:
    """A run that was not solved counts with all its steps, in its favour; the table says how many there are."""
    return float(run["env_steps"])


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def _greedy(runs: list[dict[str, Any]]) -> str:
    values = [run["greedy_mean"] for run in runs]
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _solved(runs: list[dict[str, Any]]) -> str:
    return f"{sum(run['is_solved'] for run in runs)} of {len(runs)}"


def _one(run: dict[str, Any]) -> str:
    return f"{run['env_steps']:,}" + ("" if run["is_solved"] else " (not solved)")


if __name__ == "__main__":
    sys.exit(main())
