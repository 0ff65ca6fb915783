"""Thirty pairs of spaces, and a toy sim for each: what the table "spaces that train" is measured on.

Needs numpy and gymnasium alone, so that every library is given the very same sims. `Toy("image HWC")` is the sim of
that pair; it refuses actions that its own space does not contain, and those that its mask forbids.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

INF = np.inf
EPISODE_STEPS = 10


def box(low: float, high: float, shape: tuple[int, ...] = (1,), dtype: Any = np.float32) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


@dataclass(frozen=True)
class Pair:
    """An observation space, an action space, and where the sim says which actions are allowed.

    Attributes:
        mask: None, "info", or the key of the observation that holds the mask.
        choices: Values of each discrete choice, when there is a mask.
    """

    observation: spaces.Space[Any]
    action: spaces.Space[Any]
    mask: str | None = None
    choices: tuple[int, ...] = ()


PAIRS: dict[str, Pair] = {
    "vector, choice": Pair(box(-1, 1, (4,)), spaces.Discrete(2)),
    "number (), choice from -2": Pair(box(0, 1, ()), spaces.Discrete(5, start=-2)),
    "matrix, choices": Pair(box(-1, 1, (3, 4)), spaces.MultiDiscrete([3, 2, 4])),
    "float64, choices with starts": Pair(
        box(-1, 1, (3,), np.float64), spaces.MultiDiscrete([3, 2], start=np.array([5, -2]))
    ),
    "float16, switches": Pair(box(-1, 1, (3,), np.float16), spaces.MultiBinary(4)),
    "int32, small integer": Pair(box(-10, 10, (3,), np.int32), box(-10, 10, (1,), np.int32)),
    "uint8, large integers": Pair(box(0, 255, (5,), np.uint8), box(-1000, 1000, (2,), np.int32)),
    "half-bounded, number ()": Pair(box(0, INF, (3,)), box(-2, 3, ())),
    "unbounded, matrix": Pair(box(-INF, INF, (3,)), box(-2, 3, (2, 3))),
    "bool matrix, float64 bounds": Pair(
        box(0, 1, (2, 3), np.bool_), spaces.Box(np.array([-3.0, 0.1]), np.array([0.7, 50.0]), dtype=np.float64)
    ),
    "image HWC, choice": Pair(box(0, 255, (24, 32, 3), np.uint8), spaces.Discrete(4)),
    "image CHW of odd size, numbers": Pair(box(0, 255, (3, 17, 23), np.uint8), box(-1, 1, (2,))),
    "grey image of odd size, choices": Pair(box(0, 255, (13, 29), np.uint8), spaces.MultiDiscrete([3, 4])),
    "float image, switches": Pair(box(0, 1, (10, 12, 4)), spaces.MultiBinary(3)),
    "image and numbers, mixed": Pair(
        spaces.Dict(camera=box(0, 255, (16, 20, 3), np.uint8), speed=box(-1, 1, (2,)), gear=spaces.Discrete(4)),
        spaces.Dict(force=box(-2, 2, (2,)), gear=spaces.Discrete(3, start=1), lights=spaces.MultiBinary(2)),
    ),
    "two images, choice": Pair(
        spaces.Dict(front=box(0, 255, (12, 16, 3), np.uint8), rear=box(0, 1, (1, 11, 9))), spaces.Discrete(3)
    ),
    "category, choice": Pair(spaces.Discrete(6), spaces.Discrete(3)),
    "category from -2, half-bounded below": Pair(spaces.Discrete(5, start=-2), box(0.1, INF, (2,))),
    "categories with starts, half-bounded above": Pair(
        spaces.MultiDiscrete([3, 200, 4], start=np.array([1, -5, 10])), box(-INF, 0.1, (2,))
    ),
    "switches, unbounded": Pair(spaces.MultiBinary(4), box(-INF, INF, (2,))),
    "Dict, Dict of an integer": Pair(
        spaces.Dict(value=box(-100, 200, (1,))), spaces.Dict(addend=box(-10, 10, (1,), np.int32))
    ),
    "Dict of Tuple, Tuple of choices": Pair(
        spaces.Dict(
            valves=spaces.Tuple((box(0, 1, (2,)), spaces.Discrete(4))),
            level=box(0, 2),
        ),
        spaces.Tuple((spaces.Discrete(3), spaces.Discrete(2, start=4))),
    ),
    "Tuple, Tuple of number and choice": Pair(
        spaces.Tuple((box(-1, 1, (2,)), spaces.Discrete(3))), spaces.Tuple((box(0, 1, ()), spaces.Discrete(2)))
    ),
    "nested deeply, nested deeply": Pair(
        spaces.Dict(
            tank=spaces.Dict(valves=spaces.Tuple((box(0, 1, (2,)), spaces.Discrete(4))), on=spaces.MultiBinary(2)),
            sensors=spaces.Tuple((spaces.Tuple((box(-1, 1, ()),)), spaces.MultiBinary(3))),
        ),
        spaces.Dict(
            pump=spaces.Tuple((box(-1, 1, (2, 1)), spaces.Dict(step=box(0, 9, (2,), np.int16)))),
            dose=box(0, 5, (1,)),
        ),
    ),
    "Text, Text": Pair(spaces.Text(4, charset="abc"), spaces.Text(3, min_length=1, charset="abc")),
    "OneOf, choice": Pair(
        spaces.OneOf((spaces.Discrete(3), box(-1, 1, (2,)), spaces.MultiBinary(2))), spaces.Discrete(3)
    ),
    "Dict with OneOf and Text, number": Pair(
        spaces.Dict(pick=spaces.OneOf((spaces.Discrete(2), spaces.Discrete(3))), name=spaces.Text(3), x=box(0, 1)),
        box(-1, 1, (1,)),
    ),
    "vector, choice masked in info": Pair(box(-1, 1, (4,)), spaces.Discrete(6), "info", (6,)),
    "Dict with the mask, choice": Pair(
        spaces.Dict(x=box(-1, 1, (4,)), action_mask=box(0, 1, (6,), np.int8)), spaces.Discrete(6), "action_mask", (6,)
    ),
    "image, choices masked in info": Pair(
        box(0, 255, (16, 16, 3), np.uint8), spaces.MultiDiscrete([3, 4]), "info", (3, 4)
    ),
}


class ActionOutsideSpace(ValueError):
    """The action is not one of the sim's own action space."""


