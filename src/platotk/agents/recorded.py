"""Recorded values of a space as JSON, small enough for images, and the rows of parity.json.

Given a space and a value, gives what `spaces.to_json` gives, except that an array of many numbers becomes one packed
string; and back. `read_rows` reads the recording of an agent. Nothing read from a file is trusted: a packed array must
unpack to exactly its space's shape, and whatever else is wrong with a row is an `AgentError`.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from gymnasium import Space, spaces

from ..errors import AgentError, SimError
from ..spaces import Adapter, from_json, to_json

PACKED_FROM = 256
"""Boxes of this many numbers or more are packed: zlib, base64, little-endian, in C order."""

_UNREADABLE = (SimError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, MemoryError)


@dataclass(frozen=True)
class Row:
    """One recorded step.

    Attributes:
        observation: In the sim's own space.
        action: What the trained policy answered, likewise.
        mask: As the sim gave it, or None.
        is_first: Whether it begins an episode.
        margin: How decided the policy was; None where there is no choice.
    """

    observation: Any
    action: Any
    mask: Any
    is_first: bool
    margin: float | None


def read_rows(data: bytes, adapter: Adapter, *, limit: int | None = None) -> list[Row]:
    """The rows of parity.json, each checked against the agent's spaces.

    Args:
        data: The bytes of the file.
        adapter: For the spaces, and for whether there are masks.
        limit: Only the first so many.

    Raises:
        AgentError: It is not what an export writes; the row is named.
    """
    try:
        recording = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise _unreadable(f"it is not JSON: {error}") from None
    rows = recording.get("rows") if isinstance(recording, dict) else None
    if not isinstance(rows, list):
        raise _unreadable("it holds no rows")
    found = []
    for number, row in enumerate(rows[:limit]):
        try:
            found.append(_row(row, adapter))
        except AgentError as error:
            raise AgentError(f"parity.json, row {number}: {error.message}", hint=error.hint) from error
        except _UNREADABLE as error:
            raise _unreadable(f"row {number}: {error!r}") from error
    return found


def _row(row: Any, adapter: Adapter) -> Row:
    if not isinstance(row, dict) or not row.keys() >= {"observation", "action"}:
        raise ValueError("no observation or no action")
    mask, margin, is_first = row.get("mask"), row.get("margin"), row.get("is_first", False)
    if mask is not None:
        if adapter.mask_source != "info":
            raise ValueError("a mask, and the agent takes none")
        adapter.encode_mask(mask)
    if margin is not None and (isinstance(margin, bool) or not math.isfinite(margin)):
        raise ValueError("a margin that is no number")
    if not isinstance(is_first, bool):
        raise ValueError("is_first is neither true nor false")
    observation = unpack(adapter.observation_space, row["observation"])
    return Row(observation, from_json(adapter.action_space, row["action"], check_bounds=False), mask, is_first, margin)


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
    except (*_UNREADABLE, zlib.error, binascii.Error) as error:
        raise _unreadable(str(error)) from error


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


def _unreadable(why: str) -> AgentError:
    return AgentError(f"parity.json cannot be read: {why[:300]}", hint="Export the agent again.")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it holds {constant}")
