"""Many values of a space at once, as columns: one array for each leaf instead of one object for each row.

Given a list of JSON values, gives columns: the space's own nesting of Dict and Tuple, with an array (B, *shape) at each
leaf of numbers and a list of B values at any other; given columns, gives JSON or rows again. What is read or written at
once is exactly what `values` reads or writes row by row; in any doubt it is left to that, and so are the errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
from gymnasium import spaces

from platotk.errors import SimError
from platotk.spaces.leaves import Array, Space, bounds_of, dtype_of, plain_bits, plain_numbers
from platotk.spaces.values import from_json, to_json


def from_json_batch(space: Space, rows: Sequence[Any], *, check_bounds: bool = True, name: str = "values") -> Any:
    """The columns of many JSON values, as strictly read as `from_json` reads each.

    Args:
        space: The space that the values shall be of.
        rows: What a JSON parser gave for each.
        check_bounds: Whether a number outside the bounds is an error.
        name: What the whole is called in messages; the first bad row is named as `name[3].level`.

    Raises:
        SimError: The error that `from_json` has for the first bad row.
    """
    rows = list(rows)
    try:
        return _read(space, rows, check_bounds)
    except _Doubt:
        pass
    values = [from_json(space, row, check_bounds=check_bounds, name=f"{name}[{i}]") for i, row in enumerate(rows)]
    return columns_of(space, values)


def to_json_batch(space: Space, columns: Any, num_rows: int, *, name: str = "values") -> list[Any]:
    """One JSON value for each row of the columns.

    Raises:
        SimError: The error that `to_json` has for the first bad row, such as NaN.
    """
    try:
        return _write(space, columns, num_rows)
    except _Doubt:
        pass
    return [to_json(space, row, name=f"{name}[{i}]") for i, row in enumerate(rows_of(space, columns, num_rows))]


def rows_of(space: Space, columns: Any, num_rows: int) -> list[Any]:
    """One value of the space for each row of the columns; arrays are views."""
    if isinstance(space, spaces.Dict):
        parts = [rows_of(child, columns[key], num_rows) for key, child in space.spaces.items()]
        keys = list(space.spaces)
        return [dict(zip(keys, row, strict=True)) for row in _transposed(parts, num_rows)]
    if isinstance(space, spaces.Tuple):
        pairs = zip(space.spaces, columns, strict=True)
        return _transposed([rows_of(child, column, num_rows) for child, column in pairs], num_rows)
    if isinstance(space, spaces.Discrete) or not isinstance(columns, np.ndarray) or columns.ndim > 1:
        return list(columns)
    return [np.asarray(value) for value in columns]  # of shape (): arrays too, as everywhere


def columns_of(space: Space, values: Sequence[Any]) -> Any:
    """The columns of many values of a space, which must be sound: right keys, shapes and dtypes."""
    if isinstance(space, spaces.Dict):
        return {key: columns_of(child, [value[key] for value in values]) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(columns_of(child, [value[i] for value in values]) for i, child in enumerate(space.spaces))
    if isinstance(space, (spaces.Discrete, spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        return np.array(values, dtype_of(space)).reshape(len(values), *(space.shape or ()))
    return list(values)


class _Doubt(Exception):
    """Something here is not plain: a closer look at each row decides."""


def _read(space: Space, rows: list[Any], check_bounds: bool) -> Any:
    if isinstance(space, spaces.Dict):
        names = [str(key) for key in space.spaces]
        _require(rows, dict, len(names))
        if len(set(names)) < len(names):
            raise _Doubt
        return {
            key: _read(child, _picked(rows, name), check_bounds)
            for name, (key, child) in zip(names, space.spaces.items(), strict=True)
        }
    if isinstance(space, spaces.Tuple):
        _require(rows, list, len(space.spaces))
        return tuple(_read(child, _picked(rows, i), check_bounds) for i, child in enumerate(space.spaces))
    if isinstance(space, spaces.Discrete):
        array = _plain(plain_numbers(rows, dtype_of(space)))
        if check_bounds and not _is_within(array, space.start, space.start + (space.n - 1)):
            raise _Doubt
        return array
    if isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        return _read_array(space, rows, check_bounds)
    try:
        return [from_json(space, row, check_bounds=check_bounds) for row in rows]
    except SimError:
        raise _Doubt from None


def _read_array(
    space: spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary, rows: list[Any], check_bounds: bool
) -> Array:
    shape, dtype, flat = space.shape, dtype_of(space), rows
    if shape not in ((), (1,)) or list in set(map(type, rows)):  # otherwise all are bare numbers
        for side in shape:
            _require(flat, list, side)
            flat = list(chain.from_iterable(flat))
    if isinstance(space, spaces.MultiBinary) or dtype.kind == "b":
        return _plain(plain_bits(flat, dtype)).reshape(len(rows), *shape)
    array = _plain(plain_numbers(flat, dtype)).reshape(len(rows), *shape)
    if check_bounds and not _is_within(array, *bounds_of(space)):
        raise _Doubt
    return array


def _write(space: Space, column: Any, num_rows: int) -> list[Any]:
    if isinstance(space, spaces.Dict):
        keys = [str(key) for key in space.spaces]
        parts = [_write(child, column[key], num_rows) for key, child in space.spaces.items()]
        return [dict(zip(keys, row, strict=True)) for row in _transposed(parts, num_rows)]
    if isinstance(space, spaces.Tuple):
        pairs = zip(space.spaces, column, strict=True)
        return list(map(list, _transposed([_write(child, part, num_rows) for child, part in pairs], num_rows)))
    if isinstance(space, (spaces.Discrete, spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        dtype = dtype_of(space)
        if not isinstance(column, np.ndarray) or column.shape != (num_rows, *(space.shape or ())):
            raise _Doubt
        if column.dtype != dtype or (dtype.kind == "f" and not np.isfinite(column).all()):
            raise _Doubt
        listed: list[Any] = (column.astype(np.int8) if dtype.kind == "b" else column).tolist()
        return listed
    try:
        return [to_json(space, value) for value in column]
    except SimError:
        raise _Doubt from None


def _require(rows: list[Any], kind: type, length: int) -> None:
    """Every row is of this very type and length."""
    if set(map(type, rows)) - {kind} or set(map(len, rows)) - {length}:
        raise _Doubt


def _picked(rows: list[Any], key: Any) -> list[Any]:
    try:
        return list(map(itemgetter(key), rows))
    except KeyError:
        raise _Doubt from None


def _plain(array: Array | None) -> Array:
    if array is None:
        raise _Doubt
    return array


def _is_within(array: Array, low: Any, high: Any) -> bool:
    return bool((array >= low).all() and (array <= high).all())


def _transposed(parts: list[list[Any]], num_rows: int) -> list[tuple[Any, ...]]:
    return list(zip(*parts, strict=True)) if parts else [()] * num_rows
