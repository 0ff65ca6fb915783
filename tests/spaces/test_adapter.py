"""The adapter as a whole: described, pickled, written as JSON, and fast."""

import json
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
from gymnasium import spaces
from tests.spaces.catalogue import ACTIONS, INF, OBSERVATIONS, box, same

from platotk import spaces as plato_spaces
from platotk.errors import SimError
from platotk.spaces import Adapter, adapt

PAIRS = [
    *((space, spaces.Discrete(2), name) for name, space in OBSERVATIONS.items()),
    *((box(-1, 1, (2,)), space, name) for name, space in ACTIONS.items()),
]


@pytest.mark.parametrize(("observations", "actions"), [p[:2] for p in PAIRS], ids=[p[2] for p in PAIRS])
def test_an_adapter_comes_back_from_pickle_and_from_json(observations, actions):
    adapter = adapt(observations, actions)
    pickled = pickle.loads(pickle.dumps(adapter))
    read = Adapter.from_json(json.loads(json.dumps(adapter.to_json(), allow_nan=False)))
    observations.seed(5)
    adapter.encoded_action_space.seed(5)
    for _ in range(5):
        obs, action = observations.sample(), adapter.encoded_action_space.sample()
        encoded, decoded = adapter.encode(obs), adapter.decode(action)
        for other in (pickled, read):
            assert other == adapter
            assert hash(other) == hash(adapter)
            assert other.describe() == adapter.describe()
            again = other.encode(obs)
            if isinstance(encoded, dict):
                assert all(np.array_equal(again[key], encoded[key]) for key in encoded)
            else:
                assert np.array_equal(again, encoded)
            assert same(other.decode(action), decoded)


def test_options_come_back_as_well():
    space = spaces.Dict(pump=box(0, INF), legal=spaces.MultiBinary(1))
    adapter = adapt(space, spaces.Dict(pump=box(0, INF)), algorithm="SAC", action_scale={"pump": 2.5})
    read = Adapter.from_json(json.loads(json.dumps(adapter.to_json())))
    assert (read.algorithm, read.action_scale, read.mask_source) == ("SAC", {"pump": 2.5}, None)
    masked = adapt(space, spaces.Discrete(1), action_mask="legal")
    assert Adapter.from_json(masked.to_json()).mask_source == "legal"
    assert pickle.loads(pickle.dumps(masked)).mask_source == "legal"
    assert masked != adapter
    assert adapter != "adapter"


