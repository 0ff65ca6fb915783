"""What counts as acting the same."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from platotk.agents.parity import compare

CHOICE = spaces.Discrete(5)


def box(low, high, dtype=np.float32):
    return spaces.Box(low, high, (1,), dtype)


def one(value, dtype=np.float32):
    return np.array([value], dtype)


def test_numbers_agree_within_a_share_of_their_range():
    assert compare(box(0, 1000), [one(500)], [one(500.009)], [None]).is_equal
    assert not compare(box(0, 1), [one(0.5)], [one(0.5001)], [None]).is_equal


def test_unbounded_numbers_agree_within_a_share_of_their_size():
    for space in (box(-np.inf, np.inf), box(0, np.inf), box(np.finfo(np.float32).min, np.finfo(np.float32).max)):
        assert compare(space, [one(1e6)], [one(1e6 + 1)], [None]).is_equal
        assert not compare(space, [one(0.5)], [one(0.5001)], [None]).is_equal


def test_a_decided_choice_must_be_the_same():
    proof = compare(CHOICE, [1] * 1000, [2] + [1] * 999, [0.5] * 1000)
    assert (proof.num_mismatches, proof.num_undecided, proof.is_equal) == (1, 0, False)


@pytest.mark.parametrize(("num", "is_equal"), [(10, True), (11, False)])
def test_of_undecided_rows_one_in_a_hundred_may_differ(num, is_equal):
    proof = compare(CHOICE, [1] * 1000, [2] * num + [1] * (1000 - num), [1e-4] * 1000)
    assert (proof.num_undecided, proof.num_mismatches, proof.is_equal) == (num, 0, is_equal)


def test_a_choice_without_a_known_margin_must_be_the_same():
    assert not compare(CHOICE, [1] * 1000, [2] + [1] * 999, [None] * 1000).is_equal


def rounded(space, expected, actual, margin):
    pad = [one(0, np.int32)] * 999
    return compare(space, [one(expected, np.int32), *pad], [one(actual, np.int32), *pad], [margin] * 1000)


def test_a_rounded_number_may_flip_at_its_edge_only():
    small = box(-10, 10, np.int32)
    assert rounded(small, 3, 4, 5e-5).num_undecided == 1
    assert rounded(small, 3, 4, 5e-3).num_mismatches == 1
    # 1e-5 of 2000 is 0.02: what the number itself may be off.
    assert rounded(box(-1000, 1000, np.int32), 3, 4, 5e-3).num_undecided == 1
    assert rounded(box(-1000, 1000, np.int32), 3, 4, 5e-2).num_mismatches == 1
    assert rounded(box(-1000, 1000, np.int32), 3, 6, 5e-3).num_mismatches == 1


def test_a_wide_whole_number_is_a_number():
    assert rounded(box(0, 10**9, np.int32), 500_000, 500_040, 0.3).is_equal
    assert not rounded(box(0, 10**9, np.int32), 500_000, 600_000, 0.3).is_equal


def test_the_strictest_part_of_a_mixed_action_decides():
    space = spaces.Dict(step=box(-1000, 1000, np.int32), mode=CHOICE)
    same = {"step": one(3, np.int32), "mode": 1}
    both = {"step": one(4, np.int32), "mode": 2}
    proof = compare(space, [same] * 1000, [both] + [same] * 999, [5e-3] * 1000)
    assert proof.num_mismatches == 1


def test_texts_are_compared_as_they_are():
    assert compare(spaces.Text(3), ["ab"], ["ab"], [None]).is_equal
    assert compare(spaces.Text(3), ["ab"], ["ac"], [1.0]).num_mismatches == 1


def test_nothing_proves_nothing():
    assert not compare(CHOICE, [], [], []).is_equal
