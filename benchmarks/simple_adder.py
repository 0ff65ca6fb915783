"""Is the Simple Adder solved? All 101 starts once each, then 1,000 random episodes, with a trained run.

The best any policy can do is computed here, by value iteration over the sim's own rules. Prints the verdict and
writes it into its section of benchmarks/RESULTS.md.

    .venv/bin/python benchmarks/simple_adder.py [RUN]       # without RUN it trains examples/simple-adder first
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from startup import RESULTS, ROOT, commit, machine, versions, write_section

KEPT = ROOT / "benchmarks/results/simple_adder.json"
SECTION = "simple_adder"
EXAMPLE = ROOT / "examples/simple-adder"
TARGET, MAX_ADDEND, NUM_STEPS = 50, 10, 10
STARTS = range(101)
NUM_RANDOM = 1000
MIN_HITS, MAX_SHORTFALL, MIN_RANDOM_RATE = 100, 0.03, 0.99


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="folder of a trained run")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        seconds = None
        if options.run is None:
            options.run, seconds = train(Path(folder) / "run")
        measured = {**measure(options.run), "training_s": seconds}
    text = report(measured)
    print(text)
    if not options.no_write:
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        KEPT.write_text(json.dumps(measured, indent=1) + "\n", "utf-8")
        write_section(RESULTS, SECTION, text)
    return 0 if is_solved(measured) else 1


def train(path: Path) -> tuple[Path, float]:
    """A run of the example as it is shipped, and how many seconds it took."""
    import platotk

    began = time.time()
    run = platotk.train(platotk.Project.load(EXAMPLE), run=path)
    return run.path, round(time.time() - began, 1)


def measure(path: Path) -> dict[str, Any]:
    """What the best checkpoint of a run does on every start, and on random ones."""
    import platotk

    run = platotk.Run(path)
    every = platotk.assess(run, episodes=len(STARTS), options=[{"value": value} for value in STARTS])
    drawn = platotk.assess(run, episodes=NUM_RANDOM)
    missed = [row["options"]["value"] for row in every.rows if not row["terminated"]]
    return {
        "run": run.name,
        "env_steps": run.metrics()[-1]["env_steps"],
        "reason": run.info.get("reason"),
        "hits": len(STARTS) - len(missed),
        "missed": missed,
        "return_mean": every.summary()["return_mean"],
        "optimum": optimum(),
        "random_rate": drawn.summary()["terminated_rate"],
        "random_return_mean": drawn.summary()["return_mean"],
    }


def optimum() -> float:
    """The highest mean return over all starts that any policy can reach."""
    return statistics.fmean(_best(start, NUM_STEPS) for start in STARTS)


def is_solved(measured: dict[str, Any]) -> bool:
    """Whether all three bounds are kept."""
    return all(kept for _, _, _, kept in _verdicts(measured))


def report(measured: dict[str, Any]) -> str:
    """The section: where, what and how, then the bounds and what was measured."""
    took = "" if measured["training_s"] is None else f", trained in {measured['training_s']:.0f} s"
    missed = ", ".join(map(str, measured["missed"])) or "none"
    return "\n".join(
        [
            "## The Simple Adder, solved?",
            "",
            "Each of the 101 starts once, without exploration (`options={'value': v}`), then random starts; the sim",
            "ends an episode as terminated only on exactly 50. The optimum is exact: dynamic programming over the",
            "sim's rules.",
            "",
            f"- command: `{shlex.join(['.venv/bin/python', 'benchmarks/simple_adder.py', *sys.argv[1:]])}`",
            f"- machine: {machine()}",
            f"- versions: {versions()}",
            f"- commit: {commit()}",
            f"- when: {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, load {os.getloadavg()[0]:.1f}",
            f"- run: {measured['run']}, {measured['env_steps']:,} env steps{took}; ended because {measured['reason']}",
            "",
            "| | measured | bound | |",
            "| --- | --- | --- | --- |",
            *(
                f"| {what} | {value} | {bound} | {'kept' if kept else 'NOT kept'} |"
                for what, value, bound, kept in _verdicts(measured)
            ),
            "",
            f"Starts that did not end on 50: {missed}.",
        ]
    )


def _verdicts(measured: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    shortfall = (measured["optimum"] - measured["return_mean"]) / abs(measured["optimum"])
    return [
        ("starts that end on 50, of 101", str(measured["hits"]), f"at least {MIN_HITS}", measured["hits"] >= MIN_HITS),
        (
            f"mean return over all starts (optimum {measured['optimum']:.2f})",
            f"{measured['return_mean']:.2f}, {shortfall:.1%} below",
            f"within {MAX_SHORTFALL:.0%}",
            shortfall <= MAX_SHORTFALL,
        ),
        (
            f"{NUM_RANDOM:,} random episodes that end on 50",
            f"{measured['random_rate']:.1%}",
            f"at least {MIN_RANDOM_RATE:.0%}",
            measured["random_rate"] >= MIN_RANDOM_RATE,
        ),
    ]


@cache
def _best(value: int, steps_left: int) -> float:
    """The highest return from a value; standing on 50 after a step ends the episode."""
    if steps_left == 0:
        return 0.0
    results = []
    for addend in range(-MAX_ADDEND, MAX_ADDEND + 1):
        after = value + addend
        results.append(0.0 if after == TARGET else -abs(after - TARGET) + _best(after, steps_left - 1))
    return max(results)


if __name__ == "__main__":
    sys.exit(main())