class ActionForbidden(ValueError):
    """The action is one that the mask forbids."""


class Toy(gym.Env[Any, Any]):
    """Random observations; the reward is higher, the nearer the action's mean is to the observation's.

    `Toy.refused` is the last error that any of them raised in this process: libraries replace it by their own.
    """

    refused: Exception | None = None

    def __init__(self, pair: str, **_: Any) -> None:
        self.pair = PAIRS[pair]
        self.observation_space = copy.deepcopy(self.pair.observation)
        self.action_space = copy.deepcopy(self.pair.action)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.num_steps = 0
        return self._observe()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        try:
            self._require(action)
        except ValueError as error:
            Toy.refused = error
            raise
        reward = 1.0 - abs(_mean(action) - self.target)
        self.num_steps += 1
        observation, info = self._observe()
        return observation, reward, self.num_steps >= EPISODE_STEPS, False, info

    def _require(self, action: Any) -> None:
        if not self.action_space.contains(action):
            raise ActionOutsideSpace(f"{action!r} ({type(action).__name__}) is not in {self.action_space}")
        if self.pair.mask:
            for allowed, choice in zip(self.allowed, np.atleast_1d(action), strict=True):
                if not allowed[int(choice)]:
                    raise ActionForbidden(f"{choice} is not among {np.flatnonzero(allowed).tolist()}")

    def _observe(self) -> tuple[Any, dict[str, Any]]:
        observation = self.observation_space.sample()
        info: dict[str, Any] = {}
        if self.pair.mask:
            self.allowed = [self._draw_mask(num) for num in self.pair.choices]
            flat = np.concatenate(self.allowed).astype(np.int8)
            if self.pair.mask == "info":
                info["action_mask"] = flat if len(self.allowed) == 1 else tuple(self.allowed)
            else:
                observation[self.pair.mask] = flat
        self.target = _mean(observation)
        return observation, info

    def _draw_mask(self, num: int) -> np.ndarray:
        allowed = self.np_random.random(num) < 0.4
        allowed[self.np_random.integers(num)] = True
        return allowed.astype(np.int8)


def _mean(value: Any) -> float:
    """Any value of any space as one number between -1 and 1."""
    if isinstance(value, dict):
        return float(np.mean([_mean(item) for item in value.values()]))
    if isinstance(value, tuple):
        return float(np.mean([_mean(item) for item in value]))
    if isinstance(value, str):
        return float(np.tanh(sum(map(ord, value)) % 7 - 3))
    return float(np.tanh(np.mean(np.asarray(value, dtype=np.float64))))
