"""Continuous actions: from what a policy gives, per element, to a Box of any bounds, shape and dtype.

Given the numbers of one leaf, gives values that the leaf's space contains: bounded elements are scaled from
[-1, 1] to their bounds, half-bounded ones from their bound on by a scale, unbounded ones as they are times a
scale; integers are rounded half to even. All is computed in float64, clipped, cast, and clipped again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from platotk.errors import ProjectError, SimError
from platotk.spaces.leaves import Array, Space, describe_space, did_you_mean, dtype_of, label, meant_path, short

_LARGEST = float(np.finfo(np.float32).max)


class Continuous:
    """One continuous leaf.

    Attributes:
        kind: 0, the place of numbers among (numbers, choices).
        size: How many numbers it has.  label: The leaf as people read it.
        line: How it is learned from, for people.
    """

    kind = 0

    def __init__(self, space: Space, path: str, scale: float | None, *, squashed: bool, needed_by: str | None) -> None:
        """Plan the mapping.

        `squashed`: the policy gives [-1, 1]; `needed_by`: the algorithm that needs two bounds or a scale.

        Raises:
            SimError: `needed_by`, and an element has neither two bounds nor a scale.
        """
        if not isinstance(space, spaces.Box):
            raise SimError(f"{label('action', path)}: {describe_space(space)} is not continuous.")
        self.label = label("action", path)
        self.space = space
        self.dtype = dtype_of(space)
        self.shape = space.shape
        self.size = int(space.low.size)
        self.squashed = squashed
        below, above = (side.reshape(-1) for side in _bounded(space))
        if needed_by and scale is None and not (below & above).all():
            key = path or "action"
            raise SimError(
                f"{self.label}: {needed_by} needs bounded actions, and {describe_space(space)} is not bounded.",
                hint=f'Write `action_scale: {{"{key}": 1.0}}` into plato.yaml (how far an action reaches), '
                "or use `algorithm: PPO`.",
            )
        reach = 1.0 if scale is None else float(scale)
        low, high = (np.asarray(b, dtype=np.float64).reshape(-1) for b in (space.low, space.high))
        with np.errstate(invalid="ignore", over="ignore"):
            self._from = np.where(below, low, np.where(above, high - reach, -reach))
            self._to = np.where(above, high, np.where(below, low + reach, reach))
        self._is_free = ~below & ~above
        self._has_free = bool(self._is_free.any())
        self._reach = reach
        self._floor, self._ceil = _limits(space)
        self._is_float = self.dtype.kind == "f"
        sides = (self._from, self._to, self._floor, self._ceil, self._is_free)
        self._plain: list[tuple[float, float, float, float, bool]] = list(
            zip(*map(np.ndarray.tolist, sides), strict=True)
        )
        self.line = f"{self.label}: {describe_space(space)} -> {self._how(below, above)}"

    def value(self, given: Sequence[float]) -> Array:
        """The leaf's own value for one row of plain finite numbers: for a few, faster than whole arrays are."""
        values: list[float] = []
        largest = 1.0 if self.squashed else _LARGEST
        for number, (start, stop, floor, ceil, is_free) in zip(given, self._plain, strict=True):
            number = min(max(number, -largest), largest)
            part = (number + 1.0) * 0.5
            scaled = number * self._reach if is_free else start * (1.0 - part) + stop * part
            values.append(min(max(scaled if self._is_float else round(scaled), floor), ceil))
        exact = values if self._is_float else [int(value) for value in values]
        return np.array(exact, self.dtype).reshape(self.shape)

    def column(self, given: Array) -> Array:
        """The leaf's own values for numbers (B, size), float64 and finite."""
        scaled = self._scaled(given)
        if self.dtype.kind != "f":
            scaled = np.rint(scaled)
        scaled = np.minimum(np.maximum(scaled, self._floor), self._ceil)
        cast = scaled.astype(self.dtype).reshape(len(given), *self.shape)
        values: Array = np.minimum(np.maximum(cast, self.space.low), self.space.high)
        return values

    def rounding_margins(self, given: Array) -> Array:
        """Per row of (B, size), how far its numbers are from where rounding flips; inf where nothing is rounded."""
        if np.dtype(self.space.dtype).kind == "f" or not self.size:
            return np.full(len(given), np.inf)
        scaled = self._scaled(given)
        margins: Array = np.abs(scaled - np.floor(scaled) - 0.5).min(axis=1)
        return margins

    def _scaled(self, given: Array) -> Array:
        """In the units of the leaf, not yet rounded or clipped to the bounds."""
        largest = 1.0 if self.squashed else _LARGEST
        given = np.minimum(np.maximum(given, -largest), largest)
        part = (given + 1.0) * 0.5
        scaled: Array = self._from * (1.0 - part) + self._to * part
        if self._has_free:
            scaled[:, self._is_free] = given[:, self._is_free] * self._reach
        return scaled

    def _how(self, below: Array, above: Array) -> str:
        count = f"{self.size} number{'' if self.size == 1 else 's'}"
        if self._is_free.all() and self.size:
            how = "as given" if self._reach == 1.0 else f"times {self._reach:g}"
        elif (below & above).all():
            how = "scaled to the bounds"
        elif self._is_free.any() or (below & above).any():
            how = f"scaled to the bounds where there are any, otherwise by {self._reach:g}"
        else:
            how = f"from the bound on by {self._reach:g}, clipped there"
        return f"{count}, {how}{'' if self.dtype.kind == 'f' else ' and rounded'}"


