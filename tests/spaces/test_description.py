"""Spaces as JSON, exactly."""

import json

import numpy as np
import pytest
from gymnasium import spaces
from tests.spaces.catalogue import ACTIONS, INF, OBSERVATIONS, box, by_name

from platotk.errors import SimError
from platotk.spaces import space_from_json, space_to_json

ALL = {**{f"obs {k}": v for k, v in OBSERVATIONS.items()}, **{f"act {k}": v for k, v in ACTIONS.items()}}
ALL["sequence"] = spaces.Sequence(spaces.Discrete(3), stack=True)
ALL["graph"] = spaces.Graph(box(0, 1, (2,)), spaces.Discrete(3))
ALL["graph without edges"] = spaces.Graph(box(0, 1, (2,)), None)
ALL["box int half open"] = box(-INF, 5, (2,), np.int64)


@pytest.mark.parametrize("space", **by_name(ALL))
def test_a_space_comes_back_from_json(space):
    text = json.dumps(space_to_json(space), allow_nan=False)
    read = space_from_json(json.loads(text))
    assert read == space
    assert json.dumps(space_to_json(read)) == text
    assert str(read) == str(space)


def test_the_forms_of_json():
    assert space_to_json(box(0, INF, (2,))) == {
        "type": "box",
        "low": 0.0,
        "high": None,
        "shape": [2],
        "dtype": "float32",
    }
    assert space_to_json(spaces.Discrete(3, start=-1)) == {
        "type": "discrete",
        "n": 3,
        "start": -1,
        "dtype": "int64",
    }
    assert space_to_json(spaces.MultiBinary([2, 3])) == {"type": "multi_binary", "n": [2, 3]}
    assert space_to_json(spaces.Dict([("b", spaces.MultiBinary(1)), ("a", spaces.MultiBinary(2))])) == {
        "type": "dict",
        "spaces": [["b", {"type": "multi_binary", "n": 1}], ["a", {"type": "multi_binary", "n": 2}]],
    }
    assert space_to_json(spaces.Text(3, charset="ba")) == {
        "type": "text",
        "min_length": 1,
        "max_length": 3,
        "charset": "ab",
    }


def test_bounds_come_back_exactly():
    low, high = np.array([-(2**63), 2**53 + 1]), np.array([2**63 - 1, 2**53 + 3])
    read = space_from_json(json.loads(json.dumps(space_to_json(spaces.Box(low, high, dtype=np.int64)))))
    assert read.low.tolist() == low.tolist()
    assert read.high.tolist() == high.tolist()
    tenth = space_from_json(json.loads(json.dumps(space_to_json(box(0.1, 0.3)))))
    assert tenth.low[0] == np.float32(0.1)
    mixed = spaces.Box(np.array([0, -INF], np.float32), np.array([INF, 1], np.float32))
    read = space_from_json(space_to_json(mixed))
    assert read.low.tolist() == [0, -INF]
    assert read.bounded_above.tolist() == [False, True]
    assert not space_from_json(space_to_json(box(-INF, INF, (1,), np.int64))).is_bounded()


def test_the_order_of_keys_comes_back():
    space = spaces.Dict([("z", spaces.Discrete(2)), ("a", spaces.Discrete(3))])
    assert list(space_from_json(space_to_json(space)).spaces) == ["z", "a"]


DEEP = {"type": "discrete", "n": 2, "start": 0, "dtype": "int64"}
for _ in range(100):
    DEEP = {"type": "tuple", "spaces": [DEEP]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "Not a space: None"),
        ({"n": 3}, "Not a space"),
        ({"type": "bx"}, "There is no space type 'bx'"),
        ({"type": "discrete"}, "Not a space of type 'discrete'"),
        ({"type": "discrete", "n": -3, "start": 0, "dtype": "int64"}, "Not a space of type 'discrete'"),
        ({"type": "box", "low": 1, "high": 0, "shape": [2], "dtype": "float32"}, "Not a space of type 'box'"),
        ({"type": "box", "low": 0, "high": 1, "shape": [10**12], "dtype": "float32"}, "is too large"),
        ({"type": "box", "low": 0, "high": 1, "shape": [2], "dtype": "object"}, "Not a space of type 'box'"),
        (
            {"type": "box", "low": [0], "high": 1, "shape": [2], "dtype": "float32"},
            "Not a space of type 'box'",
        ),
        ({"type": "dict", "spaces": [1]}, "Not a space of type 'dict'"),
        (DEEP, "nested deeper than 64"),
    ],
)
def test_what_is_no_space_is_refused(data, message):
    with pytest.raises(SimError) as error:
        space_from_json(data)
    assert message in error.value.message


class Colour(spaces.Space):
    """A space of somebody's own."""


def test_what_cannot_be_written_down_is_refused():
    with pytest.raises(SimError, match="Colour is not one of Gymnasium's own spaces"):
        space_to_json(Colour())
    with pytest.raises(SimError, match="neither a string nor an integer"):
        space_to_json(spaces.Dict({(1, 2): spaces.Discrete(2)}))
