"""Frame stack: the last N encoded observations side by side, as one observation.

Given N and the space of one encoded observation, `stacked_space` gives the space of N of them; given encoded
observations step by step, `Frames` gives what the network sees. At an episode's start the first observation stands in
for those that were never made. Vectors are joined end to end and images by their channels, oldest first; of the action
mask only the newest counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from platotk.spaces.leaves import Array, Space, dtype_of

MASK = "action_mask"


def stacked_space(space: Space, num_frames: int) -> Space:
    """The space of `num_frames` observations of an encoded space (Box, or Dict of Boxes)."""
    if num_frames == 1:
        return space
    if isinstance(space, spaces.Dict):
        return spaces.Dict(
            {key: part if key == MASK else _tiled(part, num_frames) for key, part in space.spaces.items()}
        )
    return _tiled(space, num_frames)


class Frames:
    """The last observations of several rows, each an episode of its own.

    Args:
        num_frames: How many make one observation.
        num_rows: How many episodes run side by side.
    """

    def __init__(self, num_frames: int, num_rows: int) -> None:
        self._num_frames = num_frames
        self._is_first = np.ones(num_rows, dtype=bool)
        self._held: dict[str, Array] = {}

    def reset(self, rows: Any) -> None:
        """The next observation of these rows (an index, a list, or a mask of bools) begins an episode."""
        self._is_first[rows] = True

    def push(self, encoded: Any, rows: Sequence[int] | Array | None = None) -> Any:
        """Take in the next observation of each row, and give what the network sees.

        Args:
            encoded: Array (B, ...) or dict of such arrays.
            rows: Which rows they belong to; None for all, in order.

        Returns:
            Arrays (B, N * n) and (B, N * C, H, W) of their own memory.
        """
        if self._num_frames == 1:
            return encoded
        at = np.arange(len(self._is_first)) if rows is None else np.asarray(rows, dtype=np.int64)
        if isinstance(encoded, dict):
            seen: Any = {key: part if key == MASK else self._pushed(key, part, at) for key, part in encoded.items()}
        else:
            seen = self._pushed("", encoded, at)
        self._is_first[at] = False
        return seen

    def _pushed(self, key: str, newest: Array, at: Array) -> Array:
        if key not in self._held:
            shape = (len(self._is_first), self._num_frames, *newest.shape[1:])
            self._held[key] = np.zeros(shape, newest.dtype)
        frames: Array = self._held[key][at]  # a copy
        frames[:, :-1] = frames[:, 1:]
        frames[:, -1] = newest
        first = self._is_first[at]
        frames[first] = newest[first, np.newaxis]
        self._held[key][at] = frames
        return frames.reshape(len(frames), self._num_frames * newest.shape[1], *newest.shape[2:])


def _tiled(space: Any, num_frames: int) -> spaces.Box:
    low, high = (np.concatenate([bound] * num_frames) for bound in (space.low, space.high))
    return spaces.Box(low, high, dtype=dtype_of(space).type)
