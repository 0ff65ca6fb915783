"""Values as JSON, both ways, strictly."""

import json

import numpy as np
import pytest
from gymnasium import spaces
from tests.spaces.catalogue import ACTIONS, INF, OBSERVATIONS, box, by_name, same

from platotk.errors import SimError
from platotk.spaces import adapt, from_json, to_json


@pytest.mark.parametrize("space", **by_name({**OBSERVATIONS, "sequence": spaces.Sequence(spaces.Discrete(3))}))
def test_an_observation_comes_back_from_json(space):
    space.seed(4)
    for _ in range(10):
        value = space.sample()
        text = json.dumps(to_json(space, value), allow_nan=False)
        read = from_json(space, json.loads(text))
        assert same(read, value)
        assert space.contains(read)


@pytest.mark.parametrize("space", **by_name(ACTIONS))
def test_an_action_comes_back_from_json(space):
    adapter = adapt(spaces.Discrete(2), space)
    adapter.encoded_action_space.seed(4)
    for _ in range(10):
        value = adapter.decode(adapter.encoded_action_space.sample())
        text = json.dumps(to_json(space, value), allow_nan=False)
        assert same(from_json(space, json.loads(text)), value)


def test_a_thousand_values_of_a_nested_space():
    space = OBSERVATIONS["dict"]
    space.seed(6)
    for _ in range(1000):
        value = space.sample()
        assert same(from_json(space, json.loads(json.dumps(to_json(space, value)))), value)


def test_the_forms_of_json():
    space = spaces.Dict(
        [
            ("level", box(0, 2, (1,))),
            ("scalar", box(0, 2, ())),
            ("grid", box(0, 9, (2, 2), np.int32)),
            ("mode", spaces.Discrete(3, start=1)),
            ("pair", spaces.MultiDiscrete([3, 3])),
            ("on", spaces.MultiBinary(2)),
            ("flags", box(0, 1, (2,), np.bool_)),
            ("word", spaces.Text(3)),
            ("both", spaces.Tuple((spaces.Discrete(2), box(0, 1, (2,))))),
            ("pick", spaces.OneOf((spaces.Discrete(2), box(0, 1, (2,))))),
        ]
    )
    data = {
        "level": [0.5],
        "scalar": 1.5,
        "grid": [[1, 2], [3, 4]],
        "mode": 3,
        "pair": [0, 2],
        "on": [1, 0],
        "flags": [0, 1],
        "word": "ab",
        "both": [1, [0.25, 0.5]],
        "pick": [1, [0.25, 0.5]],
    }
    value = from_json(space, data)
    assert space.contains(value)
    assert to_json(space, value) == data
    assert json.dumps(to_json(space, value)) == json.dumps(data)


@pytest.mark.parametrize(
    ("space", "data", "value"),
    [
        (box(0, 2, (1,)), 0.5, np.array([0.5], np.float32)),
        (box(0, 2, (1,)), [1], np.array([1.0], np.float32)),
        (box(0, 2, ()), 1, np.array(1.0, np.float32)),
        (box(0.1, 0.3), 0.1, np.array([0.1], np.float32)),
        (box(0, 5, (1,), np.int32), 3.0, np.array([3], np.int32)),
        (spaces.Discrete(3, dtype=np.int32), 2.0, np.int32(2)),
        (spaces.MultiBinary(2), [True, False], np.array([1, 0], np.int8)),
        (box(0, 1, (2,), np.bool_), [True, 0], np.array([True, False])),
        (box(-INF, INF, (1,), np.int64), 2**53 + 1, np.array([2**53 + 1], np.int64)),
        (spaces.Tuple((spaces.Discrete(2),)), (1,), (np.int64(1),)),
        (box(0, 2, (2,)), np.array([1, 2]), np.array([1, 2], np.float32)),
        (spaces.Discrete(3), np.int64(2), np.int64(2)),
        (spaces.Dict({1: spaces.Discrete(2)}), {"1": 1}, {1: np.int64(1)}),
    ],
)
def test_what_is_taken(space, data, value):
    assert same(from_json(space, data), value)


