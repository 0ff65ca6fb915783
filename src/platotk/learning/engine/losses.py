"""PPO's loss (Schulman et al. 2017, arXiv 1707.06347) of a block of rows and its gradients at both heads, compiled.

Given what the network made of the rows and the rows themselves, `losses` writes the gradients by the action
distribution's inputs and by the value, in closed form, and adds up RLlib's statistics.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .arena import Hyper, Record, Size, Stat
from .network import CATEGORICAL, Layer, Part
from .vectors import compiled, load, store

LOG_2PI_2 = math.log(2.0 * math.pi) / 2.0
FORBIDDEN = -1e9  # as in masking.py


@compiled
def losses(
    thread: int, layers: Any, parts: Any, sizes: Any, hyper: Any, records: Any, order: Any, scale: float, stats: Any
) -> None:
    """PPO's loss of the rows that `order` names; their gradients at both heads, times `scale`; sums into `stats`."""
    actor, critic = layers[sizes[Size.NUM_ACTOR_LAYERS] - 1], layers[len(layers) - 1]
    scratch = thread + 4 * sizes[Size.SCRATCH]
    probs = scratch + 8 * len(parts)
    start = sizes[Size.NUM_OBSERVATIONS]
    action = start + Record.ACTION
    mask = action + sizes[Size.NUM_ACTIONS]
    old = mask + sizes[Size.NUM_LOGITS]
    has_mask, has_kl = sizes[Size.NUM_LOGITS] > 0, sizes[Size.HAS_KL] > 0
    clip, entropy_coeff, kl_coeff = (
        hyper[Hyper.CLIP],
        np.float32(hyper[Hyper.ENTROPY_COEFF]),
        np.float32(hyper[Hyper.KL_COEFF]),
    )
    low, high, std_clip = np.float32(1.0 - clip), np.float32(1.0 + clip), np.float32(hyper[Hyper.LOG_STD_CLIP])
    share = np.float32(scale)
    half, one, two = np.float32(0.5), np.float32(1.0), np.float32(2.0)
    for r in range(len(order)):
        record = records[order[r]]
        z = thread + 4 * (actor[Layer.RESULT] + r * actor[Layer.RESULT_STRIDE])
        g = thread + 4 * (actor[Layer.RESULT_GRADIENT] + r * actor[Layer.RESULT_GRADIENT_STRIDE])
        log_prob = entropy = np.float32(0.0)
        kl = record[start + Record.OLD_CONSTANT] if has_kl else np.float32(0.0)
        for p in range(len(parts)):
            first, size, column = parts[p, Part.INPUT], parts[p, Part.SIZE], action + parts[p, Part.ACTION]
            if parts[p, Part.KIND] == CATEGORICAL:
                allowed = mask + parts[p, Part.MASK]
                top = np.float32(-np.inf)
                for j in range(first, first + size):
                    value = load(z + 4 * j)
                    if has_mask and record[allowed + j - first] < half:
                        value = np.float32(FORBIDDEN)
                        store(z + 4 * j, value)
                    top = max(top, value) if value == value else value
                total = np.float32(0.0)
                for j in range(first, first + size):
                    weight = math.exp(load(z + 4 * j) - top)
                    store(probs + 4 * j, weight)
                    total += weight
                normaliser, inverse = top + math.log(total), one / total
                own = np.float32(0.0)
                for j in range(first, first + size):
                    prob, log = load(probs + 4 * j) * inverse, load(z + 4 * j) - normaliser
                    store(probs + 4 * j, prob)
                    own -= prob * log
                    if has_kl:
                        kl -= record[old + j] * log
                log_prob += load(z + 4 * (first + np.int64(record[column]))) - normaliser
                entropy += own
                store(scratch + 8 * p, normaliser)
                store(scratch + 8 * p + 4, own)
            else:
                for j in range(first, first + size):
                    mean, log_std = load(z + 4 * j), min(max(load(z + 4 * (j + size)), -std_clip), std_clip)
                    precision = math.exp(-two * log_std)
                    distance = record[column + j - first] - mean
                    log_prob -= half * distance * distance * precision + log_std + np.float32(LOG_2PI_2)
                    entropy += half + np.float32(LOG_2PI_2) + log_std
                    if has_kl:
                        moved = record[old + j] - mean
                        kl += log_std + half * precision * (record[old + j + size] + moved * moved)
        advantage = record[start + Record.ADVANTAGE]
        ratio = math.exp(log_prob - record[start + Record.LOG_PROB])
        bounded = min(max(ratio, low), high)
        surrogate, capped = advantage * ratio, advantage * bounded
        # Where the clipped branch is the smaller one the ratio has left the interval, and no gradient flows.
        slope = np.float32(0.0) if capped < surrogate else -surrogate * share
        for p in range(len(parts)):
            first, size, column = parts[p, Part.INPUT], parts[p, Part.SIZE], action + parts[p, Part.ACTION]
            if parts[p, Part.KIND] == CATEGORICAL:
                normaliser, own = load(scratch + 8 * p), load(scratch + 8 * p + 4)
                chosen = first + np.int64(record[column])
                for j in range(first, first + size):
                    prob, log = load(probs + 4 * j), load(z + 4 * j) - normaliser
                    slope_j = -slope * prob + share * entropy_coeff * prob * (log + own)
                    if j == chosen:
                        slope_j += slope
                    if has_kl:
                        slope_j += share * kl_coeff * (prob - record[old + j])
                    if has_mask and record[mask + parts[p, Part.MASK] + j - first] < half:
                        slope_j = np.float32(0.0)
                    store(g + 4 * j, slope_j)
            else:
                for j in range(first, first + size):
                    mean, free = load(z + 4 * j), load(z + 4 * (j + size))
                    log_std = min(max(free, -std_clip), std_clip)
                    precision = math.exp(-two * log_std)
                    distance = record[column + j - first] - mean
                    to_mean = slope * distance * precision
                    to_std = slope * (distance * distance * precision - one) - share * entropy_coeff
                    if has_kl:
                        moved = record[old + j] - mean
                        to_mean -= share * kl_coeff * moved * precision
                        to_std += share * kl_coeff * (one - precision * (record[old + j + size] + moved * moved))
                    store(g + 4 * j, to_mean)
                    store(g + 4 * (j + size), to_std if abs(free) <= std_clip else np.float32(0.0))
        target = record[start + Record.TARGET]
        error = load(thread + 4 * (critic[Layer.RESULT] + r * critic[Layer.RESULT_STRIDE])) - target
        square = error * error
        vf_slope = np.float32(hyper[Hyper.VF_COEFF]) * two * error * share
        vf_place = thread + 4 * (critic[Layer.RESULT_GRADIENT] + r * critic[Layer.RESULT_GRADIENT_STRIDE])
        store(vf_place, np.float32(0.0) if square > hyper[Hyper.VF_CLIP] else vf_slope)
        stats[Stat.SURROGATE] += capped if capped < surrogate else surrogate
        stats[Stat.VF_LOSS] += min(square, hyper[Hyper.VF_CLIP])
        stats[Stat.VF_UNCLIPPED] += square
        stats[Stat.ENTROPY] += entropy
        stats[Stat.KL] += kl
        stats[Stat.TARGET] += target
        stats[Stat.TARGET_2] += target * np.float64(target)
        stats[Stat.ERROR] += error
        stats[Stat.ERROR_2] += error * np.float64(error)


@compiled
def quieten(thread: int, layers: Any, sizes: Any, count: int, rows: int) -> None:
    """No gradient from the rows that only fill up a tile."""
    for layer in (layers[sizes[Size.NUM_ACTOR_LAYERS] - 1], layers[len(layers) - 1]):
        g, stride = thread + 4 * layer[Layer.RESULT_GRADIENT], layer[Layer.RESULT_GRADIENT_STRIDE]
        for r in range(count, rows):
            for j in range(layer[Layer.OUTPUTS]):
                store(g + 4 * (r * stride + j), np.float32(0.0))
