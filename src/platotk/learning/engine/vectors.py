"""SIMD building blocks for numba: a register-tiled matrix product and elementwise passes, as LLVM intrinsics.

numba compiles scalar loops and leaves vectors to LLVM's auto-vectoriser, which keeps no matrix tile in registers.
Here the vectors are written out: `tile` and `elementwise` give back numba intrinsics that work on addresses (int64,
of float32) inside `@njit` functions. The sizes fit the machine that compiles: 16 floats per register with AVX-512,
8 with AVX2, 4 otherwise (SSE, NEON); LLVM emits correct code for any of them everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from llvmlite import binding, ir
from numba import njit
from numba.core import cgutils, config, types
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Numba's `njit` as the kernel wants it: without the interpreter's lock, kept on disk where there is a folder."""
    made: Function = njit(cache=bool(config.CACHE_DIR), nogil=True, error_model="numpy")(function)
    return made


def _machine() -> tuple[int, int, int]:
    """Floats per vector, rows per tile, vectors per row of a tile: as many accumulators as registers can hold."""
    if config.CPU_NAME is None:
        features = dict(binding.get_host_cpu_features())
    else:  # NUMBA_CPU_NAME: code for another machine
        features = {name[1:]: name.startswith("+") for name in (config.CPU_FEATURES or "").split(",")}
    if features.get("avx512f"):
        return 16, 6, 4  # 24 accumulators of 32 registers
    if features.get("avx2"):
        return 8, 6, 2  # 12 of 16
    return 4, 4, 2  # 8 of 16 (SSE) or 32 (NEON)


LANES, TILE_ROWS, TILE_VECTORS = _machine()

_FLOAT = ir.FloatType()
_INT = ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_BYTES = 4


class Vector:
    """LANES floats in a register while code is being generated; arithmetic emits instructions."""

    __array_ufunc__ = None

    def __init__(self, builder: ir.IRBuilder, value: Any) -> None:
        self.builder, self.value = builder, value

    def __add__(self, other: Vector | float) -> Vector:
        return Vector(self.builder, self.builder.fadd(self.value, self._of(other)))

    def __sub__(self, other: Vector | float) -> Vector:
        return Vector(self.builder, self.builder.fsub(self.value, self._of(other)))

    def __rsub__(self, other: float) -> Vector:
        return Vector(self.builder, self.builder.fsub(self._of(other), self.value))

    def __mul__(self, other: Vector | float) -> Vector:
        return Vector(self.builder, self.builder.fmul(self.value, self._of(other)))

    def __rtruediv__(self, other: float) -> Vector:
        return Vector(self.builder, self.builder.fdiv(self._of(other), self.value))

    def __truediv__(self, other: Vector | float) -> Vector:
        return Vector(self.builder, self.builder.fdiv(self.value, self._of(other)))

    __radd__, __rmul__ = __add__, __mul__

    def times_plus(self, factor: Vector | float, summand: Vector | float) -> Vector:
        """This times `factor` plus `summand`, rounded once."""
        return self._call("fma", self.value, self._of(factor), self._of(summand))

    def sqrt(self) -> Vector:
        """The square root."""
        return self._call("sqrt", self.value)

    def exp(self) -> Vector:
        """The exponential, to about two units in the last place; 0 below -87."""
        builder, integers = self.builder, ir.VectorType(ir.IntType(32), LANES)
        power = self.clamped(88.0)
        whole = self._call("rint", (power * math.log2(math.e)).value)
        # ln 2 in two parts, the first exact when multiplied by a small whole number.
        rest = whole.times_plus(2.12194440e-4, whole.times_plus(-0.693359375, power))
        series = rest.polynomial([1.0 / math.factorial(n) for n in range(8)])
        exponent = builder.add(builder.fptosi(whole.value, integers), ir.Constant(integers, [127] * LANES))
        shifted = builder.shl(exponent, ir.Constant(integers, [23] * LANES))
        result = series * Vector(builder, builder.bitcast(shifted, _VECTOR))
        result = self.where_below(-87.0, 0.0, result)
        is_number = builder.fcmp_ordered("ord", self.value, self.value)
        return Vector(builder, builder.select(is_number, result.value, self.value))

    def constant(self, value: float) -> Vector:
        """The same number in every lane."""
        return Vector(self.builder, self._of(value))

    def where_below(self, bound: Vector | float, then: Vector | float, otherwise: Vector | float) -> Vector:
        """`then` where self < bound; NaN is below nothing."""
        below = self.builder.fcmp_ordered("<", self.value, self._of(bound))
        return Vector(self.builder, self.builder.select(below, self._of(then), self._of(otherwise)))

    def clamped(self, bound: Vector | float) -> Vector:
        """Into [-bound, bound]; NaN stays NaN."""
        low = Vector(self.builder, self._of(0.0)) - bound
        capped = Vector(self.builder, self._of(bound)).where_below(self, bound, self)
        return capped.where_below(low, low, capped)

    def polynomial(self, coefficients: Sequence[float]) -> Vector:
        """c0 + c1 x + c2 x^2 ... by Horner's rule."""
        result = Vector(self.builder, self._of(coefficients[-1]))
        for coefficient in reversed(coefficients[:-1]):
            result = result.times_plus(self, coefficient)
        return result

    def _of(self, other: Vector | float) -> Any:
        return other.value if isinstance(other, Vector) else ir.Constant(_VECTOR, [float(other)] * LANES)

    def _call(self, name: str, *args: Any) -> Vector:
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * len(args))
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.{name}.v{LANES}f32")
        return Vector(self.builder, self.builder.call(function, args))


