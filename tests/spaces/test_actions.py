"""Actions on their way out: whatever a policy chooses becomes an action of the sim's own space."""

import hypothesis
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import strategies as st
from tests.spaces.catalogue import ACTIONS, INF, box, same

from platotk.errors import ProjectError, SimError
from platotk.spaces import ALGORITHMS, adapt, fitting, refusal

OBSERVATION = spaces.Box(-1, 1, (2,))


def adapted(action_space, algorithm="PPO", **options):
    return adapt(OBSERVATION, action_space, algorithm=algorithm, **options)


def samples(space, count, seed=0):
    space.seed(seed)
    return [space.sample() for _ in range(count)]


def batched(actions):
    """A list of encoded actions as a policy gives a batch: arrays with a leading axis."""
    if isinstance(actions[0], dict):
        return {key: np.stack([action[key] for action in actions]) for key in actions[0]}
    return np.stack(actions)


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        (algorithm, name)
        for algorithm in ("PPO", "SAC", "DQN")
        for name, space in ACTIONS.items()
        if refusal(OBSERVATION, space, algorithm, action_scale=3.0) is None
    ],
)
def test_every_decoded_action_is_contained(algorithm, name):
    space = ACTIONS[name]
    adapter = adapted(space, algorithm, action_scale=3.0)
    encoded = samples(adapter.encoded_action_space, 40)
    decoded = [adapter.decode(action) for action in encoded]
    for action in decoded:
        assert space.contains(action), action
    assert all(map(same, decoded, adapter.decode_batch(encoded)))
    assert all(map(same, decoded, adapter.decode_batch(batched(encoded))))


@pytest.mark.parametrize("name", ["box every bound", "box int64 whole", "dict mixed", "nested"])
def test_a_thousand_samples(name):
    space = ACTIONS[name]
    adapter = adapted(space)
    encoded = samples(adapter.encoded_action_space, 1000)
    decoded = adapter.decode_batch(batched(encoded))
    assert all(space.contains(action) for action in decoded)
    assert all(same(adapter.decode(one), other) for one, other in zip(encoded, decoded, strict=True))


CONTINUOUS = {
    name: space for name, space in ACTIONS.items() if isinstance(adapted(space).encoded_action_space, spaces.Box)
}
SCALES = [None, 1e-3, 1e30]
ADAPTERS = {(name, scale): adapted(space, action_scale=scale) for name, space in CONTINUOUS.items() for scale in SCALES}


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(SCALES))
def test_even_absurd_numbers_end_inside(number, scale):
    for name, space in CONTINUOUS.items():
        adapter = ADAPTERS[name, scale]
        action = adapter.decode(np.full(adapter.num_continuous, number))
        assert space.contains(action)
        assert np.isfinite(np.asarray(action, dtype=np.float64)).all()


@pytest.mark.parametrize(
    ("space", "encoded"),
    [
        (spaces.Discrete(5, start=3), spaces.Discrete(5)),
        (box(-10, 10, (1,), np.int32), spaces.Discrete(21)),
        (spaces.MultiDiscrete([3, 4], start=[1, 1]), spaces.MultiDiscrete([3, 4])),
        (spaces.MultiBinary(3), spaces.MultiDiscrete([2, 2, 2])),
        (spaces.Text(2, min_length=1, charset="ab"), spaces.MultiDiscrete([2, 3])),
        (box(0, 3, (2,), np.uint8), spaces.MultiDiscrete([4, 4])),
        (box(0, 255, (16,), np.uint8), spaces.MultiDiscrete([256] * 16)),
        (box(0, 255, (17,), np.uint8), box(-1, 1, (17,))),
        (box(0, 256, (1,), np.int32), box(-1, 1, (1,))),
        (spaces.Box(np.array([0, 0]), np.array([9, 900]), dtype=np.int64), box(-1, 1, (2,))),
        (box(-2, 2, (2, 3)), box(-1, 1, (6,))),
        (box(0, INF, (2,)), box(-INF, INF, (2,))),
        (
            spaces.Dict(force=box(-2, 2, (2,)), gear=spaces.Discrete(3)),
            spaces.Dict(continuous=box(-1, 1, (2,)), discrete=spaces.MultiDiscrete([3])),
        ),
    ],
)
def test_what_the_policy_chooses_from(space, encoded):
    assert adapted(space).encoded_action_space == encoded


