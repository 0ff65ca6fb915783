"""Sims that misbehave, one way each, for `plato check` and for training.

Each is importable by name (`sim: adversarial:HangsAtStep300` with this directory as root, or
`tests.adversarial:HangsAtStep300`), and is `Clean` but for what its name says. `Clean` is a small control
task: push a value towards zero; an episode ends when it gets there or drifts away, and is truncated after
50 steps.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces


class Clean(gymnasium.Env):
    """Nothing is wrong with it."""

    max_steps = 50

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-20.0, 20.0, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.value = float(self.np_random.uniform(-4.0, 4.0))
        self.speed = 0.0
        self.num_steps = 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        self.advance(action)
        reward = -abs(self.value)
        terminated = abs(self.value) > 8.0
        truncated = self.num_steps >= self.max_steps
        return self.observe(), reward, terminated, truncated, {}

    def advance(self, action: Any) -> None:
        self.num_steps += 1
        self.speed += 0.3 * float(np.asarray(action).reshape(-1)[0]) + float(self.np_random.normal(0.0, 0.1))
        self.value += 0.5 * self.speed

    def observe(self) -> Any:
        return np.array([self.value, self.speed], dtype=np.float32)


# --- spaces that plain RLlib does not take


class IntegerBox(Clean):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(-10, 10, (1,), np.int32)

    def advance(self, action: Any) -> None:
        assert isinstance(action, np.ndarray)
        assert action.dtype == np.int32
        super().advance(action / 10.0)


class ScalarBox(Clean):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(-20.0, 20.0, (), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (), np.float32)

    def observe(self) -> Any:
        return np.array(self.value, dtype=np.float32)


class NestedTuple(Clean):
    """A Dict of a Tuple, in and out."""

    def __init__(self) -> None:
        super().__init__()
        value = spaces.Box(-20.0, 20.0, (1,), np.float32)
        motion = spaces.Tuple((value, value))
        self.observation_space = spaces.Dict({"motion": motion, "side": spaces.Discrete(2)})
        self.action_space = spaces.Dict(
            {"pair": spaces.Tuple((spaces.Box(-1.0, 1.0, (1,), np.float32), spaces.Discrete(3, start=1)))}
        )

    def advance(self, action: Any) -> None:
        assert self.action_space.contains(action), action
        push, gear = action["pair"]
        super().advance(push * int(gear) / 3.0)

    def observe(self) -> Any:
        value, speed = (np.array([x], dtype=np.float32) for x in (self.value, self.speed))
        return {"motion": (value, speed), "side": int(self.value > 0)}


# --- observations


class ListObservation(Clean):
    def observe(self) -> Any:
        return [self.value, self.speed]


class Float64Observation(Clean):
    def observe(self) -> Any:
        return np.array([self.value, self.speed])


class DtypeChanges(Clean):
    """float32 from reset, float64 from step."""

    def observe(self) -> Any:
        return np.array([self.value, self.speed], dtype=np.float64 if self.num_steps else np.float32)


class NanAtStep500(Clean):
    """The 500th step of the sim's life gives NaN."""

    life = 0

    def observe(self) -> Any:
        self.life += 1
        return np.array([np.nan if self.life == 500 else self.value, self.speed], dtype=np.float32)


class WrongShape(Clean):
    def observe(self) -> Any:
        return np.array([[self.value, self.speed]], dtype=np.float32)


class OutOfBounds(Clean):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)


class MissingKey(NestedTuple):
    def observe(self) -> Any:
        obs = super().observe()
        del obs["side"]
        return obs


class InPlaceObservation(Clean):
    """One array for ever, changed at each step."""

    buffer: Any = None

    def observe(self) -> Any:
        if self.buffer is None:
            self.buffer = np.zeros(2, dtype=np.float32)
        self.buffer[:] = self.value, self.speed
        return self.buffer


class ConstantElement(Clean):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict(
            {"motion": self.observation_space, "alarm": spaces.Box(0.0, 1.0, (1,), np.float32)}
        )

    def observe(self) -> Any:
        return {"motion": super().observe(), "alarm": np.zeros(1, dtype=np.float32)}


# --- failures


class SimBroke(Exception):
    """What the failing sims raise."""


class RaisesSometimes(Clean):
    """Each step raises with p = 0.01, drawn from the seeded generator."""

    p = 0.01

    def advance(self, action: Any) -> None:
        super().advance(action)
        if self.np_random.random() < self.p:
            raise SimBroke("the valve is stuck")


class RaisesAlways(Clean):
    def advance(self, action: Any) -> None:
        raise SimBroke("the valve is stuck")


class HangsAtStep300(Clean):
    """The 300th step of the sim's life never returns."""

    life = 0

    def advance(self, action: Any) -> None:
        super().advance(action)
        self.life += 1
        if self.life == 300:
            while True:
                time.sleep(0.05)


class HangsInConstructor(Clean):
    def __init__(self) -> None:
        super().__init__()
        threading.Event().wait()


class HangsInReset(Clean):
    def reset(self, **kwargs: Any) -> tuple[Any, dict]:
        while True:
            pass


class Slow(Clean):
    """Each step takes `step_s` seconds."""

    def __init__(self, step_s: float = 1.0) -> None:
        super().__init__()
        self.step_s = step_s

    def advance(self, action: Any) -> None:
        super().advance(action)
        time.sleep(self.step_s)


class Aborts(Clean):
    """The 100th step of the sim's life kills the process."""

    life = 0

    def advance(self, action: Any) -> None:
        super().advance(action)
        self.life += 1
        if self.life == 100:
            os.abort()