def needs_scale(space: Space) -> bool:
    """Whether an element of this continuous leaf lacks a bound."""
    if not isinstance(space, spaces.Box):
        return False
    below, above = _bounded(space)
    return not bool((below & above).all())


def resolve_scales(
    action_scale: float | Mapping[str, float] | None, continuous: Mapping[str, Space], known: list[str]
) -> dict[str, float]:
    """The scale of each continuous leaf that lacks a bound, by path; leaves without one are absent.

    Raises:
        ProjectError: Not a positive number, or a path that is no leaf, or one that needs no scale.
    """
    open_leaves = [path for path, space in continuous.items() if needs_scale(space)]
    if action_scale is None:
        return {}
    if not isinstance(action_scale, Mapping):
        scale = _positive(action_scale, "action_scale")
        return dict.fromkeys(open_leaves, scale)
    scales = {}
    for name, value in action_scale.items():
        path = "" if name == "action" and "" in known else meant_path(name, known)
        if path not in known:
            hint = did_you_mean(name, [path or "action" for path in known])
            raise ProjectError(f"action_scale: there is no action leaf {name!r}.", hint=hint)
        if path not in open_leaves:
            raise ProjectError(
                f"action_scale: {name!r} needs no scale, it has bounds already.",
                hint="Remove it from action_scale.",
            )
        scales[path] = _positive(value, f"action_scale.{name}")
    return scales


def _positive(value: Any, where: str) -> float:
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # an integer beyond every float
            number = math.inf
        if math.isfinite(number) and number > 0:
            return number
    raise ProjectError(f"{where}: {short(value)} is not a positive number.", hint="For example: action_scale: 2.5")


def _bounded(space: spaces.Box) -> tuple[Array, Array]:
    """Which elements have a real lower and upper bound; the limits of the dtype itself are none."""
    dtype = dtype_of(space)
    if dtype.kind == "f":
        limit = min(float(np.finfo(dtype).max), _LARGEST)
        return space.low > -limit, space.high < limit
    if dtype.itemsize < 4 or dtype.kind == "b":
        return np.ones(space.shape, bool), np.ones(space.shape, bool)
    info = np.iinfo(dtype)
    below = space.low != info.min if dtype.kind == "i" else np.ones(space.shape, bool)
    return below, space.high != info.max


def _limits(space: spaces.Box) -> tuple[Array, Array]:
    """The bounds as finite float64, never outside the true ones (a float64 cannot hold every int64)."""
    low, high = space.low.reshape(-1), space.high.reshape(-1)
    dtype = dtype_of(space)
    if dtype.kind == "f":
        largest = min(float(np.finfo(dtype).max), float(np.finfo(np.float64).max))
        return np.maximum(low, -largest).astype(np.float64), np.minimum(high, largest).astype(np.float64)
    floor, ceil = low.astype(np.float64), high.astype(np.float64)
    for index in range(low.size):
        if int(floor[index]) < int(low[index]):
            floor[index] = np.nextafter(floor[index], np.inf)
        if int(ceil[index]) > int(high[index]):
            ceil[index] = np.nextafter(ceil[index], -np.inf)
    return floor, ceil
