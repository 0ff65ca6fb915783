"""Action masks: which choices are allowed now, in any form a sim gives them, as one flat array.

Given a flat array over all logits, or arrays nested in the shape of the action space as Gymnasium's own
`sample(mask=...)` takes them, gives float32 zeros and ones, and refuses a mask that allows nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from platotk.errors import SimError
from platotk.spaces.actions import Decoding
from platotk.spaces.choices import Choices
from platotk.spaces.leaves import Array, Space, did_you_mean, label, numbers, short, under_index, under_key


class Masks:
    """The masks of one action space.

    Attributes:
        size: Logits of all choices, one after another: the length of a flat mask from the sim.
        num_logits: The length of what `encode` gives (joint actions for DQN, otherwise `size`).
    """

    def __init__(self, decoding: Decoding) -> None:
        self._space = decoding.space
        self._leaves = {leaf.path: leaf for leaf in decoding.choices}
        self.size = sum(decoding.sizes)
        self.num_logits = sum(decoding.nvec)
        self._starts = np.concatenate([[0], np.cumsum(decoding.sizes)[:-1]]).astype(np.int64)
        # For each joint action the logits of its parts, (joint actions, choices): all must be allowed.
        self._joint: Array | None = None
        if decoding.is_joint:
            parts = np.unravel_index(np.arange(decoding.nvec[0]), decoding.sizes)
            self._joint = np.stack(parts, axis=1) + self._starts

    def encode(self, mask: Any) -> Array:
        """The mask as float32 (num_logits,) of zeros and ones; None allows everything.

        Raises:
            SimError: Another shape, other values, or a choice with nothing allowed.
        """
        if mask is None:
            return np.ones(self.num_logits, np.float32)
        flat = self._flat(mask)
        allowed = np.maximum.reduceat(flat, self._starts) if self.size else flat
        if not allowed.all():
            raise SimError(
                f"action mask: nothing is allowed for {self._choice(int(np.argmin(allowed)))}.",
                hint="Allow at least one; when no action is left, end the episode (terminated=True).",
            )
        if self._joint is None:
            return flat
        joint: Array = flat[self._joint].min(axis=1)
        return joint

    def encode_batch(self, masks: Sequence[Any] | Array) -> Array:
        """Many masks, or one array (B, size) of them, as float32 (B, num_logits)."""
        array = _table(masks, self.size)
        if array is not None and self.size:
            is_binary = ((array == 0) | (array == 1)).all()  # before the cast, in which 1e300 would overflow
            flat = array.astype(np.float32) if is_binary else None
            if flat is not None and np.maximum.reduceat(flat, self._starts, axis=1).all():
                return flat if self._joint is None else flat[:, self._joint].min(axis=2)
        encoded = [self.encode(mask) for mask in masks]
        return np.stack(encoded) if encoded else np.zeros((0, self.num_logits), np.float32)

    def allows(self, action: Any, mask: Any) -> bool:
        """Whether the mask allows an action of the sim's own space; None allows everything."""
        if mask is None or not self.size:
            return True
        chosen = self._chosen(action, self._space, "")
        return bool(self._flat(mask)[self._starts + np.array(chosen, np.int64)].all())

    def _chosen(self, action: Any, space: Space, path: str) -> list[int]:
        if isinstance(space, spaces.Dict):
            parts = [self._chosen(action[key], child, under_key(path, key)) for key, child in space.spaces.items()]
        elif isinstance(space, spaces.Tuple):
            pairs = enumerate(zip(space.spaces, action, strict=True))
            parts = [self._chosen(part, child, under_index(path, i)) for i, (child, part) in pairs]
        else:
            return self._leaves[path].indices(action) if path in self._leaves else []
        return [index for part in parts for index in part]

    def _flat(self, mask: Any) -> Array:
        if isinstance(mask, (np.ndarray, list)) and not _is_ragged(mask):
            array = np.asarray(mask)
            if array.ndim == 1 and array.size == self.size and array.dtype.kind in "fiub":
                return _zero_one(array, "action mask")
        parts: list[Array] = []
        self._walk(mask, self._space, "", parts)
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _walk(self, mask: Any, space: Space, path: str, parts: list[Array]) -> None:
        where = label("action mask", path)
        if isinstance(space, spaces.Dict):
            if mask is not None and not isinstance(mask, Mapping):
                raise self._wrong(mask, where, f"a dict with {', '.join(map(repr, space.spaces))}")
            for key in mask or ():
                if key not in space.spaces:
                    raise SimError(f"{where}: unknown key {key!r}.", hint=did_you_mean(key, space.spaces))
            for key, child in space.spaces.items():
                below = under_key(path, key)
                if mask is not None and key not in mask and self._has_choices(below):
                    raise SimError(f"{label('action mask', below)}: missing.", hint="None allows everything.")
                self._walk(None if mask is None else mask.get(key), child, below, parts)
        elif isinstance(space, spaces.Tuple):
            if mask is not None and (not hasattr(mask, "__len__") or len(mask) != len(space.spaces)):
                raise self._wrong(mask, where, f"a tuple of {len(space.spaces)}")
            for index, child in enumerate(space.spaces):
                self._walk(None if mask is None else mask[index], child, under_index(path, index), parts)
        elif path in self._leaves:
            parts.append(self._leaf(mask, self._leaves[path], where))
        elif mask is not None:
            raise SimError(f"{where}: {space} is continuous, it takes no mask.", hint="Give None there.")

    def _leaf(self, mask: Any, leaf: Choices, where: str) -> Array:
        size = sum(leaf.nvec)
        if mask is None:
            return np.ones(size, np.float32)
        is_ragged = _is_ragged(mask)
        if isinstance(leaf.space, spaces.MultiDiscrete) and (isinstance(mask, tuple) or is_ragged):
            return self._nested(mask, leaf.space.nvec, where)
        if isinstance(leaf.space, spaces.MultiBinary) and not is_ragged and np.shape(mask) == leaf.shape:
            return self._fixed_bits(mask, leaf, where)
        if is_ragged or np.size(mask) != size:
            raise self._wrong(mask, where, f"{size} zeros and ones")
        return _zero_one(numbers(mask, np.shape(mask), where).reshape(-1), where)

    def _nested(self, mask: Any, nvec: Array, where: str) -> Array:
        if np.ndim(nvec) == 0:
            if mask is None:
                return np.ones(int(nvec), np.float32)
            return _zero_one(numbers(mask, (int(nvec),), where), where)
        if not hasattr(mask, "__len__") or len(mask) != len(nvec):
            raise self._wrong(mask, where, f"{len(nvec)} masks")
        return np.concatenate(
            [self._nested(m, n, under_index(where, i)) for i, (m, n) in enumerate(zip(mask, nvec, strict=True))]
        )

    def _fixed_bits(self, mask: Any, leaf: Choices, where: str) -> Array:
        """Gymnasium's way for MultiBinary: 0 and 1 fix the bit, 2 leaves it free."""
        array = numbers(mask, leaf.shape, where).reshape(-1)
        if not np.isin(array, (0, 1, 2)).all():
            raise SimError(f"{where}: values must be 0 or 1 (the bit is fixed) or 2 (it is free).")
        return np.stack([array != 1, array != 0], axis=1).astype(np.float32).reshape(-1)

    def _has_choices(self, path: str) -> bool:
        return any(known == path or known.startswith((f"{path}.", f"{path}[")) for known in self._leaves)

    def _choice(self, index: int) -> str:
        for leaf in self._leaves.values():
            if index < len(leaf.nvec):
                return leaf.element(index)
            index -= len(leaf.nvec)
        return "action"

    def _wrong(self, mask: Any, where: str, expected: str) -> SimError:
        return SimError(
            f"{where}: got {short(mask)}, expected {expected}.",
            hint=f"A flat array of {self.size} zeros and ones will do as well." if self.size else None,
        )


