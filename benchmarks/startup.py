"""How long until something happens: help, import, `plato check`, the first iteration of `plato train`.

Each figure stands beside the same thing done without platotk, measured in the same run, the two taking turns.
Prints the table and writes it, with machine, commit and command, into its section of benchmarks/RESULTS.md.

    .venv/bin/python benchmarks/startup.py --rounds 7
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/RESULTS.md"
SECTION = "startup"

CHECK_ENV = """
import gymnasium
from gymnasium.utils.env_checker import check_env
check_env(gymnasium.make("CartPole-v1").unwrapped, skip_render_check=True)
"""

# Plain RLlib, with the values that platotk gives RLlib for the same project; prints when its first iteration
# starts and ends.
BARE_RLLIB = """
import json, sys, time
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

given = json.loads(sys.argv[1])
config = (
    PPOConfig()
    .environment("CartPole-v1")
    .env_runners(
        num_env_runners=0,
        num_envs_per_env_runner=given["num_envs"],
        env_to_module_connector=lambda *_, **__: MeanStdFilter(),
    )
    .training(**given["training"])
    .rl_module(model_config=DefaultModelConfig(**given["model"]))
)
algo = config.build_algo()
start = time.time()
algo.train()
print(json.dumps([start, time.time()]))
algo.stop()
"""


@dataclass(frozen=True)
class Comparison:
    """One line of the table: ours, the other side, and the bound on ours or on the ratio."""

    what: str
    other: str
    ours_s: list[float]
    others_s: list[float]
    bound_s: float | None = None
    bound_ratio: float | None = None

    @property
    def ratio(self) -> float:
        return statistics.median(self.ours_s) / statistics.median(self.others_s)

    @property
    def is_kept(self) -> bool:
        if self.bound_s is not None:
            return statistics.median(self.ours_s) < self.bound_s
        return self.bound_ratio is None or self.ratio <= self.bound_ratio

    def row(self) -> str:
        if self.bound_s is not None:
            bound = f"< {self.bound_s:g} s"
        else:
            bound = "" if self.bound_ratio is None else f"<= {self.bound_ratio:g}x"
        verdict = f"{bound}: {'kept' if self.is_kept else 'NOT kept'}" if bound else "-"
        cells = (
            self.what,
            _spread(self.ours_s),
            self.other,
            _spread(self.others_s),
            f"{self.ratio:.2f}x",
            verdict,
        )
        return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of each side, for the slow ones (the quick ones get 4x)")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    text = report(compare_all(options.rounds), load)
    print(text)
    if not options.no_write:
        write_section(RESULTS, SECTION, text)
    return 0


def compare_all(rounds: int) -> list[Comparison]:
    """Measure everything, each pair taking turns."""
    plato, python = [str(Path(sys.executable).parent / "plato")], sys.executable
    with tempfile.TemporaryDirectory() as name:
        project = Path(name)
        (project / "plato.yaml").write_text("sim: CartPole-v1\n")
        help_s = _take_turns(4 * rounds, _timed([*plato, "--help"]), _timed([python, "-c", "pass"]))
        import_s = _take_turns(4 * rounds, _timed([python, "-c", "import platotk"]), _timed([python, "-c", "pass"]))
        check_s = _take_turns(rounds, _timed([*plato, "check", "-C", name]), _timed([python, "-c", CHECK_ENV]))
        train_s = _take_turns(rounds, lambda: _first_iteration(project), _bare_first_iteration)
    starts = [[start for start, _ in side] for side in train_s]
    ends = [[end for _, end in side] for side in train_s]
    return [
        Comparison("`plato --help`", "`python -c pass`", *help_s, bound_s=0.3),
        Comparison("`import platotk`", "`python -c pass`", *import_s, bound_s=0.2),
        Comparison("`plato check` (CartPole)", "Gymnasium's `check_env`", *check_s, bound_s=8.0),
        Comparison("`plato train`: first iteration starts", "bare RLlib, same config", *starts, bound_ratio=1.3),
        Comparison("`plato train`: first iteration ends", "bare RLlib, same config", *ends),
    ]


def _take_turns(rounds: int, ours: Callable[[], object], others: Callable[[], object]) -> tuple[list, list]:
    """Both sides `rounds` times, alternating; the first pair warms the disk cache and is not counted."""
    pairs = [(ours(), others()) for _ in range(rounds + 1)][1:]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _timed(command: list[str]) -> Callable[[], float]:
    def measure() -> float:
        began = time.time()
        subprocess.run(command, check=True, capture_output=True)
        return time.time() - began

    return measure


def _first_iteration(project: Path) -> tuple[float, float]:
    """Seconds from starting `plato train` to start and end of its first iteration, from the journal."""
    began = time.time()
    command = [
        str(Path(sys.executable).parent / "plato"),
        "train",
        "-C",
        str(project),
        "--set",
        "stop.iterations=1",
        "--json",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    journal = Path(json.loads(done.stdout)["path"]) / "metrics.jsonl"
    end = journal.stat().st_mtime  # written when the first and only iteration is over
    duration_s = json.loads(journal.read_text())["time_s"]
    return end - duration_s - began, end - began


def _bare_first_iteration() -> tuple[float, float]:
    from platotk.learning.algorithm import MODEL_DEFAULTS, NUM_ENVS, TRAINING_DEFAULTS

    given = {"training": TRAINING_DEFAULTS["PPO"], "model": MODEL_DEFAULTS, "num_envs": NUM_ENVS}
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    began = time.time()
    command = [sys.executable, "-c", BARE_RLLIB, json.dumps(given)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    start, end = json.loads(done.stdout.strip().splitlines()[-1])
    return start - began, end - began


def report(comparisons: list[Comparison], load: float) -> str:
    """The section: where, what and how, then the table.

    Args:
        comparisons: The table.
        load: Of the machine before the first measurement.
    """
    is_busy = load > 0.5 * (os.cpu_count() or 1)
    warning = " - **the machine was busy with other work: measure again before leaning on these figures**"
    return "\n".join(
        [
            "## Start-up",
            "",
            "Seconds from starting the process; median (least to most), the two sides taking turns.",
            "",
            f"- command: `{' '.join(['.venv/bin/python benchmarks/startup.py', *sys.argv[1:]])}`",
            f"- machine: {machine()}",
            f"- versions: {versions()}",
            f"- commit: {commit()}",
            f"- when: {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
            f"- load before it: {load:.1f}{warning if is_busy else ''}",
            "",
            "| ours | s | other side | s | ratio of medians | bound |",
            "| --- | --- | --- | --- | --- | --- |",
            *(comparison.row() for comparison in comparisons),
        ]
    )


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}, n={len(values)})"


def machine() -> str:
    """Processor, cores and memory."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{model}, {os.cpu_count()} cores, {memory_gb:.0f} GB, {platform.system()} {platform.release()}"


