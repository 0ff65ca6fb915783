"""What a sim's calls may give back, and what is made of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from platotk.sims.answers import of_reset, of_step
from platotk.sims.process import SimFailure


def test_an_answer_in_gymnasiums_own_types_comes_back_as_it_is() -> None:
    answer = (np.zeros(2), 1.0, False, True, {"a": 1})
    assert of_step(answer) is answer


@pytest.mark.parametrize("reward", [np.float32(2.0), np.array([2.0]), np.array(2), 2])
def test_numbers_and_flags_of_other_types_are_taken(reward: Any) -> None:
    observation, number, terminated, truncated, info = of_step((3, reward, np.bool_(True), 0, None))
    assert (observation, number, terminated, truncated, info) == (3, 2.0, True, False, {})
    assert [type(part) for part in (number, terminated, truncated)] == [float, bool, bool]
    assert of_reset((3, None)) == (3, {})


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((0, 0.0, False, {}), r"step\(\) returned 4 values; it must return \(observation, reward"),
        ([0, 0.0, False, False, {}], r"step\(\) returned list; it must return"),
        ((0, float("nan"), False, False, {}), r"the reward nan; it must be a finite number"),
        ((0, -np.inf, False, False, {}), r"the reward -inf; it must be a finite number"),
        ((0, "much", False, False, {}), r"the reward 'much'; it must be one number"),
        ((0, np.zeros(2), False, False, {}), r"the reward array\(\[0\., 0\.\]\); it must be one number"),
    ],
)
def test_anything_else_is_a_failure_that_says_what_came(answer: Any, said: str) -> None:
    with pytest.raises(SimFailure, match=said):
        of_step(answer)


def test_a_reset_gives_a_pair() -> None:
    with pytest.raises(SimFailure, match=r"reset\(\) returned ndarray; it must return \(observation, info\)"):
        of_reset(np.zeros(2))
