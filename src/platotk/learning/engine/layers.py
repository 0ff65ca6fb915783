"""An MLP's forward and backward pass over a block of rows, compiled; activations are rows side by side in an arena.

Given addresses and the tables of `arena.py`, `forward` fills in every layer's results, `backward` the gradients of all
weights, and `transpose` keeps the weights' transposes, which the backward pass multiplies by, up to date.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .arena import Size
from .network import ELU, LINEAR, RELU, SILU, TANH, Layer
from .vectors import LANES, TILE_ROWS, TILE_VECTORS, Vector, compiled, elementwise, load, store, tile, transpose_block

# tanh(x) = x P(x^2) / Q(x^2) on [0, 8.5], beyond which float32 has no number between tanh and 1: a fit of least
# relative error (1.2e-8, less than rounding) by reweighted least squares.
TANH_END = 8.5
TANH_P = (0.9999999882781061, 0.1341323175861689, 0.0035340080655977216, 2.1250705352783625e-05, 1.4268700476111753e-08)
TANH_Q = (1.0, 0.4674655453177554, 0.026022681835544084, 0.00033488327829263683, 8.144919992478214e-07)


def _tanh(x: Vector) -> list[Vector]:
    x = x.clamped(TANH_END)
    square = x * x
    return [x * square.polynomial(TANH_P) / square.polynomial(TANH_Q)]


def _silu(x: Vector, _: Vector) -> list[Vector]:
    gate = 1.0 / (1.0 + (0.0 - x).exp())
    return [x * gate, gate * (1.0 + x * (1.0 - gate))]


_tanh_pass = elementwise(1, 0, _tanh)
_relu_pass = elementwise(1, 0, lambda x: [x.where_below(0.0, 0.0, x)])
_elu_pass = elementwise(1, 0, lambda x: [x.where_below(0.0, x.exp() - 1.0, x)])
_silu_pass = elementwise(2, 0, _silu, num_stored=2)
_tanh_back = elementwise(2, 0, lambda g, y: [g * (1.0 - y * y)])
_relu_back = elementwise(2, 0, lambda g, y: [y.constant(0.0).where_below(y, g, 0.0)])
_elu_back = elementwise(2, 0, lambda g, y: [y.where_below(0.0, g * (y + 1.0), g)])
_product_back = elementwise(2, 0, lambda g, slope: [g * slope])

_tile_whole, _tile_half, _tile_one = tile(TILE_VECTORS), tile(max(1, TILE_VECTORS // 2)), tile(1)


@compiled
def product(
    m: int, n: int, k: int, c: int, ldc: int, init: int, ldi: int, a: int, row: int, col: int, b: int, ldb: int
) -> None:
    """C [m, n] = init + A [m, k] B [k, n], by tiles; see `vectors.tile`. m and n are rounded up to whole tiles."""
    j = 0
    while j < n:
        vectors = TILE_VECTORS if n - j >= TILE_VECTORS * LANES else 2 if n - j >= 2 * LANES else 1
        for i in range(0, m, TILE_ROWS):
            c_ij, init_ij, a_i, b_j = c + 4 * (i * ldc + j), init + 4 * (i * ldi + j), a + 4 * i * row, b + 4 * j
            if vectors == TILE_VECTORS:
                _tile_whole(c_ij, ldc, init_ij, ldi, a_i, row, col, b_j, ldb, k)
            elif vectors == 2:
                _tile_half(c_ij, ldc, init_ij, ldi, a_i, row, col, b_j, ldb, k)
            else:
                _tile_one(c_ij, ldc, init_ij, ldi, a_i, row, col, b_j, ldb, k)
        j += vectors * LANES


@compiled
def forward(base: int, thread: int, layers: Any, sizes: Any, first: int, last: int, rows: int) -> None:
    """Layers first..last over `rows` rows (whole tiles) of a thread's buffers. `base`, `thread`: addresses."""
    for layer in layers[first:last]:
        y, stride = thread + 4 * layer[Layer.RESULT], layer[Layer.RESULT_STRIDE]
        x, weights = thread + 4 * layer[Layer.SOURCE], base + 4 * (sizes[Size.PARAMETERS] + layer[Layer.WEIGHTS])
        inputs, width = layer[Layer.INPUTS], layer[Layer.WIDTH]
        bias = weights + 4 * inputs * layer[Layer.STRIDE]
        x_stride, w_stride = layer[Layer.SOURCE_STRIDE], layer[Layer.STRIDE]
        product(rows, width, inputs, y, stride, bias, 0, x, x_stride, 1, weights, w_stride)
        kind, vectors = layer[Layer.ACTIVATION], width // LANES
        for r in range(rows):
            at = y + 4 * r * stride
            if kind == TANH:
                _tanh_pass(vectors, (at,), ())
            elif kind == RELU:
                _relu_pass(vectors, (at,), ())
            elif kind == ELU:
                _elu_pass(vectors, (at,), ())
            elif kind == SILU:
                _silu_pass(vectors, (at, thread + 4 * (layer[Layer.SLOPE] + r * stride)), ())
            if layer[Layer.OUTPUTS] < width:
                store(at + 4 * layer[Layer.OUTPUTS], np.float32(1.0))  # beside the inputs of the next layer


