"""PPO's update of a batch: the compiled kernel beside a lean torch loop, RLlib's own learner and bare matrix products.

4,096 rows, 10 epochs, CartPole's shapes, separate policy and value networks. One core each; processor time, so that
other work on the machine counts little; the sides take turns. Prints the table and writes it, with machine, commit and
command, into its section of benchmarks/RESULTS.md.

    .venv/bin/python benchmarks/kernel.py --rounds 5
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

sys.path.insert(0, str(Path(__file__).parent))
from startup import RESULTS, commit, machine, versions, write_section

from platotk.learning.engine.batches import row_order
from platotk.learning.engine.native import Native

ROWS, EPOCHS, INPUTS, ACTIONS = 4096, 10, 4, 2
MODULE = "default_policy"
COMPILE = "from platotk.learning.engine import compilation; compilation.kernel()"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    cases = [([64, 64], 128), ([64, 64], 1024), ([256, 256], 128), ([256, 256], 1024)]
    lines = [line for hiddens, size in cases for line in measure(hiddens, size, options.rounds)]
    text = "\n".join([*heading(load), *lines, "", *compile_seconds()])
    print(text)
    if not options.no_write:
        write_section(RESULTS, "kernel", text)
    return 0


def measure(hiddens: list[int], size: int, rounds: int) -> list[str]:
    """Rows of the table for one network and minibatch size."""
    batch = make_batch()
    sides: dict[str, Callable[[], None]] = {
        "kernel": kernel_side(hiddens, size, batch),
        "lean torch loop": torch_side(hiddens, size, batch),
        "RLlib's learner": rllib_side(hiddens, size, batch),
        "matrix products alone (torch.mm)": products_side(hiddens, size),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds + 1):
        for name, run in sides.items():
            began = time.process_time()
            run()
            if round_:  # the first one warms up
                times[name].append(time.process_time() - began)
    flop = sum(2.0 * m * n * k for m, n, k in products(hiddens, size)) * (ROWS * EPOCHS / size)
    return [
        f"| {hiddens[0]}x{hiddens[1]}, minibatch {size} | {name} | {1e3 * statistics.median(seconds):.1f} "
        f"({1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f}) | "
        f"{statistics.median(other / own for own, other in zip(times['kernel'], seconds, strict=True)):.1f}x | "
        f"{flop / statistics.median(seconds) / 1e9:.0f} |"
        for name, seconds in times.items()
    ]


def make_batch() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "obs": rng.standard_normal((ROWS, INPUTS)).astype(np.float32),
        "actions": rng.integers(0, ACTIONS, ROWS),
        "action_logp": np.full(ROWS, -0.69, np.float32),
        "action_dist_inputs": np.zeros((ROWS, ACTIONS), np.float32),
        "advantages": rng.standard_normal(ROWS).astype(np.float32),
        "value_targets": rng.standard_normal(ROWS).astype(np.float32),
    }


def make_learner(hiddens: list[int]) -> Any:
    """RLlib's PPO learner with platotk's defaults, in this process, without Ray."""
    space, actions = gym.spaces.Box(-9.0, 9.0, (INPUTS,), np.float32), gym.spaces.Discrete(ACTIONS)
    model = DefaultModelConfig(fcnet_hiddens=hiddens, fcnet_activation="tanh", vf_share_layers=False)
    config = PPOConfig().training(
        lr=3e-4, vf_clip_param=float("inf"), vf_loss_coeff=0.5, use_kl_loss=False, grad_clip=0.5, clip_param=0.2
    )
    config.environment(observation_space=space, action_space=actions)
    config.rl_module(rl_module_spec=RLModuleSpec(model_config=dataclasses.asdict(model)))
    specs = config.get_multi_rl_module_spec(spaces={MODULE: (space, actions)})
    learner = config.get_default_learner_class()(config=config, module_spec=specs)
    learner.build()
    return learner


def kernel_side(hiddens: list[int], size: int, batch: dict[str, Any]) -> Callable[[], None]:
    learner = make_learner(hiddens)
    native = Native(learner.module[MODULE], learner.config, learner.get_optimizer(MODULE))

    def run() -> None:
        native.update(batch, row_order(ROWS, size, num_epochs=EPOCHS), size, entropy_coeff=0.0)

    return run


def torch_side(hiddens: list[int], size: int, batch: dict[str, Any]) -> Callable[[], None]:
    """The loop of the well-known one-file implementations: shuffled indices, one loss, one fused optimiser."""
    module = make_learner(hiddens).module[MODULE]
    parameters = list(module.parameters())
    optimizer = torch.optim.Adam(parameters, lr=3e-4, fused=True)
    columns = {name: torch.from_numpy(column) for name, column in batch.items()}

    def run() -> None:
        order = torch.from_numpy(row_order(ROWS, size, num_epochs=EPOCHS))
        for start in range(0, len(order), size):
            rows = {name: column[order[start : start + size]] for name, column in columns.items()}
            logits, values = module.pi(module.encoder.actor_encoder(rows)["encoder_out"]), module.compute_values(rows)
            logp = torch.log_softmax(logits, 1).gather(1, rows["actions"][:, None])[:, 0]
            ratio, advantages = (logp - rows["action_logp"]).exp(), rows["advantages"]
            surrogate = torch.min(advantages * ratio, advantages * ratio.clamp(0.8, 1.2))
            loss = (0.5 * (values - rows["value_targets"]).square() - surrogate).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 0.5)
            optimizer.step()

    return run


def rllib_side(hiddens: list[int], size: int, batch: dict[str, Any]) -> Callable[[], None]:
    learner = make_learner(hiddens)

    def run() -> None:
        columns = SampleBatch({name: torch.from_numpy(column.copy()) for name, column in batch.items()})
        whole = MultiAgentBatch({MODULE: columns}, env_steps=ROWS)
        learner.update(batch=whole, num_epochs=EPOCHS, minibatch_size=size, shuffle_batch_per_epoch=True)

    return run


def products(hiddens: list[int], size: int) -> list[tuple[int, int, int]]:
    """Every matrix product of a minibatch, forward and backward, both networks: rows, columns, depth."""
    shapes = []
    for outputs in (ACTIONS, 1):
        widths = [INPUTS, *hiddens, outputs]
        for depth, width in itertools.pairwise(widths):
            shapes += [(size, width, depth), (depth, width, size)]
            shapes += [(size, depth, width)] if depth != INPUTS else []
    return shapes


def products_side(hiddens: list[int], size: int) -> Callable[[], None]:
    matrices = [(torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)) for m, n, k in products(hiddens, size)]

    def run() -> None:
        for _ in range(ROWS * EPOCHS // size):
            for first, second, result in matrices:
                torch.mm(first, second, out=result)

    return run


def compile_seconds() -> list[str]:
    """Processor seconds until the kernel is there, with an empty cache and with a full one."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-c", COMPILE], check=True, env={**os.environ, "NUMBA_CACHE_DIR": folder})
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return [
        f"A new process needs {seconds[0]:.1f} s of processor time until the kernel is ready with an empty cache (once",
        f"per machine and version, beside the run) and {min(seconds[1:]):.1f} s with a full one, imports included.",
    ]


def heading(load: float) -> list[str]:
    is_busy = load > 0.5 * (os.cpu_count() or 1)
    warning = " - **the machine was busy with other work**"
    return [
        "## The compiled kernel: one update of PPO",
        "",
        f"{ROWS} rows, {EPOCHS} epochs, {INPUTS} inputs, {ACTIONS} actions, separate value network, tanh. Milliseconds",
        "of processor time on one core: median (least to most), the sides taking turns.",
        "",
        f"- command: `{' '.join(['.venv/bin/python benchmarks/kernel.py', *sys.argv[1:]])}`",
        f"- machine: {machine()}",
        f"- versions: {versions()}",
        f"- commit: {commit()}",
        f"- when: {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        f"- load before it: {load:.1f}{warning if is_busy else ''}",
        "",
        "| network | | ms | time relative to the kernel's | GFLOP/s |",
        "| --- | --- | --- | --- | --- |",
    ]


if __name__ == "__main__":
    sys.exit(main())