def test_the_largest_integer_boxes_give_way_first():
    space = spaces.Dict(
        [
            ("a", box(0, 255, (6,), np.uint8)),
            ("b", box(0, 255, (9,), np.uint8)),
            ("c", box(0, 255, (7,), np.uint8)),
            ("d", spaces.Discrete(2)),
        ]
    )
    encoded = adapted(space).encoded_action_space
    assert encoded["continuous"].shape == (9,)
    assert encoded["discrete"].nvec.tolist() == [256] * 13 + [2]


def test_choices_come_back_with_their_start_and_dtype():
    assert same(adapted(spaces.Discrete(20, start=1)).decode(0), np.int64(1))
    assert same(adapted(spaces.Discrete(4, start=2, dtype=np.int32)).decode(np.array(3)), np.int32(5))
    assert same(adapted(spaces.Discrete(4)).decode(np.array([3])), np.int64(3))
    pair = spaces.MultiDiscrete([3, 2], start=[5, -2], dtype=np.int32)
    assert same(adapted(pair).decode([2, 0]), np.array([7, -2], np.int32))
    assert same(adapted(box(-10, 10, (1,), np.int32)).decode(20), np.array([10], np.int32))
    assert same(adapted(box(-128, 127, (), np.int8)).decode(255), np.array(127, np.int8))
    assert same(adapted(box(0, 1, (2,), np.bool_)).decode([1, 0]), np.array([True, False]))
    assert same(adapted(spaces.MultiBinary([2, 1])).decode([1, 0]), np.array([[1], [0]], np.int8))


def test_text_ends_where_the_policy_ends_it():
    adapter = adapted(spaces.Text(3, min_length=1, charset="cab"))
    assert adapter.decode([0, 3, 1]) == "a"
    assert adapter.decode([2, 1, 0]) == "cba"
    assert adapter.nvec == (3, 4, 4)


def test_numbers_are_scaled_from_minus_one_and_one_to_exactly_the_bounds():
    adapter = adapted(spaces.Box(np.array([-3.0, 0.1]), np.array([0.7, 1e6]), dtype=np.float64))
    assert adapter.decode([-1, -1]).tolist() == [-3.0, 0.1]
    assert adapter.decode([1, 1]).tolist() == [0.7, 1e6]
    assert adapter.decode([5, -5]).tolist() == [0.7, 0.1]
    assert adapter.decode([0, 0]).tolist() == pytest.approx([-1.15, 500_000.05])
    assert same(adapted(box(-2, 3, ())).decode([1.0]), np.array(3, np.float32))


def test_large_integers_are_rounded_half_to_even_and_clipped():
    adapter = adapted(box(-512, 512, (1,), np.int32))
    expected = {2.5: 2, 3.5: 4, 1.5: 2, -2.5: -2, 2.6: 3, 512: 512, 511.6: 512, -9000: -512}
    assert {at: adapter.decode([at / 512]).item() for at in expected} == expected


def test_half_bounded_numbers_reach_from_their_bound_on():
    adapter = adapted(spaces.Box(np.array([2, -INF], np.float32), np.array([INF, 5], np.float32)), action_scale=10.0)
    assert isinstance(adapter.encoded_action_space, spaces.Box)
    for given, expected in (
        ((-1, 1), (2, 5)),
        ((0, 0), (7, 0)),
        ((1, -1), (12, -5)),
        ((-3, 3), (2, 5)),
        ((3, -3), (22, -15)),
    ):
        assert adapter.decode(given).tolist() == list(expected)


def test_unbounded_numbers_are_passed_on_for_ppo_and_scaled_for_sac():
    space = box(-INF, INF, (2,))
    assert adapted(space).decode([12.5, -3]).tolist() == [12.5, -3]
    assert adapted(space, action_scale=2).decode([12.5, -3]).tolist() == [25, -6]
    sac = adapted(space, "SAC", action_scale=2)
    assert sac.encoded_action_space == box(-1, 1, (2,))
    assert sac.decode([0.5, -3]).tolist() == [1, -2]


