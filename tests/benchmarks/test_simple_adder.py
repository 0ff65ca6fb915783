"""The Simple Adder's verdict: an exact optimum, three bounds, and the starts that were missed."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/simple_adder.py"
GOOD = {
    "run": "one",
    "env_steps": 120_000,
    "reason": "env_steps reached 120,000",
    "training_s": 60.0,
    "hits": 101,
    "missed": [],
    "return_mean": -31.0,
    "optimum": -30.69,
    "random_rate": 1.0,
}


@pytest.fixture(scope="module")
def benchmark() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT), run_name="simple_adder"))


def test_the_optimum_is_exact(benchmark: SimpleNamespace) -> None:
    assert benchmark.optimum() == pytest.approx(-30.69, abs=0.005)
    assert benchmark._best(45, 10) == 0
    assert benchmark._best(50, 10) == 0  # adding nothing
    assert benchmark._best(80, 10) == -30


def test_a_good_run_is_solved(benchmark: SimpleNamespace) -> None:
    assert benchmark.is_solved(GOOD)
    assert "NOT kept" not in benchmark.report(GOOD)


@pytest.mark.parametrize(
    "worse", [{"hits": 99, "missed": [0, 100]}, {"return_mean": -31.7}, {"random_rate": 0.989}], ids=str
)
def test_one_bound_that_is_not_kept_is_enough(benchmark: SimpleNamespace, worse: dict) -> None:
    measured = {**GOOD, **worse}
    assert not benchmark.is_solved(measured)
    text = benchmark.report(measured)
    assert text.count("NOT kept") == 1
    assert f"did not end on 50: {', '.join(map(str, measured['missed'])) or 'none'}." in text


@pytest.mark.slow
def test_the_example_as_it_is_shipped_solves_it(benchmark: SimpleNamespace, tmp_path: Path) -> None:
    path, _ = benchmark.train(tmp_path / "run")
    measured = benchmark.measure(path)
    assert benchmark.is_solved(measured), measured
