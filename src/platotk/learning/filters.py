"""A running normalisation of observations that touches numbers only: never one-hots, action masks or images.

Given which entries of the encoded vector are `numeric`, `NumericFilter` is an RLlib env-to-module connector
that subtracts their mean and divides by their standard deviation, learned while sampling for training.
`FrozenFilter` is what it has learned, for inference and export.

RLlib 2.60's own `MeanStdFilter` (whose formula, eps and clip these are) adds up each env runner's statistics
since the last synchronisation, and takes the change of a runner's total mean for the mean of its new
observations. Here each runner's own statistics are kept apart by its name and only ever grow, so that merging
takes the newest of each: exact, whatever order states arrive in, however often, or if some never do.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike, NDArray
from ray.rllib.connectors.connector_v2 import ConnectorV2

from ..errors import CheckpointError
from .encoders import VECTOR

EPS = 1e-8
CLIP = 10.0
SHARE_TIMEOUT_S = 60.0


@dataclass
class Moments:
    """Count, mean and sum of squared deviations of some rows of numbers, in float64.

    Attributes:
        count: How many rows.
        mean: (m,).
        m2: (m,), sum of (x - mean)^2.
    """

    count: int
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]

    @classmethod
    def empty(cls, size: int) -> Moments:
        """Nothing seen yet."""
        return cls(0, np.zeros(size), np.zeros(size))

    @classmethod
    def of(cls, rows: NDArray[Any]) -> Moments:
        """The moments of rows (k, m), k at least 1."""
        values = rows.astype(np.float64)
        mean = np.add.reduce(values) / len(values)
        values -= mean
        values *= values
        return cls(len(values), mean, np.add.reduce(values))

    def plus(self, other: Moments) -> Moments:
        """The moments of both sets of rows (Chan, Golub and LeVeque 1979: Welford's update for groups)."""
        count = self.count + other.count
        if not self.count or not other.count:
            return other if other.count else self
        delta = other.mean - self.mean
        share = other.count / count
        return Moments(count, self.mean + delta * share, self.m2 + other.m2 + delta * delta * (self.count * share))

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation (n - 1), or 1 while there are fewer than two rows."""
        if self.count < 2:
            return np.ones_like(self.m2)
        return np.sqrt(self.m2 / (self.count - 1))


@dataclass(frozen=True)
class FrozenFilter:
    """What a filter has learned: `clip((x - mean) / (std + eps))` on numeric entries, the others as they are.

    Attributes:
        numeric: bool (n,), which entries of the vector are filtered.
        mean: float64 (n,), 0 where not numeric.
        std: float64 (n,), 1 where not numeric.
        eps: Added to std.
        clip: Bound of the result, either side; None for none.
        count: How many observations it has learned from.
    """

    numeric: NDArray[np.bool_]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    eps: float
    clip: float | None
    count: int

    def apply(self, vector: ArrayLike) -> NDArray[np.float32]:
        """The filtered vector (..., n), float32."""
        values = np.asarray(vector, dtype=np.float32)
        filtered = (values - self.mean) * (1.0 / (self.std + self.eps))
        if self.clip is not None:
            filtered = np.clip(filtered, -self.clip, self.clip)
        return np.where(self.numeric, filtered, values).astype(np.float32)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> FrozenFilter:
        """From `NumericFilter.get_state()`, as it stands in a checkpoint."""
        numeric = np.asarray(state["numeric"], dtype=bool)
        total = _sum(_sources(state), int(numeric.sum()))
        mean, std = np.zeros(numeric.size), np.ones(numeric.size)
        mean[numeric], std[numeric] = total.mean, total.std
        return cls(numeric, mean, std, EPS, state["clip"], total.count)


class NumericFilter(ConnectorV2):  # type: ignore[misc]
    """Env-to-module connector that normalises the numeric entries of each new observation.

    The observation is replaced in its episode, so that module, replay buffer and learner all see the filtered
    one. Statistics grow while sampling with exploration; with `explore=False` (evaluation, inference) they
    stay. Put it first in the pipeline: RLlib 2.60 merges states by position and skips pieces that have none.

    Args:
        input_observation_space: Box (n,), or Dict with "vector"; RLlib's pipeline sets it.
        input_action_space: Not used; RLlib's pipeline sets it.
        numeric: bool (n,), the entries to normalise.
        clip: Bound of the result, either side; None for none.
        update_stats: Whether to learn at all.
        max_count: How many observations to learn from, those of other env runners included; None for no end. What lies
            in a replay buffer was filtered when it came in: were the filter to move on, the same state would look
            different to the network at each age.
        **kwargs: RLlib's, for later versions.
    """

    def __init__(
        self,
        input_observation_space: gym.Space[Any] | None = None,
        input_action_space: gym.Space[Any] | None = None,
        *,
        numeric: ArrayLike,
        clip: float | None = CLIP,
        update_stats: bool = True,
        max_count: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(input_observation_space, input_action_space, **kwargs)
        self._own: Moments
        self._others: dict[str, Moments]
        self._others_total: Moments
        self._total: Moments
        self._numeric = np.asarray(numeric, dtype=bool)
        self._columns: Any = slice(None) if self._numeric.all() else np.flatnonzero(self._numeric)
        self._clip = clip
        self._update_stats = update_stats
        self._max_count = math.inf if max_count is None else max_count
        self._start("")

    def __call__(
        self,
        *,
        rl_module: Any,
        batch: Any,
        episodes: Sequence[Any],
        explore: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Replace the last observation of each episode by the filtered one; `batch` passes through."""
        if not episodes or not self._numeric.any():
            return batch
        observations = [episode.observations.get(-1) for episode in episodes]
        is_dict = isinstance(observations[0], Mapping)
        rows = np.stack([obs[VECTOR] for obs in observations] if is_dict else observations)
        rows = self.filtered(rows, learn=explore is not False)
        for episode, obs, row in zip(episodes, observations, rows, strict=True):
            episode.observations.set({**obs, VECTOR: row} if is_dict else row, at_indices=-1)
        return batch

    def filtered(self, rows: NDArray[Any], *, learn: bool) -> NDArray[Any]:
        """New observations that arrived together, as the network sees them.

        Args:
            rows: (k, n), left as they are.
            learn: Whether to add them to the statistics first.
        """
        if not self._numeric.any():
            return rows
        numbers = rows[:, self._columns]
        if self._update_stats and learn and self._total.count < self._max_count:
            self._learn(numbers)
        filtered = (numbers - self._total.mean) * self._scale
        if self._clip is not None:
            np.clip(filtered, -self._clip, self._clip, out=filtered)
        result: NDArray[Any] = rows.copy()
        result[:, self._columns] = filtered
        return result

    def frozen(self) -> FrozenFilter:
        """What has been learned so far."""
        return FrozenFilter.from_state(self.get_state())

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """All that is known, by source; the format of checkpoints and of RLlib's synchronisation."""
        sources = {**self._others, **({self._name: self._own} if self._own.count else {})}
        return {
            "numeric": self._numeric.copy(),
            "clip": self._clip,
            "epoch": self._epoch,
            "sources": {
                name: {"count": one.count, "mean": one.mean.copy(), "m2": one.m2.copy()}
                for name, one in sources.items()
            },
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take over what is broadcast or restored, except where this filter knows more of its own source.

        Raises:
            CheckpointError: The state is of another observation space.
        """
        self._check(state)
        sources = _sources(state)
        if state["epoch"] != self._epoch:
            self._start(state["epoch"])
        mine = sources.pop(self._name, None)
        if mine is not None and mine.count > self._own.count:
            self._own = mine
        self._others = sources
        self._refresh()

    def merge_states(self, states: list[dict[str, Any]]) -> dict[str, Any]:
        """Take the newest of each source from the env runners' states; gives back the merged state."""
        for state in states:
            self._check(state)
            if state["epoch"] != self._epoch:
                continue  # learned before this filter was restored or reset
            for name, moments in _sources(state).items():
                known = self._own if name == self._name else self._others.get(name)
                if known is None or moments.count > known.count:
                    if name == self._name:
                        self._own = moments
                    else:
                        self._others[name] = moments
        self._refresh()
        return self.get_state()

    def reset_state(self) -> None:
        """Forget everything, and what env runners have learned until now too."""
        self._start(uuid.uuid4().hex)

    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Replace everything by a checkpoint's state; what env runners learned before is not merged in."""
        self._start("")
        super().restore_from_path(path, *args, **kwargs)
        total = self._total
        self._start(uuid.uuid4().hex)
        if total.count:
            self._others = {self._epoch: total}
            self._refresh()

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What RLlib's checkpoint keeps to build this filter again."""
        return (), {
            "input_observation_space": self.input_observation_space,
            "input_action_space": self.input_action_space,
            "numeric": self._numeric,
            "clip": self._clip,
            "update_stats": self._update_stats,
            "max_count": None if math.isinf(self._max_count) else self._max_count,
        }

    def _learn(self, numbers: NDArray[Any]) -> None:
        self._own = self._own.plus(Moments.of(numbers))
        self._total = self._others_total.plus(self._own)
        self._scale = 1.0 / (self._total.std + EPS)

    def _start(self, epoch: str) -> None:
        """Know nothing. States of another epoch are from before a reset or restore, and are not merged."""
        self._epoch = epoch
        self._others = {}
        self._begin_source()
        self._refresh()

    def _begin_source(self) -> None:
        self._name = uuid.uuid4().hex
        self._own = Moments.empty(int(self._numeric.sum()))

    def _refresh(self) -> None:
        self._others_total = _sum(self._others, int(self._numeric.sum()))
        self._total = self._others_total.plus(self._own)
        self._scale = 1.0 / (self._total.std + EPS)

    def _check(self, state: Mapping[str, Any]) -> None:
        if not np.array_equal(state["numeric"], self._numeric):
            was, now = int(np.sum(state["numeric"])), int(self._numeric.sum())
            raise CheckpointError(
                f"the observation filter was saved for other observations: {was} numbers in a vector of "
                f"{len(state['numeric'])}, now {now} in {self._numeric.size}.",
                hint="The sim's observation space has changed since: train a new run.",
            )


def share_filters(*, algorithm: Any, **_: Any) -> None:
    """Callback for `on_evaluate_start`: evaluation sees through the training's filters and learns nothing.

    RLlib 2.60 leaves local evaluation runners as they were built, and what it sends to remote ones is dropped while
    the weights, sent just before under the same tag, are under way. It merges what remote training runners have learned
    only after the evaluation. And an evaluation that explores would go on learning.
    """
    group = algorithm.eval_env_runner_group
    if group is None:
        return
    local = algorithm.env_runner
    pipeline = algorithm.env_to_module_connector if local is None else local._env_to_module
    config = algorithm.config
    # Beside training, and with algorithms that merge while they train, runners are busy and the merged state is recent.
    is_merged = config.evaluation_parallel_to_training or config._dont_auto_sync_env_runner_states
    if config.merge_env_runner_states and not is_merged and algorithm.env_runner_group.num_remote_env_runners():
        learned = algorithm.env_runner_group.foreach_env_runner(
            _env_to_module_state, local_env_runner=False, timeout_seconds=SHARE_TIMEOUT_S
        )
        pipeline.merge_states(learned)
    group.foreach_env_runner(partial(_see_through, state=pipeline.get_state()), timeout_seconds=SHARE_TIMEOUT_S)


def _env_to_module_state(runner: Any) -> Any:
    return runner._env_to_module.get_state()


def _see_through(runner: Any, *, state: Any) -> None:
    runner._env_to_module.set_state(state)
    for piece in runner._env_to_module[NumericFilter]:
        piece._update_stats = False


def _sources(state: Mapping[str, Any]) -> dict[str, Moments]:
    return {
        name: Moments(int(one["count"]), np.array(one["mean"], dtype=float), np.array(one["m2"], dtype=float))
        for name, one in state["sources"].items()
    }


def _sum(sources: Mapping[str, Moments], size: int) -> Moments:
    total = Moments.empty(size)
    for moments in sources.values():
        total = total.plus(moments)
    return total