TANK = spaces.Dict(
    level=box(0, 2, (1,)),
    count=box(0, 9, (2,), np.int16),
    mode=spaces.Discrete(3, start=1),
    pair=spaces.MultiDiscrete([3, 3], start=[1, 1]),
    on=spaces.MultiBinary((2,)),
    name=spaces.Text(3, charset="abc"),
    parts=spaces.Tuple((box(-INF, INF, (2, 2)), spaces.Discrete(2))),
    pick=spaces.OneOf((spaces.Discrete(2), spaces.Text(2))),
)
GOOD = {
    "level": 1,
    "count": [1, 2],
    "mode": 1,
    "pair": [1, 3],
    "on": [0, 1],
    "name": "ab",
    "parts": [[[1, 2], [3, 4]], 0],
    "pick": [0, 1],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": 2.5}, "observation.level: 2.5 is out of bounds, allowed is 0.0 to 2.0."),
        ({"level": float("nan")}, "observation.level: nan is not a finite number."),
        ({"level": float("inf")}, "observation.level: inf is not a finite number."),
        ({"level": 10**400}, "is too large."),
        ({"level": 1e300}, "observation.level: a number is too large for float32."),
        ({"level": True}, "observation.level: expected a number, got True."),
        ({"level": "1"}, "observation.level: expected a number, got '1'."),
        ({"level": None}, "observation.level: expected a number, got None."),
        ({"level": [1, 2]}, "observation.level: 2 elements in dimension 0, its space has shape (1,)."),
        ({"level": [[1]]}, "observation.level: expected a number, got [1]."),
        ({"level": {"a": 1}}, "observation.level: expected a number, got {'a': 1}."),
        ({"count": [1.9, 2]}, "observation.count[0]: 1.9 is not a whole number."),
        ({"count": [1, True]}, "observation.count[1]: expected a number, got True."),
        ({"count": [1, 10]}, "observation.count[1]: 10 is out of bounds, allowed is 0 to 9."),
        ({"count": [1, 40000]}, "observation.count: 40000 is out of the range of int16."),
        ({"count": 1}, "observation.count: expected nested arrays of shape (2,), got 1."),
        ({"mode": 0}, "observation.mode: 0 is not one of 1..3."),
        ({"mode": 1.9}, "observation.mode: 1.9 is not a whole number."),
        ({"mode": False}, "observation.mode: expected a number, got False."),
        ({"mode": [1]}, "observation.mode: expected a number, got [1]."),
        ({"pair": [0, 1]}, "observation.pair[0]: 0 is out of bounds, allowed is 1 to 3."),
        ({"on": [0, 2]}, "observation.on[1]: 2 is neither 0 nor 1."),
        ({"on": [0, "1"]}, "observation.on[1]: '1' is neither 0 nor 1."),
        ({"name": "abcd"}, "observation.name: 4 characters, allowed are 1 to 3."),
        ({"name": "xyz"}, "observation.name: the character 'x' is not allowed."),
        ({"name": 5}, "observation.name: expected a string, got 5."),
        (
            {"parts": [[[1, 2], [3, float("nan")]], 0]},
            "observation.parts[0][1][1]: nan is not a finite number.",
        ),
        ({"parts": [[[1, 2], [3]], 0]}, "observation.parts[0]: 1 elements in dimension 1"),
        ({"parts": [[[1, 2], [3, 4]]]}, "observation.parts: 1 elements, its space has 2."),
        ({"parts": 7}, "observation.parts: expected an array of 2, got 7."),
        ({"parts": [[[1, 2], [3, 4]], 2]}, "observation.parts[1]: 2 is not one of 0..1."),
        ({"pick": 1}, "observation.pick: expected [index, value], got 1."),
        ({"pick": [2, 1]}, "observation.pick: option 2 is not one of 0..1."),
        ({"pick": [1, 1]}, "observation.pick[1]: expected a string, got 1."),
        ({"lvel": 1}, "observation: unknown key 'lvel'."),
    ],
)
def test_what_is_refused_names_the_leaf(change, message):
    assert TANK.contains(from_json(TANK, GOOD))
    with pytest.raises(SimError) as error:
        from_json(TANK, {**GOOD, **change}, name="observation")
    assert message in error.value.message


