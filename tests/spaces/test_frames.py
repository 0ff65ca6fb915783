"""A frame stack: the last observations side by side, oldest first, and the first one repeated where there are none."""

from __future__ import annotations

import gymnasium as gym
import numpy as np

from platotk.project import Project
from platotk.sims.loading import sim_spec
from platotk.sims.vector import SimVector
from platotk.spaces import Adapter, adapt
from platotk.spaces.frames import Frames, stacked_space

PLANT = gym.spaces.Dict(
    camera=gym.spaces.Box(0, 255, (12, 16, 3), np.uint8), speed=gym.spaces.Box(0, 9, (2,), np.float32)
)


def test_an_episode_begins_with_its_first_observation_repeated():
    frames = Frames(3, 1)
    assert [frames.push(np.array([[float(step)]])).tolist()[0] for step in range(1, 5)] == [
        [1, 1, 1],
        [1, 1, 2],
        [1, 2, 3],
        [2, 3, 4],
    ]
    frames.reset(0)
    assert frames.push(np.array([[9.0]])).tolist() == [[9, 9, 9]]


def test_rows_are_episodes_of_their_own():
    frames = Frames(2, 3)
    frames.push(np.array([[1.0], [2.0], [3.0]]))
    assert frames.push(np.array([[30.0], [10.0]]), [2, 0]).tolist() == [[3, 30], [1, 10]]
    frames.reset(np.array([True, False, False]))
    assert frames.push(np.array([[7.0], [8.0], [9.0]])).tolist() == [[7, 7], [2, 8], [30, 9]]


def test_what_is_given_stays_as_it_was():
    frames = Frames(2, 1)
    first = frames.push(np.array([[1.0]]))
    frames.push(np.array([[2.0]]))
    assert first.tolist() == [[1, 1]]


def test_images_are_joined_by_their_channels_and_the_mask_is_the_newest():
    adapter = adapt(PLANT, gym.spaces.Discrete(3), action_mask="info", frame_stack=4)
    space = adapter.encoded_observation_space
    assert space["image_0"].shape == (12, 12, 16)
    assert space["vector"].shape == (8,)
    assert space["action_mask"].shape == (3,)
    assert adapter.numeric.tolist() == [True] * 8
    frames = Frames(4, 1)
    PLANT.seed(0)
    for allowed in ([1, 0, 1], [0, 1, 1]):
        seen = frames.push(adapter.encode_batch([PLANT.sample()], [np.array(allowed)]))
        assert space.contains({key: part[0] for key, part in seen.items()})
        assert seen["action_mask"].tolist() == [allowed]


def test_one_frame_is_no_stack():
    space = gym.spaces.Box(-1, 1, (2,), np.float32)
    assert stacked_space(space, 1) is space
    rows = np.ones((1, 2), np.float32)
    assert Frames(1, 1).push(rows) is rows


def test_the_adapter_keeps_it_and_old_ones_have_none():
    adapter = adapt(PLANT, gym.spaces.Discrete(3), frame_stack=2)
    assert Adapter.from_json(adapter.to_json()) == adapter
    assert Adapter.from_json(adapter.to_json()).frame_stack == 2
    assert "frame_stack" not in adapt(PLANT, gym.spaces.Discrete(3)).to_json()


class Counter(gym.Env):
    """Shows how many steps its episode has had; episodes of three steps, the sim's second step breaks."""

    observation_space = gym.spaces.Box(-1000, 1000, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length=3):
        self.length, self.episode = length, 0

    def reset(self, *, seed=None, options=None):
        self.t, self.episode = 0, self.episode + 1
        return self._seen(), {}

    def step(self, action):
        self.t += 1
        return self._seen(), 0.0, self.t >= self.length, False, {}

    def _seen(self):
        return np.array([10 * self.episode + self.t], np.float32)


def test_training_sees_stacks_that_begin_anew_with_every_episode():
    adapter = adapt(Counter.observation_space, Counter.action_space, frame_stack=3)
    sims = SimVector(sim_spec(Project(sim=Counter)), adapter, num_envs=2)
    seen = [sims.reset()[0][0].tolist()] + [sims.step(np.zeros(2, np.int64))[0][0].tolist() for _ in range(6)]
    sims.close()
    assert seen == [
        [10, 10, 10],
        [10, 10, 11],
        [10, 11, 12],
        [11, 12, 13],
        [20, 20, 20],  # the step after the last one resets
        [20, 20, 21],
        [20, 21, 22],
    ]
