"""The section `guard` of plato.yaml: what an agent may never do, and what it does when it cannot see.

Given what stands in the file, it is checked as far as that goes without the sim; `Guard.to_data` gives plain data for
the agent's manifest. Whether the leaves exist, and limits lie within their spaces, is checked by `agents.guards`, which
also runs them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from .agents.guard_whole import require_whole
from .project_dump import plain
from .project_fields import Count, Number, Seconds, Section, Words, number, section

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(number)]
Outcome = Literal["hold", "fallback"]
CONTROLLER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_SCALAR = WithJsonSchema({"type": ["number", "integer", "boolean", "string", "null"]})
_ACTION = WithJsonSchema({"anyOf": [{"type": kind} for kind in ("object", "array", "number", "string")]})


def _scalar(value: Any) -> Any:
    if not isinstance(value, (bool, int, float, str)):
        raise ValueError("expected a number, true, false or text")
    return value


Scalar = Annotated[Any, BeforeValidator(_scalar), _SCALAR]


class Limits(Section):
    """The range of one leaf of the action."""

    low: Number | None = None
    """Never below."""
    high: Number | None = None
    """Never above."""

    @model_validator(mode="after")
    def _some_range(self) -> Limits:
        if self.low is None and self.high is None:
            raise ValueError("expected low, high or both")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low ({self.low:g}) is above high ({self.high:g})")
        return self


class Slew(Section):
    """How fast one leaf of the action may change."""

    per_step: Positive | None = None
    """At most this far from one action to the next."""
    per_second: Positive | None = None
    """At most this far in a second; needs `step_s`."""

    @model_validator(mode="after")
    def _some_limit(self) -> Slew:
        if self.per_step is None and self.per_second is None:
            raise ValueError("expected per_step, per_second or both")
        return self


class Condition(Section):
    """What one leaf is; of an array, any element. All that is given must hold."""

    above: Number | None = None
    """Greater than."""
    at_least: Number | None = None
    """Greater than, or equal."""
    below: Number | None = None
    """Less than."""
    at_most: Number | None = None
    """Less than, or equal."""
    equals: Scalar = None
    """Equal: a number, or text."""
    differs: Scalar = None
    """Not equal."""

    @model_validator(mode="after")
    def _some_test(self) -> Condition:
        if not self.model_dump(exclude_none=True):
            raise ValueError(f"expected one of {', '.join(type(self).model_fields)}")
        return self


class Rule(Section):
    """A combination that may not be, and what is done in its place."""

    name: Words | None = None
    """What it is called in counts. Default: its place in the list, `forbid[0]`."""
    when: dict[str, Condition]
    """Leaves of the action and of the observation; all conditions must hold. A bare value means `equals`."""
    then: Annotated[Any, _ACTION]
    """`hold`, `fallback`, or leaves of the action with the values that they get."""

    @field_validator("when", mode="before")
    @classmethod
    def _bare_values(cls, value: Any) -> Any:
        conditions = section(value)
        if not conditions:
            raise ValueError("expected conditions such as valve: {above: 0.8}")
        return {
            leaf: {"equals": one} if isinstance(one, (bool, int, float, str)) else section(one)
            for leaf, one in conditions.items()
        }

    @field_validator("then", mode="before")
    @classmethod
    def _outcome(cls, value: Any) -> Any:
        if value in ("hold", "fallback"):
            return value
        if not isinstance(value, Mapping) or not value:
            raise ValueError("expected hold, fallback, or a section such as {valve: 0.5}")
        return section(value)


class Guard(Section):
    """What an agent may never do, and what it does when it cannot see. Travels with the agent."""

    clamp: dict[str, Limits] = Field(default_factory=dict)
    """By leaf of the action: `low` and `high`, narrower than its space."""
    slew: dict[str, Slew] = Field(default_factory=dict)
    """By leaf of the action: how far it may change `per_step` or `per_second`."""
    forbid: list[Rule] = Field(default_factory=list)
    """Combinations of the action and the observation that may not be: `when`, and what happens `then`."""
    stale_s: Seconds | None = None
    """An observation older than this is stale; needs `on_stale`, and clients that send `observed_at`."""
    on_stale: Outcome | None = None
    """What is done when the observation is stale."""
    on_missing: Outcome | None = None
    """What is done when a leaf of the observation is missing, null or NaN. Default: it is refused."""
    on_out_of_range: Literal["hold", "fallback", "clip"] | None = None
    """What is done when a leaf of the observation is outside its space; `clip` brings it back to the bounds and acts.
    Default: as without guards."""
    max_holds: Count | None = None
    """After so many inputs in a row that were answered by holding, the next one gets the fallback."""
    fallback: Annotated[Any, _ACTION] = None
    """The action that is always safe, or a controller `module:function` that is given the observation."""
    step_s: Seconds | None = None
    """How long a step of the sim lasts, for `per_second` where observations carry no time."""

    @field_validator("clamp", "slew", mode="before")
    @classmethod
    def _by_leaf(cls, value: Any) -> Any:
        return section(value)

    @field_validator("forbid", mode="before")
    @classmethod
    def _a_list(cls, value: Any) -> Any:
        if value is None:
            return []
        if not isinstance(value, (list, tuple)):
            raise ValueError("expected a list of rules, each with when and then")
        return list(value)

    @field_validator("fallback", mode="before")
    @classmethod
    def _action_or_controller(cls, value: Any) -> Any:
        if isinstance(value, str) and not CONTROLLER.fullmatch(value):
            raise ValueError("expected an action such as {valve: 0.0}, or a controller module:function")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Guard:
        require_whole(self.model_dump(exclude_none=True))
        return self

    def to_data(self, root: Path | None = None) -> dict[str, Any]:
        """As plain data, without what is not set; empty when there are no guards."""
        data = {key: value for key, value in self.model_dump(exclude_none=True).items() if value not in ({}, [])}
        plained: dict[str, Any] = plain(data, root or Path.cwd())
        return plained


def places_of(project: Any) -> dict[str, str]:
    """Where each key of a project's guard stands, by its path such as `guard.clamp.valve`; "" for the section."""
    found = {"": project.where("guard")}

    def walk(value: Any, key: str) -> None:
        found[key] = project.where(key)
        entries = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
        for name, inner in entries:
            walk(inner, f"{key}.{name}")

    walk(project.guard.to_data(project.root), "guard")
    return found
