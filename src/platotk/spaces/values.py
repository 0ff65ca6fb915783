"""Values of a space as JSON, and back, strictly: what clients send and what `plato act` prints.

Given a space and a value, gives plain JSON (Dict: object, Tuple: array, arrays: nested arrays, Discrete:
integer); given a space and JSON, gives the value with its dtype and shape. Every leaf is validated on the way
in, and an error names the field, what was there, and what is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from platotk.errors import SimError
from platotk.spaces.leaves import (
    Array,
    Space,
    bounds_of,
    describe_space,
    did_you_mean,
    dtype_of,
    element,
    label,
    numbers,
    plain_bits,
    plain_numbers,
    short,
    under_index,
    under_key,
    whole_numbers,
)


def to_json(space: Space, value: Any, *, name: str = "value") -> Any:
    """The value as plain JSON.

    Args:
        space: The space that the value is of.
        value: It may lie outside the bounds.
        name: What the root is called in messages, such as "observation".

    Raises:
        SimError: NaN, infinity, another shape or structure; the message names the leaf.
    """
    return _write(space, value, "", name)


def from_json(space: Space, data: Any, *, check_bounds: bool = True, name: str = "value") -> Any:
    """The value that JSON stands for, in the space's own dtype, shape and types.

    A leaf of shape () or (1,) takes a bare number as well. Numbers must be numbers: neither true nor "1", and
    1.9 is no integer (1.0 is).

    Args:
        space: The space that the value shall be of.
        data: What a JSON parser gave.
        check_bounds: Whether a number outside the bounds is an error (compared in the leaf's own dtype).
        name: What the root is called in messages, such as "observation".

    Raises:
        SimError: Missing or unknown key, wrong type or shape, NaN, out of bounds; it names the leaf.
    """
    return _read(space, data, "", name, check_bounds)


def _write(space: Space, value: Any, path: str, name: str) -> Any:
    leaf = label(name, path)
    if type(space) is spaces.Box:
        return _write_array(space, value, leaf)
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping):
            raise SimError(f"{leaf}: expected a dict, got {short(value)}.")
        _require_keys(value, list(space.spaces), leaf)
        return {str(key): _write(child, value[key], under_key(path, key), name) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, (tuple, list)) and not (isinstance(value, np.ndarray) and value.ndim):
            raise SimError(f"{leaf}: expected a tuple, got {short(value)}.")
        _require_length(value, len(space.spaces), leaf)
        parts = zip(space.spaces, value, strict=True)
        return [_write(child, part, under_index(path, i), name) for i, (child, part) in enumerate(parts)]
    if isinstance(space, spaces.OneOf):
        index, option = _option(space, value, leaf)
        return [index, _write(option, value[1], under_index(path, index), name)]
    if isinstance(space, spaces.Sequence) and not space.stack:
        return [_write(space.feature_space, item, under_index(path, i), name) for i, item in enumerate(value)]
    if isinstance(space, spaces.Text):
        if not isinstance(value, str):
            raise SimError(f"{leaf}: expected a string, got {short(value)}.")
        return str(value)
    if isinstance(space, spaces.Discrete):
        return _integer_of(value, leaf)
    if isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        return _write_array(space, value, leaf)
    raise SimError(f"{leaf}: a value of {describe_space(space)} has no JSON form.")


def _write_array(space: spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary, value: Any, leaf: str) -> Any:
    array = numbers(value, space.shape, leaf)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        at = int(np.flatnonzero(~np.isfinite(array))[0])
        bad = array.reshape(-1)[at]
        raise SimError(f"{element(leaf, space.shape, at)}: {bad} has no JSON form.")
    if dtype_of(space).kind == "f":
        return array.tolist()
    if array.dtype.kind == "f":
        return whole_numbers(array, leaf).tolist()
    return (array.astype(np.int8) if array.dtype.kind == "b" else array).tolist()


def _read(space: Space, data: Any, path: str, name: str, check_bounds: bool) -> Any:
    leaf = label(name, path)
    if type(space) is spaces.Box and type(data) in (list, float, int):  # by far the most frequent
        return _read_array(space, data, leaf, check_bounds)
    if isinstance(data, (np.ndarray, np.generic)):
        data = data.tolist()
    if isinstance(space, spaces.Dict):
        return _read_dict(space, data, path, name, check_bounds)
    if isinstance(space, spaces.Tuple):
        if not isinstance(data, (list, tuple)):
            raise SimError(f"{leaf}: expected an array of {len(space.spaces)}, got {short(data)}.")
        _require_length(data, len(space.spaces), leaf)
        parts = zip(space.spaces, data, strict=True)
        return tuple(
            _read(child, part, under_index(path, i), name, check_bounds) for i, (child, part) in enumerate(parts)
        )
    if isinstance(space, spaces.OneOf):
        index, option = _option(space, data, leaf)
        return (np.int64(index), _read(option, data[1], under_index(path, index), name, check_bounds))
    if isinstance(space, spaces.Sequence) and not space.stack:
        if not isinstance(data, (list, tuple)):
            raise SimError(f"{leaf}: expected an array, got {short(data)}.")
        items = enumerate(data)
        return tuple(_read(space.feature_space, item, under_index(path, i), name, check_bounds) for i, item in items)
    if isinstance(space, spaces.Text):
        return _read_text(space, data, leaf, check_bounds)
    if isinstance(space, spaces.Discrete):
        return _read_discrete(space, data, leaf, check_bounds)
    if isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        return _read_array(space, data, leaf, check_bounds)
    raise SimError(f"{leaf}: a value of {describe_space(space)} has no JSON form.")


def _read_dict(space: spaces.Dict, data: Any, path: str, name: str, check_bounds: bool) -> Any:
    leaf = label(name, path)
    if not isinstance(data, Mapping):
        keys = ", ".join(str(key) for key in list(space.spaces)[:20])
        raise SimError(f"{leaf}: expected an object with {keys or 'no keys'}, got {short(data)}.")
    if len({str(key) for key in space.spaces}) < len(space.spaces):
        raise SimError(f"{leaf}: two keys of its space look the same in JSON.")
    given = {str(key): part for key, part in data.items()}
    _require_keys(given, [str(key) for key in space.spaces], leaf)
    return {
        key: _read(child, given[str(key)], under_key(path, key), name, check_bounds)
        for key, child in space.spaces.items()
    }


def _read_text(space: spaces.Text, data: Any, leaf: str, check_bounds: bool) -> str:
    if not isinstance(data, str):
        raise SimError(f"{leaf}: expected a string, got {short(data)}.")
    if check_bounds:
        if not space.min_length <= len(data) <= space.max_length:
            raise SimError(f"{leaf}: {len(data)} characters, allowed are {space.min_length} to {space.max_length}.")
        for character in data:
            if character not in space.character_set:
                raise SimError(
                    f"{leaf}: the character {character!r} is not allowed.",
                    hint=f"Allowed: {short(''.join(sorted(space.character_set)), 120)}.",
                )
    return data


def _read_discrete(space: spaces.Discrete[Any], data: Any, leaf: str, check_bounds: bool) -> Any:
    value = _whole(data, leaf)
    first, size = int(space.start), int(space.n)
    if check_bounds and not first <= value < first + size:
        raise SimError(f"{leaf}: {value} is not one of {first}..{first + size - 1}.")
    return _cast([value], dtype_of(space), leaf)[0]


def _read_array(
    space: spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary, data: Any, leaf: str, check_bounds: bool
) -> Array:
    shape = space.shape
    dtype = dtype_of(space)
    flat = _flatten(data, shape, leaf)
    if isinstance(space, spaces.MultiBinary) or dtype.kind == "b":
        bits = plain_bits(flat, dtype)
        if bits is not None:
            return bits.reshape(shape)
        for at, item in enumerate(flat):
            if not isinstance(item, (bool, int, float)) or item not in (0, 1):
                raise SimError(f"{element(leaf, shape, at)}: {short(item)} is neither 0 nor 1.")
        return np.array(flat, dtype=bool).astype(dtype).reshape(shape)
    at_once = plain_numbers(flat, dtype)
    if at_once is None:
        read = _finite if dtype.kind == "f" else _whole
        if not (set(map(type, flat)) <= {int}) or dtype.kind == "f":
            flat = [read(item, leaf, shape, at) for at, item in enumerate(flat)]
        at_once = _cast(flat, dtype, leaf)
    array = at_once.reshape(shape)
    if check_bounds:
        low, high = bounds_of(space)
        is_out = (array < low) | (array > high)
        if is_out.any():
            at = int(np.flatnonzero(is_out)[0])
            lowest, highest, value = (a.reshape(-1)[at] for a in (low, high, array))
            raise SimError(f"{element(leaf, shape, at)}: {value} is out of bounds, allowed is {lowest} to {highest}.")
    return array


def _flatten(data: Any, shape: tuple[int, ...], leaf: str) -> list[Any]:
    """The scalars of nested arrays of exactly this shape, in C order; only as deep as the shape is."""
    if shape in ((), (1,)) and not isinstance(data, (list, tuple)):
        return [data]
    level: list[Any] = [data]
    for depth, side in enumerate(shape):
        for item in level:
            if not isinstance(item, (list, tuple)):
                raise SimError(f"{leaf}: expected nested arrays of shape {shape}, got {short(item)}.")
            if len(item) != side:
                raise SimError(f"{leaf}: {len(item)} elements in dimension {depth}, its space has shape {shape}.")
        level = [part for item in level for part in item]
    return level


def _finite(item: Any, leaf: str, shape: tuple[int, ...] = (), at: int = 0) -> float:
    where = element(leaf, shape, at)
    if isinstance(item, bool) or not isinstance(item, (int, float)):
        raise SimError(f"{where}: expected a number, got {short(item)}.")
    try:
        value = float(item)
    except OverflowError as error:
        raise SimError(f"{where}: {short(item)} is too large.") from error
    if not np.isfinite(value):
        raise SimError(f"{where}: {value} is not a finite number.")
    return value


def _whole(item: Any, leaf: str, shape: tuple[int, ...] = (), at: int = 0) -> int:
    if isinstance(item, int) and not isinstance(item, bool):
        return item
    value = _finite(item, leaf, shape, at)
    if not value.is_integer():
        raise SimError(f"{element(leaf, shape, at)}: {value} is not a whole number.")
    return int(value)


def _cast(values: list[Any], dtype: np.dtype[Any], leaf: str) -> Array:
    """The numbers in the leaf's dtype, refusing those that it cannot hold."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=np.float64).astype(dtype)
        if not np.isfinite(array).all():
            raise SimError(f"{leaf}: a number is too large for {dtype.name}.")
        return array
    info = np.iinfo(dtype)
    for value in values:
        if not info.min <= value <= info.max:
            raise SimError(f"{leaf}: {short(value)} is out of the range of {dtype.name}.")
    return np.array(values, dtype=dtype)


def _integer_of(value: Any, leaf: str) -> int:
    if isinstance(value, (int, np.integer)):
        return int(value)
    return int(whole_numbers(numbers(value, (), leaf), leaf))


def _option(space: spaces.OneOf, value: Any, leaf: str) -> tuple[int, Space]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise SimError(f"{leaf}: expected [index, value], got {short(value)}.")
    index = _whole(value[0].item() if isinstance(value[0], np.generic) else value[0], leaf)
    if not 0 <= index < len(space.spaces):
        raise SimError(f"{leaf}: option {index} is not one of 0..{len(space.spaces) - 1}.")
    return index, space.spaces[index]


def _require_keys(given: Mapping[Any, Any], keys: list[Any], leaf: str) -> None:
    for key in given:
        if key not in keys:
            raise SimError(f"{leaf}: unknown key {short(key)}.", hint=did_you_mean(key, keys))
    for key in keys:
        if key not in given:
            raise SimError(f"{leaf}.{key}: missing.", hint=f"Give {', '.join(map(str, keys[:20]))}.")


def _require_length(value: Any, expected: int, leaf: str) -> None:
    if len(value) != expected:
        raise SimError(f"{leaf}: {len(value)} elements, its space has {expected}.")
