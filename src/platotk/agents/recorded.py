"""Recorded values of a space as JSON, small enough for images.

Given a space and a value, gives what `spaces.to_json` gives, except that an array of many numbers becomes one packed
string; and back. Nothing read from a file is trusted: a packed array must unpack to exactly its space's shape.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from ..errors import AgentError, SimError
from ..spaces import from_json, to_json

PACKED_FROM = 256
"""Boxes of this many numbers or more are packed: zlib, base64, little-endian, in C order."""


def pack(space: Space[Any], value: Any) -> Any:
    """The value as JSON.

    Raises:
        SimError: It has no JSON form (NaN, infinity, another shape); the message names the leaf.
    """
    if isinstance(space, spaces.Dict) and isinstance(value, Mapping) and value.keys() == space.spaces.keys():
        return {str(key): pack(child, value[key]) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple) and isinstance(value, (tuple, list)) and len(value) == len(space.spaces):
        return [pack(child, part) for child, part in zip(space.spaces, value, strict=True)]
    if not _is_packed(space):
        return to_json(space, value, name="observation")
    array = np.asarray(value)
    if array.shape != space.shape or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        return to_json(space, value, name="observation")  # which says what is wrong
    data = np.ascontiguousarray(array.astype(_little(space)))
    return base64.b64encode(zlib.compress(data.tobytes(), 6)).decode("ascii")


def unpack(space: Space[Any], data: Any) -> Any:
    """The value that `pack` was given, in the space's own dtype and shape.

    Raises:
        AgentError: It is not what `pack` gives.
    """
    try:
        return _unpack(space, data)
    except (SimError, ValueError, TypeError, KeyError, zlib.error, binascii.Error) as error:
        raise AgentError(f"parity.json cannot be read: {error}", hint="Export the agent again.") from error


def _unpack(space: Space[Any], data: Any) -> Any:
    if isinstance(space, spaces.Dict) and isinstance(data, Mapping):
        return {key: _unpack(child, data[str(key)]) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple) and isinstance(data, list):
        return tuple(_unpack(child, part) for child, part in zip(space.spaces, data, strict=True))
    if not _is_packed(space):
        return from_json(space, data, check_bounds=False)
    dtype = _little(space)
    num_bytes = int(np.prod(space.shape or ())) * dtype.itemsize
    stream = zlib.decompressobj()
    raw = stream.decompress(base64.b64decode(data, validate=True), num_bytes + 1)  # never more than it may be
    if len(raw) != num_bytes:
        raise ValueError(f"a packed array does not hold {num_bytes} bytes")
    return np.frombuffer(raw, dtype).reshape(space.shape or ()).astype(space.dtype)


def _is_packed(space: Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and int(np.prod(space.shape)) >= PACKED_FROM


def _little(space: Space[Any]) -> np.dtype[Any]:
    little: np.dtype[Any] = np.dtype(space.dtype).newbyteorder("<")
    return little
