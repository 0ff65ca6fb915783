"""platotk beside others who train on one machine: Stable-Baselines3, SBX (JAX), PufferLib, and PPO as one script.

Each peer runs in an environment of its own, below `benchmarks/.venvs`, made at the first run with the versions below.
A figure is of runs that take turns, each in a process of its own on one thread: steps per second of the median
iteration, seconds from the command to CartPole solved, seconds to the end of the first iteration.

    .venv/bin/python benchmarks/peers.py --rounds 5
    .venv/bin/python benchmarks/peers.py --rows sb3,sac,solve --rounds 2 --more
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from startup import RESULTS, commit, machine, names_of, versions, write_section
from throughput import ROWS, SECONDS, Row, measure, spread

SECTION = "peers"
PROGRAMS = Path(__file__).with_name("peer_programs.py")
VENVS = Path(__file__).with_name(".venvs")
PACKAGES = {
    "sb3": ["torch==2.13.0", "gymnasium==1.2.2", "stable-baselines3==2.9.2"],
    "sbx": ["torch==2.13.0", "gymnasium==1.2.2", "sbx-rl==0.28.0"],
    "pufferlib": ["torch==2.13.0", "pufferlib==3.0.0"],
}
KEPT = Path(__file__).with_name("results") / "peers.json"
NUM_LEFT_OUT = 2
WARM_UP, OFF_POLICY_STEPS = 300, 100
UNIFORM = {"replay_buffer_config": {"type": "EpisodeReplayBuffer", "capacity": 100_000}}


@dataclass(frozen=True)
class Beside:
    """One line of the table.

    Attributes:
        who: The peer.
        title: What is done.
        what: `ppo`, `sac`, `dqn`: steps per second. `solve`, `start`, `cold`: seconds.
        ours: The row of `throughput.py` that is the same work.
        bound: The ratio that is aimed at: of steps per second, or of the peer's seconds to ours; None: only told.
    """

    who: str
    title: str
    what: str
    ours: Row
    bound: float | None


PLAIN_DQN = {**UNIFORM, "double_q": False, "dueling": False}
BESIDE = {
    "script": Beside("script", "PPO as one script, CartPole", "ppo", ROWS["cartpole"], 4.0),
    "sb3": Beside("sb3", "SB3 PPO, CartPole", "ppo", ROWS["cartpole"], 5.0),
    "sbx": Beside("sbx", "SBX PPO, CartPole", "ppo", ROWS["cartpole"], 2.5),
    "pufferlib": Beside("pufferlib", "PufferLib PPO, CartPole", "ppo", ROWS["cartpole"], 5.0),
    "sbx-large": Beside("sbx", "SBX PPO, CartPole, layers of 256", "ppo", ROWS["large"], 1.5),
    "sac": Beside(
        "sb3",
        "SB3 SAC, Pendulum, uniform replay",
        "sac",
        Row("", algorithm="SAC", sim="Pendulum-v1", num_envs=1, training=UNIFORM),
        1.0,
    ),
    "dqn": Beside(
        "sb3",
        "SB3 DQN, CartPole, uniform replay",
        "dqn",
        Row("", algorithm="DQN", num_envs=1, training=PLAIN_DQN),
        1.0,
    ),
    "solve": Beside("sb3", "SB3 PPO: to CartPole solved, s", "solve", ROWS["cartpole"], 1.0),
    "start": Beside("sb3", "SB3 PPO: to the end of the first iteration, s", "start", ROWS["cartpole"], 1 / 1.3),
    "cold": Beside("sb3", "the same, our cache of compiled code empty, s", "cold", ROWS["cartpole"], None),
}
TIMED = ("solve", "start", "cold")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs of each row")
    parser.add_argument("--rows", default=",".join(BESIDE), help=f"some of: {', '.join(BESIDE)}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long each run trains")
    parser.add_argument("--more", action="store_true", help="add to the pairs that were measured before")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--one", metavar="ROW", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure("platotk", BESIDE[options.one].ours, options.seconds)))
        return 0
    chosen = names_of(parser, options.rows, BESIDE)
    VENVS.mkdir(exist_ok=True)
    pythons = {who: environment(who) for who in {BESIDE[name].who for name in chosen}}
    load = os.getloadavg()[0]
    kept = {} if options.no_write or not KEPT.exists() else json.loads(KEPT.read_text("utf-8"))
    for name in chosen:
        before = kept.get(name, {"about": [], "pairs": []}) if options.more else {"about": [], "pairs": []}
        kept[name] = {"about": [*before["about"], about(load)], "pairs": before["pairs"]}
    for number in range(options.rounds):
        for name in chosen:
            kept[name]["pairs"].append(in_turn(name, number, pythons[BESIDE[name].who], options.seconds))
    text = report({name: kept[name] for name in BESIDE if name in kept})
    print(text)
    if not options.no_write:
        KEPT.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
        write_section(RESULTS, SECTION, text)
    return 0


def environment(who: str) -> str:
    """The Python that has a peer, made when it is not there.

    PufferLib has no wheel; its build wants a screen library from a site of its own, which `NO_OCEAN` leaves out, and
    then a name that only the part left out defines.
    """
    if who not in PACKAGES:
        return sys.executable
    folder = VENVS / who
    python = folder / "bin/python"
    if (folder / "done").exists():
        return str(python)
    print(f"Installing {who} into {folder} ...", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    if who == "pufferlib":
        subprocess.run([*pip, "torch==2.13.0", "numpy<2", "setuptools<81", "wheel", "Cython"], check=True)
        patch = next(folder.glob("lib/python3*/site-packages")) / "pufferlib_build.pth"
        patch.write_text("import builtins; builtins.c_extension_paths = []\n")
        # Without nvcc in sight it builds for the CPU.
        without_nvcc = {**os.environ, "NO_OCEAN": "1", "PATH": "/usr/bin:/bin"}
        subprocess.run([*pip, "--no-build-isolation", *PACKAGES[who]], check=True, env=without_nvcc)
        patch.unlink()
    else:
        for package in PACKAGES[who]:
            subprocess.run([*pip, package], check=True)
    (folder / "done").touch()
    return str(python)


def in_turn(name: str, number: int, python: str, seconds: float) -> dict[str, float]:
    """One pair of runs, who goes first alternating; `ratio` above 1 is in platotk's favour."""
    row = BESIDE[name]
    is_timed = row.what in TIMED
    sides = {
        "platotk": lambda: timed_training(row, number) if is_timed else ours(name, seconds),
        "peer": lambda: theirs(row, python, seconds, number),
    }
    pair = {side: sides[side]() for side in (sides if number % 2 == 0 else reversed(sides))}
    pair["ratio"] = pair["peer"] / pair["platotk"] if is_timed else pair["platotk"] / pair["peer"]
    told = ", ".join(f"{side} {pair[side]:,.1f}" for side in sides)
    print(f"{name} {number + 1}: {told}: {pair['ratio']:.2f}x", file=sys.stderr, flush=True)
    return pair


