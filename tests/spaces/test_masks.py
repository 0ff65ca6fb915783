"""Action masks: in any form that sims give them."""

import numpy as np
import pytest
from gymnasium import spaces
from tests.spaces.catalogue import box

from platotk.errors import ProjectError, SimError
from platotk.spaces import adapt

OBSERVATION = spaces.Box(-1, 1, (2,))


def adapted(action_space, algorithm="PPO"):
    return adapt(OBSERVATION, action_space, algorithm=algorithm, action_mask="info")


def bits(*values):
    return np.array(values, np.int8)


@pytest.mark.parametrize(
    ("space", "mask", "flat"),
    [
        (spaces.Discrete(3), None, [1, 1, 1]),
        (spaces.Discrete(3, start=5), bits(1, 0, 1), [1, 0, 1]),
        (spaces.Discrete(3), [True, False, True], [1, 0, 1]),
        (spaces.Discrete(3), (1.0, 0.0, 1.0), [1, 0, 1]),
        (spaces.MultiDiscrete([2, 3]), (bits(0, 1), bits(1, 1, 0)), [0, 1, 1, 1, 0]),
        (spaces.MultiDiscrete([2, 3]), [[0, 1], [1, 1, 0]], [0, 1, 1, 1, 0]),
        (spaces.MultiDiscrete([2, 3]), (bits(0, 1), None), [0, 1, 1, 1, 1]),
        (spaces.MultiDiscrete([2, 2]), (bits(0, 1), bits(1, 0)), [0, 1, 1, 0]),
        (spaces.MultiDiscrete([2, 3]), bits(0, 1, 1, 1, 0), [0, 1, 1, 1, 0]),
        (
            spaces.MultiDiscrete([[1, 2], [2, 1]]),
            ((bits(1), bits(0, 1)), (bits(1, 0), bits(1))),
            [1, 0, 1, 1, 0, 1],
        ),
        (spaces.MultiBinary(3), bits(0, 1, 2), [1, 0, 0, 1, 1, 1]),
        (spaces.MultiBinary([2, 1]), np.array([[0], [2]], np.int8), [1, 0, 1, 1]),
        (spaces.MultiBinary(2), bits(1, 0, 1, 1), [1, 0, 1, 1]),
        (box(-1, 1, (1,), np.int32), bits(1, 0, 1), [1, 0, 1]),
        (spaces.Text(2, charset="ab", min_length=1), bits(1, 0, 1, 0, 1), [1, 0, 1, 0, 1]),
        (
            spaces.Dict(a=spaces.Discrete(2), b=spaces.Tuple((spaces.Discrete(3), box(0, 1)))),
            {"a": bits(1, 0), "b": (bits(0, 1, 1), None)},
            [1, 0, 0, 1, 1],
        ),
        (spaces.Dict(a=spaces.Discrete(2), b=box(0, 1)), {"a": bits(1, 0)}, [1, 0]),
        (spaces.Dict(a=spaces.Discrete(2), b=spaces.Discrete(2)), {"a": None, "b": bits(0, 1)}, [1, 1, 0, 1]),
        (spaces.Dict(a=spaces.Discrete(2), b=spaces.Discrete(2)), bits(1, 0, 0, 1), [1, 0, 0, 1]),
        (spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))), np.array([[1, 0], [0, 1]]), [1, 0, 0, 1]),
    ],
)
def test_every_form_of_a_mask_becomes_one_flat_array(space, mask, flat):
    adapter = adapted(space)
    encoded = adapter.encode_mask(mask)
    assert encoded.dtype == np.float32
    assert encoded.tolist() == flat
    assert adapter.num_logits == len(flat)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(4, start=2),
        spaces.MultiDiscrete([3, 2], start=[1, 0]),
        spaces.MultiBinary(3),
        spaces.Dict(a=spaces.Discrete(3), b=spaces.Tuple((spaces.MultiBinary(2), spaces.Discrete(2)))),
    ],
)
def test_masks_mean_what_gymnasiums_sample_means_by_them(space):
    """Every action that the encoded mask allows, and no other, is one that the space can draw with it."""
    rng = np.random.default_rng(3)

    def drawn(part):
        if isinstance(part, spaces.Dict):
            return {key: drawn(child) for key, child in part.spaces.items()}
        if isinstance(part, spaces.Tuple):
            return tuple(drawn(child) for child in part.spaces)
        if isinstance(part, spaces.MultiDiscrete):
            return tuple(drawn(spaces.Discrete(int(n))) for n in part.nvec)
        if isinstance(part, spaces.MultiBinary):
            return rng.integers(0, 3, part.shape).astype(np.int8)
        mask = rng.integers(0, 2, int(part.n)).astype(np.int8)
        mask[rng.integers(part.n)] = 1
        return mask

    adapter = adapt(OBSERVATION, space, algorithm="DQN", action_mask="info")
    for seed in range(5):
        space.seed(seed)
        mask = drawn(space)
        allowed = {str(adapter.decode(int(j))) for j in np.flatnonzero(adapter.encode_mask(mask))}
        seen = set()
        for _ in range(1000):  # enough to draw every allowed action, which are at most 24
            seen.add(str(space.sample(mask=mask)))
            if seen >= allowed:
                break
        assert seen == allowed


