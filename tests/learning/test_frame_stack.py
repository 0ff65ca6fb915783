"""A policy with a frame stack: trained, exported with the stack inside, and proven equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from platotk.agents.agent import Agent
from platotk.agents.export import export
from platotk.assessment.assess import assess
from platotk.errors import AgentError, CheckpointError
from platotk.learning.policies import load_policy
from platotk.learning.training import train
from platotk.project import Project
from platotk.run import Run

pytestmark = pytest.mark.usefixtures("ray_session")


class Plant(gym.Env):
    """Any two spaces; a pressure with a large offset, that moves."""

    def __init__(self, action_space, has_image=False, has_mask=False):
        self.action_space, self.has_mask = action_space, has_mask
        pressure = gym.spaces.Box(101_000, 102_000, (2,), np.float64)
        camera = gym.spaces.Box(0, 255, (12, 16, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(pressure=pressure, **({"camera": camera} if has_image else {}))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.pressure = 0, 101_325.0 + self.np_random.normal(size=2)
        return self._seen(), self._info()

    def step(self, action):
        self.t += 1
        self.pressure = self.pressure + self.np_random.normal(size=2)
        return self._seen(), float(-np.abs(self.pressure - 101_325.0).mean()), False, self.t >= 20, self._info()

    def _seen(self):
        seen = {"pressure": self.pressure.copy()}
        if "camera" in self.observation_space.spaces:
            seen["camera"] = self.np_random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        return seen

    def _info(self):
        return {"action_mask": np.array([1, self.t % 2, 1], np.int8)} if self.has_mask else {}


OFF_POLICY = {
    "training": {"num_steps_sampled_before_learning_starts": 50, "train_batch_size_per_learner": 32},
    "reporting": {"min_sample_timesteps_per_iteration": 100},
}
CASES: dict[str, dict[str, Any]] = {
    "ppo": {"sim_config": {"action_space": gym.spaces.Box(-1, 2, (2,), np.float32)}},
    "sac": {"sim_config": {"action_space": gym.spaces.Box(-1, 2, (2,), np.float32)}, "algorithm": "SAC", **OFF_POLICY},
    "dqn": {"sim_config": {"action_space": gym.spaces.Discrete(3)}, "algorithm": "DQN", **OFF_POLICY},
    "images, a mask and an LSTM": {
        "sim_config": {"action_space": gym.spaces.Discrete(3), "has_image": True, "has_mask": True},
        "rl_module": {"model_config": {"use_lstm": True, "lstm_cell_size": 8, "fcnet_hiddens": [16]}},
    },
}


def trained(folder: Path, **fields: Any) -> Run:
    small = {"train_batch_size_per_learner": 200, "minibatch_size": 50, "num_epochs": 1}
    project = Project(
        **{"training": small, **fields},
        sim=Plant,
        name="plant",
        frame_stack=3,
        stop={"iterations": 1},
        tracking={"mlflow": False},
    )
    return train(project, runs_dir=folder)


@pytest.mark.parametrize(
    "name", [name if name == "ppo" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_the_exported_agent_stacks_as_training_did(name: str, tmp_path: Path):
    run = trained(tmp_path, **CASES[name])
    agent = Agent.load(export(run))
    proof = agent.verify()
    assert proof.num_rows >= 1000
    assert (proof.num_mismatches, proof.num_undecided) == (0, 0)
    assert proof.is_equal
    assert agent.has_memory
    assert any("last 3 side by side" in line for line in agent.manifest["mapping"])
    with pytest.raises(AgentError, match="has memory"):
        agent.act(agent.observation_space.sample())
    policy = load_policy(run)
    assert policy.has_memory
    if name == "ppo":
        assert policy.module.observation_space.shape == (6,)
        by_checkpoint, by_agent = assess(run, episodes=4), assess(agent, episodes=4)
        assert [e.length for e in by_checkpoint.episodes] == [20] * 4
        np.testing.assert_allclose(by_agent.summary()["return_mean"], by_checkpoint.summary()["return_mean"], rtol=1e-6)
        with pytest.raises(CheckpointError, match="learned from"):
            train(Project(**{**CASES[name], "sim": Plant, "frame_stack": 2, "stop": {"iterations": 2}}), resume=run)
