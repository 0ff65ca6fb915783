"""What an env runner sampled, in columns: the engine's counterpart of a list of RLlib's episodes.

`FragmentBuilder` is given one vector step after the other and gives back a `Fragment`, which goes through RLlib's
`training_step` (and its sharding among learners) as if it were an episode, and arrives at the learner as arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .columns import Array, Columns, Timeline, concatenated, taken
from .memory import SequenceStates

REWARDS = "rewards"
TERMINATED = "terminateds"
TRUNCATED = "truncateds"


@dataclass(frozen=True)
class Fragment:
    """S steps of some sims, sim after sim and in order of time.

    Attributes:
        observations: Columns of R rows. The row after the one that a step acted on is the one that it led to.
        rows: int64 (S,), which row each step acted on.
        steps: Columns of S rows by name: `actions`, `action_logp`, `action_dist_inputs`, `rewards`, `terminateds`,
            `truncateds`, and what else the RLModule gave.
        weights_seq_no: Which weights acted.
        num_episodes: How many episodes ended in it.
        states: Of a network with memory: columns of Q rows, the states that sequences of steps begin with.
        state_steps: int64 (Q,), the first step of each of those sequences, in order.
    """

    observations: Columns
    rows: NDArray[np.int64]
    steps: dict[str, Columns]
    weights_seq_no: int = 0
    num_episodes: int = 0
    states: Columns = None
    state_steps: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def env_steps(self) -> int:
        """How many steps; RLlib's evaluation asks its episodes for that."""
        return len(self.rows)

    def agent_steps(self) -> int:
        """As `env_steps`: there is one agent."""
        return len(self.rows)

    @property
    def ends(self) -> NDArray[np.bool_]:
        """Where the next entry is not the next step of the same episode: bool (S,)."""
        ends = np.ones(len(self.rows), dtype=bool)
        ends[:-1] = self.rows[1:] != self.rows[:-1] + 1
        ends |= self.steps[TERMINATED]
        ends |= self.steps[TRUNCATED]
        return ends

    def __getitem__(self, part: slice) -> Fragment:
        """Some of the steps; where an episode is cut, the value of the next observation stands for the rest."""
        start, stop, step = part.indices(len(self.rows))
        if step != 1:
            raise ValueError("a fragment can only be cut into pieces of steps that follow one another")
        if stop <= start:
            return Fragment(taken(self.observations, slice(0, 0)), self.rows[:0], taken(self.steps, slice(0, 0)))
        first, last = int(self.rows[start]), int(self.rows[stop - 1])
        states = state_steps = None
        if self.state_steps is not None:
            kept = slice(*np.searchsorted(self.state_steps, [start, stop]))
            states, state_steps = taken(self.states, kept), self.state_steps[kept] - start
        return Fragment(
            taken(self.observations, slice(first, last + 2)),
            self.rows[start:stop] - first,
            taken(self.steps, slice(start, stop)),
            self.weights_seq_no,
            states=states,
            state_steps=state_steps,
        )

    def slice(self, part: slice, *, len_lookback_buffer: int | None = None) -> Fragment:
        """As `fragment[part]`: the name under which RLlib cuts episodes to share them among learners."""
        return self[part]


def joined(fragments: Sequence[Fragment]) -> Fragment:
    """All steps of several fragments in one."""
    if len(fragments) == 1:
        return fragments[0]
    rows, offset = [], 0
    state_steps, num_steps = [], 0
    for fragment in fragments:
        rows.append(fragment.rows + offset)
        offset += num_rows(fragment.observations)
        if fragment.state_steps is not None:
            state_steps.append(fragment.state_steps + num_steps)
        num_steps += len(fragment)
    return Fragment(
        concatenated([fragment.observations for fragment in fragments]),
        np.concatenate(rows),
        concatenated([fragment.steps for fragment in fragments]),
        min(fragment.weights_seq_no for fragment in fragments),
        sum(fragment.num_episodes for fragment in fragments),
        concatenated([fragment.states for fragment in fragments]) if state_steps else None,
        np.concatenate(state_steps) if state_steps else None,
    )


