"""Observations on their way in: what the network sees, and what is refused."""

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tests.spaces.catalogue import OBSERVATIONS, by_name, same

from platotk.errors import SimError
from platotk.spaces import adapt

ACTION = spaces.Discrete(2)


def adapted(observation_space, **options):
    return adapt(observation_space, ACTION, **options)


def samples(space, count, seed=0):
    space.seed(seed)
    return [space.sample() for _ in range(count)]


def vector_of(space, obs):
    return adapted(space).encode(obs).tolist()


@pytest.mark.parametrize("space", **by_name(OBSERVATIONS))
def test_every_observation_lands_in_the_encoded_space(space):
    adapter = adapted(space)
    for obs in samples(space, 30):
        encoded = adapter.encode(obs)
        assert adapter.encoded_observation_space.contains(encoded)
        if isinstance(encoded, np.ndarray):
            assert encoded.shape == adapter.numeric.shape


@pytest.mark.parametrize("space", **by_name(OBSERVATIONS))
def test_a_batch_is_the_same_as_one_by_one(space):
    adapter = adapted(space)
    observations = samples(space, 9, seed=1)
    one_by_one = [adapter.encode(obs) for obs in observations]
    batch = adapter.encode_batch(observations)
    if isinstance(batch, dict):
        stacked = {key: np.stack([one[key] for one in one_by_one]) for key in one_by_one[0]}
        assert set(stacked) == set(batch)
        for key, array in stacked.items():
            assert array.dtype == batch[key].dtype
            np.testing.assert_array_equal(array, batch[key])
    else:
        np.testing.assert_array_equal(np.stack(one_by_one), batch)
        assert batch.dtype == np.float32


@pytest.mark.parametrize("space", **by_name(OBSERVATIONS))
def test_a_batch_of_nothing_has_the_right_shape(space):
    adapter = adapted(space)
    batch = adapter.encode_batch([])
    parts = batch if isinstance(batch, dict) else {"": batch}
    wanted = adapter.encoded_observation_space
    for key, array in parts.items():
        part = wanted[key] if isinstance(batch, dict) else wanted
        assert array.shape == (0, *part.shape)
        assert array.dtype == part.dtype


@pytest.mark.parametrize("name", ["nested", "images and numbers", "one of", "multi discrete start"])
def test_a_thousand_samples(name):
    space = OBSERVATIONS[name]
    adapter = adapted(space)
    observations = samples(space, 1000, seed=2)
    batch = adapter.encode_batch(observations)
    for row, obs in enumerate(observations):
        encoded = adapter.encode(obs)
        assert adapter.encoded_observation_space.contains(encoded)
        if isinstance(encoded, dict):
            assert all(np.array_equal(encoded[key], batch[key][row]) for key in encoded)
        else:
            assert np.array_equal(encoded, batch[row])


@settings(max_examples=100, deadline=None)
@given(
    arrays.arrays(
        st.sampled_from([np.float64, np.float32, np.float16, np.int64, np.uint8, np.bool_]),
        st.sampled_from([(3,), (), (1,), (3, 1), (2,), (0,)]),
    )
)
def test_whatever_array_is_either_encoded_or_refused_by_name(array):
    adapter = adapted(spaces.Box(-1, 1, (3,)))
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
        if array.shape == (3,) and np.isfinite(narrow).all():
            assert np.array_equal(adapter.encode(array), narrow)
        else:
            with pytest.raises(SimError, match=r"^observation"):
                adapter.encode(array)


def test_numbers_are_flattened_in_the_order_of_the_space():
    space = spaces.Dict([("z", spaces.Box(0, 9, (2, 2))), ("a", spaces.Box(0, 9, ()))])
    assert vector_of(space, {"a": 5.0, "z": [[1, 2], [3, 4]]}) == [1, 2, 3, 4, 5]


def test_choices_become_one_hots_whatever_their_start():
    assert vector_of(spaces.Discrete(3, start=-1), -1) == [1, 0, 0]
    assert vector_of(spaces.Discrete(3, start=-1), np.int64(1)) == [0, 0, 1]
    assert vector_of(spaces.Discrete(3), np.array(2)) == [0, 0, 1]
    assert vector_of(spaces.MultiDiscrete([2, 3], start=[1, 5]), np.array([2, 5])) == [0, 1, 1, 0, 0]


