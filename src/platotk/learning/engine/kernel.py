"""PPO on one minibatch after another, compiled: forward, loss, backward and Adam over one flat arena of float32.

`update` trains, `act` samples actions, `evaluate` gives values; tables of numbers describe the network to them, so that
they are compiled once per machine, not once per shape. All three release the interpreter's lock.
Calling them compiles them, or loads them from numba's cache: `compilation.py` decides where that is and when.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from numba import types

from .arena import NUM_SUMS, Clipping, Hyper, Size, Stat
from .layers import backward, forward, transpose
from .losses import FORBIDDEN, LOG_2PI_2, losses, quieten
from .network import CATEGORICAL, Layer, Part
from .vectors import LANES, TILE_ROWS, Vector, address, atomic_add, compiled, elementwise, load, store

SPINS = 2000
"""How often a thread looks for the others before it offers its core: some tens of microseconds."""


if sys.platform == "win32":

    @compiled
    def give_way() -> None:
        """Let another thread have this core."""
else:
    give_way = types.ExternalFunction("sched_yield", types.int32())


_add = elementwise(2, 0, lambda total, other: [total + other])
_clear = elementwise(1, 0, lambda x: [x.constant(0.0)])
_clamp = elementwise(1, 1, lambda x, bound: [x.clamped(bound)])
_squares = elementwise(1, 0, lambda x: [x * x], num_stored=0, sums=True)


def _adam(p: Vector, m: Vector, v: Vector, g: Vector, *scalars: Vector) -> list[Vector]:
    """Torch's Adam: lerp of both moments, then p -= step m / (sqrt(v) / root + eps)."""
    scale, rate1, beta2, rate2, root, eps, step = scalars
    g = g * scale
    m = (g - m).times_plus(rate1, m)
    v = (g * g).times_plus(rate2, v * beta2)
    return [p - step * m / (v.sqrt() * root + eps), m, v]


_adam_pass = elementwise(4, 7, _adam, num_stored=3)