def test_dqn_gets_a_mask_over_joint_actions():
    adapter = adapted(spaces.MultiDiscrete([2, 3]), "DQN")
    assert adapter.num_logits == 6
    assert adapter.encode_mask((bits(0, 1), bits(1, 1, 0))).tolist() == [0, 0, 0, 1, 1, 0]
    assert adapter.encode_mask(None).tolist() == [1] * 6
    with pytest.raises(SimError, match=r"nothing is allowed for action\[1\]"):
        adapter.encode_mask(bits(1, 1, 0, 0, 0))


@pytest.mark.parametrize(
    ("space", "mask", "message"),
    [
        (spaces.Discrete(3), bits(0, 0, 0), "nothing is allowed for action."),
        (spaces.MultiDiscrete([2, 2]), bits(1, 1, 0, 0), "nothing is allowed for action[1]."),
        (
            spaces.Dict(a=spaces.Discrete(2), b=spaces.MultiDiscrete([[2, 2]])),
            bits(1, 1, 1, 1, 0, 0),
            "nothing is allowed for action.b[0][1].",
        ),
        (
            spaces.Discrete(3),
            bits(1, 1),
            "action mask: got array([1, 1], dtype=int8), expected 3 zeros and ones",
        ),
        (spaces.Discrete(3), bits(1, 2, 0), "action mask: 2 is neither 0 (forbidden) nor 1 (allowed)"),
        (spaces.Discrete(3), [1, np.nan, 0], "nan is neither 0"),
        (spaces.Discrete(3), "yes", "expected 3 zeros and ones"),
        (spaces.Discrete(1), "y", "expected numbers"),
        (spaces.MultiDiscrete([2, 3]), (bits(1, 1),), "expected 2 masks"),
        (spaces.MultiDiscrete([2, 3]), (bits(1, 1), bits(1, 1)), "action mask[1]: has shape (2,)"),
        (spaces.MultiBinary(2), bits(0, 3), "0 or 1 (the bit is fixed) or 2 (it is free)"),
        (spaces.Dict(a=spaces.Discrete(2)), {"b": bits(1, 1)}, "action mask: unknown key 'b'"),
        (spaces.Dict(a=spaces.Discrete(2)), {}, "action mask.a: missing"),
        (spaces.Dict(a=spaces.Discrete(2)), bits(1, 1, 1), "expected a dict with 'a'"),
        (spaces.Tuple((spaces.Discrete(2),)), (), "expected a tuple of 1"),
        (spaces.Tuple((spaces.Discrete(2), box(0, 1))), (None, bits(1)), "action mask[1]: Box"),
    ],
)
def test_a_mask_that_does_not_fit_is_an_error(space, mask, message):
    with pytest.raises(SimError) as error:
        adapted(space).encode_mask(mask)
    assert message in error.value.message


def masked(**leaves):
    return spaces.Dict(action_mask=spaces.MultiBinary(4), level=box(0, 2), **leaves)


