"""Environment steps per second while training: platotk with its engine beside RLlib with the same work.

Both sides of a row do the same: sims, batch, minibatches, epochs, network, filter. They take turns in processes of
their own; a figure is the steps of the median iteration divided by its time (sampling and learning), the first
iterations left out. What the ratio of a pair of runs is does not depend on how busy the machine is, as long as it is
equally busy: medians and ranges are of those ratios.

    .venv/bin/python benchmarks/throughput.py --rounds 5
    .venv/bin/python benchmarks/throughput.py --rows cartpole,own-network --rounds 3 --json
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from startup import RESULTS, ROOT, commit, machine, names_of, versions, write_section

SECTION = "throughput"
ROUNDS = 5
SECONDS = 8.0
NUM_LEFT_OUT = 2
SIDES = ("platotk", "rllib")

# The work of the table: for PPO what most benchmarks on CartPole do; for SAC and DQN an update after every step, from
# a prioritized buffer, both as RLlib has them.
TRAINING: dict[str, dict[str, Any]] = {
    "PPO": {
        "train_batch_size_per_learner": 4096,
        "minibatch_size": 128,
        "num_epochs": 10,
        "lr": 3e-4,
        "gamma": 0.99,
        "lambda_": 0.95,
        "clip_param": 0.2,
        "vf_clip_param": float("inf"),
        "vf_loss_coeff": 0.5,
        "entropy_coeff": 0.0,
        "grad_clip": 0.5,
        "grad_clip_by": "global_norm",
    },
    "SAC": {
        "actor_lr": 3e-4,
        "critic_lr": 3e-4,
        "alpha_lr": 3e-4,
        "lr": None,
        "train_batch_size_per_learner": 256,
        "num_steps_sampled_before_learning_starts": 300,
    },
    "DQN": {"lr": 5e-4, "train_batch_size_per_learner": 64, "num_steps_sampled_before_learning_starts": 300},
}
OFF_POLICY_STEPS = 100
"""Steps in an iteration of SAC and DQN; each is sampled, and followed by an update, by itself."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        title: What is done.
        algorithm: PPO, SAC or DQN.
        sim: Gymnasium id, or the folder of an example.
        bound: The ratio that is aimed at.
        num_envs: Sims in one env runner.
        model: The network, beside two layers of 64, tanh, policy and critic apart (SAC and DQN: two of 256, relu).
        training: What differs from `TRAINING`.
        runners: Remote env runners.
        is_filtered: Whether observations are normalised, RLlib's by its own MeanStdFilter.
        is_own_network: An RLModule as a user would write one, which only torch can run.
        is_vectorised: The sims are one object that steps all of them in one call (Gymnasium's `vector_entry_point`).
        threads: Of the process that learns; env runners have one.
        rllib: What RLlib alone does otherwise, for a row where it is tuned.
    """

    title: str
    algorithm: str = "PPO"
    sim: str = "CartPole-v1"
    bound: float = 8.0
    num_envs: int = 8
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    runners: int = 0
    is_filtered: bool = False
    is_own_network: bool = False
    is_vectorised: bool = False
    threads: int = 1
    rllib: dict[str, Any] = field(default_factory=dict)

    @property
    def work(self) -> dict[str, Any]:
        """The arguments of `AlgorithmConfig.training`."""
        return {**TRAINING[self.algorithm], **self.training}


ROWS = {
    "cartpole": Row("CartPole, 8 sims", bound=12.0),
    "cartpole-64": Row("CartPole, 64 sims", bound=20.0, num_envs=64),
    "vectorised": Row("CartPole, 64 sims in one call", bound=20.0, num_envs=64, is_vectorised=True),
    "tuned": Row(
        "CartPole, 64 sims in one call, minibatches of 1024, 2 threads; RLlib as it is fastest: 2 runners of 32",
        bound=8.0,
        num_envs=64,
        is_vectorised=True,
        threads=2,
        training={"minibatch_size": 1024},
        rllib={"runners": 2, "num_envs": 32, "is_vectorised": False, "threads": 1},
    ),
    "filter": Row("CartPole, 8 sims, normalised observations", is_filtered=True),
    "own-network": Row("CartPole, 8 sims, RLModule of one's own", bound=4.0, is_own_network=True),
    "pendulum": Row("Pendulum, 8 sims", sim="Pendulum-v1"),
    "simple-adder": Row("Simple Adder (Dict spaces), 8 sims", sim="simple-adder"),
    "tank-level": Row("Tank level, 8 sims", sim="tank-level"),
    "lstm": Row(
        "CartPole, 8 sims, LSTM cell 64",
        bound=4.0,
        model={"use_lstm": True, "lstm_cell_size": 64, "max_seq_len": 20},
    ),
    "large": Row("CartPole, 8 sims, layers of 256", bound=4.0, model={"fcnet_hiddens": [256, 256]}),
    "sac": Row("SAC, Pendulum, 1 sim; critic of one MLP", algorithm="SAC", sim="Pendulum-v1", bound=5.0, num_envs=1),
    "dqn": Row("DQN, CartPole, 1 sim", algorithm="DQN", bound=5.0, num_envs=1),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="pairs of runs of each row")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"some of: {', '.join(ROWS)}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long each run trains")
    parser.add_argument("--json", action="store_true", help="print the runs as JSON, and write no section")
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "ROW"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        side, row = options.one
        print(json.dumps(measure(side, ROWS[row], options.seconds)))
        return 0
    chosen = names_of(parser, options.rows, ROWS)
    load = os.getloadavg()[0]
    runs: list[dict[str, Any]] = []
    for number in range(options.rounds):
        runs += [{"row": row, "round": number, **in_turn(row, number, options.seconds)} for row in chosen]
        if not options.json:  # after each round: an hour's work is not lost with its last minute
            write_section(RESULTS, SECTION, report(runs, chosen, load))
    if options.json:
        print(json.dumps({"machine": machine(), "commit": commit(), "load": load, "runs": runs}))
    else:
        print(report(runs, chosen, load))
    return 0


def in_turn(row: str, number: int, seconds: float) -> dict[str, Any]:
    """One pair of runs; which side goes first alternates."""
    pair = {side: one(side, row, seconds) for side in (SIDES if number % 2 == 0 else SIDES[::-1])}
    for name, of in (("ratio", "steps_per_s"), ("cpu_ratio", "steps_per_cpu_s")):
        pair[name] = pair["platotk"][of] / pair["rllib"][of]
    told = ", ".join(f"{side} {pair[side]['steps_per_s']:,.0f}" for side in SIDES)
    print(
        f"{row} {number + 1}: {told} steps/s, {pair['ratio']:.1f}x (CPU {pair['cpu_ratio']:.1f}x)",
        file=sys.stderr,
        flush=True,
    )
    return pair


def one(side: str, row: str, seconds: float) -> dict[str, Any]:
    """A run in a process of its own, on one thread per process."""
    command = [sys.executable, __file__, "--one", side, row, "--seconds", str(seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(side: str, row: Row, seconds: float) -> dict[str, Any]:
    """Train for some seconds; steps per second, and per second of this process' CPU, of the median iteration."""
    import ray
    import torch

    from platotk.learning import local

    torch.set_num_threads(row.rllib.get("threads", row.threads) if side == "rllib" else row.threads)
    left_out = NUM_LEFT_OUT + row.work.get("num_steps_sampled_before_learning_starts", 0) // OFF_POLICY_STEPS
    config = {"platotk": platotk_config, "rllib": rllib_config}[side](row)
    if side == "rllib" or not local.is_local(config):
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    algo = local.build_algo(config) if side == "platotk" else config.build_algo()
    durations, cpu, steps, sampled = [], [], [], 0
    began = time.perf_counter()
    while len(durations) < left_out + 3 or time.perf_counter() - began < seconds:
        start, cpu_start = time.perf_counter(), time.process_time()
        result = algo.train()
        durations.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
        steps.append(int(result["num_env_steps_sampled_lifetime"]) - sampled)
        sampled += steps[-1]
    learner = getattr(algo.learner_group, "_learner", None)
    choice = getattr(learner, "_kernel", None)
    path = "kernel" if choice is not None and choice.native is not None else type(learner).__name__
    memory_mb = tree_mb()
    algo.stop()
    kept = durations[left_out:]
    return {
        "steps_per_s": statistics.median(steps[left_out:]) / statistics.median(kept),
        "steps_per_cpu_s": statistics.median(steps[left_out:]) / statistics.median(cpu[left_out:]),
        "iteration_s": statistics.median(kept),
        "iterations": len(kept),
        "learner": path,
        "memory_mb": memory_mb,
    }


def tree_mb() -> float:
    """Memory of this process and all below it, shared pages split among those that share them (PSS)."""
    import psutil

    me = psutil.Process()
    return float(sum(process.memory_full_info().pss for process in [me, *me.children(recursive=True)]) / 1e6)


def platotk_config(row: Row) -> Any:
    """What `platotk.train` would train; the sims are supervised by platotk."""
    return _through_platotk(row, "auto", row.runners, row.num_envs)


def rllib_config(row: Row) -> Any:
    """RLlib alone for a Gymnasium id; for an example's spaces, RLlib's runner and learner on platotk's encoding."""
    runners, num_envs = row.rllib.get("runners", row.runners), row.rllib.get("num_envs", row.num_envs)
    if not row.sim.endswith("-v1"):
        return _through_platotk(row, "rllib", runners, num_envs)
    from ray.rllib.connectors.env_to_module import MeanStdFilter
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    from platotk.learning.algorithm import MODEL_DEFAULTS, OFF_POLICY_MODEL, default_config

    config = default_config(row.algorithm).environment(row.sim).training(**row.work)
    config.env_runners(num_env_runners=runners, num_envs_per_env_runner=num_envs)
    if row.rllib.get("is_vectorised", row.is_vectorised):
        config.env_runners(gym_env_vectorize_mode="vector_entry_point")
    defaults = MODEL_DEFAULTS if row.algorithm == "PPO" else OFF_POLICY_MODEL
    config.rl_module(model_config=DefaultModelConfig(**{**defaults, **row.model}))
    config.reporting(**_reporting(row))
    if row.is_filtered:
        config.env_runners(env_to_module_connector=lambda *_, **__: MeanStdFilter())
    if row.is_own_network:
        config.rl_module(rl_module_spec=_own_network())
    return config.debugging(log_level="ERROR", seed=0)


def _through_platotk(row: Row, engine: str, runners: int, num_envs: int) -> Any:
    import platotk
    from platotk.learning.algorithm import build_config
    from platotk.sims.loading import sim_spec
    from platotk.spaces import adapt

    fields: dict[str, Any] = {
        "algorithm": row.algorithm,
        "training": row.work,
        "reporting": _reporting(row),
        "env_runners": {"num_env_runners": runners, "num_envs_per_env_runner": num_envs},
        "normalize_observations": row.is_filtered,
        "engine": engine,
    }
    if row.is_vectorised:
        fields["env_runners"]["gym_env_vectorize_mode"] = "vector_entry_point"
    fields["rl_module"] = {"rl_module_spec": _own_network()} if row.is_own_network else {"model_config": row.model}
    is_example = not row.sim.endswith("-v1")
    if is_example:
        sys.path.insert(0, str(ROOT / "examples" / row.sim))
        example = platotk.Project.load(ROOT / "examples" / row.sim)
        project = platotk.Project(sim=example.sim, sim_config=example.sim_config, _root=example.root, **fields)
    else:
        project = platotk.Project(sim=row.sim, **fields)
    spec = sim_spec(project)
    sim = spec.make()
    adapter = adapt(sim.observation_space, sim.action_space, algorithm=row.algorithm)
    sim.close()
    if engine == "auto":
        from platotk.learning.engine import compilation

        compilation.kernel()  # its compilation, once per machine, is start-up and not throughput
    return build_config(project, adapter, spec, num_cpus=4)


def _reporting(row: Row) -> dict[str, Any]:
    if row.algorithm == "PPO":
        return {}
    return {"min_sample_timesteps_per_iteration": OFF_POLICY_STEPS, "min_time_s_per_iteration": None}


def _own_network() -> Any:
    import torch
    from ray.rllib.core.columns import Columns
    from ray.rllib.core.rl_module.apis import ValueFunctionAPI
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.rllib.core.rl_module.torch import TorchRLModule

    class OwnNetwork(TorchRLModule, ValueFunctionAPI):
        """Two layers of 64 for the policy, two for the critic."""

        def setup(self) -> None:
            def layers(num_outputs: int) -> torch.nn.Module:
                sizes = [self.observation_space.shape[0], 64, 64]
                hidden = [(torch.nn.Linear(a, b), torch.nn.Tanh()) for a, b in itertools.pairwise(sizes)]
                return torch.nn.Sequential(
                    *[part for pair in hidden for part in pair], torch.nn.Linear(64, num_outputs)
                )

            self.policy, self.critic = layers(int(self.action_space.n)), layers(1)

        def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
            return {Columns.ACTION_DIST_INPUTS: self.policy(batch[Columns.OBS])}

        def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Any:
            return self.critic(batch[Columns.OBS]).squeeze(-1)

    return RLModuleSpec(module_class=OwnNetwork)


def report(runs: list[dict[str, Any]], rows: list[str], load: float) -> str:
    """The section: how it was measured, then one line per row."""
    lines = [
        "## Throughput: environment steps per second while training",
        "",
        "Sampling and learning together. PPO: batch 4096, minibatches of 128, 10 epochs, two layers of 64 (tanh),",
        "policy and critic apart, unless the row says otherwise. SAC and DQN: an update after every step (updates per",
        "second are as many), batches of 256 and 64, a prioritized buffer, two layers of 256 (relu); steps before the",
        "first update are not counted. One thread per process. Both sides in turn, each run in a process of its own;",
        "steps/s of the median iteration; the ratio is of two runs of a pair: median (least to most). Beside it the",
        "ratio of steps per second of CPU in the driver, which other work on the machine disturbs less (not for a row",
        "with runners, whose work is done elsewhere). Memory is of the whole process tree, in MB.",
        "",
        "Not the same on both sides: platotk's critic of SAC is the paper's, one MLP of observation and action, with a",
        "tenth of the weights of RLlib's. RLlib's runner and learner run on platotk's encoding of the spaces of Simple",
        "Adder and tank level.",
        "",
        f"- command: `{shlex.join(['.venv/bin/python', 'benchmarks/throughput.py', *sys.argv[1:]])}`",
        f"- machine: {machine()}",
        f"- versions: {versions()}",
        f"- commit: {commit()}",
        f"- when: {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        f"- load before it: {load:.1f}"
        + (" - **the machine was busy with other work: the ratios hold, the figures do not**" if load > 1.5 else ""),
        "",
        "| work | RLlib | platotk | ratio | by CPU | aim | | memory: RLlib | platotk |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in rows:
        pairs = [run for run in runs if run["row"] == name]
        ours, theirs = ([pair[side]["steps_per_s"] for pair in pairs] for side in SIDES)
        ratios = [pair["ratio"] for pair in pairs]
        has_runners = ROWS[name].runners or ROWS[name].rllib.get("runners")
        by_cpu = "-" if has_runners else spread([pair["cpu_ratio"] for pair in pairs], "{:.1f}")
        median, bound = statistics.median(ratios), ROWS[name].bound
        by = " (torch)" if pairs[0]["platotk"]["learner"] != "kernel" else ""
        lines.append(
            f"| {ROWS[name].title}{by} | {spread(theirs, '{:,.0f}')} | {spread(ours, '{:,.0f}')} "
            f"| {spread(ratios, '{:.1f}')} | {by_cpu} | {bound:g} "
            f"| {'reached' if median >= bound else 'not reached'} "
            f"| {memory(pairs, 'rllib')} | {memory(pairs, 'platotk')} |"
        )
    return "\n".join(lines)


def memory(pairs: list[dict[str, Any]], side: str) -> str:
    """The median over the runs of one side, in MB."""
    return f"{statistics.median(pair[side]['memory_mb'] for pair in pairs):,.0f}"


def spread(values: list[float], form: str) -> str:
    """Median, least and most."""
    show: Callable[[float], str] = form.format
    return f"{show(statistics.median(values))} ({show(min(values))} to {show(max(values))})"


if __name__ == "__main__":
    sys.exit(main())
