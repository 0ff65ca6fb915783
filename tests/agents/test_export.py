"""Every kind of policy is exported, and proven equal to the trained one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from platotk.agents.agent import Agent
from platotk.agents.export import export
from platotk.errors import AgentError
from platotk.learning.training import train
from platotk.project import Project

pytestmark = pytest.mark.usefixtures("ray_session")

TINY = {"train_batch_size_per_learner": 200, "minibatch_size": 50, "num_epochs": 1}


class Plant(gym.Env):
    """Any two spaces; rewards nothing in particular."""

    def __init__(self, observation_space, action_space, has_mask=False):
        self.observation_space, self.action_space, self.has_mask = observation_space, action_space, has_mask

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), self._info()

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        return self.observation_space.sample(), 1.0, False, self.t >= 20, self._info()

    def _info(self):
        if not self.has_mask:
            return {}
        mask = np.zeros(self.action_space.n, np.int8)
        mask[self.np_random.integers(self.action_space.n)] = 1
        mask[0] = 1
        return {"action_mask": mask}


VECTOR = gym.spaces.Box(-5, 5, (3,), np.float32)
MIXED = gym.spaces.Dict(
    valve=gym.spaces.Box(0, 1, (2,), np.float32),
    mode=gym.spaces.Discrete(3, start=2),
    steps=gym.spaces.Box(-1000, 1000, (), np.int64),
)
IMAGE = gym.spaces.Dict(
    camera=gym.spaces.Box(0, 255, (12, 16, 3), np.uint8), speed=gym.spaces.Box(0, 9, (1,), np.float32)
)
CASES: dict[str, dict[str, Any]] = {
    "discrete": {"action_space": gym.spaces.Discrete(4, start=-2)},
    "mixed": {"action_space": MIXED},
    "image": {"observation_space": IMAGE, "action_space": gym.spaces.MultiDiscrete([3, 4], start=[1, 1])},
    "mask": {"action_space": gym.spaces.Discrete(5), "has_mask": True},
    "lstm": {
        "action_space": gym.spaces.Discrete(3),
        "rl_module": {"model_config": {"use_lstm": True, "lstm_cell_size": 16}},
    },
    "sac": {
        "action_space": gym.spaces.Box(-2, 3, (2,), np.float64),
        "algorithm": "SAC",
        "training": {"num_steps_sampled_before_learning_starts": 50, "train_batch_size_per_learner": 32},
        "reporting": {"min_sample_timesteps_per_iteration": 100},
    },
    "dqn": {
        "action_space": gym.spaces.MultiDiscrete([2, 3]),
        "algorithm": "DQN",
        "training": {"num_steps_sampled_before_learning_starts": 50, "train_batch_size_per_learner": 32},
        "reporting": {"min_sample_timesteps_per_iteration": 100},
    },
}


def project(observation_space=VECTOR, action_space=None, has_mask=False, **fields: Any) -> Project:
    fields = {"training": TINY, "env_runners": {"num_envs_per_env_runner": 2}, **fields}
    return Project(
        sim=Plant,
        name="plant",
        sim_config={
            "observation_space": observation_space,
            "action_space": action_space,
            "has_mask": has_mask,
        },
        stop={"iterations": 1},
        tracking={"mlflow": False},
        **fields,
    )


@pytest.mark.parametrize("name", CASES)
def test_the_agent_acts_as_the_trained_policy(name: str, tmp_path: Path):
    run = train(project(**CASES[name]), runs_dir=tmp_path)
    agent = Agent.load(export(run))
    proof = agent.verify()
    assert proof.is_equal
    assert proof.num_rows >= 1000
    assert agent.has_memory == (name == "lstm")
    if agent.has_memory:
        with pytest.raises(AgentError, match="session"):
            agent.act(agent.observation_space.sample())
    assert agent.action_space.contains(agent.session().act(agent.observation_space.sample()))


def test_a_large_offset_is_normalised_exactly(tmp_path):
    pressure = gym.spaces.Box(101_320, 101_330, (1,), np.float32)
    run = train(
        project(observation_space=pressure, action_space=gym.spaces.Box(-1, 1, (1,), np.float32)),
        runs_dir=tmp_path,
    )
    proof = Agent.load(export(run)).verify()
    assert proof.max_error <= 1e-5
