"""A sim that is many at once: Gymnasium's `vector_entry_point`, which steps all of them in one call.

Where a simulator computes its N copies as arrays, a step of all costs about what a step of one does. RLlib's own words
ask for it, `env_runners: {gym_env_vectorize_mode: vector_entry_point}`. What `SimVector` does for each sim by itself
cannot be done here: when such a step raises, hangs or gives NaN, there is no single sim whose episode could end and
that could be started again. It is a `SimError`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from ..errors import SimError
from .encoding import MASK_KEY
from .inline import InlineSim, printed
from .loading import SimSpec
from .process import SimFailure
from .supervised import seed_stream
from .vector import SimVector

if TYPE_CHECKING:
    from ..project import Project

MODE = "vector_entry_point"
"""Of Gymnasium's `VectorizeMode`, and of RLlib's `gym_env_vectorize_mode`."""


def is_asked_for(project: Project) -> bool:
    """Whether the project's env runners step all their sims in one call."""
    return str((project.env_runners or {}).get("gym_env_vectorize_mode", "")).lower() == MODE


class VectorisedSims(SimVector):
    """As `SimVector`; the N sims are one object, a `gymnasium.vector.VectorEnv`.

    Args:
        config: The arguments of `SimVector`; `own_process` is not looked at.

    Raises:
        SimError: At the first reset: no `vector_entry_point`, spaces other than the single sim's, or an autoreset other
            than Gymnasium's NEXT_STEP. At any call: the sims raised, ran past `step_timeout_s`, or gave NaN.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(**config)
        self._host: InlineSim | None = None
        self._seed: int | None = None

    def assign(self, *stream: int) -> None:
        """Name the stream of seeds; the sims' one generator is seeded by it at the next reset."""
        self.close()
        spec, max_episode_steps, step_timeout_s, _ = self._make
        self._seed = next(seed_stream(np.random.SeedSequence([*self._entropy, *stream])))
        recipe = Vectorised(spec, self.num_envs, max_episode_steps)
        self._host = InlineSim(recipe, timeout_s=step_timeout_s)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all sims; `seed` is ignored in favour of the stream."""
        if self._host is None:
            self.assign(0)
        with printed.capture():
            given, self._seed = self._seed, None  # later episodes are the generator's own, as Gymnasium recommends
            observations, infos = self._call(2, "reset", given, options)
            self._frames.reset(slice(None))
            encoded = self._frames.push(self._encoded(observations, infos))
        self._needs_reset[:] = False
        return encoded, _of_sims(infos)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all sims; one that ended at the last step resets itself instead."""
        with printed.capture():
            columns, _ = self.adapter.decode_columns(self._as_columns(actions))
            observations, given, *ended, infos = self._call(5, "step", columns)
            self._frames.reset(self._needs_reset)
            encoded = self._frames.push(self._encoded(observations, infos))
        # Copies: the sims may go on writing into their own arrays.
        rewards = np.array(given, dtype=np.float64)
        terminated, truncated = (np.array(flags, dtype=bool) for flags in ended)
        if not np.isfinite(rewards).all():
            index = int(np.argmin(np.isfinite(rewards)))
            raise self._failed(SimFailure(f"step() returned the reward {rewards[index]} for sim {index}"))
        self._needs_reset = terminated | truncated
        return encoded, rewards, terminated, truncated, _of_sims(infos)

    def close_extras(self, **kwargs: Any) -> None:
        """Close them all."""
        if self._host is not None:
            self._host.close()

    def _call(self, length: int, call: str, *args: Any) -> Any:
        try:
            answer = getattr(self._host, call)(*args)
        except SimFailure as failure:
            raise self._failed(failure) from failure
        if not isinstance(answer, tuple) or len(answer) != length:
            raise self._failed(SimFailure(f"{call}() did not return {length} values"))
        return answer

    def _encoded(self, observations: Any, infos: Mapping[str, Any]) -> Any:
        masks = infos.get(MASK_KEY) if self.adapter.mask_source == "info" else None
        try:
            return self.adapter.encode_columns(observations, self.num_envs, None if masks is None else list(masks))
        except SimError as error:
            raise self._failed(SimFailure(error.message)) from error

    def _failed(self, failure: SimFailure) -> SimError:
        details = "".join(f"\n{part.rstrip()}" for part in (failure.details, failure.output) if part)
        return SimError(
            f"the vectorised sim {self._make[0].label} failed, and all its {self.num_envs} episodes with it: "
            f"{failure.reason}{details}",
            hint="Without env_runners.gym_env_vectorize_mode each sim runs by itself, and only the one that fails is "
            "started again; plato train --resume goes on from the last checkpoint.",
        )


@dataclass(frozen=True)
class Vectorised:
    """How to make N sims as one object.

    Attributes:
        spec: The sim, a registered Gymnasium id with a `vector_entry_point`.
        num_envs: N.
        max_episode_steps: Truncate at this many steps, if neither the registration nor the class says fewer.
    """

    spec: SimSpec
    num_envs: int
    max_episode_steps: int | None = None

    def registered(self) -> gym.envs.registration.EnvSpec:
        """The registration.

        Raises:
            SimError: There is none, or it has no `vector_entry_point`.
        """
        found = self.spec.creator()
        if not isinstance(found, gym.envs.registration.EnvSpec) or found.vector_entry_point is None:
            raise SimError(
                f"sim: {self.spec.label} has no {MODE}, which env_runners.gym_env_vectorize_mode asks for",
                hint="Register the class that steps many at once, gymnasium.register(id=..., entry_point=..., "
                f"{MODE}=...), or leave gym_env_vectorize_mode out.",
            )
        return found

    def make(self) -> Any:
        """The `VectorEnv`.

        Raises:
            SimError: It cannot be trained with; what its class raises passes through.
        """
        registered = self.registered()
        config = {**self._limit(registered), **self.spec.config}
        made = gym.make_vec(registered, self.num_envs, vectorization_mode=MODE, **config)
        if made.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
            raise SimError(
                f"sim: the vectorised {self.spec.label} does not say that its sims reset themselves in the step after "
                "an episode's last one",
                hint='Have it do so, and say metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}.',
            )
        single = self.spec.make()
        single.close()  # type: ignore[no-untyped-call]
        for name in ("observation_space", "action_space"):
            alone, one = getattr(single, name), getattr(made, f"single_{name}")
            if alone != one:
                raise SimError(
                    f"sim: the {name} of the vectorised {self.spec.label} is {one}, the single sim's {alone}",
                    hint="The agent is checked and assessed with the single one: make them the same.",
                )
        return made

    def _limit(self, registered: gym.envs.registration.EnvSpec) -> dict[str, int]:
        """The lowest of the limits, for a class that takes one: nobody else can end one of its episodes."""
        entry = registered.vector_entry_point
        creator = gym.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
        taken = inspect.signature(creator).parameters.get("max_episode_steps")  # type: ignore[arg-type]
        if taken is None:
            return {}
        limits = (self.max_episode_steps, registered.max_episode_steps, taken.default)
        given = [limit for limit in limits if isinstance(limit, int)]
        return {"max_episode_steps": min(given)} if given else {}


def _of_sims(infos: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in infos.items() if key.removeprefix("_") != MASK_KEY}