def test_a_mask_in_the_observation_is_found_and_taken_out_of_the_vector():
    adapter = adapt(masked(), spaces.Discrete(4, start=1))
    assert adapter.mask_source == "action_mask"
    encoded = adapter.encode({"action_mask": bits(1, 0, 0, 1), "level": [0.5]})
    assert encoded["vector"].tolist() == [0.5]
    assert encoded["action_mask"].tolist() == [1, 0, 0, 1]
    assert adapter.encoded_observation_space.contains(encoded)
    batch = adapter.encode_batch([{"action_mask": bits(1, 0, 0, 1), "level": [0.5]}] * 3)
    assert batch["action_mask"].shape == (3, 4)
    with pytest.raises(SimError, match=r"observation\.action_mask: missing"):
        adapter.encode({"level": [0.5]})
    with pytest.raises(SimError, match="nothing is allowed for action"):
        adapter.encode({"action_mask": bits(0, 0, 0, 0), "level": [0.5]})


def test_a_key_of_that_name_but_another_size_is_an_ordinary_observation():
    adapter = adapt(masked(), spaces.Discrete(3))
    assert adapter.mask_source is None
    assert adapter.encoded_observation_space.shape == (5,)
    assert adapt(masked(), box(-1, 1, (4,))).mask_source is None


def test_an_observation_that_is_all_mask_leaves_one_zero():
    adapter = adapt(spaces.Dict(action_mask=spaces.MultiBinary(4)), spaces.Discrete(4))
    encoded = adapter.encode({"action_mask": bits(1, 0, 0, 1)})
    assert encoded["vector"].tolist() == [0]
    assert encoded["action_mask"].tolist() == [1, 0, 0, 1]


def test_a_nested_mask_in_the_observation():
    space = spaces.Dict(
        legal=spaces.Dict(a=spaces.MultiBinary(2), b=spaces.MultiBinary(3)),
        camera=box(0, 255, (8, 8), np.uint8),
    )
    actions = spaces.Dict(a=spaces.Discrete(2), b=spaces.Discrete(3))
    adapter = adapt(space, actions, action_mask="legal")
    obs = {"legal": {"a": bits(0, 1), "b": bits(1, 1, 0)}, "camera": np.zeros((8, 8), np.uint8)}
    encoded = adapter.encode(obs)
    assert set(encoded) == {"image_0", "action_mask"}
    assert encoded["action_mask"].tolist() == [0, 1, 1, 1, 0]
    renamed = spaces.Dict(action_mask=space["legal"], x=box(0, 1))
    assert adapt(renamed, actions).mask_source == "action_mask"


def test_a_mask_from_info_comes_beside_the_observation():
    adapter = adapt(OBSERVATION, spaces.Discrete(3), action_mask="info")
    assert adapter.mask_source == "info"
    encoded = adapter.encode([0.5, 1], bits(0, 1, 1))
    assert encoded["action_mask"].tolist() == [0, 1, 1]
    assert adapter.encode([0.5, 1])["action_mask"].tolist() == [1, 1, 1]
    batch = adapter.encode_batch([[0, 1], [1, 0]], [None, bits(0, 1, 0)])
    assert batch["action_mask"].tolist() == [[1, 1, 1], [0, 1, 0]]
    assert adapter.encode_batch([])["action_mask"].shape == (0, 3)
    with pytest.raises(SimError, match="1 action masks for 2 observations"):
        adapter.encode_batch([[0, 1], [1, 0]], [None])


def test_a_mask_for_an_adapter_without_one_is_an_error():
    with pytest.raises(SimError, match="this adapter has none"):
        adapt(OBSERVATION, spaces.Discrete(3)).encode([0, 1], bits(0, 1, 1))


@pytest.mark.parametrize(
    ("actions", "source", "message", "hint"),
    [
        (
            spaces.Discrete(4),
            "actoin_mask",
            "the observation has no key 'actoin_mask'",
            "Did you mean 'action_mask'?",
        ),
        (box(-1, 1), "info", "'info' masks nothing", "Remove action_mask"),
    ],
)
def test_a_wrong_mask_source_is_an_error_of_the_project(actions, source, message, hint):
    with pytest.raises(ProjectError) as error:
        adapt(masked(), actions, action_mask=source)
    assert message in error.value.message
    assert hint in error.value.hint
