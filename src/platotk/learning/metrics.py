"""The few of a journal line's figures that go to MLflow and TensorBoard, by name.

`chosen_metrics` is given a line of metrics.jsonl and gives back at most 40 numbers; RLlib's hundreds
stay there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

JOURNAL_METRICS = (
    "env_steps",
    "time_s",
    "env_steps_per_s",
    "episodes",
    "return_mean",
    "return_min",
    "return_max",
    "episode_length_mean",
    "sim_failures",
)
LEARNER_METRICS = (
    "total_loss",
    "policy_loss",
    "vf_loss",
    "vf_explained_var",
    "entropy",
    "mean_kl_loss",
    "curr_kl_coeff",
    "curr_entropy_coeff",
    "default_optimizer_learning_rate",
    "gradients_default_optimizer_global_norm",
    "qf_loss",
    "qf_twin_loss",
    "qf_mean",
    "qf_min",
    "qf_max",
    "td_error_mean",
    "alpha_value",
    "alpha_loss",
    "logps",
)
"""Of RLlib's hundreds, by RLlib's names. All in all fewer than 40: Azure ML takes 50 names a run."""


def chosen_metrics(line: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a journal line that are worth a curve, by name; those that are null are left out."""
    rllib = line.get("rllib") or {}
    learners = rllib.get("learners") or {}
    module = next((learners[name] for name in learners if not name.startswith("__")), None) or {}
    evaluated = ((rllib.get("evaluation") or {}).get("env_runners") or {}).get("episode_return_mean")
    chosen = {
        **{name: line.get(name) for name in JOURNAL_METRICS},
        **{f"learner/{name}": module.get(name) for name in LEARNER_METRICS},
        "evaluation/return_mean": evaluated,
    }
    return {name: value for name, given in chosen.items() if (value := _number(given)) is not None}


def _number(value: Any) -> float | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)