def versions() -> str:
    """What the figures depend on most."""
    from importlib.metadata import version

    packages = ("platotk", "ray", "torch", "gymnasium", "typer")
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)])


def commit() -> str:
    """The commit measured, and whether the checkout had changes."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    return (git("rev-parse", "--short", "HEAD") or "none") + (" with changes" if git("status", "--porcelain") else "")


def names_of(parser: argparse.ArgumentParser, text: str, known: Iterable[str]) -> list[str]:
    """The names in a comma-separated argument; one that is not known ends the program with those that are."""
    names, known = [name.strip() for name in text.split(",")], list(known)
    for name in names:
        if name not in known:
            parser.error(f"{name!r} is none of: {', '.join(known)}")
    return names


def write_section(path: Path, name: str, text: str) -> None:
    """Put `text` in the place of the section `name` of a Markdown file, or at its end."""
    begin, end = f"<!-- {name}: written by benchmarks/{name}.py -->", f"<!-- end of {name} -->"
    page = path.read_text("utf-8") if path.exists() else "# Results\n\nWritten by the scripts here, never by hand.\n"
    section = f"{begin}\n{text}\n{end}"
    if begin in page:
        before, rest = page.split(begin, 1)
        page = before + section + rest.split(end, 1)[1]
    else:
        page = f"{page.rstrip()}\n\n{section}\n"
    path.write_text(page, "utf-8")


if __name__ == "__main__":
    sys.exit(main())
