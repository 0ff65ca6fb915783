"""The throughput benchmark: both sides do the same work, and its table says what was reached."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import throughput
from throughput import ROWS, platotk_config, report, rllib_config


def pair(row: str, number: int, ours: float, rllibs: float) -> dict[str, Any]:
    side = {"iteration_s": 1.0, "iterations": 5, "learner": "kernel", "memory_mb": 300.0}
    return {
        "row": row,
        "round": number,
        "platotk": {**side, "steps_per_s": ours, "steps_per_cpu_s": ours},
        "rllib": {**side, "steps_per_s": rllibs, "steps_per_cpu_s": rllibs},
        "ratio": ours / rllibs,
        "cpu_ratio": ours / rllibs,
    }


def test_the_median_of_the_ratios_of_pairs_decides() -> None:
    runs = [pair("cartpole", 0, 13_000, 1_000), pair("cartpole", 1, 5_000, 1_000), pair("cartpole", 2, 14_000, 1_000)]
    runs += [pair("tuned", number, 7_000, 1_000) for number in range(3)]
    lines = {
        line.split("|")[1].strip(): line
        for line in report(runs, ["cartpole", "tuned"], 0.5).splitlines()
        if "|" in line
    }
    cartpole = lines[ROWS["cartpole"].title]
    assert "13.0 (5.0 to 14.0)" in cartpole
    assert "13,000 (5,000 to 14,000)" in cartpole
    assert "| reached |" in cartpole
    tuned = lines[ROWS["tuned"].title]
    assert "| not reached |" in tuned
    assert "| - |" in tuned  # the CPU of runners is not the driver's
    assert "busy" not in report(runs, ["cartpole"], 0.5)
    assert "busy" in report(runs, ["cartpole"], 7.0)


@pytest.mark.parametrize("name", ROWS)
def test_both_sides_do_the_same_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platotk.learning.engine.compilation.kernel", lambda: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    row = ROWS[name]
    ours, rllibs = platotk_config(row), rllib_config(row)
    assert ours.env_runner_cls.__name__ == "EngineRunner"
    assert rllibs.env_runner_cls is None
    assert rllibs.learner_class.__name__ == f"{row.algorithm}TorchLearner"
    assert ours.algo_class.__name__ == rllibs.algo_class.__name__ == row.algorithm
    for key in row.work:
        assert getattr(ours, key) == getattr(rllibs, key), key
    for config in (ours, rllibs):
        sims = config.num_envs_per_env_runner * max(1, config.num_env_runners)
        assert sims == row.num_envs * max(1, row.runners)
    if not row.is_own_network:
        assert ours.model_config["fcnet_hiddens"] == rllibs.model_config["fcnet_hiddens"]
    assert throughput.SIDES == ("platotk", "rllib")
