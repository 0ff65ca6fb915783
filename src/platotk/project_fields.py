"""The small types that a project is made of: counts, durations, flags, and the sections that platotk owns.

Each takes what a person would write (`1e6` for a count, `10m` for a duration) and refuses, in words, what
would be taken for something else (`'5'` or `true` for a number, `yes` for a flag).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator

SECTIONS = (
    "training",
    "env_runners",
    "learners",
    "rl_module",
    "evaluation",
    "fault_tolerance",
    "reporting",
    "offline_data",
)
"""Sections of plato.yaml that are methods of `AlgorithmConfig`, in the order they are applied."""


def whole(value: Any) -> Any:
    """A whole number: 1e6 is one, true and '5' are not."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError("expected a whole number")
    return int(value)


def number(value: Any) -> Any:
    """A number; true and '5' are none."""
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise ValueError("expected a number")
    return float(value)


def _true_or_false(value: Any) -> Any:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("expected text: put quotes around it")
    return value


def seconds(value: Any) -> float:
    """A duration in seconds, from a number of seconds or text such as 90s, 10m, 1h30m, 2d.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, str):
        match = re.fullmatch(r"(?=.)(?:([\d.]+)d)?(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", value.replace(" ", ""))
        try:
            if match:
                parts = zip(match.groups(), (86400, 3600, 60, 1), strict=True)
                return float(sum(float(part) * unit for part, unit in parts if part))
        except ValueError:
            pass
        raise ValueError("expected a duration such as 10m, 90s, 1h30m, or a number of seconds")
    return float(number(value))


def section(value: Any) -> Any:
    """A section of which every line is commented out is an empty one."""
    if value is None:
        return {}
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if not isinstance(value, Mapping):
        raise ValueError("expected a section of `key: value` lines")
    wrong = [key for key in value if not isinstance(key, str)]
    if wrong:
        raise ValueError(f"the key {wrong[0]!r} is not a word")
    return dict(value)


_DURATION = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": r"^[\d.]+[smhd]"}]}
CODE = {"type": "string"}

Count = Annotated[int, Field(ge=1), BeforeValidator(whole)]
Natural = Annotated[int, Field(ge=0), BeforeValidator(whole)]
Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(number)]
Flag = Annotated[bool, BeforeValidator(_true_or_false)]
Words = Annotated[str, Field(min_length=1), BeforeValidator(_text)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(seconds), WithJsonSchema(_DURATION)]
Free = Annotated[dict[str, Any], BeforeValidator(section)]


class Section(BaseModel):
    """A part of a project: fixed keys, each documented by the text under it; frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Stop(Section):
    """When training ends: at the first rule that is met."""

    iterations: Count | None = None
    """Stop after this many iterations; 100 when there is no rule at all."""
    env_steps: Count | None = None
    """Stop after this many steps of the sim."""
    return_mean: Number | None = None
    """Stop when the mean return of the latest episodes reaches this."""
    time: Seconds | None = None
    """Stop after this long, saving and evaluating included, all attempts together: 90s, 10m, 1h30m, or seconds."""
    plateau: Count | None = None
    """Stop when the best mean return has not risen for this many iterations."""

    @property
    def time_s(self) -> float | None:
        """`time` in seconds."""
        return self.time


class Checkpoint(Section):
    """What is saved while training."""

    every: Count = 5
    """Save every so many iterations."""
    keep: Count = 3
    """Keep this many of the newest checkpoints; the best one is kept besides."""
    grace_s: Seconds = 20.0
    """How long a stopped training may take to reach a point where it can be saved."""


class Tracking(Section):
    """Where metrics go besides the run folder."""

    mlflow: Annotated[bool | str, WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "string"}]})] = True
    """Log to MLflow: true for a store beside the runs, false for not at all, or a tracking URI."""
    tensorboard: Flag = False
    """Write TensorBoard files into the run folder as well."""

    @field_validator("mlflow", mode="before")
    @classmethod
    def _flag_or_uri(cls, value: Any) -> Any:
        is_uri = isinstance(value, str) and (":" in value or "/" in value or value == "databricks")
        if not isinstance(value, bool) and not is_uri:
            raise ValueError("expected true, false or a tracking URI such as http://127.0.0.1:5000")
        return value