def test_text_is_encoded_alike_in_every_process():
    """The characters of a Text space are a set, and Python orders those differently in each process."""
    script = (
        "from gymnasium import spaces; from platotk.spaces import adapt;"
        "print(adapt(spaces.Text(2), spaces.Text(2)).encode('aZ').argmax(),"
        "adapt(spaces.Text(2), spaces.Text(2)).decode([4, 7]))"
    )
    said = {
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert said == {"36 47\n"}


@pytest.mark.parametrize("data", [None, 5, [], {}, {"observation_space": {"type": "discrete"}}])
def test_what_is_no_adapter_is_refused(data):
    with pytest.raises(SimError, match="Not an adapter"):
        Adapter.from_json(data)


def test_describe_says_how_each_leaf_is_learned_from():
    observations = spaces.Dict(
        [
            ("level", box(0, 2)),
            ("camera", box(0, 255, (16, 12, 3), np.uint8)),
            ("depth", box(0, 4, (16, 12, 1))),
            ("mode", spaces.Discrete(3, start=1)),
            ("wide", spaces.Discrete(5000)),
            ("grid", spaces.MultiDiscrete([2, 2, 3000])),
            ("on", spaces.MultiBinary(2)),
            ("name", spaces.Text(4, charset="abc")),
            ("pick", spaces.OneOf((spaces.Discrete(2), box(0, 1)))),
            ("action_mask", spaces.MultiBinary(38)),
        ]
    )
    actions = spaces.Dict(
        [
            ("addend", box(-10, 10, (1,), np.int32)),
            ("force", box(-2, 2, (2,))),
            ("count", box(0, 999, (1,), np.int32)),
            ("dose", box(0, INF)),
            ("free", box(-INF, INF)),
            ("some", spaces.Box(np.array([0, 0], np.float32), np.array([1, INF], np.float32))),
            ("on", spaces.MultiBinary(2)),
            ("pair", spaces.MultiDiscrete([2, 3])),
            ("word", spaces.Text(2, charset="ab")),
            ("one", spaces.Discrete(3)),
        ]
    )
    assert adapt(observations, actions, action_scale={"dose": 5.0, "free": 2.0}).describe() == [
        "observation.level: Box(0.0, 2.0, (1,), float32) -> 1 number, normalised",
        "observation.camera: Box(0, 255, (16, 12, 3), uint8) -> image of 3 x 16 x 12 (C, H, W), divided by 255",
        "observation.depth: Box(0.0, 4.0, (16, 12, 1), float32) -> image of 1 x 16 x 12 (C, H, W), scaled to 0..1",
        "observation.mode: Discrete(3, start=1) -> one-hot of 3",
        "observation.wide: Discrete(5000) -> 1 number in -1..1",
        "observation.grid: MultiDiscrete([ 2 2 3000]) -> 2 one-hots of 2 and 1 number in -1..1",
        "observation.on: MultiBinary(2) -> 2 bits, 0 or 1",
        "observation.name: Text(1, 4, 3 characters) -> 4 characters, one-hot of 4 each",
        "observation.pick: OneOf(Discrete(2), Box(0.0, 1.0, (1,), float32)) -> one-hot of 2 options, then each option",
        "observation.pick[0]: Discrete(2) -> one-hot of 2",
        "observation.pick[1]: Box(0.0, 1.0, (1,), float32) -> 1 number, normalised",
        "observation.action_mask: MultiBinary(38) -> mask of the 38 choices",
        "action.addend: Box(-10, 10, (1,), int32) -> 21 choices",
        "action.force: Box(-2.0, 2.0, (2,), float32) -> 2 numbers, scaled to the bounds",
        "action.count: Box(0, 999, (1,), int32) -> 1 number, scaled to the bounds and rounded",
        "action.dose: Box(0.0, inf, (1,), float32) -> 1 number, from the bound on by 5, clipped there",
        "action.free: Box(-inf, inf, (1,), float32) -> 1 number, times 2",
        "action.some: Box(0.0, [ 1. inf], (2,), float32) -> "
        "2 numbers, scaled to the bounds where there are any, otherwise by 1",
        "action.on: MultiBinary(2) -> 2 x 2 choices",
        "action.pair: MultiDiscrete([2 3]) -> 2 choices of 2, 3",
        "action.word: Text(1, 2, 2 characters) -> 2 characters, each a choice of 2 or 3",
        "action.one: Discrete(3) -> 3 choices",
    ]


def test_describe_of_masks_from_info_and_of_joint_actions():
    adapter = adapt(box(0, 1), spaces.MultiDiscrete([2, 3]), algorithm="DQN", action_mask="info")
    assert adapter.describe()[1:] == [
        "info.action_mask: -> mask of the 5 choices",
        "action: MultiDiscrete([2 3]) -> 2 choices of 2, 3",
        "action: all choices joined into one of 6",
    ]
    assert adapt(box(-INF, INF), box(-INF, INF)).describe()[1].endswith("1 number, as given")


def test_long_spaces_are_shortened_in_a_description():
    space = spaces.Box(np.arange(99, dtype=np.float32), np.full(99, 200, np.float32))
    assert adapt(space, spaces.Discrete(2)).describe()[0] == (
        "observation: Box(0.0..98.0, 200.0, (99,), float32) -> 99 numbers, normalised"
    )
    deep = spaces.Dict({str(i): spaces.Discrete(2) for i in range(50)})
    picked = adapt(spaces.OneOf((deep,)), spaces.Discrete(2)).describe()[0]
    assert len(picked) < 180


def test_the_simple_adder_and_cartpole():
    adder = adapt(spaces.Dict(value=box(0, 100, (1,), np.int32)), spaces.Dict(addend=box(-10, 10, (1,), np.int32)))
    assert adder.encoded_observation_space == box(-INF, INF, (1,))
    assert adder.encoded_action_space == spaces.Discrete(21)
    assert adder.encode({"value": np.array([17], np.int32)}).tolist() == [17]
    assert same(adder.decode(20), {"addend": np.array([10], np.int32)})
    assert repr(adder) == "Adapter(Box(-inf, inf, (1,), float32) -> Discrete(21))"


def test_encoding_a_plain_box_costs_microseconds():
    adapter = adapt(OBSERVATIONS["cartpole"], spaces.Discrete(2))
    obs = np.zeros(4, np.float32)

    def seconds(work, count=2000):
        begin = time.perf_counter()
        for _ in range(count):
            work()
        return (time.perf_counter() - begin) / count

    spent = min(seconds(lambda: adapter.encode(obs)) for _ in range(10))
    bare = min(seconds(lambda: np.isfinite(np.array(obs, np.float32)).all()) for _ in range(10))
    assert spent < 6 * bare


def test_the_package_loads_neither_ray_nor_torch():
    script = "import sys, platotk.spaces; print([m for m in ('ray', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert "adapt" in plato_spaces.__all__
