"""A tank whose level follows a setpoint, by way of the valve at its outlet, while the inflow changes.

The level h (m) of an open tank with cross-section A (m2) obeys

    dh/dt = (inflow - outflow) / A            inflow, outflow in m3/s
    outflow = discharge * a * valve * sqrt(2 g h)         Torricelli's law, orifice a (m2)

The valve does not jump to where it is told: its position approaches the command with a time constant (s). The
inflow is a disturbance that nobody controls: a mean-reverting random walk, as from a process upstream.
"""

import math

import gymnasium
import numpy as np
from gymnasium import spaces

GRAVITY = 9.81  # m/s2
DISCHARGE = 0.62  # discharge coefficient of a sharp-edged orifice
INTEGRATION_S = 1.0  # s, one step of the solver; the level moves over minutes

INFLOW_RANGE = (0.002, 0.009)  # m3/s
INFLOW_MEAN = 0.0055  # m3/s
INFLOW_REVERSION_S = 200.0  # s, how long a deviation lasts
INFLOW_NOISE = 1.2e-4  # m3/s per square root of a second
SETPOINT_RANGE = (0.5, 1.5)  # m


class TankLevel(gymnasium.Env):
    """Hold the level of a tank at a setpoint that changes, with a valve that is slow, against a disturbance.

    Observation:
        level     m      0..height        as measured
        setpoint  m      0.5..1.5         where the level should be
        valve     1      0..1             position of the outlet valve
        inflow    m3/s   0.002..0.009     as measured
    Action:
        valve     1      0..1             where the valve should go; 1 is open
    Reward, each step: 1 - |level - setpoint| (m) - movement_cost * |change of the command|; so 1 is perfect.
    Ends: terminated when the tank overflows (a penalty of 10), truncated after num_steps.

    `reset(options={"level": 1.2, "setpoint": 0.8, "inflow": 0.005})` sets any of the three.

    Args:
        area_m2: Cross-section of the tank.
        height_m: The tank overflows above it.
        orifice_m2: Area of the outlet when the valve is open.
        valve_time_constant_s: How slow the valve is.
        step_s: Time between two actions.
        num_steps: Length of an episode.
        setpoint_steps: The setpoint changes on average once in so many steps.
        movement_cost: What moving the valve from closed to open costs.
    """

    def __init__(
        self,
        *,
        area_m2=1.5,
        height_m=2.0,
        orifice_m2=0.005,
        valve_time_constant_s=5.0,
        step_s=5.0,
        num_steps=200,
        setpoint_steps=60,
        movement_cost=0.1,
    ):
        self.area_m2, self.height_m, self.orifice_m2 = area_m2, height_m, orifice_m2
        self.valve_time_constant_s, self.step_s = valve_time_constant_s, step_s
        self.num_steps, self.setpoint_steps, self.movement_cost = num_steps, setpoint_steps, movement_cost
        self.observation_space = spaces.Dict(
            level=_box(0.0, height_m),
            setpoint=_box(*SETPOINT_RANGE),
            valve=_box(0.0, 1.0),
            inflow=_box(*INFLOW_RANGE),
        )
        self.action_space = spaces.Dict(valve=_box(0.0, 1.0))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        start = {
            "level": self.np_random.uniform(0.4, 1.6),
            "setpoint": self.np_random.uniform(*SETPOINT_RANGE),
            "inflow": self.np_random.uniform(0.004, 0.007),
        }
        start.update(options or {})
        self.level, self.setpoint, self.inflow = start["level"], start["setpoint"], start["inflow"]
        self.valve = self.command = 0.5
        self.step_number = 0
        return self._observation(), {}

    def step(self, action):
        command = min(max(float(action["valve"][0]), 0.0), 1.0)
        movement, self.command = abs(command - self.command), command
        is_overflowing = self._advance()
        self.step_number += 1
        reward = 1.0 - abs(self.level - self.setpoint) - self.movement_cost * movement
        if is_overflowing:
            reward -= 10.0
        is_over = not is_overflowing and self.step_number >= self.num_steps
        self._disturb()
        return self._observation(), reward, is_overflowing, is_over, {}

    def _advance(self):
        """Move level and valve on by one step; True when the tank has overflowed."""
        num = max(1, math.ceil(self.step_s / INTEGRATION_S))
        dt = self.step_s / num
        remains = math.exp(-0.5 * dt / self.valve_time_constant_s)  # of the valve's way, after half a step
        for _ in range(num):
            # The midpoint rule (second order) for the level; the valve's position is exact.
            half = self.level + 0.5 * dt * self._rate(self.level, self.valve)
            self.valve = self.command + (self.valve - self.command) * remains
            self.level = max(0.0, self.level + dt * self._rate(half, self.valve))
            self.valve = self.command + (self.valve - self.command) * remains
            if self.level >= self.height_m:
                self.level = self.height_m
                return True
        return False

    def _rate(self, level, valve):
        """dh/dt in m/s."""
        outflow = DISCHARGE * self.orifice_m2 * valve * math.sqrt(2.0 * GRAVITY * max(level, 0.0))
        return (self.inflow - outflow) / self.area_m2

    def _disturb(self):
        """Change the inflow a little, and now and then the setpoint."""
        pull = (INFLOW_MEAN - self.inflow) * self.step_s / INFLOW_REVERSION_S
        noise = INFLOW_NOISE * math.sqrt(self.step_s) * self.np_random.standard_normal()
        self.inflow = min(max(self.inflow + pull + noise, INFLOW_RANGE[0]), INFLOW_RANGE[1])
        if self.np_random.random() < 1.0 / self.setpoint_steps:
            self.setpoint = self.np_random.uniform(*SETPOINT_RANGE)

    def _observation(self):
        values = {
            "level": self.level,
            "setpoint": self.setpoint,
            "valve": self.valve,
            "inflow": self.inflow,
        }
        # float32 may round a value outwards, past the bound of its space.
        return {
            name: np.clip(np.array([values[name]], np.float32), space.low, space.high)
            for name, space in self.observation_space.items()
        }


def _box(low, high):
    return spaces.Box(low, high, (1,), np.float32)
