"""Units of the leaves of both spaces: checked, found for one element, and written into a JSON Schema.

Given the section `units` of a project or a manifest as plain data, and the spaces, `checked_units` gives the same by
the leaves' own names; `unit_of` reads from that, for a leaf or an element of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from ..errors import ProjectError
from ..spaces import Adapter
from ..spaces.leaves import Space, did_you_mean, under_index, under_key
from .guard_leaves import Leaves

SIDES = ("observation", "action")
Units = dict[str, dict[str, str]]
"""By side ("observation", "action") and name of a leaf (`level`, `jets[0]`; `action` where the space is the leaf)."""


def checked_units(data: Any, adapter: Adapter, *, where: Callable[[str], str] = lambda key: key) -> Units:
    """The units by the leaves' own names; both sides are there.

    Args:
        data: As in plato.yaml, or in a manifest; None for none.
        adapter: Whose spaces have the leaves.
        where: Names the place of a key for messages; gets `units.action.valve`.

    Raises:
        ProjectError: A leaf does not exist, or is named twice.
    """
    leaves = Leaves(adapter.observation_space, adapter.action_space)
    units: Units = {side: {} for side in SIDES}
    for side, given in (data or {}).items():
        if side not in units or not isinstance(given, Mapping):
            raise ProjectError(f"{where('units')}: {side!r} is no side.", hint=did_you_mean(str(side), SIDES))
        for name, unit in given.items():
            place = where(f"units.{side}.{name}")
            if not isinstance(name, str) or not isinstance(unit, str):
                raise ProjectError(f"{place}: the unit of {name!r} is {unit!r}; expected text.")
            # Elements of an unnamed space are written `[0]` here: the side is said already.
            leaf = leaves.find(side + name if name.startswith("[") else name, place, sides=(side,)).name
            if leaf in units[side]:
                raise ProjectError(f"{place}: {leaf!r} has a unit already.", hint=f"Write {leaf} once.")
            units[side][leaf] = unit
    return units


def units_of(project: Any, adapter: Adapter) -> Units:
    """The units of a project, checked against the sim's spaces.

    Raises:
        ProjectError: With file and line: a leaf that does not exist.
    """
    return checked_units(project.units.to_data(), adapter, where=project.where)


def unit_of(units: Mapping[str, Mapping[str, str]], side: str, path: str, index: tuple[int, ...] = ()) -> str | None:
    """The unit of a leaf, or of one element of it: its own, or else the leaf's.

    Args:
        units: From `checked_units`.
        side: "observation" or "action".
        path: Of the leaf; empty where the space is itself the leaf.
        index: Of the element.
    """
    of_side, leaf = units.get(side, {}), path or side
    return of_side.get(leaf + "".join(f"[{i}]" for i in index)) or of_side.get(leaf)


def with_units(
    schema: dict[str, Any], space: Space, units: Mapping[str, Mapping[str, str]], side: str, path: str = ""
) -> dict[str, Any]:
    """A JSON Schema of a space in which each leaf that has a unit says it: `x-unit`, and in words `description`.

    Where elements have units of their own, `x-unit` is an array of the leaf's shape, null for none.
    """
    if isinstance(space, spaces.Dict):
        inner = {
            str(key): with_units(schema["properties"][str(key)], child, units, side, under_key(path, key))
            for key, child in space.spaces.items()
        }
        return {**schema, "properties": inner}
    if isinstance(space, spaces.Tuple):
        items = [
            with_units(schema["prefixItems"][i], child, units, side, under_index(path, i))
            for i, child in enumerate(space.spaces)
        ]
        return {**schema, "prefixItems": items}
    whole, shape = unit_of(units, side, path), space.shape or ()
    start = f"{path or side}["
    named = {name[len(start) - 1 :]: unit for name, unit in units.get(side, {}).items() if name.startswith(start)}
    if not named:
        return schema if whole is None else {**schema, "x-unit": whole, "description": f"In {whole}."}
    each = np.empty(shape, dtype=object)
    for index in np.ndindex(shape):
        each[index] = unit_of(units, side, path, index)
    said = ", ".join(f"{index} in {unit}" for index, unit in named.items())
    rest = "" if whole is None else f"; the others in {whole}"
    return {**schema, "x-unit": each.tolist(), "description": f"Element {said}{rest}."}