def test_sac_reaches_from_the_bound_to_the_scale():
    adapter = adapted(
        spaces.Box(np.array([2, -INF], np.float32), np.array([INF, 5], np.float32)), "SAC", action_scale=10.0
    )
    assert adapter.decode([-1, 1]).tolist() == [2, 5]
    assert adapter.decode([1, -1]).tolist() == [12, -5]
    assert adapter.decode([9, -9]).tolist() == [12, -5]


def test_scales_by_leaf():
    space = spaces.Dict(tank=spaces.Tuple((box(0, INF), box(0, 1))), pump=box(-INF, INF, (1,)), gear=spaces.Discrete(2))
    adapter = adapted(space, action_scale={"tank[0]": 4.0})
    action = adapter.decode({"continuous": [1, 1, 1], "discrete": [0]})
    assert action["tank"][0].tolist() == [4]
    assert action["pump"].tolist() == [1]
    root = adapt(OBSERVATION, box(0, INF), action_scale={"action": 4.0})
    assert root.decode([1.0]).tolist() == [4]


@pytest.mark.parametrize(
    ("scale", "message", "hint"),
    [
        ({"pmp": 1.0}, "there is no action leaf 'pmp'", "Did you mean 'pump'?"),
        ({"valve": 1.0}, "'valve' needs no scale", "Remove it"),
        ({"gear": 1.0}, "'gear' needs no scale", "Remove it"),
        ({"pump": 0}, "action_scale.pump: 0 is not a positive number", "For example"),
        ({"pump": True}, "True is not a positive number", "For example"),
        (-1.0, "action_scale: -1.0 is not a positive number", "For example"),
        (INF, "inf is not a positive number", "For example"),
        ("big", "'big' is not a positive number", "For example"),
    ],
)
def test_a_wrong_action_scale_is_an_error_of_the_project(scale, message, hint):
    space = spaces.Dict(pump=box(-INF, INF), valve=box(0, 1), gear=spaces.Discrete(2))
    with pytest.raises(ProjectError) as error:
        adapted(space, action_scale=scale)
    assert message in error.value.message
    assert hint in error.value.hint


def test_dqn_chooses_among_joint_actions():
    adapter = adapted(spaces.Dict(a=spaces.Discrete(3, start=1), b=spaces.MultiBinary(2)), "DQN")
    assert adapter.encoded_action_space == spaces.Discrete(12)
    decoded = adapter.decode_batch(np.arange(12))
    assert len({(int(action["a"]), *action["b"].tolist()) for action in decoded}) == 12
    assert decoded[0] == {"a": 1, "b": pytest.approx([0, 0])}
    assert decoded[11]["a"] == 3
    assert adapter.decode(11)["b"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("space", "fit"),
    [
        (spaces.Discrete(3), "PPO APPO IMPALA BC MARWIL SAC DQN"),
        (box(-10, 10, (1,), np.int32), "PPO APPO IMPALA BC MARWIL SAC DQN"),
        (spaces.MultiDiscrete([32, 32]), "PPO APPO IMPALA BC MARWIL DQN"),
        (spaces.MultiDiscrete([32, 33]), "PPO APPO IMPALA BC MARWIL"),
        (box(-1, 1, (2,)), "PPO APPO IMPALA BC MARWIL SAC"),
        (spaces.Tuple((box(-1, 1), box(0, 5))), "PPO APPO IMPALA BC MARWIL SAC"),
        (box(0, INF, (2,)), "PPO APPO IMPALA BC MARWIL"),
        (spaces.Tuple((box(-1, 1), spaces.Discrete(2))), "PPO APPO IMPALA BC MARWIL"),
        (spaces.OneOf((spaces.Discrete(2),)), ""),
    ],
)
def test_which_algorithms_fit(space, fit):
    assert fitting(OBSERVATION, space) == fit.split()
    if fit:
        assert [name for name in ALGORITHMS if adapted(space).fits(name)] == fit.split()


