"""Sampling from sims in processes of their own, of which none waits for another.

`ReadyFirst` is what the engine's env runner does instead of vector steps where its sims are `SimWorkers`: whichever
sims have answered get their next actions from one forward pass, at once. It gives back the same fragments, in which
sims have as many steps as each of them had time for.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns as Names
from ray.rllib.utils.metrics import ENV_STEP_TIMER, RLMODULE_INFERENCE_TIMER

from .columns import Array, Columns, Timeline, mapped, taken
from .fragments import REWARDS, TERMINATED, TRUNCATED, Fragment
from .memory import SequenceStates, put

if TYPE_CHECKING:
    from .runner import EngineRunner

PATIENCE_STEPS = 4.0
"""Mean step times that the end of a fragment waits for the last steps under way; after that the others go on."""
MIN_PATIENCE_S = 0.02


class ReadyFirst:
    """Samples fragments from sims that are stepped one by one.

    Steps begin until those done and those under way are as many as are wanted; then the last ones are waited for, so
    that no step is under way while the policy changes. The exception is a step that takes much longer than the others
    do: it stays under way, with what was chosen for it, and is the first of its sim in the next fragment.

    Args:
        runner: The env runner.
    """

    def __init__(self, runner: EngineRunner) -> None:
        self._runner = runner
        self._chosen: Columns = None
        self._states: Columns = None

    @staticmethod
    def fits(env: Any) -> bool:
        """Whether an env runner's sims can be stepped one by one."""
        return hasattr(env.unwrapped, "in_flight")

    def collect(self, actor: Any, num_timesteps: int, explore: bool) -> tuple[Fragment | None, int, int]:
        """The fragment; how many steps were taken, and how many episodes have ended."""
        runner = self._runner
        sims = runner.env.unwrapped
        lifetime, num_runners = runner.num_env_steps_sampled_lifetime, runner.config.num_env_runners or 1
        builder = StaggeredBuilder(
            runner.num_envs,
            runner.observations,
            num_timesteps // runner.num_envs + 2,
            runner.is_done,
            runner.states_every,
        )
        is_late: NDArray[np.bool_] = np.zeros(runner.num_envs, dtype=bool)
        began = time.perf_counter()
        while builder.num_steps < num_timesteps:
            expected = int(np.count_nonzero(sims.in_flight & ~builder.is_done & ~is_late))
            self._begin(
                sims,
                builder.next_sims(~sims.in_flight, num_timesteps - builder.num_steps - expected),
                lambda acting: self._act(actor, acting, (lifetime // num_runners + builder.num_steps) * num_runners),
                builder.is_done,
            )
            patience_s = PATIENCE_STEPS * runner.num_envs * (time.perf_counter() - began) / max(1, builder.num_steps)
            waiting = time.perf_counter()
            answered = sims.wait(max(MIN_PATIENCE_S, patience_s) if builder.num_steps else np.inf)
            runner._seconds[ENV_STEP_TIMER] += time.perf_counter() - waiting
            if not len(answered):
                is_late |= sims.in_flight
                continue
            is_late[answered] = False
            self._take_in(sims, answered, builder, explore)
        runner.is_done = builder.is_done
        runner._seconds["calls"] = max(1.0, builder.num_steps / runner.num_envs)
        fragment = builder.fragment(runner._weights_seq_no)
        return fragment, builder.num_steps, builder.num_episodes

    def _begin(self, sims: Any, which: NDArray[np.int64], act: Any, is_done: NDArray[np.bool_]) -> None:
        if not len(which):
            return
        runner = self._runner
        began = time.perf_counter()
        acting = which[~is_done[which]]
        if len(acting):
            chosen = act(acting)
            if self._chosen is None or self._chosen.keys() != chosen.keys():
                self._chosen = mapped(lambda rows: np.zeros((runner.num_envs, *rows.shape[1:]), rows.dtype), chosen)
            for name, rows in chosen.items():
                put(self._chosen[name], acting, rows)
            sims.begin(acting, runner._to_env(chosen["actions"]))
        resetting = which[is_done[which]]
        if len(resetting):
            sims.begin(resetting, None)
            if runner.memory is not None:
                runner.memory.restart(resetting)
        runner._seconds[RLMODULE_INFERENCE_TIMER] += time.perf_counter() - began

    def _act(self, actor: Any, sims: NDArray[np.int64], num_steps: int) -> dict[str, Columns]:
        """What the policy gives for some sims; the states that it began with are kept until the sims answer."""
        memory, observations = self._runner.memory, taken(self._runner.observations, sims)
        if memory is None:
            chosen: dict[str, Columns] = actor.act(observations, num_steps)
            return chosen
        states = taken(memory.rows, sims)
        chosen = actor.act(observations, num_steps, states)
        if self._states is None:
            self._states = mapped(np.zeros_like, memory.rows)
        put(self._states, sims, states)
        put(memory.rows, sims, chosen.pop(Names.STATE_OUT))
        return chosen

    def _take_in(self, sims: Any, answered: NDArray[np.int64], builder: StaggeredBuilder, explore: bool) -> None:
        runner = self._runner
        observations = runner._seen(taken(sims.observations, answered), explore)
        put(runner.observations, answered, observations)
        rewards = sims.rewards[answered]
        # Of a reset, what was chosen is not looked at: there is something, as soon as any sim has acted.
        was_step = builder.add(
            answered,
            taken(self._chosen, answered) if self._chosen is not None else None,
            rewards,
            sims.terminated[answered],
            sims.truncated[answered],
            observations,
            taken(self._states, answered) if self._states is not None else None,
        )
        runner._counter.add(was_step, rewards, builder.is_done[answered], answered)


class StaggeredBuilder:
    """Takes in steps of sims at times of their own; else as `FragmentBuilder`.

    Args:
        num_sims: N.
        observations: The N rows that each sim's first step will act on, or acts on already.
        num_steps: About how many steps each sim will take.
        is_done: bool (N,), the sims whose next step is a reset.
        states_every: See `FragmentBuilder`.
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
        self._times = np.zeros(num_sims, dtype=np.int64)
        self._begun = np.zeros(num_sims, dtype=np.int64)
        self._states = None if states_every is None else SequenceStates(states_every)
        self._observations = Timeline(num_sims, num_steps + 2)
        self._steps = Timeline(num_sims, num_steps + 1)
        self._is_step = Timeline(num_sims, num_steps + 1)
        self._observations.set(0, observations)

    def next_sims(self, is_idle: NDArray[np.bool_], num_wanted: int) -> NDArray[np.int64]:
        """Which of the idle sims go on: those that reset, and of the others the ones with fewest steps.

        Args:
            is_idle: bool (N,).
            num_wanted: How many steps may begin.
        """
        resets = np.flatnonzero(is_idle & self.is_done)
        others = np.flatnonzero(is_idle & ~self.is_done)
        if len(others) > num_wanted:
            others = others[np.argsort(self._times[others], kind="stable")[: max(0, num_wanted)]]
        return np.concatenate([resets, others])

    def add(
        self,
        sims: NDArray[np.int64],
        chosen: dict[str, Columns] | None,
        rewards: Array,
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        observations: Columns,
        states: Columns = None,
    ) -> NDArray[np.bool_]:
        """Take in one step of each of k sims.

        Args:
            sims: int (k,), which.
            chosen: What the policy gave: columns of k rows by name; None when all are resets.
            rewards: (k,).
            terminated: bool (k,).
            truncated: bool (k,).
            observations: The k rows that it led to.
            states: Of a network with memory: the k rows that it began with.

        Returns:
            bool (k,): where it was a step, and not a reset.
        """
        was_step: NDArray[np.bool_] = ~self.is_done[sims]
        times = self._times[sims]
        if chosen is not None:
            terminated, truncated = terminated & was_step, truncated & was_step
            steps = {**chosen, REWARDS: rewards, TERMINATED: terminated, TRUNCATED: truncated & ~terminated}
            self._steps.put(sims, times, steps)
        self._begun[sims[~was_step]] = times[~was_step] + 1
        if self._states is not None and states is not None:
            self._states.add(sims, times, times - self._begun[sims], states)
        self._is_step.put(sims, times, was_step)
        self._observations.put(sims, times + 1, observations)
        self._times[sims] = times + 1
        self.is_done[sims] = (terminated | truncated) & was_step
        self.num_steps += int(np.count_nonzero(was_step))
        self.num_episodes += int(np.count_nonzero(self.is_done[sims]))
        return was_step

    def fragment(self, weights_seq_no: int) -> Fragment:
        """All that was taken in; at least one step."""
        lengths = self._times + 1
        starts = np.cumsum(lengths) - lengths
        owner = np.repeat(np.arange(len(lengths)), lengths)
        when = np.arange(len(owner)) - starts[owner]
        has_followed = when < self._times[owner]
        rows = np.flatnonzero(has_followed)
        rows = rows[self._is_step.at(owner[rows], when[rows])]
        states, state_steps = (None, None) if self._states is None else self._states.of(owner[rows], when[rows])
        return Fragment(
            self._observations.at(owner, when),
            rows.astype(np.int64),
            self._steps.at(owner[rows], when[rows]),
            weights_seq_no,
            self.num_episodes,
            states,
            state_steps,
        )
