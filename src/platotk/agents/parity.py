"""How alike two lists of actions are: the proof that an exported agent acts as the trained policy did.

Numbers must agree within 1e-5 of their range. Choices and rounded numbers must be the same, except where the trained
policy itself was undecided: a row whose margin (the gap between its two best choices, or the distance of a rounded
number to the rounding edge) is at most 1e-4 may differ, and at most 1 % of rows may be such. For a rounded number that
edge is 1e-5 of its range wide where that is more: what is allowed to the number is allowed before it is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from gymnasium import Space, spaces

TOLERANCE = 1e-5
"""Of an action's range (of 1 where it has none)."""
UNDECIDED = 1e-4
MAX_UNDECIDED_SHARE = 0.01


@dataclass(frozen=True)
class Verification:
    """The outcome of a comparison.

    Attributes:
        num_rows: How many observations were compared.
        max_error: Largest difference of a number, as a share of its range (rounded ones at an edge aside).
        num_mismatches: Rows that chose differently although the trained policy was decided.
        num_undecided: Rows that chose differently where it was not.
        seconds: How long it took.
    """

    num_rows: int
    max_error: float
    num_mismatches: int
    num_undecided: int
    seconds: float = 0.0

    @property
    def is_equal(self) -> bool:
        """Whether the two act the same, by the rules above."""
        return (
            self.num_rows > 0
            and self.max_error <= TOLERANCE
            and self.num_mismatches == 0
            and self.num_undecided <= MAX_UNDECIDED_SHARE * self.num_rows
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "is_equal": self.is_equal}


def compare(
    space: Space[Any],
    expected: Sequence[Any],
    actual: Sequence[Any],
    margins: Sequence[float | None],
    *,
    seconds: float = 0.0,
) -> Verification:
    """Compare two lists of actions of one space.

    Args:
        space: The sim's action space.
        expected: What the trained policy chose.
        actual: What the agent chose.
        margins: How decided the trained policy was in each row; None where that is not known.
        seconds: How long the agent took, for the record.
    """
    max_error, num_mismatches, num_undecided = 0.0, 0, 0
    for one, other, margin in zip(expected, actual, margins, strict=True):
        error, edge = _difference(space, one, other)
        max_error = max(max_error, error)
        if edge is not None:
            is_undecided = margin is not None and margin <= edge
            num_undecided += is_undecided
            num_mismatches += not is_undecided
    return Verification(len(expected), float(max_error), num_mismatches, num_undecided, round(seconds, 4))


def _difference(space: Space[Any], one: Any, other: Any) -> tuple[float, float | None]:
    """Largest difference of a number as a share of its range; and None, or up to which margin a choice may differ."""
    if isinstance(space, spaces.Dict):
        return _worst([_difference(space[key], one[key], other[key]) for key in space.spaces])
    if isinstance(space, spaces.Tuple):
        return _worst([_difference(part, one[i], other[i]) for i, part in enumerate(space.spaces)])
    if isinstance(space, spaces.Box) and np.dtype(space.dtype).kind in "fiu":
        return _numbers_differ(space, np.asarray(one), np.asarray(other))
    is_same = one == other if isinstance(one, str) else np.array_equal(np.asarray(one), np.asarray(other))
    return 0.0, None if is_same else UNDECIDED


def _numbers_differ(space: spaces.Box, one: Any, other: Any) -> tuple[float, float | None]:
    if not one.size:
        return 0.0, None
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        width = high - low
    is_bounded = np.isfinite(width) & (width > 0) & (width < 1e30)
    one, other = one.astype(np.float64), other.astype(np.float64)
    # Unbounded actions are compared relative to their own size once that exceeds 1.
    width = np.where(is_bounded, width, np.maximum(np.abs(one), 1.0))
    error = np.abs(one - other) / width
    if np.dtype(space.dtype).kind == "f":
        return float(np.max(error)), None
    is_off = error > TOLERANCE
    if not is_off.any():
        return float(np.max(error)), None
    # Whole numbers next to each other: rounded, it may be, at an edge as wide as the tolerance.
    is_next = bool((np.abs(one - other)[is_off] <= 1.0).all())
    edge = max(UNDECIDED, TOLERANCE * float(width[is_off].min())) if is_next else UNDECIDED
    return float(np.max(error[~is_off], initial=0.0)), edge


def _worst(parts: Sequence[tuple[float, float | None]]) -> tuple[float, float | None]:
    edges = [edge for _, edge in parts if edge is not None]
    return max((error for error, _ in parts), default=0.0), min(edges, default=None)
