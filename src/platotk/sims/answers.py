"""What a sim's `reset` and `step` gave, once it is seen to be what Gymnasium says it is."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

from .process import SimFailure

Answer: TypeAlias = tuple[Any, float, bool, bool, dict[str, Any]]
"""Observation, reward, terminated, truncated, info: as Gymnasium's `step` gives them."""


def of_reset(answer: Any) -> tuple[Any, dict[str, Any]]:
    """Observation and info.

    Raises:
        SimFailure: It is no pair.
    """
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise _unlike(answer, "reset", "(observation, info)")
    observation, info = answer
    return observation, info if isinstance(info, dict) else {}


def of_step(answer: Any) -> Answer:
    """The same with a float, two bools and a dict; an answer that has them comes back as it is.

    Raises:
        SimFailure: It has not five parts, or the reward is not one finite number.
    """
    if not isinstance(answer, tuple) or len(answer) != 5:
        raise _unlike(answer, "step", "(observation, reward, terminated, truncated, info)")
    observation, reward, terminated, truncated, info = answer
    if (
        type(reward) is float
        and -math.inf < reward < math.inf
        and type(terminated) is bool
        and type(truncated) is bool
        and type(info) is dict
    ):
        return answer
    return observation, _number(reward), bool(terminated), bool(truncated), info if isinstance(info, dict) else {}


def _number(reward: Any) -> float:
    try:
        value = float(reward)
    except (TypeError, ValueError):
        try:
            value = float(np.asarray(reward, dtype=np.float64).reshape(()))
        except (TypeError, ValueError):
            raise SimFailure(f"step() returned the reward {reward!r}; it must be one number") from None
    if not math.isfinite(value):
        raise SimFailure(f"step() returned the reward {value}; it must be a finite number")
    return value


def _unlike(answer: Any, call: str, what: str) -> SimFailure:
    got = f"{len(answer)} values" if isinstance(answer, tuple) else type(answer).__name__
    return SimFailure(f"{call}() returned {got}; it must return {what}")
