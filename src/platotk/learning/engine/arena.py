"""The memory that the kernel works in: one buffer, and where in it everything lies.

Given a `Network`, `place` makes room for its parameters, Adam's moments and transposed weights, and for each thread's
gradients and activations.
"""

from __future__ import annotations

import dataclasses
import enum

import numpy as np
from numpy.typing import NDArray

from .network import SILU, Layer, Network, round_up, spread

BLOCK_ROWS = 132
"""Rows that go through the whole network at a time: a minibatch of 128 in one go, and what they need stays in L2."""


class Size(enum.IntEnum):
    """Entries of the list of sizes; offsets are into the arena, in floats, those from GRADIENTS on per thread."""

    NUM_LAYERS = 0
    NUM_ACTOR_LAYERS = 1
    NUM_PARTS = 2
    NUM_OBSERVATIONS = 3
    NUM_ACTIONS = 4
    NUM_INPUTS = 5
    NUM_LOGITS = 6
    BLOCK = 7  # rows of a block
    ZEROS = 8
    PARAMETERS = 9
    FIRST_MOMENTS = 10
    SECOND_MOMENTS = 11
    THREADS = 12  # where the first thread's part begins
    THREAD_LENGTH = 13
    GRADIENTS = 14
    SCRATCH = 15
    NUM_PARAMETERS = 16
    HAS_KL = 17
    RECORD = 18  # columns of a row of the training batch


class Record(enum.IntEnum):
    """Columns of a row of the training batch after the observation; the action, the mask, the old policy follow."""

    ADVANTAGE = 0
    LOG_PROB = 1
    TARGET = 2
    OLD_CONSTANT = 3  # the part of the KL divergence that only the old policy decides
    ACTION = 4


class Hyper(enum.IntEnum):
    """Entries of the list of hyper-parameters."""

    CLIP = 0
    VF_CLIP = 1
    VF_COEFF = 2
    ENTROPY_COEFF = 3
    KL_COEFF = 4
    LR = 5
    BETA1 = 6
    BETA2 = 7
    EPS = 8
    GRAD_CLIP = 9
    CLIP_BY = 10  # see `Clipping`
    LOG_STD_CLIP = 11


class Clipping(enum.IntEnum):
    """What RLlib's `grad_clip_by` says."""

    NONE = 0
    GLOBAL_NORM = 1
    NORM = 2
    VALUE = 3


class Stat(enum.IntEnum):
    """Entries of a thread's list of statistics: sums over its rows of the last minibatch first."""

    SURROGATE = 0
    VF_LOSS = 1
    VF_UNCLIPPED = 2
    ENTROPY = 3
    KL = 4
    TARGET = 5
    TARGET_2 = 6
    ERROR = 7
    ERROR_2 = 8
    ROWS = 9
    SQUARES = 10  # of its share of the gradient
    GRAD_NORM = 11
    STEPS = 12  # of Adam
    SKIPPED = 13  # minibatches whose gradients were not finite
    PADDING = 15  # to the end of a cache line


NUM_SUMS = int(Stat.ROWS)


@dataclasses.dataclass
class Arena:
    """One buffer for everything.

    Attributes:
        memory: float32, on a cache line's boundary.
        layers: As the network's, with offsets.
        sizes: int64, see `Size`.
    """

    memory: NDArray[np.float32]
    layers: NDArray[np.int64]
    sizes: NDArray[np.int64]


def place(network: Network, num_threads: int = 1) -> Arena:
    """Make room for a network: parameters, Adam's moments, transposes; per thread gradients and activations."""
    from .vectors import TILE_ROWS

    block = round_up(BLOCK_ROWS, TILE_ROWS)
    layers = network.layers.copy()
    end = 0

    def take(length: int) -> int:
        nonlocal end
        start, end = end, round_up(end + length, 16)
        return start

    sizes = np.zeros(len(Size), np.int64)
    sizes[Size.ZEROS] = take(max(int(layers[:, Layer.WIDTH].max()), int(layers[:, Layer.BACK_STRIDE].max())))
    for moment in (Size.PARAMETERS, Size.FIRST_MOMENTS, Size.SECOND_MOMENTS):
        sizes[moment] = take(network.num_parameters)
    for layer in layers:
        if layer[Layer.BACK] == 0:
            layer[Layer.BACK] = take(int(layer[Layer.OUTPUTS] * layer[Layer.BACK_STRIDE]))
    sizes[Size.THREADS], end = end, 0
    sizes[Size.GRADIENTS] = take(network.num_parameters)
    sizes[Size.SCRATCH] = take(2 * len(network.parts) + network.num_inputs)
    stride = spread(round_up(network.num_observations + 1, TILE_ROWS))
    # Buffer 0 is the observation: it needs no gradient.
    places = {0: (take(block * stride), stride, 0, 0)}
    for layer in layers:
        width = int(layer[Layer.WIDTH])
        stride = spread(max(width, round_up(int(layer[Layer.OUTPUTS]) + 1, TILE_ROWS)))
        layer[Layer.SLOPE] = take(block * stride) if layer[Layer.ACTIVATION] == SILU else -1
        places[int(layer[Layer.RESULT])] = (take(block * stride), stride, take(block * spread(width)), spread(width))
    for layer in layers:
        source, result = places[int(layer[Layer.SOURCE])], places[int(layer[Layer.RESULT])]
        layer[Layer.SOURCE : Layer.RESULT] = source
        layer[Layer.RESULT : Layer.IS_ADDED] = result
    seen: set[int] = set()
    for layer in layers[::-1]:
        layer[Layer.IS_ADDED] = int(layer[Layer.SOURCE]) in seen
        seen.add(int(layer[Layer.SOURCE]))
    for name, value in {
        Size.NUM_LAYERS: len(layers),
        Size.NUM_ACTOR_LAYERS: network.num_actor_layers,
        Size.NUM_PARTS: len(network.parts),
        Size.NUM_OBSERVATIONS: network.num_observations,
        Size.NUM_ACTIONS: network.num_actions,
        Size.NUM_INPUTS: network.num_inputs,
        Size.NUM_LOGITS: network.num_logits,
        Size.BLOCK: block,
        Size.THREAD_LENGTH: end,
        Size.NUM_PARAMETERS: network.num_parameters,
    }.items():
        sizes[name] = value
    # Vectors that straddle cache lines cost twice.
    raw = np.zeros(int(sizes[Size.THREADS]) + num_threads * end + 16, np.float32)
    start = -(raw.ctypes.data // 4) % 16
    arena = Arena(raw[start : start + len(raw) - 16], layers, sizes)
    widths = [network.num_observations, *(int(width) for width in layers[:, Layer.OUTPUTS])]
    for thread in range(num_threads):
        # The column of ones beside each layer's inputs, which makes biases part of the weights.
        base = int(sizes[Size.THREADS]) + thread * end
        for buffer, (start, stride, *_) in places.items():
            rows = arena.memory[base + start : base + start + block * stride].reshape(block, stride)
            rows[:, widths[buffer]] = 1.0
    return arena
