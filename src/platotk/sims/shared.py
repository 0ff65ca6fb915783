"""Rows of numbers that several processes see: what crosses between the sims' processes and the one that samples.

`SharedRows` holds, for each of N sims, an encoded observation and action, a seed, a reward and two flags, as columns in
one block of memory. The block has no name: it is reached through its file descriptor alone, and the kernel frees it
when the last process that holds it ends, however it ends.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Any

import gymnasium as gym
import numpy as np

ALIGNMENT = 64


class SharedRows:
    """N rows in shared memory.

    Args:
        observation_space: Of one encoded observation: a Box, or a Dict of them.
        action_space: Of one encoded action.
        num_rows: N.
        fd: The block's file descriptor, in all processes but the one that makes it.

    Attributes:
        observations: Columns (N, ...).
        actions: Columns (N, ...).
        seeds: int64 (N,), -1 for none.
        rewards: float64 (N,).
        terminated: bool (N,).
        truncated: bool (N,).
        fd: The file descriptor.
    """

    def __init__(
        self, observation_space: gym.Space[Any], action_space: gym.Space[Any], num_rows: int, *, fd: int | None = None
    ) -> None:
        self._num_rows = num_rows
        self._size = 0
        places = [self._placed(space) for space in (observation_space, action_space)]
        seeds, rewards = self._place((), np.dtype(np.int64)), self._place((), np.dtype(np.float64))
        terminated, truncated = (self._place((), np.dtype(np.bool_)) for _ in range(2))
        self.fd = _unnamed(self._size) if fd is None else fd
        self._memory = mmap.mmap(self.fd, self._size)
        self.observations, self.actions = (self._columns(place) for place in places)
        self.seeds, self.rewards = self._columns(seeds), self._columns(rewards)
        self.terminated, self.truncated = self._columns(terminated), self._columns(truncated)

    def close(self) -> None:
        """Let go of the file descriptor; the memory goes with the last array that looks at it."""
        os.close(self.fd)

    def _placed(self, space: gym.Space[Any]) -> Any:
        if isinstance(space, gym.spaces.Dict):
            return {key: self._placed(part) for key, part in space.spaces.items()}
        return self._place(space.shape or (), np.dtype(space.dtype))

    def _place(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
        start = -(-self._size // ALIGNMENT) * ALIGNMENT
        self._size = start + self._num_rows * int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return start, (self._num_rows, *shape), dtype

    def _columns(self, place: Any) -> Any:
        if isinstance(place, dict):
            return {key: self._columns(part) for key, part in place.items()}
        start, shape, dtype = place
        return np.ndarray(shape, dtype, buffer=self._memory, offset=start)


def _unnamed(size: int) -> int:
    """A file in memory without a name; where the kernel has none such, one in the temporary folder, unlinked."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("platotk-sims")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.truncate(fd, size)
    return fd