@compiled
def update(
    arena: Any,
    layers: Any,
    parts: Any,
    sizes: Any,
    tensors: Any,
    records: Any,
    order: Any,
    minibatch: int,
    hyper: Any,
    stats: Any,
    sync: Any,
    part: int,
    num_threads: int,
) -> None:
    """Train on `records[order]`, `minibatch` rows at a time; with several threads each calls this, in step.

    A thread takes its share of a minibatch's rows through the network, then its share of the parameters through Adam.

    Args:
        arena: float32 (-,), see `arena.Arena`; parameters and moments change in place.
        layers: The arena's.
        parts: The network's.
        sizes: The arena's.
        tensors: int64 (T, 4): first float, rows, columns and stride of each of torch's parameters.
        records: float32 (B, -), see `arena.Record`.
        order: int64 (k,), rows of `records` in the order in which they are trained on.
        minibatch: Rows per update.
        hyper: float64, see `arena.Hyper`.
        stats: float64 (threads, -), see `arena.Stat`; STEPS is Adam's count and goes on from what it holds.
        sync: int64 (24,), zeros, shared by all threads.
        part: Which thread this is.
        num_threads: How many there are.
    """
    base, meeting = address(arena), address(sync)
    thread = base + 4 * (sizes[Size.THREADS] + part * sizes[Size.THREAD_LENGTH])
    block, count, mine = sizes[Size.BLOCK], len(layers), stats[part]
    barrier(meeting, num_threads)
    for start in range(0, len(order), minibatch):
        end = min(start + minibatch, len(order))
        rows_of = order[start + (end - start) * part // num_threads : start + (end - start) * (part + 1) // num_threads]
        mine[:NUM_SUMS] = 0.0
        mine[Stat.ROWS] = len(rows_of)
        num_blocks = -(-len(rows_of) // block)
        for index in range(num_blocks):
            chosen = rows_of[len(rows_of) * index // num_blocks : len(rows_of) * (index + 1) // num_blocks]
            rows = gather(thread, layers, sizes, records, chosen)
            forward(base, thread, layers, sizes, 0, count, rows)
            losses(thread, layers, parts, sizes, hyper, records, chosen, 1.0 / (end - start), mine)
            quieten(thread, layers, sizes, len(chosen), rows)
            backward(base, thread, layers, sizes, rows, index == 0)
        if num_blocks == 0:
            _clear(sizes[Size.NUM_PARAMETERS] // LANES, (thread + 4 * sizes[Size.GRADIENTS],), ())
        step(base, layers, sizes, tensors, hyper, stats, meeting, part, num_threads)


@compiled
def step(
    base: int,
    layers: Any,
    sizes: Any,
    tensors: Any,
    hyper: Any,
    stats: Any,
    meeting: int,
    part: int,
    num_threads: int,
) -> None:
    """Add up the threads' gradients, clip them and take one step of Adam; skip it where they are not finite."""
    mine = stats[part]
    vectors = sizes[Size.NUM_PARAMETERS] // LANES
    first = 4 * LANES * (vectors * part // num_threads)
    number = vectors * (part + 1) // num_threads - vectors * part // num_threads
    gradients = base + 4 * (sizes[Size.THREADS] + sizes[Size.GRADIENTS])
    _pin(gradients + 4 * part * sizes[Size.THREAD_LENGTH], layers)
    barrier(meeting, num_threads)
    for other in range(1, num_threads):
        _add(number, (gradients + first, gradients + first + 4 * other * sizes[Size.THREAD_LENGTH]), ())
    mine[Stat.SQUARES] = _squares(number, (gradients + first,), ())
    barrier(meeting, num_threads)
    norm = math.sqrt(stats[:num_threads, Stat.SQUARES].sum())
    mine[Stat.GRAD_NORM] = norm
    if not math.isfinite(norm):
        mine[Stat.SKIPPED] += 1
        return
    mine[Stat.STEPS] += 1
    limit, scale, clip_by = hyper[Hyper.GRAD_CLIP], 1.0, int(hyper[Hyper.CLIP_BY])
    if clip_by == Clipping.GLOBAL_NORM:
        scale = limit / max(norm + 1e-6, limit)
    elif clip_by == Clipping.NORM:
        if part == 0:
            _shorten(gradients, tensors, limit)
        barrier(meeting, num_threads)
    elif clip_by == Clipping.VALUE:
        _clamp(number, (gradients + first,), (np.float32(limit),))
    done = mine[Stat.STEPS]
    scalars = (
        np.float32(scale),
        np.float32(1.0 - hyper[Hyper.BETA1]),
        np.float32(hyper[Hyper.BETA2]),
        np.float32(1.0 - hyper[Hyper.BETA2]),
        np.float32(1.0 / math.sqrt(1.0 - hyper[Hyper.BETA2] ** done)),
        np.float32(hyper[Hyper.EPS]),
        np.float32(hyper[Hyper.LR] / (1.0 - hyper[Hyper.BETA1] ** done)),
    )
    weights = base + 4 * sizes[Size.PARAMETERS] + first
    means = base + 4 * sizes[Size.FIRST_MOMENTS] + first
    squares = base + 4 * sizes[Size.SECOND_MOMENTS] + first
    _adam_pass(number, (weights, means, squares, gradients + first), scalars)
    barrier(meeting, num_threads)
    transpose(base, layers, sizes, part, num_threads)
    barrier(meeting, num_threads)


@compiled
def _pin(gradients: int, layers: Any) -> None:
    """Outputs that are parameters of their own (free log standard deviations) have a bias only: no weights move."""
    for layer in layers:
        for i in range(layer[Layer.INPUTS] if layer[Layer.NUM_FREE] else 0):
            for j in range(layer[Layer.OUTPUTS] - layer[Layer.NUM_FREE], layer[Layer.OUTPUTS]):
                store(gradients + 4 * (layer[Layer.WEIGHTS] + i * layer[Layer.STRIDE] + j), np.float32(0.0))


@compiled
def _shorten(gradients: int, tensors: Any, limit: float) -> None:
    """Clip the gradient of each of torch's parameters by its own norm."""
    for start, rows, columns, stride in tensors:
        total = 0.0
        for i in range(rows):
            for j in range(columns):
                total += np.float64(load(gradients + 4 * (start + i * stride + j))) ** 2
        if math.sqrt(total) > limit:
            factor = np.float32(limit / math.sqrt(total))
            for i in range(rows):
                for j in range(columns):
                    place = gradients + 4 * (start + i * stride + j)
                    store(place, load(place) * factor)


@compiled
def barrier(place: int, num_threads: int) -> None:
    """Wait until all threads are here; `place`: address of two int64 on cache lines of their own, 0 at first."""
    if num_threads == 1:
        return
    generation = atomic_add(place + 64, 0)
    if atomic_add(place, 1) == num_threads - 1:
        atomic_add(place, -num_threads)
        atomic_add(place + 64, 1)
        return
    turns = 0
    while atomic_add(place + 64, 0) == generation:
        turns += 1
        if turns > SPINS:
            give_way()  # somebody else may need this core to get here


@compiled
def gather(thread: int, layers: Any, sizes: Any, records: Any, order: Any) -> int:
    """Copy the observations of the rows that `order` names in front of the network; gives back whole tiles."""
    number = sizes[Size.NUM_OBSERVATIONS]
    x, stride = thread + 4 * layers[0, Layer.SOURCE], layers[0, Layer.SOURCE_STRIDE]
    for r in range(len(order)):
        record = records[order[r]]
        for j in range(number):
            store(x + 4 * (r * stride + j), record[j])
    return -(-len(order) // TILE_ROWS) * TILE_ROWS


@compiled
def act(
    arena: Any,
    layers: Any,
    parts: Any,
    sizes: Any,
    log_std_clip: float,
    observations: Any,
    masks: Any,
    noise: Any,
    actions: Any,
    log_probs: Any,
    inputs: Any,
    values: Any,
) -> None:
    """One action per row.

    Args:
        arena: As for `update`.
        layers: As for `update`.
        parts: As for `update`.
        sizes: As for `update`.
        log_std_clip: Bound of log standard deviations, either side.
        observations: float32 (N, n).
        masks: float32 (N, k), or (0, 0) without.
        noise: float32 (N, a), standard normal where the action is a number and uniform in [0, 1) where it is a
            category; (0, 0) for the best action.
        actions: Out, float32 (N, a).
        log_probs: Out, float32 (N,).
        inputs: Out, float32 (N, d), of the action distribution.
        values: Out, float32 (N,), or (0,) when they are not asked for.
    """
    base = address(arena)
    thread = base + 4 * sizes[Size.THREADS]
    number, block, num_inputs = sizes[Size.NUM_OBSERVATIONS], sizes[Size.BLOCK], sizes[Size.NUM_INPUTS]
    last = len(layers) if len(values) else sizes[Size.NUM_ACTOR_LAYERS]
    actor, critic = layers[sizes[Size.NUM_ACTOR_LAYERS] - 1], layers[len(layers) - 1]
    x, x_stride = thread + 4 * layers[0, Layer.SOURCE], layers[0, Layer.SOURCE_STRIDE]
    std_clip = np.float32(log_std_clip)
    for start in range(0, len(observations), block):
        count = min(block, len(observations) - start)
        for r in range(count):
            for j in range(number):
                store(x + 4 * (r * x_stride + j), observations[start + r, j])
        forward(base, thread, layers, sizes, 0, last, -(-count // TILE_ROWS) * TILE_ROWS)
        for r in range(count):
            row = start + r
            z = thread + 4 * (actor[Layer.RESULT] + r * actor[Layer.RESULT_STRIDE])
            for j in range(num_inputs):
                inputs[row, j] = load(z + 4 * j)
            log_prob = np.float32(0.0)
            for p in range(len(parts)):
                first, size, column = parts[p, Part.INPUT], parts[p, Part.SIZE], parts[p, Part.ACTION]
                if parts[p, Part.KIND] == CATEGORICAL:
                    top, best = np.float32(-np.inf), 0
                    for j in range(size):
                        if len(masks) and masks[row, parts[p, Part.MASK] + j] < 0.5:
                            inputs[row, first + j] = FORBIDDEN
                        if inputs[row, first + j] > top:
                            top, best = inputs[row, first + j], j
                    total = np.float32(0.0)
                    for j in range(size):
                        total += math.exp(inputs[row, first + j] - top)
                    if len(noise):
                        # The category whose share of [0, 1) the number falls in; rounding cannot pick one of share 0.
                        left = noise[row, column] * total
                        for j in range(size):
                            share = math.exp(inputs[row, first + j] - top)
                            if share > 0.0:
                                best = j
                                left -= share
                                if left < 0.0:
                                    break
                    actions[row, column] = best
                    log_prob += inputs[row, first + best] - top - math.log(total)
                else:
                    for j in range(size):
                        log_std = min(max(inputs[row, first + size + j], -std_clip), std_clip)
                        inputs[row, first + size + j] = log_std
                        unit = noise[row, column + j] if len(noise) else np.float32(0.0)
                        actions[row, column + j] = inputs[row, first + j] + math.exp(log_std) * unit
                        log_prob -= np.float32(0.5) * unit * unit + log_std + np.float32(LOG_2PI_2)
            log_probs[row] = log_prob
            if len(values):
                values[row] = load(thread + 4 * (critic[Layer.RESULT] + r * critic[Layer.RESULT_STRIDE]))


@compiled
def evaluate(arena: Any, layers: Any, sizes: Any, observations: Any, values: Any) -> None:
    """The critic's values (N,), float32, of observations (N, n)."""
    base = address(arena)
    thread = base + 4 * sizes[Size.THREADS]
    number, block, critic = sizes[Size.NUM_OBSERVATIONS], sizes[Size.BLOCK], layers[len(layers) - 1]
    x, x_stride = thread + 4 * layers[0, Layer.SOURCE], layers[0, Layer.SOURCE_STRIDE]
    # A critic of its own begins at the observation again.
    first = 0
    for index in range(sizes[Size.NUM_ACTOR_LAYERS], len(layers)):
        if layers[index, Layer.SOURCE] == layers[0, Layer.SOURCE]:
            first = index
    for start in range(0, len(observations), block):
        count = min(block, len(observations) - start)
        for r in range(count):
            for j in range(number):
                store(x + 4 * (r * x_stride + j), observations[start + r, j])
        forward(base, thread, layers, sizes, first, len(layers), -(-count // TILE_ROWS) * TILE_ROWS)
        for r in range(count):
            values[start + r] = load(thread + 4 * (critic[Layer.RESULT] + r * critic[Layer.RESULT_STRIDE]))