def test_a_choice_among_very_many_becomes_one_number():
    space = spaces.Discrete(1025, start=10)
    assert [vector_of(space, value) for value in (10, 522, 1034)] == [[-1], [0], [1]]
    assert adapted(space).numeric.tolist() == [True]


def test_bits_and_text():
    assert vector_of(spaces.MultiBinary(3), [1, 0, 1]) == [1, 0, 1]
    assert vector_of(spaces.Box(0, 1, (2,), np.bool_), np.array([True, False])) == [1, 0]
    text = spaces.Text(2, min_length=0, charset="ba")
    assert vector_of(text, "b") == [0, 1, 0, 0, 0, 1]
    assert vector_of(text, "") == [0, 0, 1, 0, 0, 1]


def test_one_of_shows_which_option_and_only_that_one():
    space = spaces.OneOf((spaces.Discrete(2), spaces.Box(0, 9, (2,))))
    assert vector_of(space, (0, 1)) == [1, 0, 0, 1, 0, 0]
    assert vector_of(space, (np.int64(1), np.array([7.0, 8.0]))) == [0, 1, 0, 0, 7, 8]


def test_only_numbers_may_be_normalised():
    space = spaces.Dict(
        [
            ("level", spaces.Box(0, 2, (2,))),
            ("count", spaces.Box(0, 9, (1,), np.int32)),
            ("mode", spaces.Discrete(3)),
            ("bits", spaces.MultiBinary(2)),
            ("wide", spaces.MultiDiscrete([2, 5000])),
        ]
    )
    assert adapted(space).numeric.tolist() == [True] * 3 + [False] * 5 + [False] * 2 + [True]
    with pytest.raises(ValueError, match="read-only"):
        adapted(space).numeric[0] = False


def test_images_are_found_and_laid_out_as_channels_rows_columns():
    adapter = adapted(OBSERVATIONS["images and numbers"])
    obs = {
        "front": np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3),
        "rear": np.full((1, 8, 9), 0.25, np.float32),
        "speed": [0.5, -0.5],
        "gear": 3,
    }
    encoded = adapter.encode(obs)
    assert list(encoded) == ["vector", "image_0", "image_1"]
    assert encoded["image_0"].dtype == np.uint8
    np.testing.assert_array_equal(encoded["image_0"], obs["front"].transpose(2, 0, 1))
    np.testing.assert_array_equal(encoded["image_1"], obs["rear"])
    assert encoded["vector"].tolist() == [0.5, -0.5, 0, 0, 0, 1]  # as the space stores them


def test_images_are_scaled_by_their_bounds():
    space = spaces.Box(-2, 6, (8, 9, 2), np.float64)
    image = adapted(space).encode(np.full((8, 9, 2), 4.0))["image_0"]
    assert image.dtype == np.float32
    assert image.shape == (2, 8, 9)
    assert np.all(image == 0.75)
    beyond = adapted(space).encode(np.full((8, 9, 2), 99.0))["image_0"]
    assert np.all(beyond == 1.0)


def test_a_grid_of_few_values_in_uint8_uses_the_whole_range():
    space = spaces.Box(0, 1, (10, 10, 2), np.uint8)
    image = adapted(space).encode(np.ones((10, 10, 2), np.uint8))["image_0"]
    assert image.dtype == np.float32
    assert np.all(image == 1.0)


def test_bytes_of_another_dtype_are_rounded_and_clipped():
    space = spaces.Box(0, 255, (8, 8), np.uint8)
    for value, expected in ((300, 255), (-5, 0), (7.6, 8), (7, 7)):
        image = adapted(space).encode(np.full((8, 8), value))["image_0"]
        assert image.shape == (1, 8, 8)
        assert np.all(image == expected)


@pytest.mark.parametrize("shape", [(7, 84, 3), (84, 84, 17), (20, 20, 20), (4, 84, 84, 3), (9, 9)])
def test_what_is_not_an_image_is_flattened(shape):
    adapter = adapted(spaces.Box(-1, 1, shape))
    assert adapter.encoded_observation_space.shape == (int(np.prod(shape)),)