def test_a_missing_and_an_unknown_key_come_with_help():
    with pytest.raises(SimError) as error:
        from_json(spaces.Dict(level=box(0, 1)), {}, name="observation")
    assert (error.value.message, error.value.hint) == ("observation.level: missing.", "Give level.")
    with pytest.raises(SimError) as error:
        from_json(spaces.Dict(level=box(0, 1)), {"lvel": 1})
    assert (error.value.message, error.value.hint) == ("value: unknown key 'lvel'.", "Did you mean 'level'?")
    with pytest.raises(SimError, match="value: expected an object with level, got 5"):
        from_json(spaces.Dict(level=box(0, 1)), 5)


def test_bounds_are_left_alone_when_asked():
    assert from_json(box(0, 1), 7, check_bounds=False).tolist() == [7]
    assert from_json(spaces.Discrete(3), 7, check_bounds=False) == 7
    assert from_json(spaces.Text(2, charset="ab"), "xyz", check_bounds=False) == "xyz"
    with pytest.raises(SimError, match="out of the range of int8"):
        from_json(box(0, 1, (1,), np.int8), 700, check_bounds=False)


def test_messages_stay_short_whatever_was_sent():
    for data in ("x" * 10**6, [[0] * 1000] * 1000, {str(i): i for i in range(10**4)}, 10**9000):
        with pytest.raises(SimError) as error:
            from_json(spaces.Dict(level=box(0, 1, (2,))), {"level": data})
        assert len(str(error.value)) < 300


def test_arrays_nested_too_deep_are_refused_at_the_first_level_that_is_wrong():
    data = 1.0
    for _ in range(500):
        data = [data]
    with pytest.raises(SimError, match="expected a number"):
        from_json(box(0, 1, (1,)), data)


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (box(0, 1, (2,)), np.array([0, np.nan]), "action[1]: nan has no JSON form."),
        (box(0, 1, ()), np.inf, "action: inf has no JSON form."),
        (box(0, 1, (2,)), np.zeros(3), "action: has shape (3,), its space has (2,)."),
        (box(0, 9, (1,), np.int32), np.array([1.5]), "action: 1.5 is not a whole number."),
        (spaces.Discrete(3), 1.5, "action: 1.5 is not a whole number."),
        (spaces.Discrete(3), "1", "action: expected numbers of shape (), got '1'."),
        (spaces.Text(3), 5, "action: expected a string, got 5."),
        (spaces.Dict(a=spaces.Discrete(2)), {}, "action.a: missing."),
        (spaces.Dict(a=spaces.Discrete(2)), {"a": 1, "b": 2}, "action: unknown key 'b'."),
        (spaces.Dict(a=spaces.Discrete(2)), 3, "action: expected a dict, got 3."),
        (spaces.Tuple((spaces.Discrete(2),)), (1, 2), "action: 2 elements, its space has 1."),
        (spaces.Tuple((spaces.Discrete(2),)), 1, "action: expected a tuple, got 1."),
        (spaces.OneOf((spaces.Discrete(2),)), (1, 0), "action: option 1 is not one of 0..0."),
        (spaces.Graph(box(0, 1), None), None, "has no JSON form."),
    ],
)
def test_a_value_without_json_form_is_an_error_that_names_the_leaf(space, value, message):
    with pytest.raises(SimError) as error:
        to_json(space, value, name="action")
    assert message in error.value.message


def test_values_of_other_dtypes_are_written_too():
    assert to_json(box(0, 9, (2,), np.int32), np.array([1.0, 2.0])) == [1, 2]
    assert to_json(spaces.MultiBinary(2), np.array([True, False])) == [1, 0]
    assert to_json(spaces.Discrete(3), np.array(2.0)) == 2
    assert to_json(spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))), np.array([0, 1])) == [0, 1]


def test_spaces_that_have_no_json_form():
    with pytest.raises(SimError, match="has no JSON form"):
        from_json(spaces.Graph(box(0, 1), None), {})
    with pytest.raises(SimError, match="look the same in JSON"):
        from_json(spaces.Dict({1: spaces.Discrete(2), "1": spaces.Discrete(2)}), {"1": 1})
    with pytest.raises(SimError, match="expected an array"):
        from_json(spaces.Sequence(spaces.Discrete(2)), 4)
