"""The figures of a journal line that go to MLflow and TensorBoard, by name, those that people need first.

`chosen_metrics` is given a line of metrics.jsonl and gives back fewer than 40 numbers that everybody wants, then those
that the project's own callbacks logged; RLlib's hundreds stay there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
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
CLUSTER_METRICS = ("nodes", "cpus", "cpu_percent", "memory_percent")
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
"""Of RLlib's hundreds, by RLlib's names."""
CURATED = frozenset(
    [
        *JOURNAL_METRICS,
        "evaluation/return_mean",
        *(f"cluster/{name}" for name in CLUSTER_METRICS),
        *(f"learner/{name}" for name in LEARNER_METRICS),
    ]
)
"""Fewer than 40: Azure ML takes 50 names a run."""
BOOKKEEPING = re.compile(
    r"(num_(env|agent|module)_steps|num_(episodes|trainable|non_trainable|nonfinite|target_updates)"
    r"|episode_(return|len|duration)_|(agent|module)_(episode_return|steps|train_batch)"
    r"|env_to_module|module_to_env|learner_connector|connector_|timers?$|sim_failures$|sample$|time_between_sampling$"
    r"|weights_seq_no$|diff_num_grad_updates|last_target_update_ts$).*|.*(_timer|_throughput)$"
)
"""RLlib's counters and clocks, which the journal has."""


def chosen_metrics(line: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a journal line that are worth a curve, by name; those that are null are left out.

    First those of `CURATED`, then what is neither theirs nor RLlib's bookkeeping: the metrics of the project's own
    callbacks and losses.
    """
    rllib = line.get("rllib") or {}
    learners = rllib.get("learners") or {}
    module = next((learners[name] for name in learners if not name.startswith("__")), None) or {}
    evaluated = ((rllib.get("evaluation") or {}).get("env_runners") or {}).get("episode_return_mean")
    cluster = line.get("cluster") or {}
    chosen = {
        **{name: line.get(name) for name in JOURNAL_METRICS},
        "evaluation/return_mean": evaluated,
        **{f"cluster/{name}": cluster.get(name) for name in CLUSTER_METRICS},
        **{f"learner/{name}": module.get(name) for name in LEARNER_METRICS},
    }
    for name, value in [*_others(rllib.get("env_runners") or {}), *_others(module, "learner/")]:
        chosen.setdefault(name, value)
    return {name: value for name, given in chosen.items() if (value := _number(given)) is not None}


def _others(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What is not RLlib's bookkeeping, nested ones as `pump/energy`."""
    for key, value in values.items():
        if BOOKKEEPING.match(str(key)):
            continue
        if isinstance(value, Mapping):
            yield from _others(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _number(value: Any) -> float | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)