def test_an_observation_of_nothing_is_one_zero():
    assert vector_of(spaces.Dict({}), {}) == [0]


def test_what_a_sim_hands_over_may_be_a_list_another_dtype_or_a_bare_number():
    assert vector_of(spaces.Box(-1, 1, (2,)), [0.5, 1]) == [0.5, 1]
    assert vector_of(spaces.Box(-1, 1, (2,)), np.array([0.5, 1.0])) == [0.5, 1]
    assert vector_of(spaces.Box(-1, 1, (2,)), (True, False)) == [1, 0]
    assert vector_of(spaces.Box(-1, 1, (1,)), 0.5) == [0.5]
    assert vector_of(spaces.Box(-1, 1, ()), np.array([0.5])) == [0.5]
    assert vector_of(spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))), [1, 0]) == [0, 1, 1, 0]


def test_values_outside_the_bounds_are_let_through():
    assert vector_of(spaces.Box(-1, 1, (1,)), np.array([50.0])) == [50]


def test_large_numbers_are_finite_still():
    assert np.isfinite(vector_of(spaces.Box(-1, 1, (2,)), np.array([1e30, -3e38]))).all()


def test_the_sim_may_reuse_its_array():
    adapter = adapted(spaces.Box(-1, 1, (2,)))
    obs = np.array([0.25, 0.5], np.float32)
    encoded = adapter.encode(obs)
    obs[:] = -1
    assert encoded.tolist() == [0.25, 0.5]
    image = spaces.Box(0, 255, (3, 8, 8), np.uint8)
    pixels = np.zeros((3, 8, 8), np.uint8)
    encoded = adapted(image).encode(pixels)
    pixels[:] = 9
    assert not encoded["image_0"].any()


def test_an_adapted_list_in_a_batch_may_be_of_mixed_types():
    adapter = adapted(spaces.Dict(x=spaces.Box(-1, 1, (1,)), y=spaces.Discrete(3)))
    batch = adapter.encode_batch(
        [
            {"x": 0.5, "y": 1},
            {"x": [0.25], "y": np.int32(2)},
            {"x": np.array([1.0]), "y": np.array([0])},
        ]
    )
    assert batch.tolist() == [[0.5, 0, 1, 0], [0.25, 0, 0, 1], [1, 1, 0, 0]]


TANK = spaces.Dict(
    tank=spaces.Dict(level=spaces.Box(0, 2, (2,)), mode=spaces.Discrete(3, start=1)),
    parts=spaces.Tuple((spaces.MultiBinary(2), spaces.Text(3, charset="abc"))),
    camera=spaces.Box(0, 1, (8, 8, 1)),
    pick=spaces.OneOf((spaces.Discrete(2), spaces.Box(0, 1, (2,)))),
    grid=spaces.MultiDiscrete([[2, 2], [2, 2]]),
)


def tank(**changes):
    obs = {
        "tank": {"level": np.zeros(2, np.float32), "mode": 1},
        "parts": (np.zeros(2, np.int8), "ab"),
        "camera": np.zeros((8, 8, 1), np.float32),
        "pick": (0, 1),
        "grid": np.zeros((2, 2), np.int64),
    }
    obs.update(changes)
    return obs