def mask_size(space: Space) -> int:
    """How many numbers an observation that holds a mask has; 0 when it holds anything else."""
    if isinstance(space, (spaces.Box, spaces.MultiBinary, spaces.MultiDiscrete)):
        return int(np.prod(space.shape))
    if isinstance(space, spaces.Dict):
        return sum(mask_size(child) for child in space.spaces.values())
    if isinstance(space, spaces.Tuple):
        return sum(mask_size(child) for child in space.spaces)
    return 0


def _zero_one(array: Array, where: str) -> Array:
    is_mask = (array == 0) | (array == 1)
    if not is_mask.all():
        raise SimError(f"{where}: {array[~is_mask][0]} is neither 0 (forbidden) nor 1 (allowed).")
    return array.astype(np.float32)


def _table(masks: Sequence[Any] | Array, size: int) -> Array | None:
    """Flat masks as one array (B, size); None when they are of any other form."""
    if not len(masks) or not isinstance(masks[0], (np.ndarray, list)):
        return None
    try:
        array = np.asarray(masks)
    except (ValueError, OverflowError):
        return None
    return array if array.shape == (len(masks), size) and array.dtype.kind in "fiub" else None


def _is_ragged(mask: Any) -> bool:
    try:
        return bool(np.asarray(mask).dtype == object)
    except ValueError:
        return True
