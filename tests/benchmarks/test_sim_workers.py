"""The benchmark of slow sims: its table says what was reached, and both sides train with the same values."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from sim_workers import NUM_SIMS, platotk_config, report, rllib_config


def run(rllib: float, platotk: float, workers: float) -> dict[str, Any]:
    rates = {"rllib": rllib, "platotk": platotk, "workers": workers}
    return {side: {"steps_per_s": rate} for side, rate in rates.items()}


def test_the_median_of_the_ratios_of_rounds_decides() -> None:
    text = report([run(1_000, 5_000, 6_000), run(1_000, 3_000, 6_000), run(500, 2_500, 3_500)], 0.5)
    assert "| platotk by RLlib | 5.0 (3.0 to 5.0) | 4 | reached |" in text
    assert "| platotk by its workers alone | 0.71 (0.50 to 0.83) | 0.8 | not reached |" in text
    assert "| RLlib, AsyncVectorEnv | 1,000 (500 to 1,000) |" in text
    assert "busy" not in text
    assert "busy" in report([run(1, 1, 1)], 9.0)


def test_both_sides_train_with_the_same_values() -> None:
    ours, rllibs = platotk_config(), rllib_config()
    for name in ("lr", "gamma", "lambda_", "clip_param", "num_epochs", "minibatch_size", "grad_clip", "vf_clip_param"):
        assert getattr(ours, name) == getattr(rllibs, name), name
    assert ours.total_train_batch_size == rllibs.total_train_batch_size == 2048
    assert ours.num_envs_per_env_runner == rllibs.num_envs_per_env_runner == NUM_SIMS
    assert ours.num_env_runners == rllibs.num_env_runners == 0
    for name in ("fcnet_hiddens", "fcnet_activation", "vf_share_layers"):
        assert getattr(ours.model_config, name, None) == getattr(rllibs.model_config, name, None), name
