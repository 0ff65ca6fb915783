"""JSON Schema of the values of a space, in the JSON form of `platotk.spaces.to_json`.

Given a space, gives a schema as exact as JSON Schema allows: bounds of every element where they differ, characters of a
text, integers as integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import Space, spaces

MAX_EXACT = 256
"""Elements of an array whose own bounds are written out; larger ones share the widest."""
_LARGEST = float(np.finfo(np.float32).max)


def space_schema(space: Space[Any], *, is_input: bool = False, is_bare: bool = False) -> dict[str, Any]:
    """The schema.

    Args:
        space: Any but Graph and Sequence, which allow anything here.
        is_input: Whether values are read: then a bare number is taken for one element, true and false for a bit, and
            no number may be too large for float32, in which an agent sees it.
        is_bare: As `bare` writes values: one element of an array of shape (1,) stands there alone.
    """
    more = {"is_input": is_input, "is_bare": is_bare}
    if isinstance(space, spaces.Dict):
        properties = {str(key): space_schema(child, **more) for key, child in space.spaces.items()}
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
    if isinstance(space, spaces.Tuple):
        return _tuple([space_schema(child, **more) for child in space.spaces])
    if isinstance(space, spaces.Discrete):
        return _number("integer", int(space.start), int(space.start) + int(space.n) - 1)
    if isinstance(space, spaces.MultiDiscrete):
        low = np.asarray(space.start)
        return _bare(_nested("integer", low, low + (space.nvec - 1)), space.shape, **more)
    if isinstance(space, spaces.MultiBinary) or (isinstance(space, spaces.Box) and np.dtype(space.dtype).kind == "b"):
        bit = {"enum": [0, 1, True, False]} if is_input else _number("integer", 0, 1)
        return _bare(_array(space.shape, bit), space.shape, **more)
    if isinstance(space, spaces.Box):
        return _bare(_box(space, is_input), space.shape, **more)
    if isinstance(space, spaces.Text):
        allowed = "".join(f"\\u{ord(c):04x}" for c in sorted(space.character_set) if ord(c) < 0x10000)
        is_plain = allowed.count("\\u") == len(space.character_set)
        pattern = {"pattern": f"^[{allowed}]*$"} if is_plain and allowed else {}
        return {"type": "string", "minLength": space.min_length, "maxLength": space.max_length, **pattern}
    if isinstance(space, spaces.OneOf):
        options = [space_schema(child, **more) for child in space.spaces]
        return {"oneOf": [_tuple([{"const": index}, option]) for index, option in enumerate(options)]}
    return {}


def _box(space: spaces.Box, is_input: bool) -> dict[str, Any]:
    dtype = np.dtype(space.dtype)
    if dtype.kind != "f":
        return _nested("integer", space.low, space.high)
    limit = min(float(np.finfo(dtype).max), _LARGEST) if is_input else np.inf
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    return _nested("number", np.maximum(low, -limit), np.minimum(high, limit))


def _nested(kind: str, low: Any, high: Any) -> dict[str, Any]:
    """Arrays of numbers, element by element where the bounds differ and the array is not large."""
    if not low.ndim:
        return _number(kind, low.item(), high.item())
    if not low.size or ((low == low.flat[0]).all() and (high == high.flat[0]).all()) or low.size > MAX_EXACT:
        widest = (low.min().item(), high.max().item()) if low.size else (0, 0)
        return _array(low.shape, _number(kind, *widest))
    return _tuple([_nested(kind, below, above) for below, above in zip(low, high, strict=True)])


def _number(kind: str, low: float, high: float) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": kind}
    if np.isfinite(low):
        schema["minimum"] = low
    if np.isfinite(high):
        schema["maximum"] = high
    return schema


def _array(shape: tuple[int, ...], item: dict[str, Any]) -> dict[str, Any]:
    for length in reversed(shape):
        item = {"type": "array", "items": item, "minItems": length, "maxItems": length}
    return item


def _tuple(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": "array",
        "prefixItems": items,
        "items": False,
        "minItems": len(items),
        "maxItems": len(items),
    }


def bare(space: Space[Any], value: Any) -> Any:
    """JSON of a value of a space in which a leaf of shape (1,) is a number, not an array of one."""
    if isinstance(space, spaces.Dict):
        return {str(key): bare(child, value[str(key)]) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return [bare(child, part) for child, part in zip(space.spaces, value, strict=True)]
    return value[0] if isinstance(value, list) and space.shape == (1,) else value


def _bare(schema: dict[str, Any], shape: tuple[int, ...], *, is_input: bool, is_bare: bool) -> dict[str, Any]:
    """An array of one element; that element alone where values are written so, and either where they are read."""
    if shape != (1,) or not (is_input or is_bare):
        return schema
    item: dict[str, Any] = schema["prefixItems"][0] if "prefixItems" in schema else schema["items"]
    return item if is_bare else {"anyOf": [item, schema]}
