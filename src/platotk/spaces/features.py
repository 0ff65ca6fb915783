"""The parts of an encoded observation: for each kind of leaf, where its numbers go and how they get there.

Given a leaf of an observation space, reserves its entries of the vector (or an image beside it); given values
of that leaf, one or many, validates them and writes them there.
"""

# ruff: noqa: D102 -- the methods are documented once, in Node and Leaf

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from gymnasium import spaces

from platotk.errors import SimError
from platotk.spaces.leaves import (
    Array,
    Space,
    column,
    describe_space,
    element,
    label,
    numbers,
    short,
    whole_numbers,
)

MAX_ONE_HOT = 1024  # a choice among more than this many becomes one number
MAX_ENTRIES = 1 << 24  # of the vector: 64 MiB an observation is a mistake, not an observation
MAX_CHANNELS = 16
MIN_IMAGE_SIDE = 8


class Plan:
    """What is gathered while the space is walked."""

    def __init__(self) -> None:
        self.size = 0
        self.leaves: list[Leaf] = []
        self.images: list[Image] = []
        self.lines: list[str] = []

    def reserve(self, size: int, leaf: str) -> tuple[int, int]:
        start, self.size = self.size, self.size + size
        if self.size > MAX_ENTRIES:
            raise SimError(
                f"{leaf}: the observation would have {self.size:,} numbers; the most is {MAX_ENTRIES:,}.",
                hint="Make the space smaller, or give a summary of it.",
            )
        return start, self.size

    def note(self, leaf: str, space: Space, how: str) -> None:
        self.lines.append(f"{leaf}: {describe_space(space)} -> {how}")


class Node(ABC):
    """One node of the space: knows where in the vector its part goes."""

    @abstractmethod
    def write(self, value: Any, out: Array, images: list[Any]) -> None:
        """Validate one value and write it into `out` (n,) or `images`."""

    def write_batch(self, values: list[Any], out: Array, images: list[Any]) -> None:
        """The same for many values, `out` (B, n); one by one unless a node knows better."""
        for row, value in enumerate(values):
            self.write(value, out[row], images)

    def write_column(self, column: Any, out: Array, images: list[Any]) -> None:
        """The same for a column of `spaces.columns`; a list of values unless a node knows better."""
        self.write_batch(list(column), out, images)


class Leaf(Node):
    """A leaf that is an array of numbers, with a slice of the vector."""

    start = 0
    stop = 0
    shape: tuple[int, ...] = ()

    def __init__(self, path: str) -> None:
        self.label = label("observation", path)

    def flag_numeric(self, numeric: Array) -> None:
        """Mark the entries that a filter may touch; none by default."""

    @abstractmethod
    def put(self, rows: Array, out: Array, images: list[Any]) -> None:
        """Write values (B, *shape) into `out` (B, n)."""

    def write(self, value: Any, out: Array, images: list[Any]) -> None:
        array = numbers(value, self.shape, self.label)
        self.put(array[np.newaxis], out[np.newaxis], images)

    def write_batch(self, values: list[Any], out: Array, images: list[Any]) -> None:
        rows = column(values, self.shape)
        if rows is None:
            super().write_batch(values, out, images)
        else:
            self.put(rows, out, images)

    def write_column(self, column: Any, out: Array, images: list[Any]) -> None:
        rows = np.asarray(column)
        if rows.shape != (len(out), *self.shape) or rows.dtype.kind not in "fiub":
            raise SimError(f"{self.label}: has shape {rows.shape}, expected numbers of {(len(out), *self.shape)}.")
        self.put(rows, out, images)


class Numbers(Leaf):
    """A Box, flattened."""

    def __init__(self, space: spaces.Box, path: str, plan: Plan) -> None:
        super().__init__(path)
        self.shape = space.shape
        self.start, self.stop = plan.reserve(space.low.size, self.label)
        plan.leaves.append(self)
        count = self.stop - self.start
        plan.note(self.label, space, f"{count} number{'' if count == 1 else 's'}, normalised")

    def flag_numeric(self, numeric: Array) -> None:
        numeric[self.start : self.stop] = True

    def write(self, value: Any, out: Array, images: list[Any]) -> None:
        if type(value) is not np.ndarray or value.shape != self.shape or value.dtype.kind not in "fiub":
            value = numbers(value, self.shape, self.label)
        if value.dtype.char == "d" and out.dtype.char == "f":
            with np.errstate(over="ignore"):  # what is too large for float32 is named as such afterwards
                value = value.astype(np.float32)
        out[self.start : self.stop] = value if value.ndim == 1 else value.reshape(-1)

    def put(self, rows: Array, out: Array, images: list[Any]) -> None:
        out[:, self.start : self.stop] = rows.reshape(len(rows), -1)


