"""The Simple Adder: reach exactly 50 by adding whole numbers between -10 and 10."""

import gymnasium
import numpy as np
from gymnasium import spaces

TARGET = 50
MAX_ADDEND = 10
NUM_STEPS = 10


class SimpleAdder(gymnasium.Env):
    """A value starts somewhere in 0..100; each step adds to it; the goal is 50 within ten steps.

    Observation: {"value": float32 (1,)}, the value now.
    Action: {"addend": int32 (1,)}, what to add, -10..10.
    Reward: minus the distance to 50 after the step.
    Ends: terminated on exactly 50, truncated after ten steps.

    `reset(options={"value": 17})` starts at 17.
    """

    def __init__(self):
        # The lowest and highest value that ten steps can reach from a start in 0..100.
        reach = NUM_STEPS * MAX_ADDEND
        self.observation_space = spaces.Dict(value=spaces.Box(-reach, 100 + reach, (1,), np.float32))
        self.action_space = spaces.Dict(addend=spaces.Box(-MAX_ADDEND, MAX_ADDEND, (1,), np.int32))
        self.value = 0
        self.num_steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)  # seeds self.np_random
        start = self.np_random.integers(0, 101)  # drawn in any case, so that options do not shift what follows
        self.value = int((options or {}).get("value", start))
        self.num_steps = 0
        return self._observation(), {}

    def step(self, action):
        self.value += int(action["addend"][0])
        self.num_steps += 1
        reward = -float(abs(self.value - TARGET))
        terminated = self.value == TARGET
        truncated = not terminated and self.num_steps >= NUM_STEPS
        return self._observation(), reward, terminated, truncated, {}

    def _observation(self):
        return {"value": np.array([self.value], dtype=np.float32)}
