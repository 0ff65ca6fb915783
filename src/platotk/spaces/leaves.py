"""Names and numbers of leaves: what the other modules of this package share.

Given a path such as `tank.valves[0]`, gives the name that people read (`observation.tank.valves[0]`); given
what a sim or a client handed over, gives an array of the leaf's shape, or an error that names the leaf.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable
from functools import cache
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from platotk.errors import SimError

Array = NDArray[Any]
Space = spaces.Space[Any]
_NUMBER_TYPES = {int, float}
_QUOTED = re.compile(r'\["(?:[^"\\]|\\.)*"\]')


def under_key(path: str, key: object) -> str:
    """The path of a Dict's child: `tank.level`; `tank["level.m"]` where the key itself would read as a path."""
    word = str(key)
    if not word or "." in word or "[" in word:
        return f"{path}[{json.dumps(word, ensure_ascii=False)}]"
    return f"{path}.{word}" if path else word


def under_index(path: str, index: object) -> str:
    """The path of a Tuple's child, or of one element of an array."""
    return f"{path}[{index}]"


def meant_path(name: str, paths: Collection[str]) -> str:
    """The path that a name stands for: itself, or the only one that reads so without quotes (`level.m`)."""
    if name in paths:
        return name
    found = [path for path in paths if '["' in path and _unquoted(path) == name]
    return found[0] if len(found) == 1 else name


def _unquoted(path: str) -> str:
    return _QUOTED.sub(lambda match: "." + str(json.loads(match[0])[0]), path).removeprefix(".")


def label(name: str, path: str) -> str:
    """The leaf as people read it: `observation.tank.level`; the root is just `observation`."""
    if not path:
        return name
    return f"{name}{path}" if path.startswith("[") else f"{name}.{path}"


def element(leaf: str, shape: tuple[int, ...], flat_index: int) -> str:
    """The name of one element of an array leaf: `observation.x[1][2]`; or the leaf, if it has but one."""
    if int(np.prod(shape)) == 1:
        return leaf
    position = np.unravel_index(flat_index, shape)
    return leaf + "".join(f"[{int(i)}]" for i in position)


def short(value: object, width: int = 60) -> str:
    """A repr on one line that never floods a terminal."""
    if isinstance(value, np.ndarray) and value.size > 8:
        return f"an array of shape {value.shape}"
    if isinstance(value, (str, bytes, list, tuple, dict)) and len(value) > 200:
        return f"a {type(value).__name__} of length {len(value)}"
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of thousands of digits
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= width else text[: width - 3] + "..."


def describe_space(space: Space, width: int = 100) -> str:
    """The space on one line, shortened when it holds many bounds."""
    if isinstance(space, spaces.Text):
        text = f"Text({space.min_length}, {space.max_length}, {len(space.character_set)} characters)"
    elif isinstance(space, spaces.Box) and space.low.size > 32:
        low, high = _range(space.low), _range(space.high)
        text = f"Box({low}, {high}, {space.shape}, {space.dtype})"
    else:
        text = " ".join(str(space).split())
    return text if len(text) <= width else text[: width - 3] + "..."


def did_you_mean(word: object, options: Iterable[object]) -> str | None:
    """`Did you mean 'level'?`, or what there is, or None when there is nothing."""
    names = [str(option) for option in options]
    close = difflib.get_close_matches(str(word), names, n=1)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Known: {', '.join(names[:20])}." if names else None


def numbers(value: object, shape: tuple[int, ...], leaf: str) -> Array:
    """What a sim handed over, as an array of numbers of exactly this shape.

    Lists, tuples and any real dtype are taken, and a bare number for shapes () and (1,).

    Raises:
        SimError: Not numbers, or another shape; the message opens with `leaf`.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise SimError(f"{leaf}: rows of different lengths, expected shape {shape}.") from error
    if array.dtype.kind not in "fiub":
        raise SimError(f"{leaf}: expected numbers of shape {shape}, got {short(value)}.")
    if array.shape != shape:
        if shape in ((), (1,)) and array.shape in ((), (1,)):
            return array.reshape(shape)
        raise SimError(
            f"{leaf}: has shape {array.shape}, its space has {shape}.",
            hint="Make the value and the space agree: change one of them in the sim.",
        )
    return array


def whole_numbers(array: Array, leaf: str) -> NDArray[np.int64]:
    """The array as int64 (unsigned ones modulo 2**64), refusing fractions and NaN."""
    if array.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            is_whole = np.isfinite(array) & (np.rint(array) == array) & (np.abs(array) < 2.0**62)
        if not is_whole.all():
            bad = array[~is_whole].ravel()[0]
            raise SimError(f"{leaf}: {bad} is not a whole number.")
    return array.astype(np.int64)


def column(values: list[Any], shape: tuple[int, ...]) -> Array | None:
    """Many values of one leaf as one array (B, *shape); None when they are not alike enough to trust that."""
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):
        return None
    if array.dtype.kind not in "fiub" or array.shape != (len(values), *shape):
        return None
    first = values[0]
    if isinstance(first, (np.ndarray, np.generic)):
        return array if array.dtype == first.dtype else None
    # Plain integers that were turned into floats by their neighbours may have lost digits.
    return None if isinstance(first, int) and array.dtype.kind == "f" else array


def plain_numbers(flat: list[Any], dtype: np.dtype[Any]) -> Array | None:
    """JSON numbers as one array of this dtype, all at once; None when one of them needs a closer look.

    Takes exactly what the strict reader of `values` takes, or less: a bool, a fraction for an integer, NaN and what the
    dtype cannot hold all give None.
    """
    types = set(map(type, flat))
    if not types <= _NUMBER_TYPES:
        return None
    if not flat:
        return np.zeros(0, dtype)
    try:
        if dtype.kind == "f":
            wide = np.array(flat, np.float64)
            limit = _largest(dtype)
            return wide.astype(dtype) if -limit <= wide.min() and wide.max() <= limit else None
        if float in types:
            wide = np.array(flat, np.float64)
            if not (np.abs(wide) < 2.0**53).all() or (np.rint(wide) != wide).any():
                return None
            whole = wide.astype(np.int64)
        else:
            whole = np.array(flat, np.int64)
    except OverflowError:
        return None
    info = np.iinfo(dtype)
    return whole.astype(dtype) if info.min <= int(whole.min()) and int(whole.max()) <= info.max else None


def plain_bits(flat: list[Any], dtype: np.dtype[Any]) -> Array | None:
    """The same for zeros and ones, where true and false are taken as well."""
    if not set(map(type, flat)) <= {bool, int, float}:
        return None
    try:
        wide = np.array(flat, np.float64)
    except OverflowError:
        return None
    return wide.astype(dtype) if ((wide == 0) | (wide == 1)).all() else None


def bounds_of(space: spaces.Box | spaces.MultiDiscrete) -> tuple[Array, Array]:
    """The lowest and the highest value of each element."""
    if isinstance(space, spaces.Box):
        return space.low, space.high
    return space.start, space.start + (space.nvec - 1)


@cache
def _largest(dtype: np.dtype[Any]) -> float:
    return float(np.finfo(dtype).max)


def dtype_of(space: Space) -> np.dtype[Any]:
    """The dtype of a space of arrays or integers (Gymnasium types it as optional, it is always there)."""
    return np.dtype(space.dtype)


def _range(bounds: Array) -> str:
    low, high = bounds.min(), bounds.max()
    return str(low) if low == high else f"{low}..{high}"