def ours(name: str, seconds: float) -> float:
    """Steps per second of platotk, in a process of its own."""
    return float(_run([sys.executable, __file__, "--one", name, "--seconds", str(seconds)])["steps_per_s"])


def theirs(row: Beside, python: str, seconds: float, seed: int) -> float:
    """Steps per second of a peer; for `solve` the seconds of its process, for `start` to the end of iteration 1."""
    training = row.ours.work
    work = {
        "sim": row.ours.sim,
        "num_envs": row.ours.num_envs,
        "batch": training["train_batch_size_per_learner"],
        "minibatch": training.get("minibatch_size", training["train_batch_size_per_learner"]),
        "epochs": training.get("num_epochs"),
        "lr": training["lr"] or training["actor_lr"],
        "hidden": row.ours.model.get("fcnet_hiddens", [64, 64] if row.what not in ("sac", "dqn") else [256, 256]),
        "warm_up": WARM_UP,
        "steps": OFF_POLICY_STEPS,
        "seconds": seconds,
        "seed": seed,
    }
    began = time.time()
    what = "start" if row.what == "cold" else row.what
    told = _run([python, str(PROGRAMS), row.who, what, json.dumps(work)])
    if row.what == "solve":
        return time.time() - began
    if row.what in TIMED:
        return float(told["ended_at"] - began)
    return float(told["steps"] / statistics.median(told["durations"][NUM_LEFT_OUT:]))


