"""Replay buffers fit the memory: a default is cut down and said, what was asked for is refused before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from platotk import Project, ProjectError, train
from platotk.learning import replay_size
from platotk.learning.algorithm import build_config
from platotk.learning.engine.plan import chosen_for
from platotk.sims.loading import sim_spec
from platotk.spaces import adapt


class Camera(gym.Env):  # type: ignore[type-arg]
    """Pictures of the size that Atari's are."""

    observation_space = gym.spaces.Box(0, 255, (210, 160, 3), np.uint8)
    action_space: Any = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.num_steps = 0
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        self.num_steps += 1
        return self._seen(), -float(np.abs(action).sum()), self.num_steps >= 10, False, {}

    def _seen(self) -> Any:
        return np.full((210, 160, 3), self.num_steps, np.uint8)


class Buttons(Camera):
    action_space = gym.spaces.Discrete(3)


STEP = 210 * 160 * 3 + 4 + replay_size.STEP_BYTES


def config_of(sim: Any = Camera, memory: int = 8 << 30, **fields: Any) -> Any:
    project = Project(**{"sim": sim, "algorithm": "SAC", **fields})
    adapter = adapt(sim.observation_space, sim.action_space, algorithm=project.algorithm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_size, "usable_memory", lambda: memory)
        return build_config(project, adapter, sim_spec(project))


@pytest.mark.parametrize("engine", ["auto", "rllib"])
def test_a_default_that_does_not_fit_takes_a_quarter_of_the_memory_and_says_so(engine: str) -> None:
    config = config_of(engine=engine)
    fits = (2 << 30) // STEP
    assert config.replay_buffer_config["capacity"] == fits
    assert "type" in config.replay_buffer_config
    assert f"the replay buffer keeps {fits:,} steps, not 1,000,000" in chosen_for(config)["note"]
    assert chosen_for(config)["path"] == ("torch" if engine == "auto" else None)
    config = config_of(Buttons, algorithm="DQN", memory=1 << 30)
    assert config.replay_buffer_config["capacity"] == (1 << 28) // (STEP + 4)
    assert "Prioritized" in config.replay_buffer_config["type"]


def test_what_fits_is_left_alone() -> None:
    config = config_of(memory=1 << 40)
    assert config.replay_buffer_config["capacity"] == 1_000_000
    assert chosen_for(config)["note"] is None
    config = config_of(training={"replay_buffer_config": {"capacity": 60_000}})
    assert config.replay_buffer_config["capacity"] == 60_000  # over a quarter, as asked for


def test_more_than_the_memory_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "plato.yaml").write_text(
        "sim: x:Camera\nalgorithm: SAC\ntraining:\n  replay_buffer_config: {capacity: 1e6}\n"
    )
    given = Project.load(tmp_path)
    adapter = adapt(Camera.observation_space, Camera.action_space, algorithm="SAC")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_size, "usable_memory", lambda: 8 << 30)
        with pytest.raises(ProjectError, match=r"plato\.yaml:4: a replay buffer of 1,000,000 steps") as caught:
            build_config(given, adapter, sim_spec(given))
    assert "93.9 GiB; this machine has 8.0 GiB" in str(caught.value)
    assert f"capacity: {(2 << 30) // STEP:_}" in str(caught.value.hint)


@pytest.mark.slow
def test_sac_trains_on_pictures(tmp_path: Path) -> None:
    said: list[Any] = []
    project = Project(
        sim=Camera,
        algorithm="SAC",
        training={"num_steps_sampled_before_learning_starts": 10, "train_batch_size_per_learner": 4},
        reporting={"min_sample_timesteps_per_iteration": 12},
        stop={"iterations": 2},
        tracking={"mlflow": False},
    )
    run = train(project, run=tmp_path / "run", on_event=said.append)
    assert run.status == "finished"
    assert [line["iteration"] for line in run.metrics()] == [1, 2]
