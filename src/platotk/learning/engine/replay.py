"""The replay buffer of the engine: steps in contiguous arrays, put in and drawn a batch at a time.

`ReplayColumns` stands where RLlib's episode buffers do. It is given the fragments of the engine's env runners, or one
vector step after the other, and gives back batches as columns: what an episode buffer would draw, with its rules for
several steps (`n_step`) and for priorities, without an object for any step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.rllib.core import DEFAULT_AGENT_ID, DEFAULT_MODULE_ID
from ray.rllib.utils.replay_buffers.episode_replay_buffer import EpisodeReplayBuffer

from .columns import Array, Columns, learnable, mapped, taken
from .fragments import REWARDS, TERMINATED, TRUNCATED, Fragment, num_rows
from .priorities import Priorities, Rows

MAX_TRIES = 1000
"""So often nothing but steps too near to their episode's end are drawn before that is an error."""

MIN_PRIORITY = 1e-12
"""As RLlib's prioritised buffer: no row is ever out of reach."""

FIRST_ROWS = 1024
"""Room for so many observations and actions at first; it doubles when it is full, up to the capacity."""


@dataclass(frozen=True)
class Drawn:
    """B steps drawn from the buffer.

    Attributes:
        rows: int64 (B,), where they are.
        columns: By RLlib's names: `obs`, `new_obs`, `actions`, `rewards` (discounted over `n_step`), `terminateds`,
            `truncateds`, `n_step`, `weights`.
    """

    rows: Rows
    columns: dict[str, Columns]