def test_names_of_algorithms_unknown_here_count_as_ppo():
    assert adapted(box(0, INF), "MyOwnPPO").encoded_action_space == box(-INF, INF, (1,))
    assert adapt(OBSERVATION, spaces.Discrete(2), algorithm=None).algorithm == "PPO"


@pytest.mark.parametrize(
    ("algorithm", "space", "message", "hint"),
    [
        ("DQN", box(-1, 1), "DQN cannot learn continuous actions, such as action", "`algorithm: SAC` or PPO"),
        (
            "DQN",
            spaces.Dict(force=box(-1, 1), gear=spaces.Discrete(2)),
            "such as action.force",
            "`algorithm: PPO`",
        ),
        ("DQN", spaces.MultiDiscrete([32, 33]), "1,056 joint actions, at most 1,024", "`algorithm: PPO`"),
        ("SAC", spaces.MultiDiscrete([2, 2]), "SAC cannot learn this action space: 2 choices", "PPO` or DQN"),
        (
            "SAC",
            spaces.MultiDiscrete([99, 99]),
            "SAC cannot learn this action space",
            "Use `algorithm: PPO`.",
        ),
        (
            "SAC",
            spaces.Dict(force=box(-INF, INF), gear=spaces.Discrete(2)),
            "1 choice and 1 continuous",
            "Use `algorithm: PPO`.",
        ),
        (
            "SAC",
            spaces.Dict(tank=spaces.Tuple((box(0, INF),))),
            "action.tank[0]: SAC needs bounded actions, and Box(0.0, inf, (1,), float32) is not bounded.",
            'Write `action_scale: {"tank[0]": 1.0}` into plato.yaml',
        ),
        ("CQL", box(-INF, INF), "action: CQL needs bounded actions", 'action_scale: {"action": 1.0}'),
        ("CQL", spaces.Discrete(2), "1 choice; it takes continuous numbers only", "MARWIL` or BC"),
        ("IQL", spaces.Tuple((box(0, 1), spaces.Discrete(2))), "1 choice and 1 continuous; it takes", "MARWIL` or BC"),
        ("SAC", box(-INF, INF), "action: SAC needs bounded actions", 'action_scale: {"action": 1.0}'),
        ("PPO", spaces.Discrete(2**17 + 1), "131,073, at most 131,072 can be learned", "Give the sim a Box"),
        ("PPO", spaces.MultiDiscrete([2**16, 2**16, 2]), "131,074, at most 131,072", "Give the sim a Box"),
        ("PPO", spaces.Text(10**9), "has too many choices", "Give the sim a Box"),
        ("PPO", spaces.Dict({1: box(0, 1), "1": box(0, 1)}), "action.1: two leaves have this name", "Rename"),
        ("PPO", spaces.OneOf((spaces.Discrete(2), box(0, 1))), "not one of several", '"which": Discrete(2)'),
        ("PPO", spaces.Dict(x=spaces.Sequence(box(0, 1))), "action.x: ", '"count": Discrete(MAX + 1)'),
        ("PPO", spaces.Graph(box(0, 1), None), "its size is not fixed", "Use a fixed size"),
        ("PPO", spaces.Dict({}), "the space is empty", None),
        ("PPO", box(0, 1, (0,)), "the space has no elements", None),
    ],
)
def test_what_cannot_be_learned_is_refused_with_a_recipe(algorithm, space, message, hint):
    with pytest.raises(SimError) as error:
        adapted(space, algorithm)
    assert message in error.value.message
    assert hint is None or hint in error.value.hint


@pytest.mark.parametrize("space", [spaces.Discrete(5000), spaces.MultiDiscrete([5000, 3]), spaces.Discrete(2**17)])
def test_choices_may_be_many(space):
    adapter = adapted(space)
    assert sum(adapter.nvec) == adapter.num_logits > 4096
    last = adapter.decode(np.array(adapter.nvec) - 1 if len(adapter.nvec) > 1 else adapter.nvec[0] - 1)
    assert space.contains(last)
    assert np.max(last) == max(adapter.nvec) - 1


