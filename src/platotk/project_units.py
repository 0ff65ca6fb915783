"""The section `units` of plato.yaml: what the numbers of an observation and an action are measured in.

Given what stands in the file, by side and leaf; whether the leaves exist is checked by `agents.units`, with the sim's
spaces. Units are shown to people and clients, and never reckoned with.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from .project_fields import Section, Words, section

Unit = Annotated[Words, Field(max_length=40)]
SIDES = ("observation", "action")


class Units(Section):
    """What the numbers of the spaces are measured in. Travels with the agent, and is shown wherever they are read."""

    observation: dict[str, Unit] = Field(default_factory=dict)
    """By leaf of the observation, or one element of it: `level: m`, `"jets[0]": bar`."""
    action: dict[str, Unit] = Field(default_factory=dict)
    """By leaf of the action: `flow: m3/h`."""

    @field_validator("observation", "action", mode="before")
    @classmethod
    def _by_leaf(cls, value: Any) -> Any:
        return section(value)

    def to_data(self) -> dict[str, dict[str, str]]:
        """As plain data, without a side that has none."""
        return {side: dict(units) for side in SIDES if (units := getattr(self, side))}


def places_of(project: Any) -> dict[str, str]:
    """Where each unit of a project stands, by its key such as `units.action.valve`; "" for the section."""
    keys = [f"units.{side}.{name}" for side, units in project.units.to_data().items() for name in units]
    return {"": project.where("units"), **{key: project.where(key) for key in keys}}
