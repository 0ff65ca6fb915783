"""The learning benchmark: its figures are those of the runs, and what is missing is said."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/learning.py"


@pytest.fixture(scope="module")
def learning() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT), run_name="learning"))


def runs(side: str, steps: list[int], is_solved: bool = True) -> list[dict[str, Any]]:
    return [
        {"task": "cartpole", "side": side, "seed": seed, "env_steps": n, "is_solved": is_solved, "greedy_mean": 500.0}
        for seed, n in enumerate(steps)
    ]


def test_the_ratio_is_of_the_medians_and_has_an_interval(learning: SimpleNamespace) -> None:
    ours, others = [90_000, 100_000, 110_000] * 4, [100_000, 100_000, 120_000] * 4
    text = learning.report("cartpole", [*runs("platotk", ours), *runs("rllib", others)], {"commit": "abc"})
    low, high = learning.interval([float(n) for n in ours], [float(n) for n in others])
    assert 0.8 < low <= 1.0 <= high < 1.1
    assert "Ratio of the medians: **1.00**" in text
    assert f"{low:.2f} to {high:.2f}" in text
    assert "paired seeds: 12\n" in text
    assert "**kept**" in text


def test_a_bound_that_is_not_kept_is_said(learning: SimpleNamespace) -> None:
    text = learning.report("cartpole", [*runs("platotk", [150_000] * 10), *runs("rllib", [100_000] * 10)], {})
    assert "Ratio of the medians: **1.50**" in text
    assert "**NOT kept**" in text


def test_too_few_seeds_and_runs_without_their_pair_are_said(learning: SimpleNamespace) -> None:
    measured = [*runs("platotk", [90_000, 95_000, 99_000]), *runs("rllib", [100_000, 100_000], is_solved=False)]
    text = learning.report("cartpole", measured, {})
    assert "paired seeds: 2 of the 10 that are called for: **too few to settle it**" in text
    assert "| 2 of 2 | 0 of 2 |" in text
    assert "100,000 (not solved)" in text
    assert "99,000" not in text
    assert "**not settled, too few seeds**" in text


def test_no_whole_pair_is_no_table(learning: SimpleNamespace) -> None:
    assert learning.report("cartpole", runs("platotk", [90_000]), {}).endswith("nothing can be said.")


@pytest.mark.parametrize("engine", ["auto", "rllib"])
def test_only_the_steps_of_training_count(engine: str, ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides play greedily between iterations; those steps are not learned from."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    tasks = SimpleNamespace(**runpy.run_path(str(SCRIPT.with_name("learning_tasks.py")), run_name="learning_tasks"))
    training = {"train_batch_size_per_learner": 400, "minibatch_size": 200, "num_epochs": 1}
    task = replace(tasks.TASKS["simple-adder"], sim="CartPole-v1", training=training, target=1.1, max_steps=900)
    steps, reached, greedy = tasks.by_config(task, engine, seed=1)
    assert 1200 <= steps <= 1250
    assert 0.9 <= reached <= 1.0  # of falls
    assert 8.0 <= greedy <= 300.0