class Exits(Clean):
    """The 100th step of the sim's life calls sys.exit."""

    life = 0

    def advance(self, action: Any) -> None:
        super().advance(action)
        self.life += 1
        if self.life == 100:
            sys.exit("license expired")


class ExitsHard(Exits):
    def advance(self, action: Any) -> None:
        Clean.advance(self, action)
        self.life += 1
        if self.life == 100:
            os._exit(3)


class RaisesInterrupt(Clean):
    """The 100th step of the sim's life raises KeyboardInterrupt, as if somebody had pressed Ctrl-C."""

    life = 0

    def advance(self, action: Any) -> None:
        super().advance(action)
        self.life += 1
        if self.life == 100:
            raise KeyboardInterrupt


# --- the interface


class OldStep(Clean):
    """Four values, as in old gym."""

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated or truncated, info


class OldReset(Clean):
    """The observation alone, as in old gym."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed)[0]


class BareReset(Clean):
    """reset() takes neither seed nor options."""

    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class NoSpaces(gymnasium.Env):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, dtype=np.float32), 0.0, False, False, {}


class NotAnEnv:
    """Everything an environment needs, but not derived from gymnasium.Env."""

    def __init__(self) -> None:
        self.inner = Clean()
        self.observation_space, self.action_space = self.inner.observation_space, self.inner.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.inner.reset(seed=seed)

    def step(self, action: Any) -> Any:
        return self.inner.step(action)


class WrongTypes(Clean):
    """A reward of shape (1,), integers for flags, None for info."""

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, np.array([reward]), int(terminated), int(truncated), None


class NanReward(Clean):
    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        return obs, float("nan") if self.num_steps == 7 else reward, *rest


class UnpicklableInfo(Clean):
    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], {"lock": threading.Lock()}


# --- seeds


class Unseeded(Clean):
    """Draws from a generator that no seed reaches."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.value = float(np.random.default_rng().uniform(-4.0, 4.0))
        return self.observe(), {}


class GlobalRandom(Clean):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        np.random.seed(seed)
        self.value = float(np.random.uniform(-4.0, 4.0))
        return self.observe(), {}


class StartRepeats(Clean):
    """Without a seed, reset seeds itself with 0."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed or 0)


class SharedState(Clean):
    """All instances share one value."""

    state: ClassVar[dict[str, float]] = {"value": 0.0}

    @property
    def value(self) -> float:
        return self.state["value"]

    @value.setter
    def value(self, value: float) -> None:
        self.state["value"] = value


class OnlyOne(Clean):
    """A second instance cannot be made while the first lives."""

    is_taken: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        if OnlyOne.is_taken:
            raise OSError("the port is in use")
        OnlyOne.is_taken = True

    def close(self) -> None:
        OnlyOne.is_taken = False


# --- episodes and rewards


class ConstantReward(Clean):
    """Every reward is 1 and every episode is as long as the last."""

    def step(self, action: Any) -> Any:
        obs, _, _, truncated, info = super().step(action)
        return obs, 1.0, False, truncated, info

    def observe(self) -> Any:
        return np.clip(super().observe(), -20.0, 20.0)


class HugeReward(Clean):
    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        return obs, reward * 1e6, *rest


class TimeLimitTerminated(Clean):
    """The time limit comes as terminated."""

    def step(self, action: Any) -> Any:
        obs, reward, _, truncated, info = super().step(action)
        return np.clip(obs, -20.0, 20.0), reward, truncated, False, info


class NeverEnds(Clean):
    max_steps = 10**9

    def step(self, action: Any) -> Any:
        obs, reward, _, _, info = super().step(action)
        self.value, self.speed = float(np.clip(self.value, -8.0, 8.0)), float(np.clip(self.speed, -2.0, 2.0))
        return np.clip(obs, -20.0, 20.0), reward, False, False, info


class EndsAtOnce(Clean):
    def step(self, action: Any) -> Any:
        obs, reward, _, _, info = super().step(action)
        return obs, reward, True, False, info


class GoesOnAfterEnd(Clean):
    """Starts anew by itself at the end of an episode."""

    def step(self, action: Any) -> Any:
        if self.num_steps >= 20:
            self.num_steps = 0
        obs, reward, terminated, _, info = super().step(action)
        if terminated:
            self.value = self.speed = 0.0
        return obs, reward, terminated, self.num_steps == 20, info


class AllMasked(Clean):
    """The mask in info allows nothing at the tenth step."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed)[0], {"action_mask": np.ones(3, dtype=np.int8)}

    def step(self, action: Any) -> Any:
        *most, _ = super().step(action)
        mask = np.zeros(3, dtype=np.int8) if self.num_steps == 10 else np.ones(3, dtype=np.int8)
        return *most, {"action_mask": mask}


class MaskedAtEnd(AllMasked):
    """The mask in info allows nothing where the episode ends, at the tenth step: there is nothing left to do."""

    def step(self, action: Any) -> Any:
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, self.num_steps == 10, truncated, info


# --- costs


class Leaks(Clean):
    """Keeps 200 kB per episode."""

    kept: ClassVar[list[Any]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.kept.append(np.ones(25_000))
        return super().reset(seed=seed)


class PrintFlood(Clean):
    def advance(self, action: Any) -> None:
        super().advance(action)
        print(f"step {self.num_steps}: value {self.value}, speed {self.speed} " + "." * 200)


class CloseFails(Clean):
    def close(self) -> None:
        raise OSError("already closed")


def unpicklable() -> Any:
    """A factory that no other process can be given: it holds a lock."""
    lock = threading.Lock()

    def make() -> Clean:
        with lock:
            return Clean()

    return make
