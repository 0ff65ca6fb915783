"""Sims for the engine's tests: they count their steps and remember what they gave."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class Counting(gym.Env[Any, Any]):
    """Observations tell the sim's number, episode and step; episodes end or are truncated after a few steps."""

    num_steps = 0
    num_resets = 0
    given: list[Any] = []  # noqa: RUF012
    actions: list[Any] = []  # noqa: RUF012
    observation_space = gym.spaces.Box(-1e6, 1e6, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    @classmethod
    def forget(cls) -> None:
        cls.num_steps = cls.num_resets = 0
        cls.given.clear()
        cls.actions.clear()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        Counting.num_resets += 1
        self.step_ = 0
        self.length = int(self.np_random.integers(3, 12))
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        Counting.num_steps += 1
        Counting.actions.append(action)
        self.step_ += 1
        is_over = self.step_ >= self.length
        is_terminated = is_over and self.length % 2 == 0
        return self._obs(), 1.0, is_terminated, is_over and not is_terminated, {"step": self.step_}

    def _obs(self) -> Any:
        obs = np.array([self.np_random.normal(1000, 5), self.step_, self.length], dtype=np.float32)
        Counting.given.append(obs.copy())
        return obs


class Everything(gym.Env[Any, Any]):
    """A Dict of a number, a choice, an image and a mask; a Dict action of numbers and choices."""

    observation_space = gym.spaces.Dict(
        {
            "level": gym.spaces.Box(0, 10, (2,), np.float64),
            "mode": gym.spaces.Discrete(3, start=1),
            "camera": gym.spaces.Box(0, 255, (12, 12, 3), np.uint8),
            "action_mask": gym.spaces.MultiBinary(4),
        }
    )
    action_space = gym.spaces.Dict({"valve": gym.spaces.Box(0, 5, (2,), np.float32), "gear": gym.spaces.Discrete(4)})
    forbidden_chosen = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.step_ = 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        Everything.forbidden_chosen += int(not self.mask[action["gear"]])
        self.step_ += 1
        return self._obs(), float(action["valve"].mean()), self.step_ >= 7, False, {}

    def _obs(self) -> Any:
        self.mask = np.array([1, 0, 1, int(self.np_random.integers(2))], dtype=np.int8)
        camera = self.np_random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        return {
            "level": self.np_random.uniform(0, 10, 2),
            "mode": np.int64(self.np_random.integers(1, 4)),
            "camera": camera,
            "action_mask": self.mask,
        }