def timed_training(row: Beside, seed: int) -> float:
    """Seconds of the whole command `plato train` with the same settings, to its stop rule; `start` as of `theirs`."""
    project = {
        "sim": row.ours.sim,
        "algorithm": "PPO",
        "training": {**row.ours.work, "vf_clip_param": "inf"},
        "env_runners": {"num_envs_per_env_runner": row.ours.num_envs},
        "normalize_observations": False,
        "stop": {"return_mean": 475} if row.what == "solve" else {"iterations": 1},
        "seed": seed,
    }
    with tempfile.TemporaryDirectory() as folder:
        # JSON is YAML, but for infinity.
        text = json.dumps(project).replace('"inf"', ".inf")
        (Path(folder) / "plato.yaml").write_text(text)
        command = [str(Path(sys.executable).with_name("plato")), "train", "-C", folder, "--json"]
        began = time.time()
        told = _run(command, **({"XDG_CACHE_HOME": f"{folder}/cache"} if row.what == "cold" else {}))
        seconds = time.time() - began
        if row.what != "solve":  # its journal has one line, written when the iteration ended
            seconds = (Path(told["path"]) / "metrics.jsonl").stat().st_mtime - began
    if told["status"] != "finished":
        raise SystemExit(f"{shlex.join(command)}: {told}")
    return seconds


def _run(command: list[str], **environ: str) -> dict[str, Any]:
    environ = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore", **environ}
    # Not here: PufferLib leaves a link to its pictures wherever it is imported.
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environ}, cwd=VENVS, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return result


def about(load: float) -> str:
    """When, where and with what rows were measured."""
    command = shlex.join([".venv/bin/python", "benchmarks/peers.py", *sys.argv[1:]])
    when = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
    busy = ", **the machine was busy: the ratios hold, the figures do not**" if load > 1.5 else ""
    return f"`{command}`, {when}, commit {commit()}, load before it {load:.1f}{busy}"


def report(kept: dict[str, dict[str, Any]]) -> str:
    """The section: how it was measured, then one line per row."""
    lines = [
        "## Beside others on one machine",
        "",
        "The same work on one thread, each in a process of its own, in turn: PPO with batch 4096, minibatches of 128,",
        "10 epochs, 8 sims, two layers of 64 (tanh); SAC and DQN with one sim, an update after every step, batches of",
        "256 and 64, two layers of 256 (relu). Steps per second of the median iteration, or, where the row says s,",
        "seconds since the command (for platotk that is `plato train`, checkpoints, curves and MLflow included).",
        "PufferLib's trainer does not quite: it weighs segments, and computes advantages for each minibatch.",
        "A ratio above 1 is in platotk's favour; of pairs of runs: median (least to most).",
        "",
        f"- machine: {machine()}",
        f"- versions: {versions()}; " + ", ".join(sorted({packages[-1] for packages in PACKAGES.values()})),
        *(
            f"- measured: {told}"
            for told in dict.fromkeys(one for measured in kept.values() for one in measured["about"])
        ),
        "",
        "| beside | peer | platotk | ratio | aim | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, measured in kept.items():
        runs = measured["pairs"]
        form = "{:,.1f}" if BESIDE[name].what in TIMED else "{:,.0f}"
        cells = [spread([run[side] for run in runs], form) for side in ("peer", "platotk")]
        ratios, bound = [run["ratio"] for run in runs], BESIDE[name].bound
        aim, verdict = "-", "-"
        if bound is not None:
            aim, verdict = f"{bound:.2g}", "reached" if statistics.median(ratios) >= bound else "not reached"
        lines.append(
            f"| {BESIDE[name].title} | {cells[0]} | {cells[1]} | {spread(ratios, '{:.2f}')} | {aim} | {verdict} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
