"""Advantages in one pass over whole arrays: RLlib's numbers, whatever ends, is truncated or is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ray.rllib.utils.postprocessing.value_predictions import compute_value_targets

from platotk.learning.engine.advantages import estimate, standardised
from platotk.learning.engine.batches import with_advantages
from platotk.learning.engine.fragments import FragmentBuilder

GAMMA, LAMBDA = 0.97, 0.9


def played(rng: np.random.Generator, *, num_sims: int, num_steps: int, end: float, truncate: float) -> Any:
    """A fragment of random steps of sims that reset themselves, and what each sim did, for whoever counts by hand."""
    is_done = rng.random(num_sims) < 0.3  # some resets are due from an earlier fragment
    builder = FragmentBuilder(num_sims, rng.normal(size=(num_sims, 1)), 3, is_done)
    for _ in range(num_steps):
        terminated, truncated = rng.random(num_sims) < end, rng.random(num_sims) < truncate
        obs = rng.normal(size=(num_sims, 1))
        builder.add({"actions": np.zeros(num_sims)}, rng.normal(size=num_sims), terminated, truncated, obs)
    return builder.fragment(1)


def rllibs(fragment: Any, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Value targets by RLlib's own function, chunk by chunk, each with the extra row that RLlib adds to it."""
    targets = []
    ends = np.flatnonzero(fragment.ends)
    for start, stop in zip([0, *(ends[:-1] + 1)], ends + 1, strict=True):
        rows = fragment.rows[start:stop]
        assert (np.diff(rows) == 1).all(), "a chunk's observations lie side by side"
        is_terminated = bool(fragment.steps["terminateds"][stop - 1])
        chunk = compute_value_targets(
            values=values[rows[0] : rows[-1] + 2],
            rewards=np.append(fragment.steps["rewards"][start:stop], 0.0).astype(np.float32),
            terminateds=np.array([False] * (len(rows) - 1) + [is_terminated, False]),
            truncateds=np.array([False] * (len(rows) - 1) + [not is_terminated, False]),
            gamma=GAMMA,
            lambda_=LAMBDA,
        )
        targets.append(chunk[:-1])
    return np.concatenate(targets)


def ours(fragment: Any, values: np.ndarray[Any, Any]) -> Any:
    """What the learner learns from: standardised advantages, and value targets."""
    columns = with_advantages(fragment, values, gamma=GAMMA, lambda_=LAMBDA)
    return columns["advantages"], columns["value_targets"]


@pytest.mark.parametrize("seed", range(40))
def test_targets_are_rllibs_whatever_ends_and_is_cut(seed: int) -> None:
    rng = np.random.default_rng(seed)
    end, truncate = rng.choice([0.0, 0.02, 0.3]), rng.choice([0.0, 0.02, 0.3])
    fragment = played(
        rng, num_sims=int(rng.integers(1, 7)), num_steps=int(rng.integers(2, 90)), end=end, truncate=truncate
    )
    assert len(fragment)
    values = rng.normal(size=len(fragment.observations)).astype(np.float32)
    advantages, targets = ours(fragment, values)
    expected = rllibs(fragment, values)
    np.testing.assert_allclose(targets, expected, atol=1e-5)
    raw = (expected - values[fragment.rows]).astype(np.float64)
    np.testing.assert_allclose(advantages, (raw - raw.mean()) / max(1e-4, raw.std()), atol=1e-4)
    # Cut anywhere, as RLlib shares episodes among learners, each part is bootstrapped where it was cut.
    at = int(rng.integers(len(fragment) + 1))
    for part in (fragment[:at], fragment.slice(slice(at, None), len_lookback_buffer=0)):
        if len(part):
            its_values = rng.normal(size=len(part.observations)).astype(np.float32)
            np.testing.assert_allclose(ours(part, its_values)[1], rllibs(part, its_values), atol=1e-5)


def test_one_long_episode_is_the_discounted_sum() -> None:
    rewards = np.ones(1000)
    zeros = np.zeros(1000)
    ends = np.zeros(1000, dtype=bool)
    advantages, _ = estimate(rewards, zeros, zeros, ends, ends, gamma=0.99, lambda_=1.0)
    np.testing.assert_allclose(advantages[0], (1 - 0.99**1000) / 0.01, rtol=1e-6)
    assert advantages[-1] == 1.0


def test_a_terminated_episode_is_worth_nothing_afterwards_a_truncated_one_what_the_critic_says() -> None:
    one, last = np.ones(1), np.array([True])
    given = {"gamma": 0.5, "lambda_": 0.9}
    terminated, _ = estimate(one, 0 * one, 100 * one, last, last, **given)
    truncated, _ = estimate(one, 0 * one, 100 * one, ~last, last, **given)
    assert terminated.tolist() == [1.0]
    assert truncated.tolist() == [51.0]


def test_standardised_has_mean_zero_and_deviation_one() -> None:
    rows = standardised(np.random.default_rng(0).normal(5, 3, 1000).astype(np.float32))
    assert rows.dtype == np.float32
    assert abs(rows.mean()) < 1e-6
    assert abs(rows.std() - 1) < 1e-6
    assert (standardised(np.full(4, 7.0, np.float32)) == 0).all()
