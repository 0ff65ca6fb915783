"""The examples: each loads, keeps Gymnasium's contract, and rewards exactly what its text says."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from platotk.project import Project
from platotk.sims import sim_spec

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NAMES = sorted(folder.parent.name for folder in EXAMPLES.glob("*/plato.yaml"))


def make(name: str, **config: Any) -> gymnasium.Env[Any, Any]:
    project = Project.load(EXAMPLES / name)
    given = {**project.sim_config, **config}
    return sim_spec(Project(sim=project.sim, sim_config=given, _root=project.root)).make()


def test_there_are_four() -> None:
    assert NAMES == ["cartpole", "python-config", "simple-adder", "tank-level"]


@pytest.mark.parametrize("name", NAMES)
def test_the_example_loads_and_has_a_readme(name: str) -> None:
    project = Project.load(EXAMPLES / name)
    assert project.name == name
    assert (EXAMPLES / name / "README.md").read_text("utf-8").startswith("# ")


@pytest.mark.filterwarnings("ignore:.*A Box.*infinity:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_the_sim_keeps_gymnasiums_contract(name: str) -> None:
    check_env(make(name).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_episode(name: str) -> None:
    first, second, other = episode(make(name), 5), episode(make(name), 5), episode(make(name), 6)
    assert first == second
    assert first != other


@pytest.mark.parametrize("name", ["python-config", "simple-adder", "tank-level"])
def test_observations_stay_within_their_bounds(name: str) -> None:
    sim = make(name)
    sim.action_space.seed(0)
    for seed in range(50):
        observation, _ = sim.reset(seed=seed)
        constant = sim.action_space.sample()
        is_over = False
        while not is_over:
            assert sim.observation_space.contains(observation)
            action = constant if seed % 2 else sim.action_space.sample()
            observation, _, terminated, truncated, _ = sim.step(action)
            assert not (terminated and truncated)
            is_over = terminated or truncated


def episode(sim: gymnasium.Env[Any, Any], seed: int) -> list[Any]:
    """Everything that comes out of one episode of seeded random actions."""
    sim.action_space.seed(0)
    seen: list[Any] = [sim.reset(seed=seed)]
    while len(seen) < 30 and not (len(seen) > 1 and (seen[-1][2] or seen[-1][3])):
        seen.append(sim.step(sim.action_space.sample()))
    return [repr(item) for item in seen]


# --- simple-adder


def add(sim: gymnasium.Env[Any, Any], addend: int) -> Any:
    return sim.step({"addend": np.array([addend], np.int32)})


def test_the_adder_rewards_nearness_after_the_step() -> None:
    sim = make("simple-adder")
    observation, _ = sim.reset(options={"value": 35})
    assert observation["value"] == np.float32([35.0])
    assert observation["value"].dtype == np.float32
    assert add(sim, 10)[1:4] == (-5.0, False, False)
    assert add(sim, -2)[1:4] == (-7.0, False, False)
    observation, *rest = add(sim, 7)
    assert observation["value"] == np.float32([50.0])
    assert rest[:3] == [0.0, True, False]


def test_the_adder_gives_ten_steps() -> None:
    sim = make("simple-adder")
    sim.reset(options={"value": 100})
    ends = [add(sim, 10)[2:4] for _ in range(10)]
    assert ends == [(False, False)] * 9 + [(False, True)]


def test_the_adder_can_be_right_on_its_last_step() -> None:
    sim = make("simple-adder")
    sim.reset(options={"value": 49})
    for _ in range(9):
        assert add(sim, 0)[2:4] == (False, False)
    assert add(sim, 1)[1:4] == (0.0, True, False)


def test_the_adder_starts_everywhere_in_0_to_100() -> None:
    sim = make("simple-adder")
    starts = {float(sim.reset(seed=seed)[0]["value"][0]) for seed in range(3000)}
    assert starts == set(map(float, range(101)))


def test_the_adders_bounds_hold_what_can_be_reached_and_no_more() -> None:
    sim = make("simple-adder")
    for start, addend, reached in ((0, -10, -100.0), (100, 10, 200.0)):
        sim.reset(options={"value": start})
        for _ in range(10):
            observation = add(sim, addend)[0]
        assert observation["value"][0] == reached
        assert sim.observation_space.contains(observation)
    box = sim.observation_space["value"]
    assert (box.low[0], box.high[0]) == (-100.0, 200.0)


@functools.cache
def best_return(value: int, num_steps_left: int) -> float:
    """The best return from here, by trying every addend (exact dynamic programming)."""
    if num_steps_left == 0:
        return 0.0
    options = []
    for addend in range(-10, 11):
        after = value + addend
        options.append(-abs(after - 50) + (0.0 if after == 50 else best_return(after, num_steps_left - 1)))
    return max(options)


def test_the_adders_best_mean_return_is_minus_30_69() -> None:
    best = np.mean([best_return(start, 10) for start in range(101)])
    assert round(float(best), 2) == -30.69

    sim = make("simple-adder")
    played = []
    for start in range(101):
        value, total, is_over = int(sim.reset(options={"value": start})[0]["value"][0]), 0.0, False
        while not is_over:
            observation, reward, terminated, truncated, _ = add(sim, max(-10, min(10, 50 - value)))
            value, total, is_over = int(observation["value"][0]), total + reward, terminated or truncated
        assert terminated
        played.append(total)
    assert np.mean(played) == pytest.approx(best)


# --- tank-level


def valve(sim: gymnasium.Env[Any, Any], command: float) -> Any:
    return sim.step({"valve": np.array([command], np.float32)})


def test_a_closed_tank_fills_by_its_inflow() -> None:
    sim = make("tank-level", step_s=10.0)
    sim.reset(seed=0, options={"level": 1.0, "inflow": 0.006})
    sim.unwrapped.valve = sim.unwrapped.command = 0.0
    level = valve(sim, 0.0)[0]["level"][0]
    assert level == pytest.approx(1.0 + 0.006 * 10.0 / 1.5, abs=1e-6)


def test_a_tank_empties_as_torricelli_says() -> None:
    sim = make("tank-level", step_s=60.0)
    sim.reset(seed=0, options={"level": 1.5, "inflow": 0.0})
    sim.unwrapped.valve = sim.unwrapped.command = 1.0
    level = valve(sim, 1.0)[0]["level"][0]
    slope = 0.62 * 0.005 * math.sqrt(2 * 9.81) / (2 * 1.5)
    assert level == pytest.approx((math.sqrt(1.5) - slope * 60.0) ** 2, abs=1e-5)


def test_an_empty_tank_stays_empty() -> None:
    sim = make("tank-level")
    sim.reset(seed=0, options={"level": 0.0, "inflow": 0.0})
    assert valve(sim, 1.0)[0]["level"][0] == 0.0


def test_the_valve_takes_its_time() -> None:
    sim = make("tank-level", valve_time_constant_s=5.0, step_s=5.0)
    sim.reset(seed=0)
    assert valve(sim, 1.0)[0]["valve"][0] == pytest.approx(1.0 - 0.5 * math.exp(-1.0), abs=1e-6)


def test_an_overflow_ends_the_episode() -> None:
    sim = make("tank-level")
    sim.reset(seed=0, options={"level": 1.9, "setpoint": 1.5, "inflow": 0.009})
    for _ in range(50):
        observation, reward, terminated, truncated, _ = valve(sim, 0.0)
        if terminated:
            break
    assert (terminated, truncated) == (True, False)
    assert observation["level"][0] == 2.0
    assert reward == pytest.approx(1.0 - 0.5 - 10.0)


def test_the_reward_is_the_error_and_the_movement() -> None:
    sim = make("tank-level", movement_cost=0.2)
    sim.reset(seed=1, options={"level": 1.0, "setpoint": 1.2, "inflow": 0.005})
    observation, reward, *_ = valve(sim, 0.0)
    error = abs(float(observation["level"][0]) - 1.2)
    assert reward == pytest.approx(1.0 - error - 0.2 * 0.5, abs=1e-6)


def test_a_simple_controller_beats_a_fixed_valve() -> None:
    def mean_return(gain: float) -> float:
        sim = make("tank-level")
        total = 0.0
        for seed in range(10):
            observation, _ = sim.reset(seed=seed)
            is_over = False
            while not is_over:
                error = float(observation["level"][0] - observation["setpoint"][0])
                observation, reward, terminated, truncated, _ = valve(sim, min(max(0.4 + gain * error, 0.0), 1.0))
                total, is_over = total + reward, terminated or truncated
        return total / 10

    controlled, fixed = mean_return(2.0), mean_return(0.0)
    assert controlled > fixed + 20
    assert 150 < controlled < 200


# --- python-config


def test_the_function_gives_a_config_that_is_its_own() -> None:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    from platotk.sims.importing import import_from_root

    module = import_from_root("train", EXAMPLES / "python-config")
    config = module.config()
    assert isinstance(config, AlgorithmConfig)
    assert config.lr == [[0, 1e-3], [60_000, 1e-4]]
    assert config.callbacks_class is module.CountArrivals
    assert config.model_config["fcnet_hiddens"] == [64, 64]


def test_the_cart_comes_to_rest_when_it_is_braked() -> None:
    sim = make("python-config")
    for seed in range(20):
        observation, _ = sim.reset(seed=seed)
        is_over = False
        while not is_over:
            position, velocity = observation
            # Time-optimal: full push towards the middle, full brake on the curve that ends there.
            aim = position + velocity * abs(velocity) / 2
            observation, reward, terminated, truncated, info = sim.step(0 if aim > 0 else 2)
            is_over = terminated or truncated
        assert (terminated, truncated, info["is_at_rest"], reward) == (True, False, True, 10.0)
