"""Looking at observations, leaf by leaf: kind, dtype, shape, bounds really visited, NaN, reuse, constancy.

`Observed.see` takes each observation as the sim gave it; `Observed.conclude` reports what only shows over
many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces

from ...spaces.leaves import under_index, under_key
from .trial import Trial

MIN_OBSERVATIONS = 50
_NUMERIC = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


@dataclass
class _Leaf:
    """What one leaf of the observation has shown so far."""

    space: Any
    low: Any = None
    high: Any = None
    num_seen: int = 0
    num_outside: int = 0
    reset_dtype: Any = None
    step_dtypes: set[Any] = field(default_factory=set)
    previous: Any = None
    previous_copy: Any = None


class Observed:
    """All observations of one sim."""

    def __init__(self, trial: Trial, space: Any) -> None:
        self._trial = trial
        self._space = space
        self._leaves: dict[str, _Leaf] = {}
        self.num_seen = 0

    def see(self, obs: Any, *, is_reset: bool) -> bool:
        """Look at one observation; False when it breaks its space so that training could not use it."""
        self.num_seen += 1
        where = self._trial.places.returns("reset" if is_reset else "step")
        is_usable = True
        for path, space, value in self._walk(self._space, obs, "observation", where):
            if space is None:
                is_usable = False
            else:
                is_usable &= self._see_leaf(path, space, value, is_reset, where)
        return is_usable

    def conclude(self) -> None:
        """Report bounds, changes of dtype and what stayed constant."""
        space_at = self._trial.places.attribute("observation_space")
        for path, leaf in self._leaves.items():
            self._conclude_dtypes(path, leaf)
            if leaf.low is None:
                continue
            if leaf.num_outside:
                self._conclude_bounds(path, leaf, space_at)
            if self.num_seen >= MIN_OBSERVATIONS and leaf.num_seen == self.num_seen:
                self._conclude_constant(path, leaf)

    def _walk(self, space: Any, value: Any, path: str, where: str | None) -> Iterator[tuple[str, Any, Any]]:
        """Leaves as (path, space, value); where the structure is wrong, (path, None, None)."""
        if isinstance(space, spaces.Dict):
            if not isinstance(value, Mapping):
                wrong = f"{path}: {_kind(value)}, the space has a Dict with {', '.join(map(repr, space.spaces))}"
                yield self._broken(path, wrong, where)
                return
            for key in value:
                if key not in space.spaces:
                    yield self._broken(under_key(path, key), f"{path}: unknown key {key!r}", where)
            for key, child in space.spaces.items():
                if key in value:
                    yield from self._walk(child, value[key], under_key(path, key), where)
                else:
                    yield self._broken(under_key(path, key), f"{path}: the key {key!r} is missing", where)
        elif isinstance(space, spaces.Tuple):
            if not isinstance(value, (tuple, list)) or len(value) != len(space.spaces):
                size = f"{_kind(value)} of {len(value)}" if hasattr(value, "__len__") else _kind(value)
                wrong = f"{path}: {size}, the space has a Tuple of {len(space.spaces)}"
                yield self._broken(path, wrong, where)
                return
            for index, child in enumerate(space.spaces):
                yield from self._walk(child, value[index], under_index(path, index), where)
        else:
            yield path, space, value

    def _broken(self, path: str, message: str, where: str | None) -> tuple[str, None, None]:
        self._trial.count("observation-structure", path, message, where=where)
        return path, None, None

    def _see_leaf(self, path: str, space: Any, value: Any, is_reset: bool, where: str | None) -> bool:
        trial = self._trial
        leaf = self._leaves.setdefault(path, _Leaf(space))
        if not isinstance(space, _NUMERIC):
            if not space.contains(value):
                trial.count("observation-structure", path, f"{path}: {_short(value)} is not in {space}", where=where)
                return False
            return True
        self._see_reuse(path, leaf, value)
        try:
            array = np.asarray(value)
        except (TypeError, ValueError):
            array = np.asarray(None)
        if array.dtype.kind not in "biuf":
            wrong = f"{path}: {_kind(value)} {_short(value)}, the space has numbers ({_named(space)})"
            trial.count("observation-structure", path, wrong, where=where)
            return False
        if array.shape != space.shape:
            wrong = f"{path}: shape {array.shape}, the space says {space.shape}"
            trial.count("observation-shape", path, wrong, where=where)
            return False
        self._see_type(path, leaf, value, array, is_reset, where)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            at = np.flatnonzero(~np.isfinite(array.reshape(-1)))[0]
            bad = array.reshape(-1)[at]
            element = f"[{at}]" if array.ndim else ""
            trial.count("observation-not-finite", path, f"{path}{element} is {bad}", where=where)
            return False
        # A Box takes what lies outside; a choice that does not exist cannot be encoded.
        return self._see_range(leaf, array) or isinstance(space, spaces.Box)

    def _see_type(self, path: str, leaf: _Leaf, value: Any, array: Any, is_reset: bool, where: str | None) -> None:
        space = leaf.space
        is_scalar = not space.shape
        if isinstance(value, (list, tuple)) or (
            is_scalar and isinstance(space, spaces.Box) and type(value) in (int, float)
        ):
            message = f"{path}: {_kind(value)}, the space has an array ({_named(space)})"
            cure = f"obs = np.array(obs, dtype=np.{space.dtype})"
            self._trial.count("observation-type", path, message, where=where, cure=cure)
            return
        dtype = array.dtype
        if is_reset and leaf.reset_dtype is None:
            leaf.reset_dtype = dtype
        elif not is_reset:
            leaf.step_dtypes.add(dtype)
        is_fine = dtype.kind in "iu" if isinstance(space, spaces.Discrete) else np.can_cast(dtype, space.dtype)
        if not is_fine and isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)):
            is_fine = dtype.kind in "iub"
        if not is_fine:
            message = f"{path}: {dtype}, the space says {space.dtype}"
            cure = f"obs = np.array(obs, dtype=np.{space.dtype})"
            self._trial.count("observation-dtype", path, message, where=where, cure=cure)

    def _see_range(self, leaf: _Leaf, array: Any) -> bool:
        leaf.num_seen += 1
        if leaf.low is None:
            leaf.low, leaf.high = np.array(array), np.array(array)
        else:
            leaf.low = np.minimum(leaf.low, array)
            leaf.high = np.maximum(leaf.high, array)
        low, high = _bounds(leaf.space)
        is_inside = not ((array < low) | (array > high)).any()
        leaf.num_outside += not is_inside
        return is_inside

    def _see_reuse(self, path: str, leaf: _Leaf, value: Any) -> None:
        """Whether the array returned before was changed since."""
        if leaf.previous is not None and not np.array_equal(leaf.previous, leaf.previous_copy, equal_nan=True):
            is_same = " (the same object is returned again)" if value is leaf.previous else ""
            message = f"{path}: the array returned before was changed by the next call{is_same}"
            where = self._trial.places.method("step")
            self._trial.count("observation-reused", path, message, where=where)
        is_array = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
        leaf.previous = value if is_array else None
        leaf.previous_copy = value.copy() if is_array else None

    def _conclude_dtypes(self, path: str, leaf: _Leaf) -> None:
        others = leaf.step_dtypes - {leaf.reset_dtype}
        if leaf.reset_dtype is not None and others:
            names = " and ".join(sorted(map(str, others)))
            message = f"{path}: {leaf.reset_dtype} from reset(), {names} from step()"
            cure = f"obs = np.array(obs, dtype=np.{leaf.space.dtype})   # in one method, used by reset and step"
            where = self._trial.places.returns("step")
            self._trial.found("observation-dtype-changes", message, where=where, cure=cure)

    def _conclude_bounds(self, path: str, leaf: _Leaf, where: str | None) -> None:
        low, high = (np.broadcast_to(bound, leaf.low.shape).reshape(-1) for bound in _stated(leaf.space))
        seen_low, seen_high = leaf.low.reshape(-1).astype(float), leaf.high.reshape(-1).astype(float)
        beyond = np.maximum(low - seen_low, seen_high - high)
        at = int(np.argmax(beyond))
        element = f"{path}[{at}]" if leaf.space.shape else path
        message = (
            f"{element}: {seen_low[at]:g} to {seen_high[at]:g} was visited, "
            f"the space says {low[at]:g} to {high[at]:g} "
            f"({leaf.num_outside:,} of {leaf.num_seen:,} observations)"
        )
        if isinstance(leaf.space, spaces.Box):
            self._trial.found("observation-bounds", message, where=where)
            return
        cure = "Correct n and start of the space, or the value: choices outside it cannot be encoded."
        self._trial.found("observation-bounds", message, where=where, cure=cure, severity="error")

    def _conclude_constant(self, path: str, leaf: _Leaf) -> None:
        is_constant = np.atleast_1d(leaf.low == leaf.high).reshape(-1)
        where = self._trial.places.returns("step")
        if path.rpartition(".")[2] == "action_mask" or not is_constant.any() or _is_single(leaf.space):
            return
        if is_constant.all():
            value = _short(leaf.low.reshape(-1)[0] if leaf.low.size == 1 else leaf.low)
            message = f"{path} was always {value} in {leaf.num_seen:,} observations"
            self._trial.found("observation-constant", message, where=where)
        elif leaf.low.size <= 64:
            indexes = ", ".join(map(str, np.flatnonzero(is_constant)))
            message = f"{path}: the elements {indexes} never changed in {leaf.num_seen:,} observations"
            self._trial.found("observation-constant", message, where=where, severity="note")


def _bounds(space: Any) -> tuple[Any, Any]:
    """Lowest and highest values; of floats with room for rounding."""
    low, high = _stated(space)
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        return low, high
    low, high = low.astype(np.float64), high.astype(np.float64)
    return low - 1e-5 * np.maximum(1.0, np.abs(low)), high + 1e-5 * np.maximum(1.0, np.abs(high))


def _stated(space: Any) -> tuple[Any, Any]:
    """Lowest and highest values, as the space says."""
    if isinstance(space, spaces.Discrete):
        return int(space.start), int(space.start) + int(space.n) - 1
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    if isinstance(space, spaces.MultiBinary):
        return 0, 1
    return space.low, space.high


def _is_single(space: Any) -> bool:
    """Whether the space has but one value, so that being constant is its nature."""
    low, high = _bounds(space)
    return bool(np.all(np.asarray(high) - np.asarray(low) < 1e-4))


def _named(space: Any) -> str:
    return f"{type(space).__name__} {space.shape} {space.dtype}"


def _kind(value: Any) -> str:
    name = "None" if value is None else type(value).__name__
    return name if value is None else f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _short(value: Any, limit: int = 60) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
