"""Many values at once are exactly what one after another would be, the errors included."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.spaces.catalogue import ACTIONS, INF, OBSERVATIONS, box, by_name, same

from platotk.errors import SimError
from platotk.spaces import (
    adapt,
    columns_of,
    from_json,
    from_json_batch,
    refusal,
    rows_of,
    to_json,
    to_json_batch,
    values,
)

NUM_ROWS = 9
EVERY = {**OBSERVATIONS, **{f"action {name}": space for name, space in ACTIONS.items()}}
EVERY["sequence"] = spaces.Sequence(spaces.Discrete(3))


def sampled(space: spaces.Space[Any]) -> list[Any]:
    if any(space is action for action in ACTIONS.values()):  # Gymnasium cannot sample all of them
        adapter = adapt(spaces.Discrete(2), space)
        adapter.encoded_action_space.seed(11)
        return [adapter.decode(adapter.encoded_action_space.sample()) for _ in range(NUM_ROWS)]
    space.seed(11)
    return [space.sample() for _ in range(NUM_ROWS)]


def equal(a: Any, b: Any) -> bool:
    """Equal encoded observations, one array or a dict of them."""
    if isinstance(a, dict):
        return list(a) == list(b) and all(np.array_equal(a[key], b[key]) for key in a)
    return a.dtype == b.dtype and np.array_equal(a, b)


@pytest.mark.parametrize("space", **by_name(EVERY))
def test_columns_from_json_are_the_rows(space):
    rows = [json.loads(json.dumps(to_json(space, value))) for value in sampled(space)]
    columns = from_json_batch(space, rows)
    assert same(rows_of(space, columns, NUM_ROWS), [from_json(space, row) for row in rows])
    assert to_json_batch(space, columns, NUM_ROWS) == rows
    assert same(columns_of(space, rows_of(space, columns, NUM_ROWS)), columns)


@pytest.mark.parametrize("space", **by_name(EVERY))
def test_no_rows_are_no_trouble(space):
    columns = from_json_batch(space, [])
    assert rows_of(space, columns, 0) == []
    assert to_json_batch(space, columns, 0) == []


@pytest.mark.parametrize("space", **by_name(OBSERVATIONS))
def test_columns_are_encoded_as_rows_are(space):
    adapter = adapt(space, spaces.Discrete(2))
    rows = sampled(space)
    columns = columns_of(space, rows)
    assert equal(adapter.encode_columns(columns, NUM_ROWS), adapter.encode_batch(rows))


MASKED = spaces.Dict(x=box(-1, 1, (2,)), action_mask=spaces.MultiBinary(5))
MASK_ROWS = [
    {"x": np.full(2, i / 9, np.float32), "action_mask": np.array([1, i % 2, 1, 0, 1], np.int8)} for i in range(9)
]


@pytest.mark.parametrize("algorithm", ["PPO", "DQN"])
def test_masks_are_encoded_at_once_as_one_by_one(algorithm):
    action_space = spaces.MultiDiscrete([2, 3])
    inside = adapt(MASKED, action_space, algorithm=algorithm)
    beside = adapt(box(-1, 1, (2,)), action_space, algorithm=algorithm, action_mask="info")
    one_by_one = np.stack([inside.encode(row)["action_mask"] for row in MASK_ROWS])
    at_once = inside.encode_columns(columns_of(MASKED, MASK_ROWS), len(MASK_ROWS))
    assert np.array_equal(at_once["action_mask"], one_by_one)
    vectors, masks = np.stack([row["x"] for row in MASK_ROWS]), [row["action_mask"].tolist() for row in MASK_ROWS]
    assert equal(beside.encode_columns(vectors, len(masks), masks), beside.encode_batch(list(vectors), masks))
    none = beside.encode_columns(vectors, len(masks))
    assert none["action_mask"].all()
    for wrong in ([[0, 0, 1, 1, 1]] * 9, [[1, 1, 1, 1, 0.5]] * 9, [[1, 1]] * 9, masks[:-1], [{"a": 1}] * 9):
        with pytest.raises(SimError):
            beside.encode_columns(vectors, len(masks), wrong)


def test_too_large_for_the_network_names_the_leaf():
    space = spaces.Dict(x=box(-INF, INF, (2,), np.float64))
    adapter = adapt(space, spaces.Discrete(2))
    columns = from_json_batch(space, [{"x": [0, 1]}, {"x": [0, 1e300]}])
    with pytest.raises(SimError, match=r"observation.x\[1\]: 1e\+300 is too large for float32") as caught:
        adapter.encode_columns(columns, 2)
    assert "Scale it" in str(caught.value.hint)
    for row in ([0, 1e300], [0, float("inf")]):
        with pytest.raises(SimError, match=r"observation.x\[1\]: (1e\+300 is too large|inf cannot)") as caught:
            adapter.encode({"x": np.array(row)})
        assert ("Scale it" in str(caught.value.hint)) == (row[1] == 1e300)


LEARNED = {
    f"{algorithm} {name}": (space, algorithm)
    for name, space in ACTIONS.items()
    for algorithm in ("PPO", "SAC", "DQN")
    if refusal(spaces.Discrete(2), space, algorithm) is None
}


@pytest.mark.parametrize(("space", "algorithm"), **by_name(LEARNED))
def test_actions_are_decoded_as_columns_and_one_by_one_alike(space, algorithm):
    adapter = adapt(spaces.Discrete(2), space, algorithm=algorithm)
    encoded = adapter.encoded_action_space
    encoded.seed(3)
    actions = [encoded.sample() for _ in range(NUM_ROWS)] + extremes(encoded)
    columns, num_rows = adapter.decode_columns(actions)
    assert num_rows == len(actions)
    rows = rows_of(space, columns, num_rows)
    assert same(rows, [adapter.decode(action) for action in actions])
    assert all(space.contains(row) for row in rows)


def extremes(encoded: spaces.Space[Any]) -> list[Any]:
    """What a diverging or saturated policy gives, -0.0 and the smallest numbers included."""
    size = encoded["continuous"].shape if isinstance(encoded, spaces.Dict) else encoded.shape
    if isinstance(encoded, (spaces.Discrete, spaces.MultiDiscrete)):
        return []
    numbers = [np.full(size, value, np.float32) for value in (-3e38, -1.0, -0.0, 1e-45, 0.1, 0.5, 1.0, 7.0, 3e38)]
    if isinstance(encoded, spaces.Dict):
        return [{"continuous": row, "discrete": encoded["discrete"].sample()} for row in numbers]
    return numbers


@settings(max_examples=300, deadline=None, database=None)
@given(numbers=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=4, max_size=4))
def test_any_number_is_decoded_to_the_same_bits(numbers):
    for name in ("box every bound", "box float64", "box int64 whole", "box bounds"):
        space = ACTIONS[name]
        adapter = adapt(spaces.Discrete(2), space)
        action = np.array(numbers[: adapter.num_continuous], np.float32)
        assert same(adapter.decode(action), adapter.decode_batch(action[None])[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_policy_that_diverged_is_an_error_either_way(bad):
    adapter = adapt(spaces.Discrete(2), spaces.Dict(force=box(-2, 2, (2,)), gear=spaces.Discrete(3)))
    action = {"continuous": np.array([0, bad], np.float32), "discrete": np.array([1])}
    with pytest.raises(SimError) as one:
        adapter.decode(action)
    with pytest.raises(SimError) as many:
        adapter.decode_columns([action])
    assert one.value.message == many.value.message
    assert "force[1]" in one.value.message


@pytest.mark.parametrize(
    "bad", [np.array([3]), np.array([-1]), np.int64(3), -1, np.array([1.5]), np.array([1, 1]), "1"]
)
def test_a_choice_that_is_none_is_an_error_either_way(bad):
    adapter = adapt(spaces.Discrete(2), spaces.Discrete(3, start=4))
    for call in (adapter.decode, lambda action: adapter.decode_batch([action])):
        with pytest.raises(SimError):
            call(bad)


def test_what_cannot_be_written_names_the_row_and_the_leaf():
    space = spaces.Dict(x=box(-1, 1, (2,)), n=spaces.Discrete(3))
    columns = {"x": np.zeros((3, 2), np.float32), "n": np.array([0, 1, 2])}
    assert to_json_batch(space, columns, 3)[2] == {"x": [0.0, 0.0], "n": 2}
    columns["x"][1, 1] = np.nan
    with pytest.raises(SimError, match=r"^actions\[1\].x\[1\]: nan has no JSON form"):
        to_json_batch(space, columns, 3, name="actions")


PLANT = spaces.Dict(
    [
        ("level", box(0, 2, (1,))),
        ("scalar", box(-1, 1, (), np.float64)),
        ("count", box(0, 9, (2,), np.int16)),
        ("big", box(0, 2**64 - 1, (1,), np.uint64)),
        ("wide", box(-INF, INF, (2, 2))),
        ("flags", box(0, 1, (2,), np.bool_)),
        ("mode", spaces.Discrete(3, start=1)),
        ("pair", spaces.MultiDiscrete([3, 3], start=[1, 1])),
        ("on", spaces.MultiBinary(2)),
        ("name", spaces.Text(3, charset="abc")),
        ("both", spaces.Tuple((spaces.Discrete(2), box(0, 1, (2,))))),
        ("pick", spaces.OneOf((spaces.Discrete(2), spaces.Text(2)))),
    ]
)
GOOD = {
    "level": 1,
    "scalar": 0.5,
    "count": [1, 2],
    "big": [3],
    "wide": [[1, 2], [3, 4.5]],
    "flags": [True, 0],
    "mode": 1,
    "pair": [1, 3],
    "on": [0, 1.0],
    "name": "ab",
    "both": [1, [0.25, 1]],
    "pick": [0, 1],
}
LEAVES = [True, False, None, "1", "", "abc", float("nan"), float("inf"), -1, 0, 1, 2, 3, 1.0, 1.9, 2.5, -0.0]
LEAVES += [1e300, 3.5e38, 10**400, 2**53 + 1, 2**63, 2**64, 1e19, 5e-324, np.float32(1), np.int64(1), np.array(1.5)]
NESTS = [[], [1], [[1]], [0, 1], [1, 2, 3], {}, {"a": 1}, (1, 2), np.array([1, 2]), [True, 1], [1, None], [[1, 2]]]
ODD = st.sampled_from([*LEAVES, *NESTS, [[1, 2], [3, True]]])


def outcome(call: Any) -> Any:
    try:
        return call()
    except SimError as error:
        return f"{error.message} {error.hint}"


def changed(draw: Any) -> list[Any]:
    """A few observations, good ones but for a few odd leaves, elements, missing or extra keys."""
    rows: list[Any] = [copy.deepcopy(GOOD) for _ in range(draw(st.integers(1, 4)))]
    for _ in range(draw(st.integers(0, 3))):
        at, odd = draw(st.integers(0, len(rows) - 1)), draw(ODD)
        key, how = draw(st.sampled_from(list(GOOD))), draw(st.integers(0, 9))
        if not isinstance(rows[at], dict):
            continue
        if how == 0:
            rows[at] = odd
        elif how == 1:
            rows[at].pop(key, None)
        elif how == 2:
            rows[at]["extra"] = odd
        elif how < 6 and isinstance(rows[at].get(key), list) and rows[at][key]:
            rows[at][key][-1] = odd
        else:
            rows[at][key] = odd
    return rows


@st.composite
def observations(draw: Any) -> list[Any]:
    return changed(draw)


def agree(rows: list[Any]) -> None:
    one_by_one = outcome(lambda: [from_json(PLANT, row, name=f"x[{i}]") for i, row in enumerate(rows)])
    at_once = outcome(lambda: rows_of(PLANT, from_json_batch(PLANT, rows, name="x"), len(rows)))
    assert same(at_once, one_by_one), (at_once, one_by_one)
    if not isinstance(at_once, str):
        assert all(PLANT.contains(value) for value in at_once)
        columns = columns_of(PLANT, at_once)
        assert to_json_batch(PLANT, columns, len(rows)) == [to_json(PLANT, value) for value in at_once]


def slowly(rows: list[Any]) -> Any:
    """Every number looked at on its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "plain_numbers", lambda *_: None)
        patch.setattr(values, "plain_bits", lambda *_: None)
        return outcome(lambda: [from_json(PLANT, row, name=f"x[{i}]") for i, row in enumerate(rows)])


QUIET = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=250, **QUIET)
@given(rows=observations())
def test_odd_values_have_the_same_outcome_at_once_and_one_by_one(rows):
    agree(rows)
    assert same(outcome(lambda: [from_json(PLANT, row, name=f"x[{i}]") for i, row in enumerate(rows)]), slowly(rows))


@pytest.mark.slow
def test_ten_thousand_odd_batches():
    @settings(max_examples=10_000, **QUIET)
    @given(rows=observations())
    def go(rows: list[Any]) -> None:
        agree(rows)

    go()


@pytest.mark.parametrize("odd", [True, "1", None, 1.9, float("nan"), 10**400, [1], {}, 11, -1])
def test_one_odd_number_among_many_is_found(odd):
    space = spaces.Dict(level=box(0, 10), mode=spaces.Discrete(3))
    rows = [{"level": [1.5], "mode": 1} for _ in range(200)]
    rows[137] = {"level": [1.5], "mode": odd}
    with pytest.raises(SimError, match=r"^observations\[137\].mode"):
        from_json_batch(space, rows, name="observations")
