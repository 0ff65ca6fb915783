"""Recorded values come back as they were, and images take little room."""

from __future__ import annotations

import base64
import json
import zlib

import numpy as np
import pytest
from gymnasium import spaces

from platotk.agents.recorded import PACKED_FROM, pack, unpack
from platotk.errors import AgentError, SimError

CAMERA = spaces.Dict(
    camera=spaces.Box(0, 255, (16, 20, 3), np.uint8),
    parts=spaces.Tuple((spaces.Box(-1, 1, (300,), np.float32), spaces.Discrete(4, start=2), spaces.Text(3))),
    depth=spaces.Box(-np.inf, np.inf, (20, 20), np.float64),
    bits=spaces.MultiBinary(1000),
)


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    return a == b


def test_it_comes_back_as_it_was():
    CAMERA.seed(0)
    for _ in range(20):
        value = CAMERA.sample()
        assert same(value, unpack(CAMERA, json.loads(json.dumps(pack(CAMERA, value), allow_nan=False))))


def test_large_arrays_are_packed_and_small_ones_can_be_read():
    small = spaces.Box(-1, 1, (PACKED_FROM - 1,), np.float32)
    large = spaces.Box(-1, 1, (PACKED_FROM,), np.float32)
    assert isinstance(pack(small, small.sample()), list)
    assert isinstance(pack(large, large.sample()), str)
    assert len(pack(large, np.zeros(PACKED_FROM, np.float32))) < 40


def test_another_byte_order_and_a_view_are_packed_as_the_space_says():
    space = spaces.Box(-9, 9, (16, 16), np.float32)
    value = np.arange(256, dtype=">f8").reshape(16, 16).T / 256
    assert np.array_equal(unpack(space, pack(space, value)), value.astype(np.float32))


@pytest.mark.parametrize("bad", [np.full((16, 16), np.nan, np.float32), np.zeros((4, 4), np.float32), None])
def test_what_is_no_value_of_the_space_is_refused(bad):
    with pytest.raises(SimError):
        pack(spaces.Box(-9, 9, (16, 16), np.float32), bad)


@pytest.mark.parametrize(
    "data",
    [
        "not base64!",
        base64.b64encode(b"not zlib").decode(),
        base64.b64encode(zlib.compress(b"short")).decode(),
        base64.b64encode(zlib.compress(bytes(1 << 24))).decode(),
        7,
        None,
        [0.0],
    ],
)
def test_rubbish_is_refused(data):
    with pytest.raises(AgentError, match=r"parity\.json cannot be read"):
        unpack(spaces.Box(-9, 9, (16, 16), np.float32), data)
