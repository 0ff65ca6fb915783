"""Many sims as the one vector environment that RLlib samples from.

`SimVector` holds N `SupervisedSim`s and an `Adapter`. RLlib sees encoded observations and sends encoded actions; every
sim gets back actions of its own space. Observations are encoded in one batch per vector step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, iterate

from ..errors import SimError
from ..spaces import Adapter
from ..spaces.frames import Frames
from .answers import Answer
from .encoding import MASK_KEY, encode
from .inline import printed
from .loading import SimSpec
from .process import SimFailure
from .supervised import SupervisedSim


class SimVector(gym.vector.VectorEnv[Any, Any, Any]):
    """N supervised sims behind one adapter, with Gymnasium's next-step autoreset.

    Args:
        spec: How to make a sim.
        adapter: Encodes observations and decodes actions.
        num_envs: How many sims.
        seed: Entropy of all seeds: the project's seed and the attempt. Each sim's stream is drawn from
            (seed, attempt, runner, env), so that no two overlap and a resumed run does not replay its first episodes
            (RLlib's own runner seeds overlap: seed + index for both runners and environments).
        max_episode_steps, step_timeout_s, own_process: As in `SupervisedSim`.
    """

    def __init__(
        self,
        spec: SimSpec,
        adapter: Adapter,
        *,
        num_envs: int,
        seed: Sequence[int] = (0,),
        max_episode_steps: int | None = None,
        step_timeout_s: float = 60.0,
        own_process: bool = False,
    ) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space = adapter.encoded_observation_space
        self.single_action_space = adapter.encoded_action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.spec = None
        self.adapter = adapter
        self._make = (spec, max_episode_steps, step_timeout_s, own_process)
        self._entropy = list(seed)
        self._sims: list[SupervisedSim] = []
        self._needs_reset = np.ones(num_envs, dtype=bool)
        self._frames = Frames(adapter.frame_stack, num_envs)
        self._last: Any = None
        self._num_told = [0] * num_envs

    @property
    def sims(self) -> list[SupervisedSim]:
        """The sims, made on first use, when the runner's index is known."""
        if not self._sims:
            self.assign(0)
        return self._sims

    def assign(self, *stream: int) -> None:
        """Name the stream of seeds, usually the runner's index; must come before the first reset."""
        self.close()
        self._num_told = [0] * self.num_envs
        spec, max_episode_steps, step_timeout_s, own_process = self._make
        self._sims = [
            SupervisedSim(
                spec,
                seeds=np.random.SeedSequence([*self._entropy, *stream, index]),
                max_episode_steps=max_episode_steps,
                step_timeout_s=step_timeout_s,
                own_process=own_process,
            )
            for index in range(self.num_envs)
        ]

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all sims; `seed` is ignored in favour of each sim's own stream."""
        with printed.capture():
            answers = Answers([_begun(*sim.reset(options=options)) for sim in self.sims])
            self._frames.reset(slice(None))
            observations = self._frames.push(self._encode(answers))
        self._needs_reset[:] = False
        return observations, self._infos(answers.infos)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all sims; one that ended at the last step is reset instead (its action is ignored)."""
        with printed.capture():
            sent = self.adapter.decode_batch(self._as_columns(actions))
            answers = Answers(
                [
                    _begun(*sim.reset()) if is_reset else sim.step(action)
                    for sim, action, is_reset in zip(self.sims, sent, self._needs_reset.tolist(), strict=True)
                ]
            )
            self._frames.reset(self._needs_reset)
            observations = self._frames.push(self._encode(answers))
        terminated, truncated = np.array(answers.terminated), np.array(answers.truncated)
        self._needs_reset = terminated | truncated
        return observations, np.array(answers.rewards), terminated, truncated, self._infos(answers.infos)

    def new_failures(self) -> list[str]:
        """One reason for each failure since the last call, for the metrics and the log: the last of its sim."""
        return self._news(self._sims)

    def _news(self, sims: Sequence[Any]) -> list[str]:
        reasons = []
        for index, sim in enumerate(sims):
            if sim.num_failures > self._num_told[index]:
                reasons += [sim.last_failure.reason] * (sim.num_failures - self._num_told[index])
                self._num_told[index] = sim.num_failures
        return reasons

    def close_extras(self, **kwargs: Any) -> None:
        """Close every sim."""
        for sim in self._sims:
            sim.close()

    def close(self, **kwargs: Any) -> None:
        """Close every sim; may be called more than once."""
        self.close_extras()
        self._sims = []
        self._needs_reset[:] = True

    def _encode(self, answers: Answers) -> Any:
        """One encoded batch; a sim whose observation is refused fails here, and its episode ends."""
        if not any(answers.infos) or not any(sim.failure for sim in self.sims):
            masks = None
            if self.adapter.mask_source == "info":
                masks = [info.get(MASK_KEY) for info in answers.infos]
            try:
                batch = self.adapter.encode_batch(answers.observations, masks)
            except SimError:
                pass  # one of them: find it below
            else:
                self._last = batch
                return batch
        self._last = _stack(self._encode_one(index, answers) for index in range(self.num_envs))
        return self._last

    def _encode_one(self, index: int, answers: Answers) -> Any:
        """One encoded row; after a failure, the sim's last good observation (or zeros) closes the episode."""
        sim = self.sims[index]
        if sim.failure is None:
            is_over = answers.terminated[index] or answers.truncated[index]
            observation, info = answers.observations[index], answers.infos[index]
            try:
                return encode(self.adapter, observation, info, step=sim.num_steps, is_over=is_over)
            except SimFailure as failure:
                answers.put(index, sim.failed(failure))
        if self._last is None:
            return self._blank()
        return _row(self._last, index)

    def _blank(self) -> Any:
        space = self.adapter.frame_space
        if isinstance(space, gym.spaces.Dict):
            blank = {key: np.zeros(box.shape or (), np.dtype(box.dtype)) for key, box in space.spaces.items()}
            if MASK_KEY in blank:
                blank[MASK_KEY] = np.ones_like(blank[MASK_KEY])
            return blank
        return np.zeros(space.shape or (), space.dtype)

    def _infos(self, of_sims: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Gymnasium's vector form of infos, as object arrays: sims may put in what they like, differently each step."""
        infos: dict[str, Any] = {}
        if not any(of_sims):
            return infos
        for index, info in enumerate(of_sims):
            for key, value in info.items():
                if key == MASK_KEY or key.startswith("_"):
                    continue
                if key not in infos:
                    infos[key] = np.full(self.num_envs, None, dtype=object)
                    infos[f"_{key}"] = np.zeros(self.num_envs, dtype=bool)
                infos[key][index] = value
                infos[f"_{key}"][index] = True
        return infos

    def _as_columns(self, actions: Any) -> Any:
        """Arrays of N rows, or a dict of them, as they are; anything else (RLlib's lists) row by row."""
        if isinstance(actions, (np.ndarray, dict)):
            return actions
        return list(iterate(self.action_space, actions)) if isinstance(actions, tuple) else list(actions)


class Answers:
    """What N sims said, by part.

    Args:
        answers: Of each sim.
    """

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.observations, self.rewards, self.terminated, self.truncated, self.infos = map(
            list, zip(*answers, strict=True)
        )

    def put(self, index: int, answer: Answer) -> None:
        """What a sim said instead."""
        parts = self.observations, self.rewards, self.terminated, self.truncated, self.infos
        for part, value in zip(parts, answer, strict=True):
            part[index] = value


def _begun(observation: Any, info: dict[str, Any]) -> Answer:
    """What a reset said, in the place of a step."""
    return observation, 0.0, False, False, info


def _row(batch: Any, index: int) -> Any:
    if isinstance(batch, dict):
        return {key: value[index] for key, value in batch.items()}
    return batch[index]


def _stack(rows: Iterable[Any]) -> Any:
    rows = list(rows)
    if isinstance(rows[0], dict):
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return np.stack(rows)


class TrainingSims(SimVector):
    """`SimVector` from one mapping, as RLlib makes environments (`config.environment(env=TrainingSims)`)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(**config)
