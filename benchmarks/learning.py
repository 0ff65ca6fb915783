"""How many steps until CartPole-v1 is solved: platotk with its defaults beside plain RLlib with the same values.

Solved means that RLlib's windowed mean return reaches 475. The two sides take turns, seed by seed; then
the policy plays 100 episodes without exploration. Every run is kept in benchmarks/results/learning.json as soon as
it is over, and is not run again; the section of benchmarks/RESULTS.md is written from that file.

    .venv/bin/python benchmarks/learning.py --seeds 10
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from startup import RESULTS, ROOT, commit, machine, versions, write_section

KEPT = ROOT / "benchmarks/results/learning.json"
SECTION = "learning"
TARGET = 475.0
EPISODES = 100
MAX_STEPS = 400_000
NUM_SEEDS = 10
BOUND = 1.15
NUM_RESAMPLES = 10_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=NUM_SEEDS, help="pairs of runs, seeds 0, 1, 2 ...")
    parser.add_argument("--report", action="store_true", help="run nothing, only write the section anew")
    options = parser.parse_args()
    if not options.report:
        run_all(options.seeds)
    kept = load()
    text = report(kept["runs"], kept["about"] or about())
    print(text)
    write_section(RESULTS, SECTION, text)
    return 0


def run_all(num_seeds: int) -> None:
    """Both sides for every seed, taking turns; the side that goes first alternates too."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    sides: dict[str, Callable[[int], dict[str, Any]]] = {"platotk": platotk_run, "rllib": rllib_run}
    for seed in range(num_seeds):
        for side in list(sides)[:: 1 if seed % 2 == 0 else -1]:
            kept = load()
            if any(run["side"] == side and run["seed"] == seed for run in kept["runs"]):
                continue
            began = time.time()
            done = {"side": side, "seed": seed, **sides[side](seed), "seconds": round(time.time() - began, 1)}
            kept["runs"].append(done)
            kept["about"] = about()
            save(kept)
            print(json.dumps(done), flush=True)


def platotk_run(seed: int) -> dict[str, Any]:
    """`platotk.train` with nothing set but the sim, the seed and when to stop, then `platotk.assess`."""
    import platotk

    with tempfile.TemporaryDirectory() as folder:
        project = platotk.Project(
            sim="CartPole-v1",
            seed=seed,
            stop={"return_mean": TARGET, "env_steps": MAX_STEPS},
            checkpoint={"every": 1000},  # only the last one: this counts steps, not what is saved on the way
            tracking={"mlflow": False},
        )
        run = platotk.train(project, run=Path(folder) / "run")
        if run.status != "finished":
            raise SystemExit(f"seed {seed} was stopped by {run.info.get('reason')}; repeat the command to go on")
        last = run.metrics()[-1]
        greedy = platotk.assess(run, episodes=EPISODES, checkpoint="last").summary()["return_mean"]
    return _outcome(last["env_steps"], last["return_mean"], greedy)


def rllib_run(seed: int) -> dict[str, Any]:
    """Plain RLlib with the values that platotk gives it, and RLlib's own filter."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.connectors.env_to_module import MeanStdFilter
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    from platotk.learning.algorithm import MODEL_DEFAULTS, NUM_ENVS, TRAINING_DEFAULTS

    config = (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=NUM_ENVS,
            env_to_module_connector=lambda *_, **__: MeanStdFilter(),
        )
        .training(**TRAINING_DEFAULTS["PPO"])
        .rl_module(model_config=DefaultModelConfig(**MODEL_DEFAULTS))
        .debugging(seed=seed, log_level="ERROR")
    )
    algo = config.build_algo()
    try:
        steps, mean = 0, float("-inf")
        while steps < MAX_STEPS and not mean >= TARGET:
            result = algo.train()["env_runners"]
            steps = int(result["num_env_steps_sampled_lifetime"])
            mean = float(result.get("episode_return_mean", float("nan")))
        # The training runner itself, so that the policy sees through the filter it was trained with.
        played = algo.env_runner.sample(num_episodes=EPISODES, explore=False, force_reset=True)
        greedy = statistics.fmean(episode.get_return() for episode in played)
    finally:
        algo.stop()
    return _outcome(steps, mean, greedy)


def report(runs: list[dict[str, Any]], where: dict[str, Any]) -> str:
    """The section: what, where and how; medians, their ratio and its interval; then every run."""
    by_seed = {side: {run["seed"]: run for run in runs if run["side"] == side} for side in ("platotk", "rllib")}
    seeds = sorted(set(by_seed["platotk"]) & set(by_seed["rllib"]))
    ours, others = ([by_seed[side][seed] for seed in seeds] for side in ("platotk", "rllib"))
    lines = [
        "## Learning: CartPole-v1",
        "",
        f"Environment steps until RLlib's windowed mean return (`episode_return_mean`) reaches {TARGET:g}, looked at",
        "once an iteration; its window can hold fewer than 100 episodes when they are long. Then the mean return of",
        "100 episodes without exploration. platotk with its defaults beside plain RLlib with the same training values,",
        "network, 8 environments and RLlib's own filter.",
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
        "| | platotk | plain RLlib |",
        "| --- | --- | --- |",
        f"| steps to solve, median (least to most) | {_spread(steps[0])} | {_spread(steps[1])} |",
        f"| solved within {MAX_STEPS:,} steps | {_solved(ours)} | {_solved(others)} |",
        f"| greedy return, median (least to most) | {_greedy(ours)} | {_greedy(others)} |",
        "",
        f"Ratio of the medians: **{ratio:.2f}**, bootstrap 90% interval {low:.2f} to {high:.2f}",
        f"({NUM_RESAMPLES:,} resamples of the pairs). Bound: at most {BOUND:g}, the interval including 1 or better:",
        f"**{verdict}**.",
        "",
        "| seed | platotk: steps | greedy | plain RLlib: steps | greedy |",
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


def _outcome(steps: int, mean: float, greedy: float) -> dict[str, Any]:
    return {"env_steps": steps, "is_solved": mean >= TARGET, "return_mean": mean, "greedy_mean": greedy}


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
