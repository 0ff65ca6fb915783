"""What the pages of the server show: an input for every number of an observation.

Given an agent, `form` gives a flat list of inputs, each with its path into the observation, bounds and a first value;
`html` gives the pages themselves, which hold nothing of the agent and load nothing from elsewhere.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from ..spaces import to_json
from .agent import Agent
from .units import Units, unit_of

MAX_INPUTS = 200
"""Beyond that (images), the page takes the observation as JSON text."""


def form(agent: Agent, *, name: str) -> dict[str, Any]:
    """The inputs of the page.

    Returns:
        `name`, `observation` (the first values), `inputs` (`path`, `label`, `kind`, `low`, `high`, `step`,
        `unit`), or None in their place when there are too many, `mask` (how many entries an action mask has, or None),
        and `action_units` by leaf of the action.
    """
    rows = agent.recorded(limit=1)
    space = agent.observation_space
    observation = to_json(space, rows[0].observation if rows else space.sample(), name="observation")
    inputs = _inputs(space, [], "", agent.units) if _size(space) <= MAX_INPUTS else None
    has_mask = agent.adapter.mask_source == "info"
    return {
        "name": name,
        "observation": observation,
        "inputs": inputs,
        "mask": rows[0].mask if has_mask and rows else None,
        "has_memory": agent.has_memory,
        "action_units": agent.units["action"],
    }


@cache
def html(name: str) -> bytes:
    """A page as it is sent: "page" or "docs"."""
    return (Path(__file__).parent / f"{name}.html").read_bytes()


def _size(space: Space[Any]) -> int:
    if isinstance(space, spaces.Dict):
        return sum(map(_size, space.spaces.values()))
    if isinstance(space, spaces.Tuple):
        return sum(map(_size, space.spaces))
    if isinstance(space, (spaces.Discrete, spaces.Text)):
        return 1
    if isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        return int(np.prod(space.shape))
    return MAX_INPUTS + 1


def _inputs(space: Space[Any], path: list[str | int], label: str, units: Units) -> list[dict[str, Any]]:
    if isinstance(space, spaces.Dict):
        parts = [(str(key), child, f"{label}.{key}".lstrip(".")) for key, child in space.spaces.items()]
        return [item for key, child, name in parts for item in _inputs(child, [*path, key], name, units)]
    if isinstance(space, spaces.Tuple):
        children = [(i, child, f"{label}[{i}]") for i, child in enumerate(space.spaces)]
        return [item for i, child, name in children for item in _inputs(child, [*path, i], name, units)]
    unit = unit_of(units, "observation", label)
    if isinstance(space, spaces.Discrete):
        return [_input(path, label, "choice", int(space.start), int(space.start + space.n - 1), 1, unit)]
    if isinstance(space, spaces.Text):
        return [_input(path, label, "text", None, None, None, unit)]
    found = []
    for index in np.ndindex(space.shape or ()):
        low, high, step = _bounds(space, index)
        name = label + "".join(f"[{i}]" for i in index) if space.shape != (1,) else label
        is_choice = not isinstance(space, spaces.Box)
        kind = "choice" if is_choice else "number" if low is None or high is None else "slider"
        unit = unit_of(units, "observation", label, index)
        found.append(_input([*path, *index], name, kind, low, high, step, unit))
    return found


def _bounds(space: Space[Any], index: tuple[int, ...]) -> tuple[float | None, float | None, float | None]:
    """Lower and upper bound (None: infinite, or too wide for a slider) and the step of one number."""
    if isinstance(space, spaces.MultiBinary):
        return 0, 1, 1
    if isinstance(space, spaces.MultiDiscrete):
        start = int(np.asarray(space.start)[index])
        return start, start + int(space.nvec[index]) - 1, 1
    is_integer = np.dtype(space.dtype).kind != "f"
    low, high = float(space.low[index]), float(space.high[index])  # type: ignore[attr-defined]
    return (low if abs(low) < 1e15 else None, high if abs(high) < 1e15 else None, 1 if is_integer else None)


def _input(path: list[Any], label: str, kind: str, low: Any, high: Any, step: Any, unit: str | None) -> dict[str, Any]:
    return {
        "path": path,
        "label": label or "observation",
        "kind": kind,
        "low": low,
        "high": high,
        "step": step,
        "unit": unit,
    }
