"""Minibatches of sequences, for networks with memory.

`sequences_of` cuts a fragment's episodes into sequences of at most `max_seq_len` steps, as RLlib does. `SequenceBatch`
gives minibatches of them, [sequences, time], with zeros after the end of the shorter ones and the state that the
network was in when each began; values are computed with the same states.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns as Names
from torch import Tensor

from .batches import MAX_GATHERED_BYTES, MAX_VALUE_BYTES, TrainBatch
from .columns import Columns, mapped, taken
from .fragments import Fragment, num_rows

STEPS = "_steps"
"""The columns of a minibatch's steps alone, one after the other."""
PLACES = "_places"
"""Where those steps are among all places of [sequences, time]; None when every place is a step."""


@dataclass(frozen=True)
class Sequences:
    """Steps of a fragment that follow one another in an episode.

    Attributes:
        starts: int64 (Q,), the first step of each.
        lengths: int64 (Q,), how many steps each has.
        is_last: bool (Q,), whether the episode ends with it, or is cut there.
        states: Columns of Q rows, the state that each begins with.
        longest: How many steps one may have.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    is_last: NDArray[np.bool_]
    states: Columns
    longest: int

    def __len__(self) -> int:
        return len(self.starts)

    def per_minibatch(self, num_steps: int) -> int:
        """How many sequences have about `num_steps` steps; RLlib's rule, and at least one."""
        return max(1, int(len(self) * (num_steps / int(self.lengths.sum()))))


