"""How numbers stand in `vector` and in the outputs, as the manual tells those who run policy.onnx without platotk."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from gymnasium import spaces

from platotk.spaces import adapt, to_json

SEEN = spaces.Dict(
    zone=spaces.Box(-5, 5, (2, 2), np.float64),
    gear=spaces.Discrete(3, start=2),
    pumps=spaces.MultiDiscrete([2, 3], start=[1, 0]),
    tank=spaces.Tuple([spaces.MultiBinary(2), spaces.Box(0, 9, (), np.int16)]),
)
SENT = spaces.Dict(
    valve=spaces.Box(np.float32([0, -1]), np.float32([4, 1])), mode=spaces.Discrete(3, start=2), free=spaces.Box(-9, 9)
)


def numbers(space: dict[str, Any], value: Any) -> list[float]:
    """The numbers of one observation in order: from JSON alone, as the manual says."""
    if space["type"] == "dict":
        return [number for name, part in space["spaces"] for number in numbers(part, value[name])]
    if space["type"] == "tuple":
        return [number for part, one in zip(space["spaces"], value, strict=True) for number in numbers(part, one)]
    if space["type"] == "discrete":
        return [float(value - space["start"] == choice) for choice in range(space["n"])]
    if space["type"] == "multi_discrete":
        found = zip(value, space["nvec"], space["start"], strict=True)
        return [float(one - start == choice) for one, size, start in found for choice in range(size)]
    return [float(number) for number in np.ravel(value)]


def test_an_observation_is_its_leaves_in_their_order() -> None:
    adapter = adapt(SEEN, SENT)
    told = json.loads(json.dumps(adapter.to_json()))["observation_space"]
    SEEN.seed(0)
    for _ in range(50):
        observation = SEEN.sample()
        by_hand = numbers(told, to_json(SEEN, observation))
        assert np.array_equal(adapter.encode(observation), np.array(by_hand, np.float32))


def test_an_action_is_scaled_to_its_bounds() -> None:
    adapter = adapt(SEEN, SENT)
    action = adapter.decode({"continuous": np.array([0.5, 2.0, -0.25], np.float32), "discrete": np.array([1])})
    clipped = np.clip([0.5, 2.0, -0.25], -1, 1)
    low, high = np.array([0, -1, -9]), np.array([4, 1, 9])
    assert np.allclose([*action["valve"], *action["free"]], low + (clipped + 1) / 2 * (high - low))
    assert action["mode"] == 1 + 2
