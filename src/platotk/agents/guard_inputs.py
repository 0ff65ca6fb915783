"""What is wrong with an observation: stale, missing, or outside its space; and how it is read from JSON regardless.

Given the observation space and the `on_...` settings of a guard, `Inputs.judge` gives what is to be done, and why;
`Inputs.read` reads JSON as strictly as `spaces.from_json`, but lets through what the guard is there to deal with.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from ..errors import SimError
from ..spaces import from_json
from ..spaces.leaves import Space, did_you_mean, dtype_of, label, short, under_index, under_key
from .guard_leaves import Leaf, Leaves, Missing, ordered_bounds, replaced

Judgement = tuple[Any, str | None, list[tuple[str, str]]]


class Inputs:
    """What a guard does with observations that it cannot act on.

    Attributes:
        outcomes: All that may come of it, of "hold", "fallback" and "clip".
    """

    def __init__(self, space: Space, leaves: Leaves, data: Mapping[str, Any]) -> None:
        self._space = space
        self._stale_s = data.get("stale_s")
        self._on_stale, self._on_missing = data.get("on_stale"), data.get("on_missing")
        self._on_range = data.get("on_out_of_range")
        self.outcomes = {one for one in (self._on_stale, self._on_missing, self._on_range) if one}
        self._leaves = leaves.of("observation")
        self._ranges = {
            leaf.path: ordered_bounds(leaf.space)
            for leaf in self._leaves
            if isinstance(leaf.space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary))
        }

    @property
    def is_lenient(self) -> bool:
        """Whether observations are taken that are missing something, or outside their space."""
        return self._on_missing is not None or self._on_range is not None

    def judge(self, observation: Any, observed_at: float | None, now: float) -> Judgement:
        """The observation to act on, or what is done instead ("hold" or "fallback"), and what was found."""
        did: list[tuple[str, str]] = []
        outcomes: set[str] = set()
        if self._stale_s is not None and observed_at is not None and abs(now - observed_at) > self._stale_s:
            did.append(("stale", "observation"))
            outcomes.add(self._on_stale or "")
        if self._on_missing or self._on_range:
            for leaf in self._leaves:
                observation = self._judge_leaf(leaf, observation, did, outcomes)
        if "fallback" in outcomes:
            return observation, "fallback", did
        return observation, "hold" if "hold" in outcomes else None, did

    def read(self, data: Any, *, name: str) -> Any:
        """An observation from JSON; what is missing is None, where the guard deals with that.

        Raises:
            SimError: As `from_json`, for everything else.
        """
        if not self.is_lenient:
            return from_json(self._space, data, name=name)
        return self._read(self._space, data, "", name)

    def _judge_leaf(self, leaf: Leaf, observation: Any, did: list[tuple[str, str]], outcomes: set[str]) -> Any:
        try:
            value = leaf.read(observation)
            array = None if isinstance(value, str) else np.asarray(value)
            if array is not None and array.dtype == object and any(one is None for one in array.reshape(-1)):
                raise Missing
            if array is not None and array.dtype == object and all(type(one) in (int, float) for one in array.flat):
                array = np.array(list(map(_limited, array.flat)), np.float64).reshape(array.shape)
            if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
                raise Missing
        except Missing:
            if self._on_missing is not None:
                did.append(("missing", leaf.name))
                outcomes.add(self._on_missing)
            return observation
        except ValueError:
            return observation  # rows of different lengths: the encoder says so
        if self._on_range is None or array is None or not self._is_outside(leaf, array):
            return observation
        did.append(("out_of_range", leaf.name))
        outcomes.add(self._on_range)
        if self._on_range != "clip":
            return observation
        low, high = (np.broadcast_to(bound, array.shape) for bound in self._ranges[leaf.path])
        dtype = dtype_of(leaf.space)
        is_low, is_high = array <= low, array >= high
        with np.errstate(over="ignore"):
            clipped = np.where(is_low | is_high, 0, array).astype(dtype)  # then the bounds, in which nothing is lost
        clipped[is_low], clipped[is_high] = low[is_low].astype(dtype), high[is_high].astype(dtype)
        if dtype.kind == "f":
            clipped = np.nan_to_num(clipped)  # beyond what the dtype holds, where there is no bound
        return replaced(observation, leaf.keys, clipped[()] if isinstance(leaf.space, spaces.Discrete) else clipped)

    def _is_outside(self, leaf: Leaf, array: Any) -> bool:
        """Whether a number is outside its bounds, or more than its dtype holds."""
        if leaf.path not in self._ranges or array.dtype.kind not in "fiub":
            return False
        low, high = self._ranges[leaf.path]
        dtype = dtype_of(leaf.space)
        if dtype.kind == "f":
            with np.errstate(over="ignore"):
                array = array.astype(dtype)  # compared as the leaf holds it
            if not np.isfinite(array).all():
                return True
        try:
            return bool(((array < low) | (array > high)).any())
        except ValueError:
            return False  # another shape: the encoder says so

    def _read(self, space: Space, data: Any, path: str, name: str) -> Any:
        here = label(name, path)
        if data is None and self._on_missing is not None:
            return None
        if isinstance(space, spaces.Dict) and isinstance(data, Mapping):
            keys = {str(key): key for key in space.spaces}
            for given in data:
                if given not in keys:
                    raise SimError(f"{here}: unknown key {short(given)}.", hint=did_you_mean(given, keys))
            absent = [text for text in keys if text not in data]
            if absent and self._on_missing is None:
                raise SimError(f"{label(name, under_key(path, absent[0]))}: missing.")
            return {
                key: self._read(space.spaces[key], data.get(text), under_key(path, key), name)
                for text, key in keys.items()
            }
        if isinstance(space, spaces.Tuple) and isinstance(data, list) and len(data) == len(space.spaces):
            parts = enumerate(zip(space.spaces, data, strict=True))
            return tuple(self._read(child, part, under_index(path, i), name) for i, (child, part) in parts)
        if self._on_missing is not None and _holds_nothing(data):
            return None
        try:
            return from_json(space, data, check_bounds=self._on_range is None, name=here)
        except SimError:
            wide = None if self._on_range is None else _wide(space, data)
            if wide is None:
                raise
            return wide


def _holds_nothing(data: Any) -> bool:
    """Whether a leaf, or a number of it, is null or infinite: there is no measurement, just as with NaN."""
    if isinstance(data, list):
        return any(map(_holds_nothing, data))
    return data is None or (isinstance(data, float) and not math.isfinite(data))


def _wide(space: Space, data: Any) -> Any:
    """Finite numbers, some of which the leaf's own dtype cannot hold, as float64; None when they are not such."""
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return None
    try:
        array = from_json(spaces.Box(-np.inf, np.inf, space.shape or (), np.float64), _limited(data))
    except SimError:
        return None
    low, high = ordered_bounds(space)
    dtype = dtype_of(space)
    if dtype.kind == "f":
        is_beyond = np.abs(array) > np.finfo(dtype).max
    else:
        is_beyond = (array < low) | (array > high)
        if not (is_beyond | (array == np.rint(array))).all():
            return None
    return array if is_beyond.any() else None


def _limited(data: Any) -> Any:
    """Whole numbers beyond every float, as the largest of them."""
    if isinstance(data, list):
        return [_limited(one) for one in data]
    if isinstance(data, int) and not isinstance(data, bool) and abs(data) > sys.float_info.max:
        return sys.float_info.max if data > 0 else -sys.float_info.max
    return data