def sequences_of(fragment: Fragment, longest: int) -> Sequences:
    """All steps of a fragment in sequences, none of them over the end of an episode.

    Args:
        fragment: With states.
        longest: How many steps a sequence has at most.

    Raises:
        RuntimeError: The fragment does not know the state that a sequence begins with.
    """
    last = np.flatnonzero(fragment.ends)
    first = np.concatenate([[0], last[:-1] + 1])
    counts = -(-(last + 1 - first) // longest)
    owner = np.repeat(np.arange(len(first)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = first[owner] + number * longest
    known = fragment.state_steps
    if known is None:
        raise RuntimeError("the fragment comes from a network without memory")
    found = np.searchsorted(known, starts)
    if (found >= len(known)).any() or (known[found] != starts).any():
        raise RuntimeError("a sequence begins with a step whose state was not kept")
    return Sequences(
        starts,
        np.minimum(longest, last[owner] + 1 - starts),
        number == counts[owner] - 1,
        taken(fragment.states, found),
        longest,
    )


class SequenceBatch(TrainBatch):
    """One training batch of sequences as tensors on a device; a row of it is a sequence.

    Args:
        fragment: All sampled steps.
        sequences: The same in sequences.
        module: The RLModule that learns.
        device: Where to learn.
        gamma: Discount.
        lambda_: See `advantages.estimate`.
    """

    def __init__(
        self, fragment: Fragment, sequences: Sequences, module: Any, device: Any, *, gamma: float, lambda_: float
    ) -> None:
        self._device = torch.device(device)
        self._sequences = sequences
        self._module = module
        self._first_rows = fragment.rows[sequences.starts]
        self._states = mapped(self._tensor, sequences.states)
        super().__init__(fragment, module.compute_values, device, gamma=gamma, lambda_=lambda_)

    def minibatches(self, order: NDArray[np.int64], size: int) -> Iterator[dict[str, Any]]:
        """Minibatches of `size` sequences, in the order that is given (a multiple of `size` of them).

        Each has columns [sequences, time], as the module sees them, `STATE_IN` [sequences], and `STEPS` and `PLACES`.
        """
        sequences = self._sequences
        width = int(sequences.lengths.max())
        block = size * max(1, int(MAX_GATHERED_BYTES // (self._row_bytes() * width * size)))
        shown = {name: column for name, column in self.columns.items() if not name.startswith("_")}
        for start in range(0, len(order), block):
            chosen = order[start : start + block]
            lengths = sequences.lengths[chosen]
            steps, is_step = _grid(sequences.starts[chosen], lengths, width)
            padding = self._tensor(np.flatnonzero(~is_step))
            padded = _gathered(shown, self._tensor(steps.reshape(-1)), padding, steps.shape)
            rows = self._rows.index_select(0, self._tensor(steps.reshape(-1)))
            padded[Names.OBS] = _gathered(self._observations, rows, padding, steps.shape)
            padded[Names.LOSS_MASK] = self._tensor(is_step)
            padded[Names.SEQ_LENS] = self._tensor(lengths.astype(np.int32))
            padded[Names.STATE_IN] = self._states_of(chosen)
            index = self._tensor(steps[is_step])
            alone = mapped(lambda column, index=index: column.index_select(0, index), self.columns)
            stops = np.concatenate([[0], np.cumsum(lengths)])
            for first in range(0, len(chosen), size):
                part = slice(first, first + size)
                minibatch: dict[str, Any] = taken(padded, part)
                minibatch[STEPS] = taken(alone, slice(int(stops[first]), int(stops[first + size])))
                is_full = bool(is_step[part].all())
                minibatch[PLACES] = None if is_full else self._tensor(np.flatnonzero(is_step[part]))
                yield minibatch

    def _values(self, compute_values: Any) -> NDArray[np.float32]:
        """The value of every observation (R,): those that were acted on, and the last of each episode.

        The last one is seen one step after its episode's last sequence; where that has no room for one step more, it
        is a sequence of its own, which begins with the state that the other one ends with.
        """
        sequences = self._sequences
        has_room = sequences.lengths < sequences.longest
        lengths = sequences.lengths + (sequences.is_last & has_room)
        values = np.zeros(num_rows(self._observations), np.float32)
        part = max(1, int(MAX_VALUE_BYTES // ((self._row_bytes() + 1) * int(lengths.max()))))
        with torch.no_grad():
            for at in range(0, len(sequences), part):
                chosen = np.arange(at, min(at + part, len(sequences)))
                seen, rows, is_row = self._seen(self._first_rows[chosen], lengths[chosen], self._states_of(chosen))
                values[rows[is_row]] = compute_values(seen).float().cpu().numpy()[is_row]
                full = chosen[sequences.is_last[chosen] & ~has_room[chosen]]
                if not len(full):
                    continue
                seen, _, _ = self._seen(self._first_rows[full], lengths[full], self._states_of(full))
                states = self._module.forward_inference(seen)[Names.STATE_OUT]
                seen, rows, _ = self._seen(self._first_rows[full] + sequences.longest, np.ones_like(full), states)
                values[rows] = compute_values(seen).float().cpu().numpy()
        return values

    def _seen(
        self, first_rows: NDArray[np.int64], lengths: NDArray[np.int64], states: Columns
    ) -> tuple[dict[str, Any], NDArray[np.int64], NDArray[np.bool_]]:
        """Observations [sequences, time] that follow one another; their rows, and which of those are meant."""
        rows, is_row = _grid(first_rows, lengths, int(lengths.max()))
        padding = self._tensor(np.flatnonzero(~is_row))
        seen = {
            Names.OBS: _gathered(self._observations, self._tensor(rows.reshape(-1)), padding, rows.shape),
            Names.SEQ_LENS: self._tensor(lengths.astype(np.int32)),
            Names.STATE_IN: states,
        }
        return seen, rows, is_row

    def _states_of(self, sequences: NDArray[np.int64]) -> Columns:
        index = self._tensor(sequences)
        return mapped(lambda column: column.index_select(0, index), self._states)


def of_steps(columns: dict[str, Any], inputs: Tensor, values: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """What a module made of a minibatch, and its columns, step by step.

    Args:
        columns: A minibatch, of steps or of sequences.
        inputs: (B, k), or (sequences, time, k).
        values: (B,), or (sequences, time).

    Returns:
        (S, k), (S,) and columns of S rows.
    """
    if STEPS not in columns:
        return inputs, values, columns
    inputs, values, places = inputs.flatten(0, 1), values.flatten(0, 1), columns[PLACES]
    if places is not None:
        inputs, values = inputs.index_select(0, places), values.index_select(0, places)
    return inputs, values, columns[STEPS]


def _grid(
    starts: NDArray[np.int64], lengths: NDArray[np.int64], width: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows `start, start + 1 ...` side by side (k, width), and which of them are within `lengths`; 0 where not."""
    times = np.arange(width)
    is_within = times < lengths[:, None]
    return np.where(is_within, starts[:, None] + times, 0), is_within


def _gathered(columns: Columns, index: Tensor, padding: Tensor, shape: tuple[int, ...]) -> Any:
    """Rows of columns in a grid, zeros where there is padding."""

    def gather(column: Tensor) -> Tensor:
        rows = column.index_select(0, index)
        if len(padding):
            rows.index_fill_(0, padding, 0)
        return rows.reshape(*shape, *rows.shape[1:])

    return mapped(gather, columns)