class Bits(Leaf):
    """MultiBinary, or a Box of booleans: entries of 0 and 1."""

    def __init__(self, space: spaces.MultiBinary | spaces.Box, path: str, plan: Plan) -> None:
        super().__init__(path)
        self.shape = space.shape
        count = int(np.prod(self.shape))
        self.start, self.stop = plan.reserve(count, self.label)
        plan.leaves.append(self)
        plan.note(self.label, space, f"{count} bit{'' if count == 1 else 's'}, 0 or 1")

    def put(self, rows: Array, out: Array, images: list[Any]) -> None:
        is_bit = (rows == 0) | (rows == 1)
        if not is_bit.all():
            raise SimError(f"{self.label}: {rows[~is_bit].ravel()[0]} is neither 0 nor 1.")
        out[:, self.start : self.stop] = rows.reshape(len(rows), -1)


class Options(Leaf):
    """Discrete or MultiDiscrete: one-hot each, or one number in [-1, 1] where the choice is very wide."""

    def __init__(self, space: spaces.Discrete[Any] | spaces.MultiDiscrete, path: str, plan: Plan) -> None:
        super().__init__(path)
        sizes = space.n if isinstance(space, spaces.Discrete) else space.nvec
        self.is_scalar = isinstance(space, spaces.Discrete)
        self.shape = np.shape(sizes)
        self.nvec = np.asarray(sizes, dtype=np.int64).reshape(-1)
        self.first = np.asarray(space.start).astype(np.int64).reshape(-1)
        self.is_wide = self.nvec > MAX_ONE_HOT
        widths = np.where(self.is_wide, 1, self.nvec)
        self.start, self.stop = plan.reserve(int(widths.sum()), self.label)
        self.offsets = self.start + np.concatenate([[0], np.cumsum(widths)[:-1]]).astype(np.int64)
        plan.leaves.append(self)
        plan.note(self.label, space, self._how())

    def flag_numeric(self, numeric: Array) -> None:
        numeric[self.offsets[self.is_wide]] = True

    def write(self, value: Any, out: Array, images: list[Any]) -> None:
        if self.is_scalar and isinstance(value, (int, np.integer)) and not self.is_wide[0]:
            index = int(value) - int(self.first[0])
            if not 0 <= index < self.nvec[0]:
                raise self._out_of_range(int(value), 0)
            out[self.start + index] = 1.0
        else:
            super().write(value, out, images)

    def put(self, rows: Array, out: Array, images: list[Any]) -> None:
        given = whole_numbers(rows.reshape(len(rows), -1), self.label)
        index = given - self.first
        is_out = (index < 0) | (index >= self.nvec)
        if is_out.any():
            row, at = (int(i) for i in np.argwhere(is_out)[0])
            raise self._out_of_range(int(rows.reshape(len(rows), -1)[row, at]), at)
        narrow, wide = ~self.is_wide, self.is_wide
        out[np.arange(len(rows))[:, None], (self.offsets + index)[:, narrow]] = 1.0
        if wide.any():
            out[:, self.offsets[wide]] = 2.0 * index[:, wide] / (self.nvec[wide] - 1) - 1.0

    def _out_of_range(self, value: int, at: int) -> SimError:
        low = int(self.first[at])
        where = element(self.label, self.shape, at)
        return SimError(
            f"{where}: {value} is not one of {low}..{low + int(self.nvec[at]) - 1}.",
            hint="Correct the observation, or the n and start of its space.",
        )

    def _how(self) -> str:
        sizes = [int(n) for n in self.nvec]
        if len(sizes) == 1:
            return "1 number in -1..1" if self.is_wide[0] else f"one-hot of {sizes[0]}"
        narrow = [n for n, wide in zip(sizes, self.is_wide, strict=True) if not wide]
        parts = [f"{len(narrow)} one-hots of {_each(narrow)}"] if narrow else []
        if self.is_wide.any():
            count = int(self.is_wide.sum())
            parts.append(f"{count} number{'' if count == 1 else 's'} in -1..1")
        return " and ".join(parts) or "nothing"


class Characters(Node):
    """Text: at each position a one-hot over the characters and "end"."""

    def __init__(self, space: spaces.Text, path: str, plan: Plan) -> None:
        self.label = label("observation", path)
        self.min_length, self.max_length = space.min_length, space.max_length
        characters = sorted(space.character_set)
        self.codes = {character: code for code, character in enumerate(characters)}
        self.end = len(characters)
        self.start, _ = plan.reserve(self.max_length * (self.end + 1), self.label)
        plan.note(self.label, space, f"{self.max_length} characters, one-hot of {self.end + 1} each")

    def write(self, value: Any, out: Array, images: list[Any]) -> None:
        if not isinstance(value, str):
            raise SimError(f"{self.label}: expected a string, got {short(value)}.")
        if not self.min_length <= len(value) <= self.max_length:
            raise SimError(
                f"{self.label}: {len(value)} characters, allowed are {self.min_length} to {self.max_length}."
            )
        for position in range(self.max_length):
            code = self.codes.get(value[position]) if position < len(value) else self.end
            if code is None:
                raise SimError(f"{self.label}: {value[position]!r} is not one of the space's characters.")
            out[self.start + position * (self.end + 1) + code] = 1.0


