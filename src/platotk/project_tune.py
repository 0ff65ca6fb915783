"""The section `tune` of plato.yaml: which settings `plato tune` tries, in the words of Ray Tune.

Given what stands in the file; whether a key is one of the project's is found when the first value is put there.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from .project_fields import Count, Seconds, Section, Words, number, section

BETWEEN = ("uniform", "loguniform", "randint", "lograndint")
"""Domains of `ray.tune` that take a lower and an upper bound."""
IN_STEPS = ("quniform", "qloguniform", "qrandint", "qlograndint")
"""The same, and the step to round to."""
ONE_OF = ("choice", "grid_search")
"""Domains that take the values themselves."""


class Tune(Section):
    """What `plato tune` tries: many trainings, each with other settings. Words and meanings are Ray Tune's."""

    param_space: dict[str, Any] = Field(default_factory=dict)
    """By key of this file, as for `--set`, what is drawn: `training.lr: {loguniform: [1e-5, 1e-2]}`. Domains:
    `uniform`, `loguniform`, `randint`, `lograndint` (lower, upper), the same with `q` before and a step after,
    `choice`, `grid_search` (values; each is tried)."""
    num_samples: Count = 10
    """How many trials; with a `grid_search`, how often the grid is gone through."""
    max_concurrent_trials: Count | Literal["auto"] = "auto"
    """How many train at a time; `auto` is what the CPUs of this machine bear."""
    metric: Words = "return_mean"
    """What a trial is judged by: a figure of metrics.jsonl, at its best iteration."""
    mode: Literal["max", "min"] = "max"
    """Whether more of it is better, or less."""
    scheduler: Literal["asha", "fifo"] = "asha"
    """`asha` ends trials early that are behind where others were (Li et al. 2020, arXiv:1810.05934); `fifo` ends
    none."""
    grace_period: Count | None = None
    """Iterations before `asha` may end a trial. Default: a ninth of `stop.iterations`, or 10."""
    reduction_factor: int = Field(default=3, ge=2)
    """Of this many trials that reach a rung of `asha`, one goes on."""
    time_budget_s: Seconds | None = None
    """End after this long, whatever has been tried: seconds, or 2h. Trials under way are stopped, and can go on."""

    @field_validator("param_space", mode="before")
    @classmethod
    def _domains(cls, value: Any) -> Any:
        space = section(value)
        for key, domain in space.items():
            problem = _problem(domain)
            if problem:
                raise ValueError(f"{key} is {domain!r}; {problem}")
        return space


def _problem(domain: Any) -> str | None:
    """What is wrong with a domain; None when nothing is."""
    known = (*BETWEEN, *IN_STEPS, *ONE_OF)
    if not isinstance(domain, dict) or len(domain) != 1 or next(iter(domain)) not in known:
        return f"expected one of {', '.join(known)}, for example {{loguniform: [1e-5, 1e-2]}}"
    ((word, given),) = domain.items()
    if not isinstance(given, list) or not given:
        return f"{word} takes a list"
    if word in ONE_OF:
        return None
    if len(given) != (2 if word in BETWEEN else 3):
        return f"{word} takes [lower, upper{']' if word in BETWEEN else ', step]'}"
    try:
        lower, upper = number(given[0]), number(given[1])
        [number(step) for step in given[2:]]
    except ValueError:
        return f"{word} takes numbers"
    if not lower < upper:
        return "the lower bound is not below the upper one"
    if "int" in word and not all(float(bound).is_integer() for bound in given):
        return f"{word} takes whole numbers"
    return "a logarithm needs a lower bound above 0" if "log" in word and lower <= 0 else None