def elementwise(
    num_arrays: int, num_scalars: int, body: Callable[..., Sequence[Vector]], *, num_stored: int = 1, sums: bool = False
) -> Any:
    """An intrinsic `f(count, *addresses, *scalars)` that runs `body` over `count` vectors of float32 arrays.

    Args:
        num_arrays: How many arrays are read; the first `num_stored` of them are written too.
        num_scalars: How many float32 scalars follow.
        body: Takes one Vector per array and per scalar; gives back what is stored, in order.
        num_stored: How many arrays are written.
        sums: Whether `f` returns the sum (float32) of one more Vector that `body` gives back, instead of nothing.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def run(typing: Any, count: Any, addresses: Any, scalars: Any) -> Any:
        signature = (types.float32 if sums else types.void)(count, addresses, scalars)

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            count, bases, values = args
            pointers = [_pointer(builder, builder.extract_value(bases, index)) for index in range(num_arrays)]
            given = [Vector(builder, _splat(builder, builder.extract_value(values, i))) for i in range(num_scalars)]
            total = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0.0] * LANES))
            with cgutils.for_range(builder, count) as loop:
                start = builder.mul(loop.index, ir.Constant(_INT, LANES))
                places = [builder.gep(pointer, [start]) for pointer in pointers]
                results = body(*(Vector(builder, _load(builder, place)) for place in places), *given)
                for result, place in zip(results[:num_stored], places, strict=False):
                    _store(builder, result.value, place)
                if sums:
                    builder.store(builder.fadd(builder.load(total), results[num_stored].value), total)
            return _sum(builder, builder.load(total)) if sums else context.get_dummy_value()

        return signature, generate

    return run


def tile(vectors: int) -> Any:
    """The intrinsic of one tile of a matrix product, TILE_ROWS x (vectors * LANES), kept in registers throughout.

    `f(c, ldc, init, ldi, a, row, col, b, ldb, k)`: C = init + A B, of which C and init are addressed by their rows'
    distances ldc and ldi (0: one row for all, such as a bias), A by those of its rows and columns (so that it may
    be a transpose), B by ldb, its columns side by side. Distances count floats; k is at least 1. Per step of k
    it loads `vectors` vectors of B and spreads TILE_ROWS numbers of A over as many fused multiply-adds as there are
    accumulators: the loads hide behind the arithmetic.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def run(
        typing: Any, c: Any, ldc: Any, init: Any, ldi: Any, a: Any, row: Any, col: Any, b: Any, ldb: Any, k: Any
    ) -> Any:
        signature = types.void(c, ldc, init, ldi, a, row, col, b, ldb, k)

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            c, ldc, init, ldi, a, row, col, b, ldb, k = args
            places = [(m, v) for m in range(TILE_ROWS) for v in range(vectors)]

            def place(base: Any, distance: Any, m: int, v: int) -> Any:
                offset = builder.add(builder.mul(distance, ir.Constant(_INT, m)), ir.Constant(_INT, v * LANES))
                return builder.gep(base, [offset])

            start = _pointer(builder, init)
            initial = [_load(builder, place(start, ldi, m, v)) for m, v in places]
            a, b = _pointer(builder, a), _pointer(builder, b)
            a_rows = [builder.mul(row, ir.Constant(_INT, m)) for m in range(TILE_ROWS)]

            before, loop = builder.block, builder.append_basic_block("k")
            after = builder.append_basic_block("stored")
            builder.branch(loop)
            builder.position_at_end(loop)
            step, a_now, b_now = builder.phi(_INT), builder.phi(a.type), builder.phi(b.type)
            sums = [builder.phi(_VECTOR) for _ in places]
            b_row = [_load(builder, place(b_now, ldb, 0, v)) for v in range(vectors)]
            spread = [_splat(builder, builder.load(builder.gep(a_now, [offset]))) for offset in a_rows]
            added = [
                Vector(builder, spread[m]).times_plus(Vector(builder, b_row[v]), Vector(builder, total)).value
                for (m, v), total in zip(places, sums, strict=True)
            ]
            following = builder.add(step, ir.Constant(_INT, 1))
            carried = [
                (step, ir.Constant(_INT, 0), following),
                (a_now, a, builder.gep(a_now, [col])),
                (b_now, b, builder.gep(b_now, [ldb])),
                *zip(sums, initial, added, strict=True),
            ]
            for phi, first, later in carried:
                phi.add_incoming(first, before)
                phi.add_incoming(later, loop)
            builder.cbranch(builder.icmp_signed("<", following, k), loop, after)

            builder.position_at_end(after)
            target = _pointer(builder, c)
            for (m, v), total in zip(places, added, strict=True):
                _store(builder, total, place(target, ldc, m, v))
            return context.get_dummy_value()

        return signature, generate

    return run


