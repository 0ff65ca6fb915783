"""A simulator that exists alone and as many in one object, with faults on order; importing it registers both."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

OBSERVATIONS = gym.spaces.Dict(
    {"level": gym.spaces.Box(0.0, 5.0, (2,), np.float64), "mode": gym.spaces.Discrete(3, start=1)}
)
ACTIONS = gym.spaces.Discrete(3, start=-1)


class Tank(gym.Env[Any, Any]):
    """One tank, for what is asked of a single sim."""

    observation_space, action_space = OBSERVATIONS, ACTIONS

    def __init__(self, fault: str = "") -> None:
        self.level = 1.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.level = 1.0
        return self._seen(), {"action_mask": np.ones(3, np.int8)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.level += 0.5 * float(action)
        return self._seen(), -abs(self.level), not 0 < self.level < 4, False, {"action_mask": np.ones(3, np.int8)}

    def _seen(self) -> dict[str, Any]:
        return {"level": np.full(2, np.clip(self.level, 0, 5)), "mode": np.int64(1)}


class Tanks(gym.vector.VectorEnv[Any, Any, Any]):
    """N of them as arrays; what is asked of it is kept, and every tenth step it fails as told."""

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs: int, fault: str = "", max_episode_steps: int = 20) -> None:
        self.num_envs, self.fault, self.limit = num_envs, fault, max_episode_steps
        self.single_observation_space, self.single_action_space = OBSERVATIONS, ACTIONS
        if fault == "spaces":
            self.single_action_space = gym.spaces.Discrete(4)
        if fault == "autoreset":
            self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # type: ignore[misc]
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.asked: list[Any] = []

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.asked = [("reset", seed)]
        self.levels = self.np_random.uniform(1, 3, self.num_envs)
        self.ages = np.zeros(self.num_envs, int)
        self.over = np.zeros(self.num_envs, bool)
        return self._seen(), self._infos()

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        assert self.action_space.contains(actions), actions
        assert not ((actions == 1) & (self.levels > 2) & ~self.over).any(), "a forbidden action"
        self.asked.append(actions)
        self.ages += 1
        self.levels = np.where(self.over, self.np_random.uniform(1, 3, self.num_envs), self.levels + 0.5 * actions)
        self.ages[self.over] = 0
        terminated = ~self.over & ~((self.levels > 0) & (self.levels < 4))
        truncated = ~self.over & (self.ages >= self.limit)
        rewards = np.where(self.over, 0.0, -np.abs(self.levels))
        self.over = terminated | truncated
        if len(self.asked) % 10 == 0:
            if self.fault == "raises":
                raise OSError("the pump is gone")
            if self.fault == "hangs":
                time.sleep(30)
            if self.fault == "reward":
                rewards[2] = np.nan
            if self.fault == "observation":
                self.levels[1] = np.nan
        return self._seen(), rewards, terminated, truncated, self._infos()

    def _seen(self) -> dict[str, Any]:
        levels = np.clip(self.levels, 0, 5)
        return {"level": np.stack([levels, levels], 1), "mode": 1 + (levels > 2).astype(np.int64)}

    def _infos(self) -> dict[str, Any]:
        mask = np.ones((self.num_envs, 3), np.int8)
        mask[:, 2] = self.levels <= 2
        return {"action_mask": mask, "_action_mask": np.ones(self.num_envs, bool), "levels": self.levels}


gym.register("Tanks-v0", entry_point=Tank, vector_entry_point=Tanks)
gym.register("Tank-v0", entry_point=Tank)