def test_beside_many_choices_small_integers_are_continuous():
    small = box(0, 9, (1,), np.int32)
    assert adapted(spaces.Dict(go=spaces.Discrete(4000), small=small)).nvec == (4000, 10)
    adapter = adapted(spaces.Dict(go=spaces.Discrete(5000), small=small))
    assert (adapter.nvec, adapter.num_continuous) == ((5000,), 1)


def test_keys_that_read_like_paths_are_quoted_in_names():
    adapter = adapted(ACTIONS["dict keys like paths"])
    names = [line.split(": ")[0] for line in adapter.describe()[1:]]
    assert sorted(names) == sorted(
        [
            'action["p.q"]',
            "action.p.q",
            "action.p.r[0]",
            "action.p.r[1]",
            'action["p.r[0]"]',
            "action.a b",
            'action[""]',
        ]
    )


def test_a_scale_by_a_dotted_key_needs_no_quotes_where_there_is_but_one():
    space = spaces.Dict({"p.q": box(-INF, INF), "r": spaces.Dict({"q.s": box(-INF, INF)})})
    for one, other in (("p.q", "r.q.s"), ('["p.q"]', 'r["q.s"]')):
        adapter = adapted(space, "SAC", action_scale={one: 4.0, other: 2.0})
        decoded = adapter.decode(np.ones(2, np.float32))
        assert (decoded["p.q"][0], decoded["r"]["q.s"][0]) == (4.0, 2.0)
    space = spaces.Dict({"p.q": box(-INF, INF), "p": spaces.Dict({"q": box(-INF, INF)})})
    decoded = adapted(space, "SAC", action_scale={'["p.q"]': 4.0, "p.q": 2.0}).decode(np.ones(2, np.float32))
    assert (decoded["p.q"][0], decoded["p"]["q"][0]) == (4.0, 2.0)


class Colour(spaces.Space):
    """A space of somebody's own."""


def test_a_space_of_somebodys_own_is_refused():
    with pytest.raises(SimError, match="Colour is not one of Gymnasium's own spaces"):
        adapted(spaces.Dict(colour=Colour()))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ({"continuous": [0, np.nan], "discrete": [0, 1]}, "NaN for action leaf action.force[1]"),
        (
            {"continuous": [np.inf, 0], "discrete": [0, 1]},
            "an infinite number for action leaf action.force[0]",
        ),
        ({"continuous": [0], "discrete": [0, 1]}, "gave 1 numbers for 1 action(s), expected 2 each"),
        ({"continuous": [0, 0], "discrete": [0, 7]}, "The policy chose [[0, 7]]"),
        ({"continuous": [0, 0], "discrete": [0, -1]}, "The policy chose [[0, -1]]"),
        ({"continuous": [0, 0], "discrete": [0.5, 1.0]}, "expected whole numbers"),
        ({"continuous": ["a", "b"], "discrete": [0, 1]}, "expected numbers"),
        ({"continuous": [0, 0]}, "expected a dict with 'continuous' and 'discrete'"),
        ([0, 0, 0], "expected a dict with 'continuous' and 'discrete'"),
    ],
)
def test_what_is_no_action_is_refused(action, message):
    adapter = adapted(spaces.Dict(force=box(-1, 1, (2,)), gears=spaces.MultiDiscrete([2, 3])))
    with pytest.raises(SimError) as error:
        adapter.decode(action)
    assert message in error.value.message
    with pytest.raises(SimError):
        adapter.decode_batch([action, action])


def test_no_action_is_out_of_range_by_the_quick_way_either():
    adapter = adapted(spaces.Discrete(3))
    for action in (3, -1, np.int64(3), 1.5, np.nan):
        with pytest.raises(SimError, match="The policy"):
            adapter.decode(action)


def test_a_batch_of_nothing():
    assert adapted(spaces.Discrete(3)).decode_batch([]) == []
    assert adapted(spaces.Discrete(3)).decode_batch(np.zeros((0,), np.int64)) == []


def test_a_scale_beyond_every_float_is_refused():
    with pytest.raises(ProjectError, match="is not a positive number"):
        adapt(spaces.Discrete(2), box(0, INF), action_scale=10**400)
