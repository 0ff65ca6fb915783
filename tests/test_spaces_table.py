"""The table "spaces that train": its cells are trained for real, and its page says what was measured."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "docs/_scripts"
ALGORITHMS = ("PPO", "APPO", "IMPALA", "BC", "SAC", "DQN")


@pytest.fixture(scope="module")
def table() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPTS / "spaces_table.py"), run_name="spaces_table"))


@pytest.fixture(scope="module")
def cells() -> ModuleType:
    import ray

    sys.path.insert(0, str(SCRIPTS / "spaces_table_parts"))
    import cells as module

    if not ray.is_initialized():
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    return module


@pytest.mark.parametrize(
    ("pair", "column"),
    [
        ("image and numbers, mixed", "PPO"),
        ("image, choices masked in info", "DQN"),
        ("uint8, large integers", "SAC"),
        ("Text, Text", "BC"),
    ],
)
def test_a_cell_is_trained(cells: ModuleType, pair: str, column: str) -> None:
    assert cells.measure(pair, column)["outcome"] == "trained"


def test_a_refusal_names_what_fits(cells: ModuleType) -> None:
    cell = cells.measure("image and numbers, mixed", "SAC")
    assert cell["outcome"] == "refused"
    assert cell["fitting"] == ["PPO", "APPO", "IMPALA", "BC"]
    assert "algorithm: PPO" in cell["hint"]


def test_a_failure_is_what_the_sim_said(cells: ModuleType) -> None:
    cell = cells.measure("half-bounded, number ()", "RLlib")
    assert (cell["outcome"], cell["error"]) == ("failed", "ActionOutsideSpace")


def test_a_cell_that_takes_too_long_has_failed(cells: ModuleType) -> None:
    cell = cells.measure("vector, choice", "PPO", limit_s=1e-3)
    assert (cell["outcome"], cell["error"]) == ("failed", "TooLong")


def test_fuzzed_values_come_back(cells: ModuleType) -> None:
    assert cells.round_trips("nested deeply, nested deeply", 20)["actions"] == 20
    assert cells.round_trips("Dict with the mask, choice", 20)["adapters"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("column", ALGORITHMS)
def test_every_pair_is_trained_or_refused(cells: ModuleType, column: str) -> None:
    outcomes = {pair: cells.measure(pair, column) for pair in cells.PAIRS}
    assert {pair: cell for pair, cell in outcomes.items() if cell["outcome"] == "failed"} == {}
    if column not in ("SAC", "DQN"):
        assert {cell["outcome"] for cell in outcomes.values()} == {"trained"}


@pytest.mark.slow
def test_fuzzed_values_of_every_pair_come_back(cells: ModuleType) -> None:
    for pair in cells.PAIRS:
        assert cells.round_trips(pair, 1000)["observations"] == 1000


def test_the_measurement_is_whole(table: SimpleNamespace, cells: ModuleType) -> None:
    data = json.loads(table.DATA.read_text("utf-8"))
    assert list(data["pairs"]) == list(cells.PAIRS)
    assert len(data["pairs"]) >= 30
    for pair in data["pairs"].values():
        assert set(pair["cells"]) == set(table.COLUMNS)
        assert pair["round_trips"] == {
            **pair["round_trips"],
            "outcome": "passed",
            "observations": 1000,
            "actions": 1000,
        }


def test_platotk_trains_or_refuses_every_pair(table: SimpleNamespace) -> None:
    pairs = json.loads(table.DATA.read_text("utf-8"))["pairs"]
    outcomes = {column: [pair["cells"][column]["outcome"] for pair in pairs.values()] for column in ALGORITHMS}
    assert {column for column, seen in outcomes.items() if "failed" in seen} == set()
    assert {column for column, seen in outcomes.items() if "refused" in seen} == {"SAC", "DQN"}


def test_the_page_is_what_was_measured(table: SimpleNamespace) -> None:
    data = json.loads(table.DATA.read_text("utf-8"))
    page = table.PAGE.read_text("utf-8")
    assert page == table.page(data), "run: .venv/bin/python docs/_scripts/spaces_table.py"
    assert page.count("\n| **") == len(data["pairs"]) + 1
    for word in (data["about"]["machine"], data["about"]["commit"], *data["about"]["commands"]):
        assert word in page


def test_what_failed_and_what_was_refused_is_on_the_page(table: SimpleNamespace) -> None:
    cells = {
        "PPO": {"outcome": "trained"},
        "SAC": {"outcome": "refused", "detail": "SAC <cannot>", "hint": "Use PPO.", "fitting": ["PPO"]},
        "SB3": {"outcome": "failed", "error": "KeyError", "detail": "a|b"},
    }
    pair = {"observation": "Discrete(2)", "action": "Text(1)", "mask": "info", "cells": cells}
    page = table.page({"about": {}, "pairs": {"one": pair}})
    row = next(line for line in page.splitlines() if line.startswith("| **one**"))
    assert row.endswith("| ✓ | – | – | – | *refused: use PPO* | – | – | – | ✗ `KeyError` |")
    assert "- **one**, SAC: SAC &lt;cannot&gt; Use PPO." in page
    assert "- **one**, Stable-Baselines3 PPO: `KeyError`: a\\|b" in page