class Image(Leaf):
    """An image leaf: (C, H, W), uint8 as it is or float32 scaled to [0, 1] by its bounds."""

    def __init__(self, space: spaces.Box, path: str, plan: Plan, axes: tuple[int, ...]) -> None:
        super().__init__(path)
        self.shape = space.shape
        self.index = len(plan.images)
        plan.images.append(self)
        grid = space.low.reshape(*space.shape, 1) if space.low.ndim == 2 else space.low
        shape = tuple(grid.shape[axis] for axis in axes)
        self.axes = axes
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        self.is_bytes = space.dtype == np.uint8 and bool((low == 0).all() and (high == 255).all())
        limit = float(np.finfo(np.float32).max)
        self.is_scaled = not self.is_bytes and bool((low > -limit).all() and (high < limit).all())
        self.low = low
        with np.errstate(divide="ignore"):
            self.gain = np.where(high > low, 1.0 / (high - low), 0.0) if self.is_scaled else np.ones(())
        if self.is_bytes:
            self.encoded, how = spaces.Box(0, 255, shape, np.uint8), "divided by 255"
        elif self.is_scaled:
            self.encoded, how = spaces.Box(0.0, 1.0, shape, np.float32), "scaled to 0..1"
        else:
            self.encoded, how = spaces.Box(-np.inf, np.inf, shape, np.float32), "as it is"
        plan.note(self.label, space, f"image of {shape[0]} x {shape[1]} x {shape[2]} (C, H, W), {how}")

    def write(self, value: Any, out: Array, images: list[Any]) -> None:
        images[self.index] = self._convert(numbers(value, self.shape, self.label)[np.newaxis])[0]

    def write_batch(self, values: list[Any], out: Array, images: list[Any]) -> None:
        rows = column(values, self.shape)
        if rows is None:
            single = [self._convert(numbers(v, self.shape, self.label)[np.newaxis]) for v in values]
            images[self.index] = np.concatenate(single)
        else:
            images[self.index] = self._convert(rows)

    def put(self, rows: Array, out: Array, images: list[Any]) -> None:
        images[self.index] = self._convert(rows)

    def _convert(self, rows: Array) -> Array:
        """(B, *shape) of any dtype to (B, C, H, W), a fresh array."""
        if rows.dtype.kind == "f" and not np.isfinite(rows).all():
            bad = rows[~np.isfinite(rows)].ravel()[0]
            raise SimError(f"{self.label}: holds {bad}, which cannot be learned from.")
        if self.is_bytes:
            if rows.dtype != np.uint8:
                rows = np.clip(np.rint(rows), 0, 255) if rows.dtype.kind == "f" else np.clip(rows, 0, 255)
            pixels = rows.astype(np.uint8)
        elif self.is_scaled:
            pixels = np.clip((rows.astype(np.float64) - self.low) * self.gain, 0.0, 1.0).astype(np.float32)
        else:
            with np.errstate(over="ignore"):
                pixels = rows.astype(np.float32)
            if not np.isfinite(pixels).all():
                raise SimError(f"{self.label}: holds numbers too large for float32.")
        if pixels.ndim == 3:
            pixels = pixels[..., np.newaxis]
        return np.ascontiguousarray(pixels.transpose(0, *(axis + 1 for axis in self.axes)))


def image_axes(space: spaces.Box) -> tuple[int, ...] | None:
    """The axes of the leaf in the order (C, H, W), or None when it is no image."""
    shape = space.shape
    if len(shape) == 2 and space.dtype == np.uint8 and min(shape) >= MIN_IMAGE_SIDE:
        return (2, 0, 1)
    if len(shape) != 3:
        return None
    for channel, axes in ((2, (2, 0, 1)), (0, (0, 1, 2))):
        sides = [shape[axis] for axis in range(3) if axis != channel]
        if shape[channel] <= MAX_CHANNELS and shape[channel] < min(sides) and min(sides) >= MIN_IMAGE_SIDE:
            return axes
    return None


def is_flattened_picture(space: Space) -> bool:
    """Whether a leaf looks like a picture, or several, and is learned from as plain numbers all the same."""
    if not isinstance(space, spaces.Box) or image_axes(space) is not None or space.dtype == np.bool_:
        return False
    num_sides = sum(side >= MIN_IMAGE_SIDE for side in space.shape)
    if space.dtype == np.uint8:
        return len(space.shape) >= 2 and num_sides >= 1
    return len(space.shape) >= 3 and num_sides >= 2


def _each(sizes: list[int]) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else short(sizes)[1:-1]
