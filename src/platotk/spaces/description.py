"""A space as JSON, and back: what a manifest or run.json stores, and what a server shows.

Given a Gymnasium space, gives plain lists, numbers and strings; given those, the same space again, with
dtype, key order and exact bounds. Infinite bounds are null, as JSON has no infinity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from platotk.errors import SimError
from platotk.spaces.leaves import Array, Space, did_you_mean, dtype_of, short

_MAX_DEPTH = 64
_MAX_ELEMENTS = 1 << 24  # of all arrays of a space together: as many numbers as an observation may have


def space_to_json(space: Space) -> dict[str, Any]:
    """The space as JSON, for example `{"type": "discrete", "n": 3, "start": 0, "dtype": "int64"}`.

    Raises:
        SimError: A space that is not one of Gymnasium's own.
    """
    if isinstance(space, spaces.Box):
        return {
            "type": "box",
            "low": _bounds_to_json(space.low, space.bounded_below),
            "high": _bounds_to_json(space.high, space.bounded_above),
            "shape": list(space.shape),
            "dtype": dtype_of(space).name,
        }
    if isinstance(space, spaces.Discrete):
        return {
            "type": "discrete",
            "n": int(space.n),
            "start": int(space.start),
            "dtype": dtype_of(space).name,
        }
    if isinstance(space, spaces.MultiDiscrete):
        return {
            "type": "multi_discrete",
            "nvec": space.nvec.tolist(),
            "start": space.start.tolist(),
            "dtype": dtype_of(space).name,
        }
    if isinstance(space, spaces.MultiBinary):
        return {"type": "multi_binary", "n": space.n if isinstance(space.n, int) else list(space.n)}
    if isinstance(space, spaces.Text):
        characters = "".join(sorted(space.character_set))
        return {
            "type": "text",
            "min_length": space.min_length,
            "max_length": space.max_length,
            "charset": characters,
        }
    if isinstance(space, spaces.Dict):
        for key in space.spaces:
            if not isinstance(key, (str, int)):
                raise SimError(f"The key {key!r} of a Dict space is neither a string nor an integer.")
        return {
            "type": "dict",
            "spaces": [[key, space_to_json(child)] for key, child in space.spaces.items()],
        }
    if isinstance(space, (spaces.Tuple, spaces.OneOf)):
        kind = "tuple" if isinstance(space, spaces.Tuple) else "one_of"
        return {"type": kind, "spaces": [space_to_json(child) for child in space.spaces]}
    if isinstance(space, spaces.Sequence):
        return {"type": "sequence", "space": space_to_json(space.feature_space), "stack": bool(space.stack)}
    if isinstance(space, spaces.Graph):
        edge = None if space.edge_space is None else space_to_json(space.edge_space)
        return {"type": "graph", "node": space_to_json(space.node_space), "edge": edge}
    raise SimError(f"{type(space).__name__} is not one of Gymnasium's own spaces; it cannot be written down.")


def space_from_json(data: Any) -> Space:
    """The space that `space_to_json` wrote.

    Raises:
        SimError: Not a description of a space; the message says what is wrong with it.
    """
    if (size := _size(data, 0)) > _MAX_ELEMENTS:
        raise SimError(f"A space of {size:,} numbers is too large; the most is {_MAX_ELEMENTS:,}.")
    return _read(data, 0)


def _size(data: Any, depth: int) -> int:
    """How many numbers the arrays of a description stand for, before any of them is made."""
    if not isinstance(data, Mapping) or depth > _MAX_DEPTH:
        return 0  # which is said when it is read
    children = data["spaces"] if isinstance(data.get("spaces"), list) else []
    parts = [one[-1] if isinstance(one, list) and one else one for one in children]
    parts += [data[key] for key in ("space", "node", "edge") if key in data]
    sides = data.get("shape", data.get("n")) if data.get("type") in ("box", "multi_binary") else 0
    sides = sides if isinstance(sides, list) else [sides]
    own = math.prod(abs(int(side)) for side in sides if isinstance(side, (int, float)) and abs(side) < 1e18)
    return own + sum(_size(part, depth + 1) for part in parts)


def _bounds_to_json(bounds: Array, is_bounded: Array) -> Any:
    """A number where all elements agree, otherwise nested arrays; null for infinite."""
    values = [
        value if bounded else None
        for value, bounded in zip(bounds.reshape(-1).tolist(), is_bounded.reshape(-1), strict=True)
    ]
    if bounds.dtype.kind == "b":
        values = [None if value is None else int(value) for value in values]
    if values and all(value == values[0] for value in values):
        return values[0]
    return np.array(values, dtype=object).reshape(bounds.shape).tolist()


def _read(data: Any, depth: int) -> Space:
    if not isinstance(data, Mapping) or "type" not in data:
        raise SimError(f"Not a space: {short(data)}.", hint='A space is an object with "type".')
    if depth > _MAX_DEPTH:
        raise SimError(f"A space nested deeper than {_MAX_DEPTH}.")
    reader = _READERS.get(str(data["type"]))
    if reader is None:
        raise SimError(f"There is no space type {data['type']!r}.", hint=did_you_mean(data["type"], _READERS))
    try:
        return reader(data, depth)
    except (KeyError, TypeError, ValueError, AssertionError, OverflowError, AttributeError) as error:
        raise SimError(f"Not a space of type {data['type']!r}: {short(str(error), 120)}.") from error


def _read_box(data: Mapping[str, Any], depth: int) -> Space:
    shape = tuple(int(n) for n in data["shape"])
    if math.prod(shape) > _MAX_ELEMENTS or min(shape, default=0) < 0:
        raise SimError(f"A Box of shape {shape} is too large.")
    dtype = np.dtype(data["dtype"])
    low, below = _read_bounds(data["low"], shape, dtype, is_low=True)
    high, above = _read_bounds(data["high"], shape, dtype, is_low=False)
    box = spaces.Box(low, high, shape, dtype.type)
    box.bounded_below, box.bounded_above = below, above
    return box


def _read_bounds(data: Any, shape: tuple[int, ...], dtype: np.dtype[Any], *, is_low: bool) -> tuple[Array, Array]:
    """The bounds in their dtype, exactly, and which of them are finite."""
    limit: Any
    if dtype.kind == "f":
        limit = -np.inf if is_low else np.inf
    elif dtype.kind == "b":
        limit = not is_low
    else:
        limit = np.iinfo(dtype).min if is_low else np.iinfo(dtype).max
    if not isinstance(data, list):  # one bound for all
        return np.full(shape, limit if data is None else data, dtype), np.full(shape, data is not None)
    given = np.array(data, dtype=object).reshape(shape)
    is_bounded = np.array([value is not None for value in given.reshape(-1)], dtype=bool).reshape(shape)
    values = [limit if value is None else value for value in given.reshape(-1)]
    return np.array(values, dtype=dtype).reshape(shape), is_bounded


def _read_discrete(data: Mapping[str, Any], depth: int) -> Space:
    return spaces.Discrete(int(data["n"]), start=int(data["start"]), dtype=np.dtype(data["dtype"]).type)


def _read_multi_discrete(data: Mapping[str, Any], depth: int) -> Space:
    dtype = np.dtype(data["dtype"]).type
    return spaces.MultiDiscrete(np.array(data["nvec"], dtype), dtype=dtype, start=np.array(data["start"], dtype))


def _read_multi_binary(data: Mapping[str, Any], depth: int) -> Space:
    size = data["n"]
    return spaces.MultiBinary(int(size) if isinstance(size, int) else [int(n) for n in size])


def _read_text(data: Mapping[str, Any], depth: int) -> Space:
    return spaces.Text(int(data["max_length"]), min_length=int(data["min_length"]), charset=str(data["charset"]))


def _read_dict(data: Mapping[str, Any], depth: int) -> Space:
    return spaces.Dict([(key, _read(child, depth + 1)) for key, child in data["spaces"]])


def _read_tuple(data: Mapping[str, Any], depth: int) -> Space:
    return spaces.Tuple([_read(child, depth + 1) for child in data["spaces"]])


def _read_one_of(data: Mapping[str, Any], depth: int) -> Space:
    return spaces.OneOf([_read(child, depth + 1) for child in data["spaces"]])


def _read_sequence(data: Mapping[str, Any], depth: int) -> Space:
    return spaces.Sequence(_read(data["space"], depth + 1), stack=bool(data["stack"]))


def _read_graph(data: Mapping[str, Any], depth: int) -> Space:
    edge = None if data["edge"] is None else _read(data["edge"], depth + 1)
    node = _read(data["node"], depth + 1)
    return spaces.Graph(node, edge)  # type: ignore[arg-type]


_READERS = {
    "box": _read_box,
    "discrete": _read_discrete,
    "multi_discrete": _read_multi_discrete,
    "multi_binary": _read_multi_binary,
    "text": _read_text,
    "dict": _read_dict,
    "tuple": _read_tuple,
    "one_of": _read_one_of,
    "sequence": _read_sequence,
    "graph": _read_graph,
}