@intrinsic  # type: ignore[untyped-decorator]
def address(typing: Any, array: Any) -> Any:
    """Where an array's numbers begin."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, _INT)

    return types.int64(array), generate


@intrinsic  # type: ignore[untyped-decorator]
def load(typing: Any, place: Any) -> Any:
    """The float32 at an address."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args[0]))

    return types.float32(place), generate


@intrinsic  # type: ignore[untyped-decorator]
def store(typing: Any, place: Any, value: Any) -> Any:
    """Write a float32 to an address."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0]))
        return context.get_dummy_value()

    return types.void(place, types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def transpose_block(typing: Any, target: Any, target_stride: Any, source: Any, source_stride: Any) -> Any:
    """LANES x LANES floats from the address `source` to `target`, transposed in registers."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        target, target_stride, source, source_stride = args
        start, end = _pointer(builder, source), _pointer(builder, target)

        def row(base: Any, stride: Any, index: int) -> Any:
            return builder.gep(base, [builder.mul(stride, ir.Constant(_INT, index))])

        rows = [_load(builder, row(start, source_stride, index)) for index in range(LANES)]
        # Swap the off-diagonal halves of ever smaller blocks: log2(LANES) rounds of LANES shuffles.
        half = LANES // 2
        while half:
            for index in (index for index in range(LANES) if not index & half):
                upper, lower = rows[index], rows[index + half]
                first = [lane if not lane & half else LANES + lane - half for lane in range(LANES)]
                rows[index] = _shuffle(builder, upper, lower, first)
                rows[index + half] = _shuffle(builder, upper, lower, [lane + half for lane in first])
            half //= 2
        for index, value in enumerate(rows):
            _store(builder, value, row(end, target_stride, index))
        return context.get_dummy_value()

    return types.void(target, target_stride, source, source_stride), generate


@intrinsic  # type: ignore[untyped-decorator]
def atomic_add(typing: Any, place: Any, value: Any) -> Any:
    """Add to the int64 at an address, in one piece; gives back what was there before."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _INT.as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "seq_cst")

    return types.int64(place, types.int64), generate


def _pointer(builder: ir.IRBuilder, value: Any) -> Any:
    return builder.inttoptr(value, _FLOAT.as_pointer())


def _load(builder: ir.IRBuilder, place: Any) -> Any:
    value = builder.load(builder.bitcast(place, _VECTOR.as_pointer()))
    value.align = _BYTES
    return value


def _store(builder: ir.IRBuilder, value: Any, place: Any) -> None:
    builder.store(value, builder.bitcast(place, _VECTOR.as_pointer())).align = _BYTES


def _splat(builder: ir.IRBuilder, scalar: Any) -> Any:
    empty = ir.Constant(_VECTOR, ir.Undefined)
    single = builder.insert_element(empty, scalar, ir.Constant(ir.IntType(32), 0))
    return _shuffle(builder, single, empty, [0] * LANES)


def _shuffle(builder: ir.IRBuilder, first: Any, second: Any, lanes: list[int]) -> Any:
    """Lanes of two vectors, those of the second counted on from the first's."""
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))


def _sum(builder: ir.IRBuilder, vector: Any) -> Any:
    width = LANES
    while width > 1:  # halves onto each other: as exact as pairwise summation
        width //= 2
        low, high = list(range(width)), list(range(width, 2 * width))
        vector = builder.fadd(_shuffle(builder, vector, vector, low), _shuffle(builder, vector, vector, high))
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))
