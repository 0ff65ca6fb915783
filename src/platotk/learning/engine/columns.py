"""Arrays that may come as a Dict of arrays: an observation or an action of a mixed space, many rows of it at once.

A `Columns` value is one array with a leading axis of rows, or a dict of such arrays. The few functions here do to all
of them what numpy does to one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Columns = Any
"""An array, or a (nested) dict of arrays, with the same number of rows."""


def mapped(function: Callable[..., Any], first: Columns, *others: Columns) -> Any:
    """`function` of the arrays of each key, in the same structure."""
    if isinstance(first, dict):
        return {key: mapped(function, first[key], *(other[key] for other in others)) for key in first}
    return function(first, *others)


def concatenated(parts: Sequence[Columns]) -> Columns:
    """The rows of all parts; the part itself when there is only one."""
    if len(parts) == 1:
        return parts[0]
    return mapped(lambda *arrays: np.concatenate(arrays), parts[0], *parts[1:])


def taken(columns: Columns, rows: Any) -> Columns:
    """The rows of an index array, mask or slice."""
    return mapped(lambda array: array[rows], columns)


def learnable(array: Array) -> Array:
    """A sim's array in the dtype that RLlib's modules see: float64 becomes float32, others stay."""
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype == np.float64 else array


class Timeline:
    """Rows of N sims over time, stored sim after sim, so that each sim's steps lie side by side in memory.

    Args:
        num_sims: N.
        capacity: Time steps at first; it doubles when it is full.
    """

    def __init__(self, num_sims: int, capacity: int) -> None:
        self._num_sims = num_sims
        self._capacity = max(1, capacity)
        self._data: Columns = None

    def set(self, time: int, rows: Columns) -> None:
        """Store the N rows of a time step; numbers take the dtype of those that came first."""
        if self._data is None:
            self._data = mapped(self._allocated, rows)
        self._reserve(time)
        _store(self._data, (slice(None), time), rows)

    def put(self, sims: NDArray[np.int64], times: NDArray[np.int64], rows: Columns) -> None:
        """Store one row for each of some sims, each at a time step of its own."""
        if self._data is None:
            self._data = mapped(self._allocated, rows)
        self._reserve(int(times.max(initial=0)))
        _store(self._data, (sims, times), rows)

    def at(self, sims: NDArray[np.int64], times: NDArray[np.int64]) -> Columns:
        """The rows of pairs of sim and time step."""
        return mapped(lambda data: data[sims, times], self._data)

    def until(self, time: int) -> Columns:
        """All rows of the first time steps, sim after sim: (N * time, ...)."""
        return mapped(lambda data: data[:, :time].reshape(self._num_sims * time, *data.shape[2:]), self._data)

    def clear(self, sim: int, start: int, stop: int) -> None:
        """Set the rows of one sim to zero (False, for flags)."""
        if self._data is not None:
            mapped(lambda data: data.__setitem__((sim, slice(start, stop)), 0), self._data)

    def _reserve(self, time: int) -> None:
        if time >= self._capacity:
            old, self._capacity = self._capacity, max(2 * self._capacity, time + 1)
            self._data = mapped(lambda array: self._grown(array, old), self._data)

    def _allocated(self, rows: Array) -> Array:
        return np.empty((self._num_sims, self._capacity, *rows.shape[1:]), dtype=learnable(rows).dtype)

    def _grown(self, array: Array, old: int) -> Array:
        larger = np.empty((self._num_sims, self._capacity, *array.shape[2:]), dtype=array.dtype)
        larger[:, :old] = array
        return larger


def _store(data: Columns, at: Any, rows: Columns) -> None:
    if isinstance(data, dict):
        for key, part in data.items():
            _store(part, at, rows[key])
    else:
        data[at] = rows
