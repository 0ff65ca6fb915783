"""Spaces that nobody wrote down: drawn at random, nested as they come, learned from all the same."""

import json
import pickle

import numpy as np
import pytest
from gymnasium import spaces
from tests.spaces.catalogue import same

from platotk.spaces import Adapter, adapt, fitting, from_json, to_json

FLOATS = [np.float16, np.float32, np.float64]
INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64]


def drawn_space(rng, depth=0, *, is_action):
    kinds = ["float", "float", "integer", "discrete", "multi", "bits", "text", "bool"]
    kinds += ["dict", "tuple"] * (depth < 3)
    kinds += ["image", "one_of"] * (not is_action)
    kind = rng.choice(kinds)
    shape = tuple(int(n) for n in rng.integers(1, 4, rng.integers(0, 4)))
    if kind == "float":
        low = rng.uniform(-9, 0, shape)
        high = low + rng.uniform(0, 9, shape)
        low = np.where(rng.random(shape) < 0.2, -np.inf, low)
        high = np.where(rng.random(shape) < 0.2, np.inf, high)
        dtype = FLOATS[rng.integers(3)]
        return spaces.Box(np.asarray(low, dtype), np.asarray(high, dtype), dtype=dtype)
    if kind == "integer":
        info = np.iinfo(INTEGERS[rng.integers(len(INTEGERS))])
        span = 2 ** int(rng.integers(1, min(info.bits, 40)))
        low = int(rng.integers(info.min, int(info.max) - span, endpoint=True, dtype=info.dtype))
        return spaces.Box(np.full(shape, low, info.dtype), np.full(shape, low + span, info.dtype), dtype=info.dtype)
    if kind == "discrete":
        return spaces.Discrete(int(rng.integers(1, 50)), start=int(rng.integers(-9, 9)))
    if kind == "multi":
        nvec = rng.integers(1, 9, (*shape, 2))
        return spaces.MultiDiscrete(nvec, start=rng.integers(-9, 9, nvec.shape))
    if kind == "bits":
        return spaces.MultiBinary((*shape, 2))
    if kind == "text":
        length = int(rng.integers(0, 3))
        return spaces.Text(length + int(rng.integers(0, 3)), min_length=length, charset="abcxyz")
    if kind == "bool":
        return spaces.Box(0, 1, shape, np.bool_)
    if kind == "image":
        return spaces.Box(0, 255, (9, 12, int(rng.integers(1, 5))), np.uint8)
    children = [drawn_space(rng, depth + 1, is_action=is_action) for _ in range(rng.integers(1, 4))]
    if kind == "dict":
        return spaces.Dict([(f"k{i}", child) for i, child in enumerate(children)][:: rng.choice([-1, 1])])
    return (spaces.Tuple if kind == "tuple" else spaces.OneOf)(children)


@pytest.mark.parametrize("seed", range(40))
def test_a_space_drawn_at_random(seed):
    rng = np.random.default_rng(seed)
    observation_space = drawn_space(rng, is_action=False)
    action_space = spaces.Dict(x=drawn_space(rng, is_action=True), y=spaces.Discrete(2))
    adapter = adapt(observation_space, action_space)
    assert adapter == pickle.loads(pickle.dumps(adapter))
    assert adapter == Adapter.from_json(json.loads(json.dumps(adapter.to_json())))
    assert adapter.num_logits == sum(adapter.nvec)
    observation_space.seed(seed)
    adapter.encoded_action_space.seed(seed)

    observations = [observation_space.sample() for _ in range(8)]
    batch = adapter.encode_batch(observations)
    for row, obs in enumerate(observations):
        encoded = adapter.encode(obs)
        assert adapter.encoded_observation_space.contains(encoded)
        pairs = [(encoded[k], batch[k]) for k in encoded] if isinstance(encoded, dict) else [(encoded, batch)]
        assert all(np.array_equal(one, many[row]) for one, many in pairs)
        read = from_json(observation_space, json.loads(json.dumps(to_json(observation_space, obs))))
        again = adapter.encode(read)
        pairs = [(encoded[k], again[k]) for k in encoded] if isinstance(encoded, dict) else [(encoded, again)]
        assert all(np.array_equal(one, other) for one, other in pairs)

    chosen = [adapter.encoded_action_space.sample() for _ in range(8)]
    actions = adapter.decode_batch(chosen)
    for one, action in zip(chosen, actions, strict=True):
        assert action_space.contains(action)
        assert same(adapter.decode(one), action)
        assert same(from_json(action_space, json.loads(json.dumps(to_json(action_space, action)))), action)
    assert "PPO" in fitting(observation_space, action_space)
