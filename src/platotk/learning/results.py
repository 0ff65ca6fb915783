"""From RLlib's result of one iteration to one line of the journal.

RLlib's results nest deeply, hold NaN while no episode has ended, and name things by where they were measured. The
journal's own keys are few and fixed; everything RLlib said follows under `rllib`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def journal_line(
    result: Mapping[str, Any],
    *,
    iteration: int,
    env_steps: int,
    time_s: float,
    duration_s: float,
    attempt: int,
    cluster: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One line of metrics.jsonl.

    Args:
        result: What `algo.train()` returned.
        iteration: Iterations of this run, resumed attempts counted on.
        env_steps: Environment steps of this run (for offline algorithms: rows trained on).
        time_s: Seconds of training of this run.
        duration_s: Seconds this iteration took.
        attempt: Which start of the run this is, from 1.
        cluster: How busy the machines were, as `Usage` tells.
    """
    runners = result.get("env_runners") or {}
    new_steps = runners.get("num_env_steps_sampled") or 0
    return {
        "iteration": iteration,
        "env_steps": env_steps,
        "time_s": round(time_s, 3),
        "env_steps_per_s": round(float(_number(new_steps) or 0.0) / max(duration_s, 1e-9), 1),
        "episodes": int(_number(runners.get("num_episodes_lifetime")) or 0),
        "return_mean": _number(runners.get("episode_return_mean")),
        "return_min": _number(runners.get("episode_return_min")),
        "return_max": _number(runners.get("episode_return_max")),
        "episode_length_mean": _number(runners.get("episode_len_mean")),
        "sim_failures": int(_number(runners.get("sim_failures")) or 0),
        "attempt": attempt,
        "cluster": cluster,
        "rllib": plain({key: value for key, value in result.items() if key not in ("config", "hist_stats")}),
    }


def lifetime_env_steps(result: Mapping[str, Any]) -> int:
    """Environment steps since RLlib's own count began; for offline algorithms the rows trained on."""
    runners = result.get("env_runners") or {}
    steps = _number(runners.get("num_env_steps_sampled_lifetime"))
    if steps is None:
        learners = (result.get("learners") or {}).get("__all_modules__") or {}
        steps = _number(
            learners.get("num_env_steps_trained_lifetime") or learners.get("num_module_steps_trained_lifetime")
        )
    return int(steps or 0)


def num_skipped_updates(result: Mapping[str, Any]) -> int:
    """Minibatches of the iteration that the engine left out because their gradients were not finite."""
    learners = (result.get("learners") or {}).values()
    counts = [_number(one.get("num_nonfinite_updates")) for one in learners if isinstance(one, Mapping)]
    return int(sum(count or 0 for count in counts))


def plain(value: Any) -> Any:
    """A JSON-ready copy: numbers as Python's, NaN and infinity as None, anything else as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if hasattr(value, "peek"):  # one of RLlib's Stats objects
        return plain(value.peek())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def _number(value: Any) -> float | None:
    value = plain(value)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