class ReplayColumns(EpisodeReplayBuffer):  # type: ignore[misc]
    """A ring of rows. A row is an observation, and what was done there if a step was taken.

    Args:
        capacity: Steps that are kept; the oldest go first.
        alpha: How strongly priorities count; None draws all steps alike.
        seed: Of the draws.
        num_streams: Sims that are put in step by step.
        smoothing: RLlib's `metrics_num_episodes_for_smoothing`.
    """

    def __init__(
        self,
        capacity: int,
        *,
        alpha: float | None = None,
        seed: int | None = None,
        num_streams: int = 1,
        smoothing: int = 100,
    ) -> None:
        super().__init__(capacity, metrics_num_episodes_for_smoothing=smoothing)
        self.rng = np.random.default_rng(seed)
        self._alpha = alpha
        self._size = capacity + num_streams  # the last observation of each stream has no step yet
        self._head = self._num_written = 0
        self._max_priority = 1.0
        self._priorities = None if alpha is None else Priorities(self._size)
        self._data: dict[str, Columns] = {
            "is_step": np.zeros(self._size, dtype=bool),
            "next_row": np.full(self._size, -1, dtype=np.int64),
            "rewards": np.zeros(self._size, dtype=np.float32),
            "terminateds": np.zeros(self._size, dtype=bool),
            "truncateds": np.zeros(self._size, dtype=bool),
        }
        self._room = min(self._size, FIRST_ROWS)
        self._last: Rows | None = None
        self._num_added = self._num_evicted = self._num_ended = self._num_drawn = self._num_redrawn = 0

    @property
    def is_prioritised(self) -> bool:
        """Whether steps are drawn by priority."""
        return self._priorities is not None

    @property
    def is_begun(self) -> bool:
        """Whether a stream of steps is under way."""
        return self._last is not None

    def get_num_timesteps(self) -> int:
        """How many steps can be drawn."""
        return int(self._num_timesteps)

    def get_num_episodes(self) -> int:
        """How many episodes have ended in what is kept."""
        return int(np.count_nonzero((self._data["terminateds"] | self._data["truncateds"]) & self._data["is_step"]))

    def num_bytes(self) -> int:
        """What is kept takes, in bytes."""
        rows = min(self._num_timesteps + 1, self._size)
        return sum(leaf.nbytes // len(leaf) * rows for column in self._data.values() for leaf in _leaves(column))

    def add(self, episodes: Any) -> None:
        """Put in fragments of the engine's env runners."""
        for fragment in episodes if isinstance(episodes, (list, tuple)) else [episodes]:
            self._add_fragment(fragment)

    def _add_fragment(self, fragment: Fragment) -> None:
        count = num_rows(fragment.observations)
        if count > self._size:
            half = len(fragment) // 2
            self._add_fragment(fragment[:half])
            self._add_fragment(fragment[half:])
            return
        rows = self._reserve(count)
        self._store("observations", rows, fragment.observations)
        steps = rows[fragment.rows]
        self._data["next_row"][steps] = rows[fragment.rows + 1]
        taken_steps = fragment.steps
        self._put(steps, taken_steps["actions"], taken_steps[REWARDS], taken_steps[TERMINATED], taken_steps[TRUNCATED])
        self._last = None  # a stream that is put in next begins anew

    def begin(self, observations: Columns) -> None:
        """The observations that the first steps of a stream will act on: columns of N rows, one for each sim."""
        rows = self._reserve(num_rows(observations))
        self._store("observations", rows, observations)
        self._last = rows

    def add_step(
        self,
        was_step: NDArray[np.bool_],
        actions: Columns,
        rewards: Array,
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        observations: Columns,
    ) -> None:
        """Put in one vector step of the N sims of the stream.

        Args:
            was_step: bool (N,): where it was a step, and not a reset.
            actions: Columns of N rows.
            rewards: (N,).
            terminated: bool (N,).
            truncated: bool (N,).
            observations: The N rows that it led to.
        """
        last = self._last
        if last is None:
            raise RuntimeError("a stream of steps is begun with begin(observations)")
        rows = self._reserve(len(last))
        self._store("observations", rows, observations)
        if was_step.all():
            self._data["next_row"][last] = rows
            self._put(last, actions, rewards, terminated, truncated)
        elif was_step.any():
            steps = last[was_step]
            self._data["next_row"][steps] = rows[was_step]
            self._put(steps, taken(actions, was_step), rewards[was_step], terminated[was_step], truncated[was_step])
        self._last = rows

    def draw(
        self, num: int, *, n_step: int | tuple[int, int] | None = 1, gamma: float, beta: float | None = None
    ) -> Drawn:
        """Draw steps, with replacement.

        As RLlib's buffers do, a step whose episode (or what is known of it) ends before `n_step` steps are over is
        drawn anew.

        Args:
            num: B.
            n_step: Steps that a reward and a new observation are ahead, or a range (from, to) to draw it from.
            gamma: The discount within `n_step`.
            beta: Exponent of the importance weights.

        Raises:
            ValueError: Nothing can be drawn: the buffer is empty, or its episodes are all too short for `n_step`.
        """
        if not self._num_timesteps:
            raise ValueError("the replay buffer is empty")
        rows, last, counts, rewards = self._draw_rows(num, n_step or 1, gamma)
        data = self._data
        columns = {
            "obs": taken(data["observations"], rows),
            "new_obs": taken(data["observations"], data["next_row"][last]),
            "actions": taken(data["actions"], rows),
            "rewards": rewards,
            "terminateds": data["terminateds"][last],
            "truncateds": data["truncateds"][last],
            "n_step": counts,
            "weights": self._weights(rows, beta or 0.0),
        }
        self.sampled_timesteps += num
        self._num_drawn += num
        return Drawn(rows, columns)

    def update_rows(self, rows: Rows, td_errors: Array) -> None:
        """Give rows that were drawn their new priorities, float (B,)."""
        if self._priorities is None or self._alpha is None:
            return
        priorities = np.maximum(np.abs(td_errors.astype(np.float64)), MIN_PRIORITY)
        is_there = self._data["is_step"][rows] & np.isfinite(priorities)
        priorities = priorities[is_there]
        self._priorities.set(rows[is_there], priorities**self._alpha)
        self._max_priority = max(self._max_priority, float(priorities.max(initial=0.0)))

    def log_metrics(self, num_draws: int, n_step: float) -> Any:
        """RLlib's metrics of its buffers, of what has happened since the last call.

        Args:
            num_draws: How many batches were drawn.
            n_step: The mean `n_step` of them.
        """
        self._update_add_metrics(
            num_episodes_added=self._num_ended,
            num_env_steps_added=self._num_added,
            num_episodes_evicted=0,
            num_env_steps_evicted=self._num_evicted,
            **_for_agent_and_module("num_episodes_added", self._num_ended),
            **_for_agent_and_module("num_steps_added", self._num_added),
            **_for_agent_and_module("num_episodes_evicted", 0),
            **_for_agent_and_module("num_steps_evicted", self._num_evicted),
        )
        if num_draws:
            each = self._num_drawn // num_draws
            self._update_sample_metrics(
                num_env_steps_sampled=self._num_drawn,
                num_episodes_per_sample=each,
                num_env_steps_per_sample=each,
                sampled_n_step=n_step,
                num_resamples=self._num_redrawn,
                **_for_agent_and_module("num_steps_sampled", self._num_drawn),
                **_for_agent_and_module("num_episodes_per_sample", each),
                **_for_agent_and_module("num_steps_per_sample", each),
                **_for_agent_and_module("sampled_n_step", n_step),
                **_for_agent_and_module("num_resamples", self._num_redrawn),
            )
        self._num_added = self._num_evicted = self._num_ended = self._num_drawn = self._num_redrawn = 0
        return self.get_metrics()

    def get_state(self) -> dict[str, Any]:
        """All of it as plain arrays, without the rows that were never written."""
        used = min(self._num_written, self._size)
        return {
            "size": self._size,
            "head": self._head,
            "num_written": self._num_written,
            "num_timesteps": self._num_timesteps,
            "num_timesteps_added": self._num_timesteps_added,
            "sampled_timesteps": self.sampled_timesteps,
            "max_priority": self._max_priority,
            "priorities": None if self._priorities is None else self._priorities.of(np.arange(used)),
            "columns": mapped(lambda array: array[:used].copy(), self._data),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """What `get_state` gave.

        Raises:
            ValueError: It is of a buffer of another size and fills the smaller of the two, or with priorities where
                this has none.
        """
        if state["size"] != self._size and state["num_written"] >= min(state["size"], self._size):
            raise ValueError("its capacity has changed")
        if (state["priorities"] is None) != (self._priorities is None):
            raise ValueError("one has priorities, the other has not")
        self._head, self._num_written = int(state["head"]), int(state["num_written"])
        self._make_room()
        self._num_timesteps = int(state["num_timesteps"])
        self._num_timesteps_added = int(state["num_timesteps_added"])
        self.sampled_timesteps = int(state["sampled_timesteps"])
        self._max_priority = float(state["max_priority"])
        for name, columns in state["columns"].items():
            used = np.arange(num_rows(columns))
            if len(used):
                self._store(name, used, columns)
        if self._priorities is not None and len(state["priorities"]):
            self._priorities.set(np.arange(len(state["priorities"])), state["priorities"])
        self._last = None

    def _reserve(self, count: int) -> Rows:
        """The next rows of the ring, emptied. A step is overwritten before the observation that it led to."""
        rows = (self._head + np.arange(count)) % self._size
        self._head = int((self._head + count) % self._size)
        self._num_written += count
        self._make_room()
        is_step = self._data["is_step"]
        gone = rows[is_step[rows]]
        if len(gone):
            is_step[gone] = False
            self._num_timesteps -= len(gone)
            self._num_evicted += len(gone)
            if self._priorities is not None:
                self._priorities.set(gone, 0.0)
        return rows

    def _put(self, rows: Rows, actions: Columns, rewards: Array, terminated: Array, truncated: Array) -> None:
        """What was done at rows whose observations are there."""
        self._store("actions", rows, actions)
        data = self._data
        data["rewards"][rows] = rewards
        data["terminateds"][rows] = terminated
        data["truncateds"][rows] = truncated & ~terminated
        data["is_step"][rows] = True
        self._num_timesteps += len(rows)
        self._num_timesteps_added += len(rows)
        self._num_added += len(rows)
        self._num_ended += int(np.count_nonzero(terminated | truncated))
        if self._priorities is not None and self._alpha is not None:
            self._priorities.set(rows, self._max_priority**self._alpha)

    def _make_room(self) -> None:
        """Room for the rows that are written, and as many again: what is never reached takes no memory."""
        used = min(self._num_written, self._size)
        if used <= self._room:
            return
        self._room = min(self._size, max(used, 2 * self._room))
        for name in ("observations", "actions"):
            if name in self._data:
                self._data[name] = mapped(self._widened, self._data[name])

    def _widened(self, array: Array) -> Array:
        wide = np.zeros((self._room, *array.shape[1:]), dtype=array.dtype)
        wide[: len(array)] = array
        return wide

    def _store(self, name: str, rows: Rows, values: Columns) -> None:
        if name not in self._data:
            self._data[name] = mapped(
                lambda part: np.zeros((self._room, *part.shape[1:]), dtype=learnable(part).dtype), values
            )
        mapped(lambda array, part: array.__setitem__(rows, part), self._data[name], values)

    def _draw_rows(
        self, num: int, n_step: int | tuple[int, int], gamma: float
    ) -> tuple[Rows, Rows, NDArray[np.int64], NDArray[np.float32]]:
        """Rows, those of their last steps, how many steps, and their rewards; drawn until there are enough."""
        found: list[tuple[Array, ...]] = []
        missing, tries = num, 0
        while missing:
            rows = self._candidates(missing)
            last, counts, rewards, is_whole = self._ahead(rows, n_step, gamma)
            if is_whole.all():
                found.append((rows, last, counts, rewards))
            else:
                found.append(tuple(part[is_whole] for part in (rows, last, counts, rewards)))
            redrawn = int(np.count_nonzero(~is_whole))
            self._num_redrawn += redrawn
            tries = tries + 1 if redrawn == missing else 0
            if tries == MAX_TRIES:
                raise ValueError(f"no episode in the replay buffer is as long as n_step={n_step}")
            missing = redrawn
        if len(found) == 1:
            return found[0]  # type: ignore[return-value]
        return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]

    def _candidates(self, num: int) -> Rows:
        """Steps, alike or by priority."""
        if self._priorities is not None:
            return self._priorities.draw(self.rng.random(num))
        is_step, used = self._data["is_step"], min(self._num_written, self._size)
        rows = self.rng.integers(0, used, num)
        while not (is_there := is_step[rows]).all():
            rows[~is_there] = self.rng.integers(0, used, int(np.count_nonzero(~is_there)))
        return rows

    def _ahead(
        self, rows: Rows, n_step: int | tuple[int, int], gamma: float
    ) -> tuple[Rows, NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
        """For each row its last step, how many steps, their rewards, and whether there were as many as asked for."""
        data = self._data
        if isinstance(n_step, int):
            counts = np.full(len(rows), n_step, dtype=np.int64)
        else:
            counts = self.rng.integers(n_step[0], n_step[1], len(rows))
        last, rewards, is_whole = rows, data["rewards"][rows], np.ones(len(rows), dtype=bool)
        for ahead in range(1, int(counts.max())):
            is_wanted = counts > ahead
            following = data["next_row"][last]
            goes_on = ~(data["terminateds"][last] | data["truncateds"][last]) & data["is_step"][following] & is_wanted
            is_whole &= goes_on | ~is_wanted
            last = np.where(goes_on, following, last)
            rewards = rewards + np.where(goes_on, np.float32(gamma**ahead) * data["rewards"][last], np.float32(0.0))
        return last, counts, rewards, is_whole

    def _weights(self, rows: Rows, beta: float) -> NDArray[np.float32]:
        """Importance weights, 1 for the row that is drawn least; all 1 without priorities."""
        if self._priorities is None:
            return np.ones(len(rows), dtype=np.float32)
        return ((self._priorities.of(rows) / self._priorities.smallest) ** -beta).astype(np.float32)


def _for_agent_and_module(name: str, value: float) -> dict[str, dict[str, float]]:
    return {f"agent_to_{name}": {DEFAULT_AGENT_ID: value}, f"module_to_{name}": {DEFAULT_MODULE_ID: value}}


def _leaves(columns: Columns) -> list[Array]:
    if isinstance(columns, dict):
        return [leaf for part in columns.values() for leaf in _leaves(part)]
    return [columns]
