"""The env runner of the engine: RLlib's own, but for the loop that samples.

`EngineRunner` is plugged in as `env_runner_cls`, in this process or as Ray's actors. It has RLlib's connectors, states,
checkpoints and metrics; what it gives back from `sample` are columns (`Fragment`) instead of episodes: one forward pass
for each vector step, no object for any single step.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns as Names
from ray.rllib.env.env_runner import ENV_STEP_FAILURE, NUM_ENV_STEP_FAILURES_LIFETIME
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.metrics import (
    ENV_STEP_TIMER,
    ENV_TO_MODULE_CONNECTOR,
    ENV_TO_MODULE_SUM_EPISODES_LENGTH_IN,
    ENV_TO_MODULE_SUM_EPISODES_LENGTH_OUT,
    MODULE_TO_ENV_CONNECTOR,
    RLMODULE_INFERENCE_TIMER,
)

from ..cluster import quiet_rllib
from ..encoders import VECTOR
from ..filters import NumericFilter
from .acting import ActionMapping, Actor
from .columns import Columns
from .compiled import CompiledActor, KernelChoice
from .episodes import EpisodeCounter, EpisodeMirror, has_episode_callbacks
from .fragments import Fragment, FragmentBuilder, joined
from .memory import Memory, sequence_length
from .ready_first import ReadyFirst
from .recurrent import actor_for
from .timing import log_pipeline

logger = logging.getLogger("ray.rllib")


class VectorStep(NamedTuple):
    """What N sims were told and said: columns of N rows."""

    chosen: dict[str, Columns]
    rewards: Any
    terminated: Any
    truncated: Any
    infos: Any
    states: Columns = None
    """What a network with memory remembered when it was asked."""


class EngineRunner(SingleAgentEnvRunner):  # type: ignore[misc]
    """Samples fragments of [time, sims] steps.

    Args:
        config: The algorithm's config.
        **kwargs: RLlib's own: `worker_index`, `spaces` ...
    """

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self._needs_initial_reset: bool = True
        self.observations: Columns = None
        self.is_done: NDArray[np.bool_] = np.zeros(self.num_envs, dtype=bool)
        self._counter = EpisodeCounter(self.num_envs)
        self._mirror = EpisodeMirror(self) if has_episode_callbacks(self.config) else None
        self._seconds: dict[str, float] = defaultdict(float)
        self._ready_first = ReadyFirst(self)

    def make_module(self) -> None:
        """RLlib's module, and nothing kept of an earlier one."""
        quiet_rllib()  # a remote runner's greetings go to the driver's screen
        super().make_module()
        self._kernel = KernelChoice(self.config)
        self._actors: dict[tuple[bool, bool], Actor | CompiledActor] = {}
        has_memory = self.module is not None and self.module.is_stateful()
        self.memory = Memory(self.module, self.num_envs) if has_memory else None

    def get_metrics(self) -> Any:
        """RLlib's metrics of the episodes that have ended since the last call."""
        window = self._window()
        finished = self._counter.taken()
        # All episode metrics look at the last few only.
        for length, return_, seconds in finished[-window:]:
            self._log_episode_metrics(length, return_, seconds)
        return self.metrics.reduce()

    def _window(self) -> int:
        window = int(self.config.metrics_num_episodes_for_smoothing)
        return max(1, -(-window // (self.config.num_env_runners or 1)))

    def _sample(
        self,
        *,
        num_timesteps: float | None = None,
        num_episodes: int | None = None,
        explore: bool,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[Any]:
        """Steps of all sims until there are enough of them, or until enough episodes have ended."""
        # An evaluation that lasts as long as training asks for seconds times steps per second: a fraction.
        num_timesteps = None if num_timesteps is None else math.ceil(num_timesteps)
        if random_actions or self.module is None:
            return self._sample_randomly(num_timesteps, num_episodes, explore, random_actions)
        actor = self.ready(explore)
        if force_reset or num_episodes is not None or self._needs_initial_reset:
            self.restart(explore)
        fragment: Fragment | None
        if num_timesteps and self._mirror is None and ReadyFirst.fits(self.env):
            fragment, num_steps, num_done = self._ready_first.collect(actor, num_timesteps, explore)
        else:
            fragment, num_steps, num_done = self._collect(actor, num_timesteps, num_episodes, explore)
        if num_episodes is not None:
            self._needs_initial_reset = True
        self.log_sampled(num_steps, num_done)
        return [] if fragment is None or not len(fragment) else [fragment]

    def go_on(self, is_over: Callable[[], bool]) -> None:
        """Keep sims in processes of their own busy while the learner is at work, until `is_over`; see `ReadyFirst`."""
        if not self._needs_initial_reset:
            self._ready_first.go_on(is_over)

    @property
    def needs_reset(self) -> bool:
        """Whether the sims have to be reset before the next step."""
        return bool(self._needs_initial_reset)

    def ready(self, explore: bool) -> Actor | CompiledActor:
        """Who acts, with all that a vector step needs."""
        self._seconds.clear()
        self.module.eval()
        actor = self._actor(explore)
        actor.begin()
        if self.memory is not None:
            self.memory.begin()
        space = self.env.single_action_space
        self._to_env = ActionMapping(space, normalize=self.config.normalize_actions, clip=self.config.clip_actions)
        self._filter: NumericFilter | None = next(iter(self._env_to_module[NumericFilter]), None)
        return actor

    @property
    def states_every(self) -> int | None:
        """How many steps apart learning needs what the network remembered; None without memory.

        Several learners share a fragment anywhere, and begin their sequences there.
        """
        if self.memory is None:
            return None
        return 1 if self.config.num_learners > 1 else sequence_length(self.module)

    def log_sampled(self, num_steps: int, num_done: int) -> None:
        """What RLlib logs of a sample; episodes under way go on in a new chunk."""
        if self._mirror is not None and not self._needs_initial_reset:
            self._mirror.cut()
        self._log_env_steps(metric=self._metrics_num_env_steps_sampled, num_steps=num_steps)
        self._increase_sampled_metrics(num_steps, num_done)
        self._log_timers()

    def _actor(self, explore: bool) -> Actor | CompiledActor:
        """Who acts: the compiled kernel where it covers the network and is compiled, else torch."""
        native = self._kernel.ask(lambda: (self.module,))
        key = (explore, native is not None)
        if key not in self._actors:
            self._actors[key] = (
                actor_for(self.module, self._device, explore=explore)
                if native is None
                else CompiledActor(native, explore=explore)
            )
        return self._actors[key]

    def _collect(
        self, actor: Actor | CompiledActor, num_timesteps: int | None, num_episodes: int | None, explore: bool
    ) -> tuple[Fragment | None, int, int]:
        """The fragment; how many steps were taken, and how many episodes have ended."""
        lifetime, num_runners = self.num_env_steps_sampled_lifetime, self.config.num_env_runners or 1
        capacity = -(-(num_timesteps or 64 * self.num_envs) // self.num_envs)
        builder = self._new_builder(capacity + capacity // 8)
        parts: list[Fragment] = []
        kept_steps = num_steps = num_done = 0
        while num_steps < num_timesteps if num_timesteps is not None else num_done < (num_episodes or 0):
            stepped = self.advance(actor, (lifetime // num_runners + num_steps) * num_runners, explore)
            if stepped is None:
                builder.drop(~builder.is_done)
                self._keep(parts, builder)
                kept_steps = num_steps = sum(map(len, parts))
                self.restart(explore)
                builder = self._new_builder(capacity)
                continue
            was_step = builder.add(stepped.chosen, *stepped[1:4], self.observations, stepped.states)
            self.is_done = builder.is_done
            self._count(was_step, stepped)
            num_steps = kept_steps + builder.num_steps
            num_done = builder.num_episodes + sum(part.num_episodes for part in parts)
        if num_episodes is not None:
            num_done = self._finish_episodes(builder, num_done, num_episodes)
        self._keep(parts, builder)
        return (joined(parts) if parts else None), num_steps, num_done

    def advance(self, actor: Actor | CompiledActor, num_steps: int, explore: bool) -> VectorStep | None:
        """One vector step, to `observations`; None when RLlib has made all sims anew."""
        began = time.perf_counter()
        memory, states = self.memory, None
        if memory is None or not isinstance(actor, Actor):
            chosen = actor.act(self.observations, num_steps)
        else:
            states = memory.rows
            chosen = actor.act(self.observations, num_steps, states)
            memory.follow(chosen.pop(Names.STATE_OUT), self.is_done)
        acted = time.perf_counter()
        sent = self._to_env(chosen["actions"])
        mapped = time.perf_counter()
        results = self._step(sent)
        stepped = time.perf_counter()
        if results == ENV_STEP_FAILURE:
            return None
        observations, rewards, terminated, truncated, infos = results
        self.observations = self._seen(observations, explore)
        seconds = self._seconds
        seconds[RLMODULE_INFERENCE_TIMER] += acted - began
        seconds["normalize_and_clip_actions"] += mapped - acted
        seconds[ENV_STEP_TIMER] += stepped - mapped
        seconds["numeric_filter"] += time.perf_counter() - stepped
        seconds["calls"] += 1.0
        return VectorStep(chosen, rewards, terminated, truncated, infos, states)

    def settle(self, step: VectorStep) -> NDArray[np.bool_]:
        """Take note of a vector step; bool (N,): where it was a step, and not a reset."""
        was_step: NDArray[np.bool_] = ~self.is_done
        self.is_done = (step.terminated | step.truncated) & was_step
        self._count(was_step, step)
        return was_step

    def _count(self, was_step: NDArray[np.bool_], step: VectorStep) -> None:
        self._counter.add(was_step, step.rewards, self.is_done)
        if self._mirror is not None:
            remembered = {} if self.memory is None else {Names.STATE_OUT: self.memory.rows}
            self._mirror.add(was_step, {**step.chosen, **remembered}, *step[1:4], self.observations, step.infos)

    def _new_builder(self, capacity: int) -> FragmentBuilder:
        return FragmentBuilder(self.num_envs, self.observations, capacity, self.is_done, self.states_every)

    def _keep(self, parts: list[Fragment], builder: FragmentBuilder) -> None:
        if builder.num_steps:
            parts.append(builder.fragment(self._weights_seq_no))

    def _finish_episodes(self, builder: FragmentBuilder, num_done: int, wanted: int) -> int:
        """Only whole episodes are given back, and of those that ended with the last step no more than were wanted."""
        ended = np.flatnonzero(builder.is_done)
        surplus = ended[len(ended) - (num_done - wanted) :] if num_done > wanted else ended[:0]
        unwanted = ~builder.is_done
        unwanted[surplus] = True
        builder.drop(unwanted)
        builder.num_episodes -= len(surplus)
        if len(surplus):
            del self._counter.finished[-len(surplus) :]
        return num_done - len(surplus)

    def restart(self, explore: bool) -> None:
        """Reset all sims; episodes under way are forgotten."""
        observations, infos = self._try_env_reset(seed=self._seed if self._needs_initial_reset else None, options=None)
        self._needs_initial_reset = False
        self.is_done = np.zeros(self.num_envs, dtype=bool)
        if self.memory is not None:
            self.memory.restart()
        self.observations = self._seen(observations, explore)
        self._counter.restart()
        self._ready_first.forget()
        if self._mirror is not None:
            self._mirror.restart(self.observations, infos)

    def _seen(self, observations: Columns, explore: bool) -> Columns:
        """Observations as the module sees them: filtered, all rows of a vector step at once."""
        if self._filter is None:
            return observations
        if isinstance(observations, dict):
            return {**observations, VECTOR: self._filter.filtered(observations[VECTOR], learn=explore)}
        return self._filter.filtered(observations, learn=explore)

    def _step(self, actions: Columns) -> Any:
        """Step the sims; infos are turned into one dict per sim only for those who look at them.

        Raises:
            RuntimeError: A sim failed, from the sim's own error, as RLlib raises it.
        """
        env = self.env if self._mirror is not None else self.env.env
        try:
            return env.step(actions)
        except Exception as error:
            self.metrics.log_value(NUM_ENV_STEP_FAILURES_LIFETIME, 1, reduce="lifetime_sum")
            if not self.config.restart_failed_sub_environments:
                raise RuntimeError from error
            logger.exception("an environment failed to step: all environments of this env runner are made anew")
            self.make_env()
            return ENV_STEP_FAILURE

    def _sample_randomly(
        self, num_timesteps: int | None, num_episodes: int | None, explore: bool, random_actions: bool
    ) -> list[Any]:
        """Random actions are left to RLlib, which starts and leaves with fresh episodes."""
        self._needs_initial_reset = True
        try:
            episodes: list[Any] = super()._sample(
                num_timesteps=num_timesteps,
                num_episodes=num_episodes,
                explore=explore,
                random_actions=random_actions,
            )
        finally:
            self._needs_initial_reset = True
            self._done_episodes_for_metrics.clear()
        return episodes

    def _log_timers(self) -> None:
        """RLlib's timers, once for the whole sample: the mean seconds of one vector step."""
        calls = max(1.0, self._seconds.pop("calls", 1.0))
        each = {name: seconds / calls for name, seconds in self._seconds.items()}
        for name in (ENV_STEP_TIMER, RLMODULE_INFERENCE_TIMER):
            self.metrics.log_value(name, each.get(name, 0.0))
        log_pipeline(self.metrics, (ENV_TO_MODULE_CONNECTOR,), self._env_to_module, each)
        log_pipeline(self.metrics, (MODULE_TO_ENV_CONNECTOR,), self._module_to_env, each)
        for name in (ENV_TO_MODULE_SUM_EPISODES_LENGTH_IN, ENV_TO_MODULE_SUM_EPISODES_LENGTH_OUT):
            self.metrics.log_value(name, self._counter.num_steps)
