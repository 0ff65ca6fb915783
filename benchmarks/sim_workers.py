"""Environment steps per second with a slow simulator: platotk's workers beside RLlib with Gymnasium's AsyncVectorEnv.

CartPole whose step takes 5 ms (it waits, as one does that asks a solver), 32 sims, PPO with the same values. In turn,
each in a process of its own: RLlib (`gym_env_vectorize_mode="async"`), platotk, and the workers alone, which are
stepped with random actions as soon as they are ready and nothing learns. A figure is all steps by all time, first
iterations left out.

    .venv/bin/python benchmarks/sim_workers.py --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv
from startup import RESULTS, ROOT, commit, machine, versions, write_section
from throughput import TRAINING as WORK

SECTION = "sim_workers"
SIDES = ("rllib", "platotk", "workers")
STEP_S, NUM_SIMS, ROUNDS, SECONDS, NUM_LEFT_OUT = 0.005, 32, 5, 12.0, 2
BOUND_RATIO, BOUND_SHARE = 4.0, 0.8
TRAINING = {**WORK["PPO"], "train_batch_size_per_learner": 2048}


class Slow(CartPoleEnv):
    """CartPole, 500 steps at most, that takes its time."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.left = 500
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(STEP_S)
        self.left -= 1
        observation, reward, terminated, _, info = super().step(action)
        return observation, float(reward), terminated, self.left <= 0, info


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="runs of each side")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long each run is measured")
    parser.add_argument("--json", action="store_true", help="print the runs as JSON, and write no section")
    parser.add_argument("--one", metavar="SIDE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.seconds)))
        return 0
    load = os.getloadavg()[0]
    runs = [in_turn(number, options.seconds) for number in range(options.rounds)]
    if options.json:
        print(json.dumps({"machine": machine(), "commit": commit(), "load": load, "runs": runs}))
        return 0
    text = report(runs, load)
    print(text)
    write_section(RESULTS, SECTION, text)
    return 0


def in_turn(number: int, seconds: float) -> dict[str, Any]:
    """One run of each side; which goes first alternates."""
    order = SIDES if number % 2 == 0 else SIDES[::-1]
    runs = {side: one(side, seconds) for side in order}
    print(f"{number + 1}: " + ", ".join(f"{side} {runs[side]['steps_per_s']:,.0f}" for side in SIDES), file=sys.stderr)
    return runs


def one(side: str, seconds: float) -> dict[str, Any]:
    """A run in a process of its own, on one thread per process."""
    command = [sys.executable, __file__, "--one", side, "--seconds", str(seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(side: str, seconds: float) -> dict[str, Any]:
    """Steps per second of one side."""
    if side == "workers":
        return _workers_alone(seconds)
    import ray
    import torch

    torch.set_num_threads(1)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    algo = {"platotk": platotk_config, "rllib": rllib_config}[side]().build_algo()
    iterations: list[tuple[int, float]] = []
    began = time.perf_counter()
    while len(iterations) < NUM_LEFT_OUT + 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        result = algo.train()
        iterations.append((int(result["env_runners"]["num_env_steps_sampled"]), time.perf_counter() - start))
    algo.stop()
    steps, times = zip(*iterations[NUM_LEFT_OUT:], strict=True)
    return {"steps_per_s": sum(steps) / sum(times), "iterations": len(times)}


def platotk_config() -> Any:
    """What `platotk.train` trains when a step of the sim was measured to take 5 ms."""
    import platotk
    from platotk.learning.algorithm import SimSettings, build_config
    from platotk.learning.engine import compilation
    from platotk.sims.loading import sim_spec

    fields: dict[str, Any] = {"training": TRAINING, "normalize_observations": False}
    project = platotk.Project(sim=Slow, **fields)
    compilation.kernel()  # its compilation, once per machine, is start-up and not throughput
    config = build_config(project, _adapter(), sim_spec(project), SimSettings(True, step_s=STEP_S), num_cpus=2)
    if config.num_envs_per_env_runner != NUM_SIMS:
        raise SystemExit(f"platotk chose {config.num_envs_per_env_runner} sims")
    return config


def rllib_config() -> Any:
    """RLlib alone, each environment in a process of Gymnasium's AsyncVectorEnv."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.tune.registry import register_env

    from platotk.learning.algorithm import MODEL_DEFAULTS

    register_env("slow", lambda _: Slow())
    config = PPOConfig().environment("slow").training(**TRAINING)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=NUM_SIMS, gym_env_vectorize_mode="async")
    config.rl_module(model_config=DefaultModelConfig(**MODEL_DEFAULTS))
    return config.debugging(log_level="ERROR", seed=0)


def _workers_alone(seconds: float) -> dict[str, Any]:
    from platotk.sims.loading import SimSpec
    from platotk.sims.workers import SimWorkers

    sims = SimWorkers(SimSpec(Slow), _adapter(), num_envs=NUM_SIMS)
    sims.reset()
    rng = np.random.default_rng(0)
    sims.begin(np.arange(NUM_SIMS), rng.integers(2, size=NUM_SIMS))
    steps, is_done = 0, np.zeros(NUM_SIMS, dtype=bool)
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        ready = sims.wait()
        steps += int(np.count_nonzero(~is_done[ready]))
        is_done[ready] = sims.terminated[ready] | sims.truncated[ready]
        sims.begin(ready, rng.integers(2, size=len(ready)))
    rate = steps / (time.perf_counter() - began)
    sims.close()
    return {"steps_per_s": rate}


def _adapter() -> Any:
    from platotk.spaces import adapt

    sim: gym.Env[Any, Any] = Slow()
    return adapt(sim.observation_space, sim.action_space)


def report(runs: list[dict[str, Any]], load: float) -> str:
    """The section: how it was measured, then the figures and what was asked of them."""
    rates = {side: [run[side]["steps_per_s"] for run in runs] for side in SIDES}
    ratios = [run["platotk"]["steps_per_s"] / run["rllib"]["steps_per_s"] for run in runs]
    shares = [run["platotk"]["steps_per_s"] / run["workers"]["steps_per_s"] for run in runs]
    return "\n".join(
        [
            "## A slow simulator: PPO, environment steps per second",
            "",
            f"CartPole that waits {STEP_S * 1e3:g} ms a step, {NUM_SIMS} sims in processes of their own; batch 2048,",
            "minibatches of 128, 10 epochs, two layers of 64 (tanh), policy and critic apart. Sampling and learning",
            "together; all steps by all time; ratios are of the runs of one round: median (least to most).",
            "",
            f"- command: `{shlex.join(['.venv/bin/python', 'benchmarks/sim_workers.py', *sys.argv[1:]])}`",
            f"- machine: {machine()}",
            f"- versions: {versions()}",
            f"- commit: {commit()}",
            f"- when: {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
            f"- load before it: {load:.1f}"
            + (
                " - **the machine was busy with other work: measure again before leaning on this**"
                if load > 1.5
                else ""
            ),
            "",
            "| | steps/s |",
            "| --- | --- |",
            f"| RLlib, AsyncVectorEnv | {_spread(rates['rllib'], '{:,.0f}')} |",
            f"| platotk | {_spread(rates['platotk'], '{:,.0f}')} |",
            f"| platotk's workers alone, random actions | {_spread(rates['workers'], '{:,.0f}')} |",
            f"| no overhead at all | {NUM_SIMS / STEP_S:,.0f} |",
            "",
            "| | ratio | aim | |",
            "| --- | --- | --- | --- |",
            f"| platotk by RLlib | {_spread(ratios, '{:.1f}')} | {BOUND_RATIO:g} | {_kept(ratios, BOUND_RATIO)} |",
            f"| platotk by its workers alone | {_spread(shares, '{:.2f}')} | {BOUND_SHARE:g} "
            f"| {_kept(shares, BOUND_SHARE)} |",
        ]
    )


def _kept(values: list[float], bound: float) -> str:
    return "reached" if statistics.median(values) >= bound else "not reached"


def _spread(values: list[float], form: str) -> str:
    return f"{form.format(statistics.median(values))} ({form.format(min(values))} to {form.format(max(values))})"


if __name__ == "__main__":
    raise SystemExit(main())
