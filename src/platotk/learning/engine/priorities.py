"""Rows drawn by their priority: a sum tree whose every operation takes a whole batch of rows.

`Priorities` is given rows and what they weigh, and gives back rows drawn in proportion to it, as in prioritised replay
(Schaul et al. 2016, arXiv 1511.05952, appendix B.2.1). RLlib's segment trees do one row at a time, in Python.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


class Priorities:
    """A binary tree of sums over the rows, and one of minima for the largest importance weight.

    Args:
        capacity: Number of rows; all weigh nothing at first.
    """

    def __init__(self, capacity: int) -> None:
        self._depth = max(1, (capacity - 1).bit_length())
        self._first_leaf = 1 << self._depth
        self._sums = np.zeros(2 * self._first_leaf)
        self._minima = np.full(2 * self._first_leaf, np.inf)

    @property
    def total(self) -> float:
        """The sum of all priorities."""
        return float(self._sums[1])

    @property
    def smallest(self) -> float:
        """The smallest priority that is not 0; infinity when there is none."""
        return float(self._minima[1])

    def of(self, rows: Rows) -> NDArray[np.float64]:
        """What rows weigh, float64."""
        return self._sums[self._first_leaf + rows]

    def set(self, rows: Rows, priorities: Any) -> None:
        """What rows weigh from now on; 0 keeps a row from being drawn. Of a row that comes twice, the last counts.

        Args:
            rows: int64 (B,).
            priorities: (B,), or one number for all.
        """
        nodes = self._first_leaf + rows
        self._sums[nodes] = priorities
        self._minima[nodes] = np.where(self._sums[nodes] > 0.0, self._sums[nodes], np.inf)
        for _ in range(self._depth):
            nodes = nodes >> 1
            left = 2 * nodes
            self._sums[nodes] = self._sums[left] + self._sums[left + 1]
            self._minima[nodes] = np.minimum(self._minima[left], self._minima[left + 1])

    def draw(self, points: NDArray[np.float64]) -> Rows:
        """The rows at points of the sum of all priorities.

        Args:
            points: float64 (B,) within [0, 1).

        Returns:
            int64 (B,).
        """
        rest = points * self._sums[1]
        nodes = np.ones(len(points), dtype=np.int64)
        for _ in range(self._depth):
            nodes = 2 * nodes
            left = self._sums[nodes]
            # Rounding may leave a point past the last row that weighs anything: never go where there is nothing.
            is_right = (rest >= left) & (self._sums[nodes + 1] > 0.0)
            rest = rest - left * is_right
            nodes = nodes + is_right
        return nodes - self._first_leaf