@compiled
def backward(base: int, thread: int, layers: Any, sizes: Any, rows: int, is_first: bool) -> None:
    """From the gradients at the heads to those of all weights, added to the thread's unless `is_first`."""
    zeros = base + 4 * sizes[Size.ZEROS]
    for index in range(len(layers) - 1, -1, -1):
        layer = layers[index]
        g, g_stride = thread + 4 * layer[Layer.RESULT_GRADIENT], layer[Layer.RESULT_GRADIENT_STRIDE]
        y, y_stride = thread + 4 * layer[Layer.RESULT], layer[Layer.RESULT_STRIDE]
        kind, width = layer[Layer.ACTIVATION], layer[Layer.WIDTH]
        vectors = width // LANES
        for r in range(rows if kind != LINEAR else 0):
            at, of = g + 4 * r * g_stride, y + 4 * r * y_stride
            if kind == TANH:
                _tanh_back(vectors, (at, of), ())
            elif kind == RELU:
                _relu_back(vectors, (at, of), ())
            elif kind == ELU:
                _elu_back(vectors, (at, of), ())
            elif kind == SILU:
                _product_back(vectors, (at, thread + 4 * (layer[Layer.SLOPE] + r * y_stride)), ())
        x, x_stride = thread + 4 * layer[Layer.SOURCE], layer[Layer.SOURCE_STRIDE]
        dw, w_stride = thread + 4 * (sizes[Size.GRADIENTS] + layer[Layer.WEIGHTS]), layer[Layer.STRIDE]
        init, init_stride = (zeros, 0) if is_first else (dw, w_stride)
        product(layer[Layer.WEIGHT_ROWS], width, rows, dw, w_stride, init, init_stride, x, 1, x_stride, g, g_stride)
        if layer[Layer.BACK] >= 0:
            dx, dx_stride = thread + 4 * layer[Layer.SOURCE_GRADIENT], layer[Layer.SOURCE_GRADIENT_STRIDE]
            init, init_stride = (dx, dx_stride) if layer[Layer.IS_ADDED] else (zeros, 0)
            back, back_stride, outputs = base + 4 * layer[Layer.BACK], layer[Layer.BACK_STRIDE], layer[Layer.OUTPUTS]
            inputs = -(-layer[Layer.INPUTS] // LANES) * LANES
            product(rows, inputs, outputs, dx, dx_stride, init, init_stride, g, g_stride, 1, back, back_stride)


@compiled
def transpose(base: int, layers: Any, sizes: Any, part: int, num_parts: int) -> None:
    """Bring the backward pass's weights up to date: this part's share of each layer."""
    for layer in layers:
        if layer[Layer.BACK] < 0:
            continue
        weights, stride = base + 4 * (sizes[Size.PARAMETERS] + layer[Layer.WEIGHTS]), layer[Layer.STRIDE]
        back, back_stride = base + 4 * layer[Layer.BACK], layer[Layer.BACK_STRIDE]
        inputs, outputs = layer[Layer.INPUTS], layer[Layer.OUTPUTS]
        whole = inputs // LANES
        for block in range(whole * part // num_parts, whole * (part + 1) // num_parts):
            i, j = block * LANES, 0
            while j + LANES <= outputs:
                transpose_block(back + 4 * (j * back_stride + i), back_stride, weights + 4 * (i * stride + j), stride)
                j += LANES
            for rest in range(j, outputs):
                for row in range(i, i + LANES):
                    store(back + 4 * (rest * back_stride + row), load(weights + 4 * (row * stride + rest)))
        for row in range(whole * LANES if part == 0 else inputs, inputs):
            for column in range(outputs):
                store(back + 4 * (column * back_stride + row), load(weights + 4 * (row * stride + column)))
