"""Sampling from sims in processes of their own, of which none waits for another, nor for the learner.

`ReadyFirst` is what the engine's env runner does instead of vector steps where its sims are `SimWorkers`: whichever
sims have answered get their next actions from one forward pass, at once. It gives back the same fragments, in which
sims have as many steps as each of them had time for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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

SHARE_AHEAD = 8
"""While the learner learns, sims go on for at most a batch divided by this (or for one step each, if that is more)."""
LOOK_S = 0.005
"""How often to look whether the learner is done."""
NOBODY: NDArray[np.int64] = np.zeros(0, dtype=np.int64)


class ReadyFirst:
    """Samples fragments from sims that are stepped one by one, and keeps them busy between two fragments.

    A sim that has answered is told its next step at once. So when a fragment is full, the others' steps are under way;
    they end while the policy learns, and are the first of their sims in the next fragment, which `go_on` continues
    during an update in the same process. These steps were chosen by the policy before that update: at most as many as
    `SHARE_AHEAD` says. They keep the log-probabilities that they were chosen with, those in PPO's ratio.

    Args:
        runner: The env runner.
    """

    def __init__(self, runner: EngineRunner) -> None:
        self._runner = runner
        self._chosen: Columns = None
        self._states: Columns = None
        self.forget()

    def forget(self) -> None:
        """All sims are reset: what they did since the last fragment is dropped."""
        self._builder: StaggeredBuilder | None = None
        self._begun_with = 0
        self._held = NOBODY
        self._act: Callable[[NDArray[np.int64]], dict[str, Columns]] | None = None

    @staticmethod
    def fits(env: Any) -> bool:
        """Whether an env runner's sims can be stepped one by one."""
        return hasattr(env.unwrapped, "in_flight")

    def collect(self, actor: Any, num_timesteps: int, explore: bool) -> tuple[Fragment, int, int]:
        """The fragment; how many steps it has, and how many episodes have ended in it."""
        runner = self._runner
        lifetime, num_runners = runner.num_env_steps_sampled_lifetime, runner.config.num_env_runners or 1
        builder = self._builder or self._next(num_timesteps)

        def act(sims: NDArray[np.int64]) -> dict[str, Columns]:
            return self._chosen_for(actor, sims, (lifetime // num_runners + builder.num_steps) * num_runners)

        self._act, self._explore, self._num_timesteps = act, explore, num_timesteps
        while builder.num_steps < num_timesteps:
            self._begin(builder, runner.num_envs)
            self._take_in(builder, num_timesteps - builder.num_steps, np.inf)
        runner._seconds["calls"] = max(1.0, builder.num_steps / runner.num_envs)
        fragment = builder.fragment(self._begun_with)
        self._begin(self._next(num_timesteps), runner.num_envs)
        return fragment, builder.num_steps, builder.num_episodes

    def go_on(self, is_over: Callable[[], bool]) -> None:
        """Begin the next fragment while the learner is at work; returns when `is_over`, or there is enough."""
        builder, runner = self._builder, self._runner
        if builder is None:
            return
        limit = max(runner.num_envs, self._num_timesteps // SHARE_AHEAD)
        while not is_over():
            room = limit - builder.num_steps - int(np.count_nonzero(runner.env.unwrapped.in_flight)) - len(self._held)
            if room <= 0:
                return
            self._begin(builder, room)
            self._take_in(builder, limit, LOOK_S)

    def _next(self, num_timesteps: int) -> StaggeredBuilder:
        """A builder for the next fragment, from where all sims are."""
        runner = self._runner
        done = runner.is_done if self._builder is None else self._builder.is_done
        runner.is_done = done
        size = num_timesteps // runner.num_envs + 2
        self._builder = StaggeredBuilder(runner.num_envs, runner.observations, size, done, runner.states_every)
        self._begun_with = runner._weights_seq_no
        return self._builder

    def _begin(self, builder: StaggeredBuilder, num_wanted: int) -> None:
        """Tell idle sims to go on, at most so many of them."""
        runner, is_done = self._runner, builder.is_done
        sims = runner.env.unwrapped
        is_idle = ~sims.in_flight
        is_idle[self._held] = False
        which = builder.next_sims(is_idle, num_wanted)
        if not len(which) or self._act is None:
            return
        began = time.perf_counter()
        acting = which[~is_done[which]]
        if len(acting):
            chosen = self._act(acting)
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

    def _chosen_for(self, actor: Any, sims: NDArray[np.int64], num_steps: int) -> dict[str, Columns]:
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

    def _take_in(self, builder: StaggeredBuilder, room: int, timeout_s: float) -> None:
        """Wait for answers and add them, at most so many: the others are held for the next fragment."""
        runner = self._runner
        sims = runner.env.unwrapped
        began = time.perf_counter()
        answered = self._held if len(self._held) else sims.wait(timeout_s)
        runner._seconds[ENV_STEP_TIMER] += time.perf_counter() - began
        answered, self._held = answered[:room], answered[room:]
        if not len(answered):
            return
        observations = runner._seen(taken(sims.observations, answered), self._explore)
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
