"""A cart on a rail that is pushed to a stop at the middle."""

import math

import gymnasium
import numpy as np
from gymnasium import spaces

STEP_S = 0.1
FORCES = (-1.0, 0.0, 1.0)  # N, on a mass of 1 kg


class Cart(gymnasium.Env):
    """Push left, right or not at all, until the cart rests at the middle.

    Observation: float32 (2,), position (m, -3..3) and velocity (m/s, -3..3).
    Action: 0 left, 1 nothing, 2 right.
    Reward: minus the distance to the middle, 10 for coming to rest there.
    Ends: terminated at rest in the middle, truncated after 100 steps.
    """

    def __init__(self):
        self.observation_space = spaces.Box(-3.0, 3.0, (2,), np.float32)
        self.action_space = spaces.Discrete(len(FORCES))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.velocity = self.np_random.uniform(-2.0, 2.0), 0.0
        self.num_steps = 0
        return self._observation(), {}

    def step(self, action):
        self.velocity = min(max(self.velocity + FORCES[action] * STEP_S, -3.0), 3.0)
        self.position += self.velocity * STEP_S
        if abs(self.position) > 3.0:  # the end of the rail
            self.position, self.velocity = math.copysign(3.0, self.position), 0.0
        self.num_steps += 1
        is_at_rest = abs(self.position) < 0.1 and abs(self.velocity) < 0.15
        reward = 10.0 if is_at_rest else -0.1 * abs(self.position)
        is_over = not is_at_rest and self.num_steps >= 100
        return self._observation(), reward, is_at_rest, is_over, {"is_at_rest": is_at_rest}

    def _observation(self):
        return np.array([self.position, self.velocity], dtype=np.float32)
