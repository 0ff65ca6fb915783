"""The table "spaces that train": measured when asked to, and written to docs/reference/spaces.md.

Thirty pairs of spaces, each trained for two iterations by every algorithm, beside plain RLlib and Stable-Baselines3.
Without arguments it only writes the page from docs/assets/spaces_table.json; with `--measure` it measures first,
one cell after the other, each saved as soon as it is known.

    .venv/bin/python docs/_scripts/spaces_table.py --measure --baselines-python /tmp/sb3/bin/python
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PARTS = Path(__file__).resolve().parent / "spaces_table_parts"
DATA = ROOT / "docs/assets/spaces_table.json"
PAGE = ROOT / "docs/reference/spaces.md"
PLATOTK = ("PPO", "APPO", "IMPALA", "BC", "SAC", "DQN")
RLLIB = ("RLlib", "RLlib, flattened")
BASELINES = "SB3"
COLUMNS = (*PLATOTK, *RLLIB, BASELINES)
TITLES = {
    "RLlib": "RLlib 2.60 PPO as it is",
    "RLlib, flattened": "RLlib 2.60 PPO + `FlattenObservations`",
    "SB3": "Stable-Baselines3 PPO",
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure before the page is written")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="pairs to measure, e.g. '*image*'")
    parser.add_argument("--columns", default=";".join(COLUMNS), help="columns to measure, with ; between them")
    parser.add_argument("--resume", action="store_true", help="measure only what is not there yet")
    parser.add_argument("--fuzz", type=int, default=1000, help="values taken both ways for each pair")
    parser.add_argument("--baselines-python", type=Path, help="a Python with stable-baselines3, for its column")
    parser.add_argument("--data", type=Path, default=DATA, help="where the measurements are")
    options = parser.parse_args(arguments)
    if options.measure:
        measure(options)
    data = json.loads(options.data.read_text("utf-8"))
    if options.data == DATA:
        PAGE.write_text(page(data), "utf-8")


def measure(options: argparse.Namespace) -> None:
    """Measure the cells that were asked for, and save each in the JSON file."""
    sys.path[:0] = [str(PARTS), str(ROOT / "benchmarks")]
    from pairs import PAIRS

    columns = [column for column in options.columns.split(";") if column]
    if unknown := set(columns) - set(COLUMNS):
        raise SystemExit(f"unknown columns: {sorted(unknown)}; there are {list(COLUMNS)}")
    names = [name for name in PAIRS if fnmatch.fnmatch(name, options.only)]
    is_kept = options.data.exists() and (options.resume or options.only != "*" or options.columns != ";".join(COLUMNS))
    data = json.loads(options.data.read_text("utf-8")) if is_kept else {"about": {}, "pairs": {}}
    data["pairs"] = {name: data["pairs"].get(name) or _describe(PAIRS[name]) for name in PAIRS}

    def keep(name: str, key: str, value: dict[str, Any]) -> None:
        data["pairs"][name]["cells"][key] = value
        _save(options.data, data)
        print(f"{name} | {key} | {_cell(value)} | {value['seconds']} s", flush=True)

    def todo(keys: Iterable[str]) -> list[tuple[str, str]]:
        keys = list(keys)
        wanted = [(name, key) for name in names for key in keys]
        return [at for at in wanted if not (options.resume and at[1] in data["pairs"][at[0]]["cells"])]

    about = _about(options.baselines_python)
    data["about"] = {**data["about"], **about, "commands": [*data["about"].get("commands", []), about.pop("command")]}
    _save(options.data, data)
    if BASELINES in columns and options.baselines_python:
        for name, cell in _baselines(options.baselines_python, [name for name, _ in todo([BASELINES])]):
            keep(name, BASELINES, cell)
    in_process = todo(column for column in columns if column != BASELINES)
    if not in_process:
        return
    _start_ray()
    import cells

    for name in names:
        if set(columns) & set(PLATOTK) and not (options.resume and data["pairs"][name].get("round_trips")):
            data["pairs"][name]["round_trips"] = _round_trips(name, options.fuzz)
            data["pairs"][name]["mapping"] = cells.adapter_of(name, "PPO").describe()
        for _, column in (at for at in in_process if at[0] == name):
            keep(name, column, cells.measure(name, column))
    import ray

    ray.shutdown()


def page(data: dict[str, Any]) -> str:
    """The page: how to read it, the counts, the table, the reasons and the errors."""
    about, pairs = data["about"], data["pairs"]
    notes: list[str] = []
    rows = []
    for name, pair in pairs.items():
        cells = [_noted(pair["cells"].get(column), name, column, notes) for column in COLUMNS]
        both = f"{_code(pair['observation'])} → {_code(pair['action'])}"
        mask = f", mask in `{pair['mask']}`" if pair["mask"] else ""
        rows.append(f"| **{name}**<br>{both}{mask} | {' | '.join(cells)} |")
    header = ["observation → action", *(f"`{name}`" if name in PLATOTK else TITLES[name] for name in COLUMNS)]
    counts = [_count(pairs, column) for column in COLUMNS]
    return "\n".join(
        [
            "# Spaces that train",
            "",
            "<!-- Written by docs/_scripts/spaces_table.py from docs/assets/spaces_table.json. -->",
            "",
            f"{len(pairs)} pairs of an observation and an action space, each with a toy sim of its own that refuses",
            "every action outside its space or forbidden by its mask. Each cell was trained for real, in tiny batches,",
            "until the weights had changed in two iterations, were finite, and no sim had failed.",
            "",
            "The first six columns are platotk's algorithms; right of them stands the same sim without platotk.",
            "",
            "- ✓: trained.",
            "- *refused*: platotk says before training that this algorithm cannot take these spaces, and which can;",
            "  the reasons stand [below](#refusals).",
            "- ✗: it failed, with the class of the error; its first words stand [below](#errors).",
            "- –: not measured.",
            "",
            _fuzzed(pairs),
            "",
            f"| {' | '.join(header)} |",
            f"|{' --- |' * len(header)}",
            f"| **trained, of {len(pairs)}** | {' | '.join(counts)} |",
            *rows,
            "",
            "BC learns from recorded episodes of random actions, read in the same process. RLlib's own columns use",
            "PPO with the same batch sizes and network. Stable-Baselines3 was given all three of its policies",
            "(`MlpPolicy`, `CnnPolicy`, `MultiInputPolicy`); one that trains is enough. Their PPO knows no action",
            "masks (sb3-contrib's `MaskablePPO` does; RLlib wants an RLModule of your own): the sim refuses the first",
            "forbidden action.",
            "",
            "## How each space is learned from",
            "",
            "As `plato check` prints it, for PPO.",
            "",
            *_mappings(pairs),
            "## Refusals",
            "",
            *_refusals(pairs),
            "",
            "## Errors",
            "",
            *(notes or ["None."]),
            "",
            "## Measured",
            "",
            "```text",
            *about.get("commands", []),
            "```",
            "",
            f"- machine: {about.get('machine')}",
            f"- versions: {about.get('versions')}; {about.get('baselines') or 'Stable-Baselines3 not measured'}",
            f"- commit: {about.get('commit')}",
            f"- when: {about.get('when')}",
            "",
        ]
    )


def _describe(pair: Any) -> dict[str, Any]:
    return {"observation": str(pair.observation), "action": str(pair.action), "mask": pair.mask, "cells": {}}


def _round_trips(name: str, num: int) -> dict[str, Any]:
    import cells

    try:
        with cells.time_limit(300):
            return {"outcome": "passed", **cells.round_trips(name, num)}
    except (Exception, cells.TooLong) as error:
        return {"outcome": "failed", "error": type(error).__name__, "detail": str(error)[:300]}


def _baselines(python: Path, names: list[str]) -> Iterable[tuple[str, dict[str, Any]]]:
    if not names:
        return
    command = [str(python), str(PARTS / "baselines.py"), *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                cell = json.loads(line)
                yield cell.pop("pair"), cell


def _start_ray() -> None:
    import logging
    import warnings

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    import ray
    import torch

    from platotk.learning.cluster import quiet_rllib

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if not ray.is_initialized():
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    import ray.rllib.algorithms.ppo

    quiet_rllib()
    logging.disable(logging.ERROR)  # refusals of the sims come with long tracebacks


def _about(baselines_python: Path | None) -> dict[str, Any]:
    import shlex

    from startup import commit, machine, versions

    about = {
        "command": shlex.join([".venv/bin/python", "docs/_scripts/spaces_table.py", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "when": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
    }
    if baselines_python:
        words = (
            "from importlib.metadata import version as v; print(*map(v, ('stable-baselines3', 'torch', 'gymnasium')))"
        )
        done = subprocess.run([str(baselines_python), "-c", words], capture_output=True, text=True, check=True)
        about["baselines"] = "stable-baselines3 {} with torch {}, gymnasium {}".format(*done.stdout.split())
    return about


def _save(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", "utf-8")
    part.replace(path)


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "–"
    if cell["outcome"] == "trained":
        return "✓"
    if cell["outcome"] == "refused":
        return f"refused: use {cell['fitting'][0]}" if cell["fitting"] else "refused"
    return f"✗ {cell['error']}"


def _noted(cell: dict[str, Any] | None, name: str, column: str, notes: list[str]) -> str:
    text = _cell(cell)
    if cell is None or cell["outcome"] != "failed":
        return f"*{text}*" if text.startswith("refused") else text
    title = TITLES.get(column, column)
    notes.append(f"- **{name}**, {title}: `{cell['error']}`: {_escape(cell['detail'][:160]) or 'no message'}")
    return f"✗ `{cell['error']}`"


def _count(pairs: dict[str, Any], column: str) -> str:
    cells = [pair["cells"].get(column) for pair in pairs.values()]
    trained = sum(cell is not None and cell["outcome"] == "trained" for cell in cells)
    refused = sum(cell is not None and cell["outcome"] == "refused" for cell in cells)
    return f"**{trained}**" + (f" (+{refused} refused)" if refused else "")


def _fuzzed(pairs: dict[str, Any]) -> str:
    results = {name: pair["round_trips"] for name, pair in pairs.items() if pair.get("round_trips")}
    passed = [result for result in results.values() if result["outcome"] == "passed"]
    if not results:
        return "No values were taken both ways in this measurement."
    num = sorted({result["observations"] for result in passed})
    text = (
        f"{' or '.join(f'{n:,}' for n in num)} fuzzed observations and as many actions of each pair went both ways "
        "(encoded and decoded,\nto JSON and back; policy actions far outside their bounds included): "
        f"{len(passed)} of {len(results)} pairs without a difference."
    )
    failed = [f"{name} ({result['detail']})" for name, result in results.items() if result["outcome"] != "passed"]
    return text + (f" Not: {'; '.join(failed)}." if failed else "")


def _mappings(pairs: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for name, pair in pairs.items():
        if pair.get("mapping"):
            lines += [f"**{name}**", "", "```text", *pair["mapping"], "```", ""]
    return lines


def _refusals(pairs: dict[str, Any]) -> list[str]:
    lines = []
    for name, pair in pairs.items():
        for column, cell in pair["cells"].items():
            if cell["outcome"] == "refused":
                hint = f" {cell['hint']}" if cell.get("hint") else ""
                lines.append(f"- **{name}**, {column}: {_escape(cell['detail'] + hint)}")
    return lines or ["None."]


def _code(space: str) -> str:
    return f"`{space.replace('|', chr(92) + '|')}`"


def _escape(text: str) -> str:
    """Text as Markdown shows it: outside of `code`, nothing in it is a tag, a link or emphasis."""
    if text.count("`") % 2:
        text = text.replace("`", "'")
    parts = text.split("`")
    for index in range(0, len(parts), 2):
        for character in "\\*_[]|#":
            parts[index] = parts[index].replace(character, f"\\{character}")
        parts[index] = parts[index].replace("<", "&lt;").replace(">", "&gt;")
    return "`".join(parts)


if __name__ == "__main__":
    main()