LEVEL = {"level": np.zeros(2), "mode": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tank": {**LEVEL, "level": [0, np.nan]}}, "observation.tank.level[1]: nan"),
        ({"tank": {**LEVEL, "level": [np.inf, 0]}}, "observation.tank.level[0]: inf"),
        ({"tank": {**LEVEL, "level": np.array([1e300, 0])}}, "too large for float32"),
        (
            {"tank": {**LEVEL, "level": np.zeros(3)}},
            "observation.tank.level: has shape (3,), its space has (2,)",
        ),
        ({"tank": {**LEVEL, "level": [[1], [2, 3]]}}, "observation.tank.level: rows of different lengths"),
        ({"tank": {**LEVEL, "level": "high"}}, "observation.tank.level: expected numbers"),
        ({"tank": {**LEVEL, "level": None}}, "observation.tank.level: expected numbers"),
        ({"tank": {**LEVEL, "level": np.array([1j, 2])}}, "observation.tank.level: expected numbers"),
        ({"tank": {**LEVEL, "mode": 0}}, "observation.tank.mode: 0 is not one of 1..3"),
        ({"tank": {**LEVEL, "mode": 1.5}}, "observation.tank.mode: 1.5 is not a whole number"),
        ({"tank": {**LEVEL, "mode": np.nan}}, "observation.tank.mode: nan is not a whole number"),
        ({"tank": {"level": np.zeros(2)}}, "observation.tank.mode: missing"),
        ({"tank": {**LEVEL, "lvel": 1}}, "observation.tank: unknown key 'lvel'"),
        ({"tank": 5}, "observation.tank: expected a dict with 'level', 'mode', got 5"),
        ({"parts": (np.zeros(2),)}, "observation.parts: 1 parts, its space has 2"),
        ({"parts": 3}, "observation.parts: expected a tuple of 2, got 3"),
        ({"parts": (np.array([0, 2]), "ab")}, "observation.parts[0]: 2 is neither 0 nor 1"),
        ({"parts": (np.zeros(2), "abcd")}, "observation.parts[1]: 4 characters, allowed are 1 to 3"),
        ({"parts": (np.zeros(2), "ax")}, "observation.parts[1]: 'x' is not one of the space's characters"),
        ({"parts": (np.zeros(2), 7)}, "observation.parts[1]: expected a string, got 7"),
        ({"camera": np.full((8, 8, 1), np.nan)}, "observation.camera: holds nan"),
        ({"camera": np.zeros((8, 8))}, "observation.camera: has shape (8, 8)"),
        ({"pick": (2, 1)}, "observation.pick: option 2 is not one of 0..1"),
        ({"pick": 1}, "observation.pick: expected (index, value), got 1"),
        ({"pick": (1, [0, np.nan])}, "observation.pick[1][1]: nan"),
        ({"grid": np.array([[0, 1], [2, 0]])}, "observation.grid[1][0]: 2 is not one of 0..1"),
        ({"unknown": 1}, "observation: unknown key 'unknown'"),
    ],
)
def test_what_cannot_be_learned_from_is_an_error_that_names_the_leaf(changes, message):
    adapter = adapted(TANK)
    adapter.encode(tank())
    with pytest.raises(SimError) as one, np.errstate(over="ignore"):
        adapter.encode(tank(**changes))
    assert message in one.value.message
    with pytest.raises(SimError) as many, np.errstate(over="ignore"):
        adapter.encode_batch([tank(), tank(**changes)])
    assert many.value.message == one.value.message


def test_an_unknown_key_comes_with_a_suggestion():
    with pytest.raises(SimError) as error:
        adapted(TANK).encode(tank(tank={**LEVEL, "lvel": 1}))
    assert error.value.hint == "Did you mean 'level'?"
    with pytest.raises(SimError) as error:
        adapted(TANK).encode(tank(tank={"level": np.zeros(2), "mod": 1}))
    assert error.value.message == "observation.tank.mode: missing."
    assert error.value.hint == "There is 'mod'."


class Colour(spaces.Space):
    """A space of somebody's own."""


@pytest.mark.parametrize(
    ("space", "message", "recipe"),
    [
        (spaces.Sequence(spaces.Discrete(3)), "its length is not fixed", "Pad it to a fixed length"),
        (spaces.Graph(spaces.Discrete(3), None), "its number of nodes is not fixed", "Pad it"),
        (Colour(), "Colour is not one of Gymnasium's own spaces", "Build the observation from Box"),
        (spaces.Text(10**7), "the most is 16,777,216", "Make the space smaller"),
    ],
)
def test_what_cannot_be_learned_from_at_all_is_refused_with_a_recipe(space, message, recipe):
    with pytest.raises(SimError) as error:
        adapted(spaces.Dict(ok=spaces.Discrete(2), bad=space))
    assert error.value.message.startswith("observation.bad: ")
    assert message in error.value.message
    assert recipe in error.value.hint


def test_equality_of_values_is_strict_in_these_tests():
    assert same({"a": (np.zeros(2),)}, {"a": (np.zeros(2),)})
    assert not same({"a": (np.zeros(2),)}, {"a": (np.zeros(2, np.float32),)})
