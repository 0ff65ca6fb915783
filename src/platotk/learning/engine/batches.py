"""From fragments to minibatches of tensors.

`TrainBatch` is given what the env runners sampled and a way to compute values; it computes advantages, puts everything
on the learner's device once, and gives back minibatches: every row once per epoch, the remainder carried into the next
epoch as RLlib does, gathered an epoch at a time so that a minibatch is a view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns as Names
from ray.rllib.evaluation.postprocessing import Postprocessing
from torch import Tensor

from . import advantages
from .columns import Columns, mapped
from .fragments import REWARDS, TERMINATED, TRUNCATED, Fragment, num_rows

MAX_VALUE_BYTES = 64e6
MAX_GATHERED_BYTES = 256e6
NOT_LEARNED_FROM = (REWARDS, TERMINATED, TRUNCATED)


def with_advantages(
    fragment: Fragment, values: NDArray[np.float32], *, gamma: float, lambda_: float
) -> dict[str, Columns]:
    """What is learned from each step, by RLlib's names and without the observations.

    Args:
        fragment: All sampled steps.
        values: The value of every observation of the fragment (R,).
        gamma: Discount.
        lambda_: See `advantages.estimate`.
    """
    steps = fragment.steps
    raw, targets = advantages.estimate(
        steps[REWARDS],
        values[fragment.rows],
        values[fragment.rows + 1],
        steps[TERMINATED],
        fragment.ends,
        gamma=gamma,
        lambda_=lambda_,
    )
    columns = {name: column for name, column in steps.items() if name not in NOT_LEARNED_FROM}
    columns[Postprocessing.ADVANTAGES] = advantages.standardised(raw)
    columns[Postprocessing.VALUE_TARGETS] = targets
    return columns


class TrainBatch:
    """One training batch as tensors on a device.

    Args:
        fragment: All sampled steps.
        compute_values: Gives the values (k,) of a batch of observations; called without gradients.
        device: Where to learn.
        gamma: Discount.
        lambda_: See `advantages.estimate`.

    Attributes:
        size: How many steps.
        columns: Tensors of `size` rows by RLlib's names, without the observations.
    """

    def __init__(
        self,
        fragment: Fragment,
        compute_values: Callable[[dict[str, Any]], Tensor],
        device: Any,
        *,
        gamma: float,
        lambda_: float,
    ) -> None:
        self.size = len(fragment)
        self._device = torch.device(device)
        self._observations = mapped(self._tensor, fragment.observations)
        self._rows = self._tensor(fragment.rows)
        columns = with_advantages(fragment, self._values(compute_values), gamma=gamma, lambda_=lambda_)
        self.columns: dict[str, Any] = mapped(self._tensor, columns)

    def minibatches(self, order: NDArray[np.int64], size: int) -> Iterator[dict[str, Any]]:
        """Minibatches of `size` rows, in the order of rows that is given (a multiple of `size` of them)."""
        block = size * max(1, min(-(-self.size // size), int(MAX_GATHERED_BYTES // (self._row_bytes() * size))))
        for start in range(0, len(order), block):
            index = self._tensor(order[start : start + block])
            gathered = mapped(lambda column, index=index: column.index_select(0, index), self.columns)
            rows = self._rows.index_select(0, index)
            gathered[Names.OBS] = mapped(lambda column, rows=rows: column.index_select(0, rows), self._observations)
            for first in range(0, len(index), size):
                yield mapped(lambda column, first=first: column[first : first + size], gathered)

    def _values(self, compute_values: Callable[[dict[str, Any]], Tensor]) -> NDArray[np.float32]:
        """The value of every observation, sampled ones, final ones and those that bootstrap (R,)."""
        total = num_rows(self._observations)
        chunk = max(1, int(MAX_VALUE_BYTES // (self._row_bytes() + 1)))
        with torch.no_grad():
            parts = [
                compute_values({Names.OBS: mapped(lambda column, at=at: column[at : at + chunk], self._observations)})
                for at in range(0, total, chunk)
            ]
        values: NDArray[np.float32] = torch.cat(parts).float().cpu().numpy()
        return values

    def _row_bytes(self) -> int:
        """Bytes of one observation."""
        sizes: list[int] = []
        mapped(lambda column: sizes.append(column[0].numel() * column.element_size()), self._observations)
        return max(1, sum(sizes))

    def _tensor(self, array: Any) -> Tensor:
        # What comes out of Ray's object store is not writable, which torch warns of.
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        return tensor if self._device.type == "cpu" else tensor.to(self._device, non_blocking=True)


def row_order(
    num_rows: int, minibatch_size: int, *, num_epochs: int, num_minibatches: int = 0, shuffle: bool = True
) -> NDArray[np.int64]:
    """Which rows the minibatches of an update are made of, one minibatch after the other.

    RLlib's scheme: epochs follow one another without a gap, so that every minibatch is full; the last one is filled up
    with rows of one more epoch. Unlike RLlib's, the first epoch is shuffled too.

    Args:
        num_rows: Rows of the batch.
        minibatch_size: Rows of a minibatch.
        num_epochs: How often each row is seen.
        num_minibatches: How many minibatches, instead of what `num_epochs` asks for (several learners keep step).
        shuffle: A new order for each epoch, from numpy's global generator.
    """
    total = minibatch_size * (num_minibatches or -(-num_epochs * num_rows // minibatch_size))
    if not shuffle:
        return np.arange(total, dtype=np.int64) % num_rows
    order = np.concatenate([np.random.permutation(num_rows) for _ in range(-(-total // num_rows))])
    return order[:total].astype(np.int64, copy=False)


def batch_columns(columns: Columns) -> dict[str, Any]:
    """A minibatch as the module sees it, without what is only kept for the objective."""
    return {name: column for name, column in columns.items() if not name.startswith("_")}
