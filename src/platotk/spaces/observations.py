"""Observations on their way in: any observation space becomes one float32 vector, and images beside it.

Given a space, `Encoding` walks its leaves once, in Gymnasium's own order, and gives each its place in the
vector; after that, encoding an observation is a plain walk that validates and copies. Values outside a Box's
bounds are let through: only what cannot be learned from (a missing key, another shape, NaN) is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from gymnasium import spaces

from platotk.errors import SimError
from platotk.spaces.features import (
    Bits,
    Characters,
    Image,
    Node,
    Numbers,
    Options,
    Plan,
    image_axes,
)
from platotk.spaces.leaves import (
    Array,
    Space,
    describe_space,
    did_you_mean,
    element,
    label,
    numbers,
    short,
    under_index,
    under_key,
    whole_numbers,
)


class Encoding:
    """How one observation space is encoded.

    Attributes:
        numeric: Bool (n,), the entries that a normalising filter may touch.
        images: The image leaves, in leaf order.
        is_empty: Whether there is nothing in it to see.
        lines: One line per leaf, for people.
    """

    def __init__(self, space: Space, *, skip: str | None = None) -> None:
        """Plan the walk; `skip` is a top-level key that is not part of the vector (the action mask).

        Raises:
            SimError: A leaf that cannot be learned from (Graph, Sequence, a space of its own kind).
        """
        self._plan = Plan()
        self._root = _node(space, "", self._plan, images=True, skip=skip)
        self.size = max(self._plan.size, 0 if self._plan.images else 1)
        self.numeric: Array = np.zeros(self.size, dtype=bool)
        for leaf in self._plan.leaves:
            leaf.flag_numeric(self.numeric)
        self.numeric.flags.writeable = False
        self.images = tuple(self._plan.images)
        self.is_empty = not self._plan.size and not self.images
        self.lines = list(self._plan.lines)
        self._flat_shape = self._root.shape if isinstance(self._root, Numbers) and self._plan.size else None

    def encode(self, obs: Any) -> tuple[Array, list[Array]]:
        """The vector (n,) float32 and the images, all freshly allocated."""
        if self._flat_shape is not None and type(obs) is np.ndarray and obs.dtype.kind in "fiub":
            vector: Array = np.array(obs, dtype=np.float32)
            if vector.shape == self._flat_shape:
                if vector.ndim != 1:
                    vector = vector.reshape(-1)
                self._require_finite(vector, lambda: np.asarray(obs, np.float64).reshape(-1))
                return vector, []
        vector = np.zeros(self.size, dtype=np.float32)
        images: list[Any] = [None] * len(self.images)
        self._root.write(obs, vector, images)
        self._require_finite(vector, lambda: self._exact(obs))
        return vector, images

    def encode_batch(self, observations: Sequence[Any]) -> tuple[Array, list[Array]]:
        """The same for many at once, leaf by leaf: vector (B, n) and images (B, C, H, W)."""
        batch = list(observations)
        if not batch:
            return np.zeros((0, self.size), np.float32), [
                np.zeros((0, *i.encoded.shape), i.encoded.dtype) for i in self.images
            ]
        vectors = np.zeros((len(batch), self.size), dtype=np.float32)
        images: list[Any] = [None] * len(self.images)
        try:
            with np.errstate(over="ignore"):
                self._root.write_batch(batch, vectors, images)
            if not np.isfinite(vectors).all():
                raise SimError("observation: not finite.")
        except SimError:
            for obs in batch:  # one by one, so that the error is the one that encode would give
                self.encode(obs)
            raise
        return vectors, images

    def encode_columns(self, columns: Any, num_rows: int) -> tuple[Array, list[Array]]:
        """The same for columns, which hold one array for each leaf."""
        vectors = np.zeros((num_rows, self.size), dtype=np.float32)
        images: list[Any] = [None] * len(self.images)
        with np.errstate(over="ignore"):
            self._root.write_column(columns, vectors, images)
        if not np.isfinite(vectors).all():
            row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
            exact = np.zeros(vectors.shape)
            self._root.write_column(columns, exact, images)
            self._require_finite(vectors[row], lambda: exact[row])
        return vectors, images

    def _exact(self, obs: Any) -> Array:
        """The vector with all digits that the sim gave."""
        exact = np.zeros(self.size)
        self._root.write(obs, exact, [None] * len(self.images))
        return exact

    def _require_finite(self, vector: Array, exact: Callable[[], Array]) -> None:
        is_finite = np.isfinite(vector)
        if is_finite.all():
            return
        at = int(np.argmin(is_finite))
        for leaf in self._plan.leaves:
            if leaf.start <= at < leaf.stop:
                value = exact()[at]
                where = element(leaf.label, leaf.shape, at - leaf.start)
                if np.isfinite(value):
                    raise SimError(
                        f"{where}: {value:g} is too large for float32, in which networks learn.",
                        hint="Scale it: divide by what is large for it, or give its logarithm; the bounds likewise.",
                    )
                raise SimError(
                    f"{where}: {value} cannot be learned from.",
                    hint="Find where the sim divides by zero or diverges, and end the episode before that.",
                )


class _Dict(Node):
    """A Dict: exactly its keys, in the order in which the space stores them."""

    def __init__(self, space: spaces.Dict, path: str, plan: Plan, images: bool, skip: str | None) -> None:
        self.label = label("observation", path)
        self.keys = list(space.spaces)
        self.children = [
            (key, _node(child, under_key(path, key), plan, images=images))
            for key, child in space.spaces.items()
            if skip is None or key != skip
        ]

    def write(self, value: Any, out: Array, images: list[Any]) -> None:
        self._require_keys(value)
        for key, child in self.children:
            child.write(value[key], out, images)

    def write_batch(self, values: list[Any], out: Array, images: list[Any]) -> None:
        if set(map(type, values)) != {dict} or set(map(len, values)) != {len(self.keys)}:
            for value in values:
                self._require_keys(value)
        for key, child in self.children:
            try:
                picked = list(map(itemgetter(key), values))
            except KeyError:
                raise SimError(f"{under_key(self.label, key)}: missing.") from None
            child.write_batch(picked, out, images)

    def write_column(self, column: Any, out: Array, images: list[Any]) -> None:
        self._require_keys(column)
        for key, child in self.children:
            child.write_column(column[key], out, images)

    def _require_keys(self, value: Any) -> None:
        if not isinstance(value, Mapping):
            raise SimError(f"{self.label}: expected a dict with {_names(self.keys)}, got {short(value)}.")
        if len(value) == len(self.keys) and all(key in value for key in self.keys):
            return
        extra = [key for key in value if key not in self.keys]
        for key in self.keys:
            if key not in value:
                hint = f"There is {_names(extra)}." if extra else None
                raise SimError(f"{under_key(self.label, key)}: missing.", hint=hint)
        raise SimError(f"{self.label}: unknown key {extra[0]!r}.", hint=did_you_mean(extra[0], self.keys))


class _Tuple(Node):
    """A Tuple: exactly as many parts as the space has."""

    def __init__(self, space: spaces.Tuple, path: str, plan: Plan, images: bool) -> None:
        self.label = label("observation", path)
        self.children = [
            _node(child, under_index(path, index), plan, images=images) for index, child in enumerate(space.spaces)
        ]

    def write(self, value: Any, out: Array, images: list[Any]) -> None:
        self._require_length(value)
        for child, part in zip(self.children, value, strict=True):
            child.write(part, out, images)

    def write_batch(self, values: list[Any], out: Array, images: list[Any]) -> None:
        if set(map(type, values)) != {tuple} or set(map(len, values)) != {len(self.children)}:
            for value in values:
                self._require_length(value)
        for index, child in enumerate(self.children):
            child.write_batch([value[index] for value in values], out, images)

    def write_column(self, column: Any, out: Array, images: list[Any]) -> None:
        self._require_length(column)
        for child, part in zip(self.children, column, strict=True):
            child.write_column(part, out, images)

    def _require_length(self, value: Any) -> None:
        expected = len(self.children)
        if not isinstance(value, (tuple, list)) and not (isinstance(value, np.ndarray) and value.ndim):
            raise SimError(f"{self.label}: expected a tuple of {expected}, got {short(value)}.")
        if len(value) != expected:
            raise SimError(f"{self.label}: {len(value)} parts, its space has {expected}.")


class _OneOf(Node):
    """OneOf: a one-hot of which option it is, then all options, zeros but for that one."""

    def __init__(self, space: spaces.OneOf, path: str, plan: Plan) -> None:
        self.label = label("observation", path)
        self.start, _ = plan.reserve(len(space.spaces), self.label)
        plan.note(self.label, space, f"one-hot of {len(space.spaces)} options, then each option")
        self.options = [
            _node(option, under_index(path, index), plan, images=False) for index, option in enumerate(space.spaces)
        ]

    def write(self, value: Any, out: Array, images: list[Any]) -> None:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise SimError(f"{self.label}: expected (index, value), got {short(value)}.")
        index = int(whole_numbers(numbers(value[0], (), self.label), self.label))
        if not 0 <= index < len(self.options):
            raise SimError(f"{self.label}: option {index} is not one of 0..{len(self.options) - 1}.")
        out[self.start + index] = 1.0
        self.options[index].write(value[1], out, images)


def _node(space: Space, path: str, plan: Plan, *, images: bool, skip: str | None = None) -> Node:
    """The node for this space; images stay images unless they stand in a OneOf."""
    if isinstance(space, spaces.Dict):
        return _Dict(space, path, plan, images, skip)
    if isinstance(space, spaces.Tuple):
        return _Tuple(space, path, plan, images)
    if isinstance(space, spaces.OneOf):
        return _OneOf(space, path, plan)
    if isinstance(space, spaces.Box):
        axes = image_axes(space) if images else None
        if axes is not None:
            return Image(space, path, plan, axes)
        return Bits(space, path, plan) if space.dtype == np.bool_ else Numbers(space, path, plan)
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return Options(space, path, plan)
    if isinstance(space, spaces.MultiBinary):
        return Bits(space, path, plan)
    if isinstance(space, spaces.Text):
        return Characters(space, path, plan)
    raise _refused(space, label("observation", path))


def _refused(space: Space, leaf: str) -> SimError:
    what = f"{leaf}: {describe_space(space)} cannot be learned from"
    if isinstance(space, spaces.Sequence):
        return SimError(
            f"{what}: its length is not fixed.",
            hint='Pad it to a fixed length: Dict({"items": Box(low, high, (MAX, k)), "length": Discrete(MAX + 1)}).',
        )
    if isinstance(space, spaces.Graph):
        return SimError(
            f"{what}: its number of nodes is not fixed.",
            hint='Pad it: Dict({"nodes": Box(low, high, (MAX, k)), "edges": MultiBinary((MAX, MAX)), '
            '"length": Discrete(MAX + 1)}).',
        )
    return SimError(
        f"{what}: {type(space).__name__} is not one of Gymnasium's own spaces.",
        hint="Build the observation from Box, Discrete, MultiDiscrete, MultiBinary, Text, Dict and Tuple.",
    )


def _names(keys: Sequence[object]) -> str:
    return ", ".join(repr(str(key)) for key in keys[:20]) or "no keys"
