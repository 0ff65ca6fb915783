"""Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438) of all steps of a batch at once.

Given rewards, values and where episodes are cut, `estimate` gives advantages and value targets. The recursion
A[t] = delta[t] + c[t] A[t+1] is solved for every step together by doubling, in log2(longest episode) passes over whole
arrays instead of one per time step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_STD = 1e-4
"""RLlib's own lower bound of the deviation that advantages are divided by."""


def estimate(
    rewards: NDArray[Any],
    values: NDArray[Any],
    next_values: NDArray[Any],
    terminated: NDArray[np.bool_],
    ends: NDArray[np.bool_],
    *,
    gamma: float,
    lambda_: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Advantages and value targets of steps that follow one another in the arrays, except after `ends`.

    Args:
        rewards: (S,).
        values: (S,), the value of the observation that each step acted on.
        next_values: (S,), the value of the observation that it led to; not looked at where terminated.
        terminated: bool (S,), the episode ended there for good: nothing is worth anything afterwards.
        ends: bool (S,), the next entry is not the next step of the same episode (terminated, truncated, or cut).
        gamma: Discount.
        lambda_: How far advantages reach beyond one step.

    Returns:
        Advantages and targets (advantage + value), float32 (S,).
    """
    values = values.astype(np.float64)
    advantages = rewards + gamma * np.where(terminated, 0.0, next_values) - values
    carry = np.where(ends | terminated, 0.0, gamma * lambda_)
    if carry.size:
        carry[-1] = 0.0
    shift = 1
    # After k passes, advantages[t] holds the sum up to t + 2^k - 1, and carry[t] the weight of what follows.
    while shift < advantages.size and carry.any():
        advantages[:-shift] += carry[:-shift] * advantages[shift:]
        carry[:-shift] *= carry[shift:]
        carry[-shift:] = 0.0
        shift *= 2
    return advantages.astype(np.float32), (advantages + values).astype(np.float32)


def standardised(advantages: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean 0 and deviation 1 over the steps of a batch."""
    centred = advantages - advantages.mean(dtype=np.float64)
    scaled: NDArray[np.float32] = (centred / max(MIN_STD, centred.std(dtype=np.float64))).astype(np.float32)
    return scaled
