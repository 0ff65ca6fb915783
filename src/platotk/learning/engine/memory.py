"""What a network with memory remembers: its state in each sim while sampling, and where sequences begin for learning.

`Memory` is given an RLModule and holds its state for N sims as columns, back at the initial state whenever an episode
begins. `SequenceStates` is given the states that steps began with, and keeps those that learning needs: one per
sequence.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ProjectError
from .columns import Columns, concatenated, mapped, taken


def sequence_length(module: Any) -> int:
    """How many steps a sequence has at most: `max_seq_len` of the module's model config, as with RLlib.

    Raises:
        ProjectError: It is not set.
    """
    length = (module.model_config or {}).get("max_seq_len")
    if not length:
        raise ProjectError(
            f"{type(module).__name__} has memory, and its model_config does not say how long its sequences are.",
            hint="Add max_seq_len to rl_module.model_config, such as `max_seq_len: 20`.",
        )
    return int(length)


class Memory:
    """The state of a network in each of N sims.

    Args:
        module: An RLModule with memory.
        num_sims: N.

    Attributes:
        rows: Columns of N rows, in the structure of the module's `get_initial_state()`.
    """

    def __init__(self, module: Any, num_sims: int) -> None:
        self._module = module
        self._num_sims = num_sims
        self.rows: Columns = None
        self.begin()
        self.restart()

    def begin(self) -> None:
        """Ask for the initial state anew, which may depend on weights; to be called before each sample."""
        self._initial = mapped(_numpy, self._module.get_initial_state())

    def restart(self, sims: Any = None) -> None:
        """Forget, where an episode begins.

        Args:
            sims: Index array or mask; None for all.
        """
        if sims is None:
            self.rows = mapped(lambda leaf: np.repeat(leaf[None], self._num_sims, axis=0), self._initial)
        else:
            put(self.rows, sims, mapped(lambda leaf: leaf[None], self._initial))

    def follow(self, states: Columns, is_reset: NDArray[np.bool_]) -> None:
        """Take over the states after a vector step.

        Args:
            states: N rows.
            is_reset: bool (N,), sims for which it was a reset, and no step.
        """
        self.rows = states
        if is_reset.any():
            self.restart(is_reset)


class SequenceStates:
    """The states with which sequences begin, of N sims over some time.

    Args:
        every: A sequence begins with each so many steps of an episode, counted from the episode's first step or the
            fragment's.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._sims: list[NDArray[np.int64]] = []
        self._times: list[NDArray[np.int64]] = []
        self._states: list[Columns] = []

    def add(
        self, sims: NDArray[np.int64], times: NDArray[np.int64], places: NDArray[np.int64], states: Columns
    ) -> None:
        """Take in the states that some steps began with.

        Args:
            sims: int (k,), whose steps.
            times: int (k,), when.
            places: int (k,), how many steps before it belong to the same episode; below 0 where it was no step.
            states: k rows.
        """
        index = np.flatnonzero((places >= 0) & (places % self._every == 0))
        if len(index):
            self._sims.append(sims[index])
            self._times.append(times[index])
            self._states.append(taken(states, index))

    def of(self, sims: NDArray[np.int64], times: NDArray[np.int64]) -> tuple[Columns, NDArray[np.int64]]:
        """The states of steps that are given by sim and time, sim after sim; and which of the steps they belong to."""
        kept_sims, kept_times = np.concatenate(self._sims), np.concatenate(self._times)
        stride = 1 + max(int(times.max(initial=0)), int(kept_times.max(initial=0)))
        given, kept = sims * stride + times, kept_sims * stride + kept_times
        order = np.argsort(kept, kind="stable")
        # Steps may have been left out since.
        order = order[np.isin(kept[order], given, assume_unique=True)]
        return taken(concatenated(self._states), order), np.searchsorted(given, kept[order]).astype(np.int64)


def put(columns: Columns, rows: Any, values: Columns) -> None:
    """Write rows of columns in place."""
    mapped(lambda column, value: column.__setitem__(rows, value), columns, values)


def _numpy(leaf: Any) -> NDArray[Any]:
    return np.asarray(leaf.detach().cpu() if hasattr(leaf, "detach") else leaf)
