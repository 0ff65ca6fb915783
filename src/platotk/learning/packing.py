"""A nested state as JSON and a few arrays, and back, without pickle.

Given what RLlib's `get_state()` methods return (dicts, lists, tuples, numbers, text, numpy arrays,
tensors), a `Packer` gives back a JSON value and one flat array per dtype; `unpack` gives the same state
again, with its types.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from itertools import repeat
from typing import Any

import numpy as np

LONG = 64
"""Longer texts are stored once, and longer lists of numbers as arrays."""


class Unpackable(TypeError):
    """A value that is neither data nor a container of data."""


class Packer:
    """Collects the arrays of one or more states, in one flat array per dtype."""

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {}
        self._sizes: dict[str, int] = {}
        self.texts: dict[str, int] = {}

    def pack(self, value: Any) -> Any:
        """The JSON of a value; its arrays are kept here.

        Raises:
            Unpackable: It holds an object that is not data (a function, a class, an open file ...).
        """
        if value is None or isinstance(value, (bool, int)):
            return value
        if isinstance(value, np.generic):
            return {"scalar": self._array(np.asarray(value))}
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, str):
            return value if len(value) <= LONG else {"text": self.texts.setdefault(value, len(self.texts))}
        if isinstance(value, np.ndarray):
            if value.dtype.kind == "O":
                return {"objects": [list(value.shape), self._sequence(list(value.ravel()))]}
            return {"array": self._array(value)}
        if isinstance(value, Mapping):
            return {"dict": [[self.pack(key), self.pack(item)] for key, item in value.items()]}
        if isinstance(value, list):
            return self._sequence(value)
        for kind in (tuple, deque, set):
            if isinstance(value, kind):
                return {kind.__name__: self._sequence(list(value))}
        if hasattr(value, "detach"):
            return {"tensor": self._array(value.detach().cpu().numpy())}
        raise Unpackable(f"a {type(value).__module__}.{type(value).__qualname__} is not data")

    def arrays(self) -> dict[str, np.ndarray]:
        """One 1-D array per dtype, by the dtype's name."""
        return {name: np.concatenate(parts) for name, parts in self._parts.items()}

    def text_table(self) -> list[str]:
        """The long texts, in the order in which the JSON numbers them."""
        return list(self.texts)

    def _array(self, value: np.ndarray) -> list[Any]:
        """Keep an array; gives [dtype name, offset in elements, shape]."""
        value = np.asarray(value, dtype=value.dtype.newbyteorder("="))
        if value.dtype.kind not in "biufcSUmM":
            raise Unpackable(f"an array of {value.dtype} is not data")
        name, offset = value.dtype.name, self._sizes.get(value.dtype.name, 0)
        self._parts.setdefault(name, []).append(value.ravel())
        self._sizes[name] = offset + value.size
        return [name, offset, list(value.shape)]

    def _sequence(self, values: list[Any]) -> Any:
        """A list; long ones of numbers, of equal rows of integers or of nothing but `{}` take little room."""
        if len(values) > LONG:
            kinds = set(map(type, values))
            if kinds == {dict} and not any(values):
                return {"empty": len(values)}
            if kinds == {int} and all(-(2**63) <= value < 2**63 for value in values):
                return {"numbers": self._array(np.array(values, np.int64))}
            if kinds and all(issubclass(kind, (float, np.floating)) for kind in kinds):
                return {"numbers": self._array(np.array(values, np.float64))}
            if kinds == {tuple} and len(set(map(len, values))) == 1 and _are_integers(values):
                return {"rows": self._array(np.array(values, np.int64))}
        return [self.pack(value) for value in values]


def unpack(data: Any, arrays: Mapping[str, np.ndarray], texts: list[str]) -> Any:
    """The state that `Packer.pack` was given.

    Raises:
        ValueError, KeyError, IndexError: The JSON and the arrays do not belong together.
    """
    if isinstance(data, list):
        return [unpack(item, arrays, texts) for item in data]
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    if kind == "dict":
        return {unpack(key, arrays, texts): unpack(item, arrays, texts) for key, item in content}
    if kind in ("tuple", "deque", "set"):
        return {"tuple": tuple, "deque": deque, "set": set}[kind](unpack(content, arrays, texts))
    if kind == "float":
        return float(content)
    if kind == "text":
        return texts[content]
    if kind == "empty":
        return [{} for _ in repeat(None, content)]
    if kind == "objects":
        shape, items = content
        objects = np.empty(len(items) if isinstance(items, list) else math.prod(shape), dtype=object)
        for index, item in enumerate(unpack(items, arrays, texts)):
            objects[index] = item
        return objects.reshape(shape)
    array = _slice(content, arrays)
    if kind == "array":
        return array
    if kind == "scalar":
        return array[()]
    if kind == "numbers":
        return array.tolist()
    if kind == "rows":
        return [tuple(row) for row in array.tolist()]
    if kind == "tensor":
        import torch

        return torch.from_numpy(array)
    raise ValueError(f"unknown kind {kind!r}")


def _slice(content: list[Any], arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """One array out of the flat one of its dtype, as a copy, which does not keep the others in memory."""
    name, offset, shape = content
    size = math.prod(shape)
    flat = arrays[name][offset : offset + size]
    if flat.size != size:
        raise ValueError(f"{size} elements of {name} at {offset} are not there")
    array: np.ndarray = np.array(flat).reshape(shape)
    return array


def _are_integers(rows: list[tuple[Any, ...]]) -> bool:
    return bool(rows[0]) and all(type(value) is int for row in rows for value in row)