def num_rows(columns: Columns) -> int:
    """How many rows columns have."""
    while isinstance(columns, dict):
        columns = next(iter(columns.values()))
    return len(columns)


class FragmentBuilder:
    """Takes in vector steps of N sims that reset themselves one step after they are done (Gymnasium's NEXT_STEP).

    In the step after an episode's last one, a sim ignores its action and resets: that is no step, and is left out. So
    at each time there is one observation per sim, and the one after a real step is always where that step led: the
    final observation too, which a truncated episode is bootstrapped from.

    Args:
        num_sims: N.
        observations: The N rows that the first step will act on.
        num_steps: About how many time steps will come.
        is_done: bool (N,), the sims whose next step is a reset.
        states_every: Of a network with memory: how many steps apart states are kept.
    """

    def __init__(
        self,
        num_sims: int,
        observations: Columns,
        num_steps: int,
        is_done: NDArray[np.bool_],
        states_every: int | None = None,
    ) -> None:
        self.num_steps = 0
        self.num_episodes = 0
        self.is_done = is_done.copy()
        self._num_sims = num_sims
        self._time = 0
        self._observations = Timeline(num_sims, num_steps + 1)
        self._steps = Timeline(num_sims, num_steps)
        self._is_step = Timeline(num_sims, num_steps)
        self._begun = np.zeros(num_sims, dtype=np.int64)
        self._states = None if states_every is None else SequenceStates(states_every)
        self._observations.set(0, observations)

    def add(
        self,
        chosen: Mapping[str, Columns],
        rewards: Array,
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        observations: Columns,
        states: Columns = None,
    ) -> NDArray[np.bool_]:
        """Take in a vector step.

        Args:
            chosen: What the policy gave: columns of N rows by name.
            rewards: (N,).
            terminated: bool (N,).
            truncated: bool (N,).
            observations: The N rows that it led to.
            states: Of a network with memory: the N rows that it began with.

        Returns:
            bool (N,): where it was a step, and not a reset.
        """
        was_step: NDArray[np.bool_] = ~self.is_done
        if not was_step.all():
            terminated, truncated = terminated & was_step, truncated & was_step
            self._begun[self.is_done] = self._time + 1
        # RLlib's episodes never are both, and a terminated one is not bootstrapped from.
        steps = {**chosen, REWARDS: rewards, TERMINATED: terminated, TRUNCATED: truncated & ~terminated}
        self._steps.set(self._time, steps)
        self._is_step.set(self._time, was_step)
        if self._states is not None:
            sims = np.arange(self._num_sims)
            self._states.add(sims, np.full_like(sims, self._time), self._time - self._begun, states)
        self._time += 1
        self._observations.set(self._time, observations)
        self.is_done = terminated | truncated
        self.num_steps += int(np.count_nonzero(was_step))
        self.num_episodes += int(np.count_nonzero(self.is_done))
        return was_step

    def drop(self, sims: NDArray[np.bool_]) -> None:
        """Leave out the steps of the episodes under way (or just ended) in some sims.

        Args:
            sims: bool (N,), which.
        """
        for sim in np.flatnonzero(sims):
            self._is_step.clear(int(sim), int(self._begun[sim]), self._time)

    def fragment(self, weights_seq_no: int) -> Fragment:
        """All that was taken in and not dropped; at least one vector step."""
        time = self._time
        flat = np.flatnonzero(self._is_step.until(time))
        sims, times = np.divmod(flat, time)
        steps = self._steps.until(time)
        if len(flat) < time * self._num_sims:
            steps = taken(steps, flat)
        states, state_steps = (None, None) if self._states is None else self._states.of(sims, times)
        return Fragment(
            self._observations.until(time + 1),
            sims * (time + 1) + times,
            steps,
            weights_seq_no,
            self.num_episodes,
            states,
            state_steps,
        )
