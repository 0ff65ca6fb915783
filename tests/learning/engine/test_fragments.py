"""Fragments: which rows are steps, where they lead, and that cutting and joining loses none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from platotk.learning.engine.batches import row_order
from platotk.learning.engine.fragments import Fragment, FragmentBuilder, joined

NO = np.zeros(2, dtype=bool)


def counted(num_sims: int, lengths: list[list[int]], num_steps: int) -> Fragment:
    """Sims whose observation is [sim, episode, step]; episode k of sim i ends after lengths[i][k] steps."""
    state = [[sim, 0, 0] for sim in range(num_sims)]
    is_done = np.zeros(num_sims, dtype=bool)
    builder = FragmentBuilder(num_sims, np.array(state, dtype=np.float64), 2, is_done)
    for _ in range(num_steps):
        acted_on = np.array(state, dtype=np.float32)
        terminated = np.zeros(num_sims, dtype=bool)
        for sim, (_, episode, step) in enumerate(state):
            if is_done[sim]:
                state[sim] = [sim, episode + 1, 0]
            else:
                state[sim] = [sim, episode, step + 1]
                terminated[sim] = step + 1 == lengths[sim][episode]
        rewards = acted_on[:, 2].astype(np.float64)
        builder.add({"actions": acted_on}, rewards, terminated, ~terminated & False, np.array(state, dtype=np.float64))
        is_done = builder.is_done
    return builder.fragment(3)


def test_the_step_after_an_episode_is_a_reset_and_is_left_out() -> None:
    fragment = counted(2, [[2, 3], [10]], num_steps=6)
    # Sim 0: two steps, a reset, three steps. Sim 1: six steps.
    assert len(fragment) == 5 + 6
    assert fragment.num_episodes == 2
    acted_on = fragment.observations[fragment.rows]
    assert fragment.observations.dtype == np.float32
    np.testing.assert_array_equal(acted_on, fragment.steps["actions"])
    assert acted_on[:5].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 1, 2]]
    led_to = fragment.observations[fragment.rows + 1]
    # The final observation of an episode, not the first one of the next.
    assert led_to[:5].tolist() == [[0, 0, 1], [0, 0, 2], [0, 1, 1], [0, 1, 2], [0, 1, 3]]
    assert np.flatnonzero(fragment.ends).tolist() == [1, 4, 10]
    assert np.flatnonzero(fragment.steps["terminateds"]).tolist() == [1, 4]
    np.testing.assert_array_equal(fragment.steps["rewards"], acted_on[:, 2])


def test_cut_and_joined_again_it_is_the_same() -> None:
    fragment = counted(3, [[2, 3, 9], [10], [1, 1, 1, 20]], num_steps=8)
    for at in range(len(fragment) + 1):
        parts = [part for part in (fragment[:at], fragment[at:]) if len(part)]
        whole = joined(parts)
        assert len(whole) == len(fragment) == whole.env_steps() == whole.agent_steps()
        np.testing.assert_array_equal(whole.observations[whole.rows], fragment.observations[fragment.rows])
        np.testing.assert_array_equal(whole.observations[whole.rows + 1], fragment.observations[fragment.rows + 1])
        np.testing.assert_array_equal(whole.steps["rewards"], fragment.steps["rewards"])
        # Where it was cut an episode ends for the learner, nowhere else.
        expected = fragment.ends
        if 0 < at < len(fragment):
            expected = expected.copy()
            expected[at - 1] = True
        np.testing.assert_array_equal(whole.ends, expected)
    assert joined([fragment]) is fragment
    with pytest.raises(ValueError, match="follow one another"):
        fragment[::2]


def test_unfinished_episodes_can_be_dropped() -> None:
    builder = FragmentBuilder(2, np.zeros((2, 1)), 1, NO)
    for terminated in ([False, False], [True, False], [False, False], [False, False]):
        builder.add({"actions": np.zeros(2)}, np.ones(2), np.array(terminated), NO, np.zeros((2, 1)))
    assert builder.num_steps == 7
    builder.drop(~builder.is_done)
    fragment = builder.fragment(0)
    # Sim 0's first episode is all that is whole.
    assert len(fragment) == 2
    assert fragment.steps["terminateds"].tolist() == [False, True]


def test_mixed_spaces_stay_mixed() -> None:
    def observed(value: int) -> dict[str, Any]:
        return {"vector": np.full((2, 3), value, np.float32), "image_0": np.full((2, 1, 4, 4), value, np.uint8)}

    def chose(value: int) -> dict[str, Any]:
        actions = {"continuous": np.full((2, 2), value, np.float32), "discrete": np.full((2, 1), value)}
        return {"actions": actions, "action_logp": np.zeros(2, np.float32)}

    builder = FragmentBuilder(2, observed(0), 4, NO)
    for value in range(1, 4):
        builder.add(chose(value), np.ones(2), NO, NO, observed(value))
    fragment = builder.fragment(0)
    assert fragment.observations["image_0"].dtype == np.uint8
    assert fragment.observations["image_0"][fragment.rows][:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 2]
    assert fragment.steps["actions"]["continuous"][:, 0].tolist() == [1, 2, 3, 1, 2, 3]
    assert fragment[4:].steps["actions"]["discrete"].tolist() == [[2], [3]]


def test_every_row_is_seen_once_an_epoch_and_minibatches_are_full() -> None:
    order = row_order(10, 4, num_epochs=3)
    assert len(order) == 32  # 30 rows, filled up to whole minibatches
    for start in (0, 10, 20):
        assert sorted(order[start : start + 10]) == list(range(10))
    assert not np.array_equal(order[:10], order[10:20])
    assert row_order(10, 4, num_epochs=1, shuffle=False).tolist() == [*range(10), 0, 1]
    # Several learners keep step: the number of minibatches is given.
    assert len(row_order(10, 4, num_epochs=3, num_minibatches=7)) == 28
    assert len(row_order(3, 8, num_epochs=2)) == 8
