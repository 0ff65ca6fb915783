"""Observation and action spaces of every kind, by name, for the tests of this folder."""

from __future__ import annotations

import string

import numpy as np
from gymnasium import spaces

INF = np.inf


def box(low, high, shape=(1,), dtype=np.float32):
    return spaces.Box(low, high, shape, dtype)


OBSERVATIONS = {
    "box": box(-1, 1, (4,)),
    "cartpole": spaces.Box(np.array([-4.8, -INF, -0.4, -INF], np.float32), np.array([4.8, INF, 0.4, INF], np.float32)),
    "box shape ()": box(0, 1, ()),
    "box shape (0,)": box(0, 1, (0,)),
    "box 2-D": box(-1, 1, (3, 4)),
    "box 4-D": box(-1, 1, (2, 3, 4, 5)),
    "box unbounded": box(-INF, INF, (3,)),
    "box half-bounded": box(0, INF, (3,)),
    "box float64": box(-1, 1, (3,), np.float64),
    "box float16": box(-1, 1, (3,), np.float16),
    "box int32": box(-10, 10, (3,), np.int32),
    "box int64 whole range": box(np.iinfo(np.int64).min, np.iinfo(np.int64).max - 1, (2,), np.int64),
    "box uint8 small": box(0, 255, (5,), np.uint8),
    "box bool": box(0, 1, (2, 3), np.bool_),
    "image HWC": box(0, 255, (12, 16, 3), np.uint8),
    "image CHW": box(0, 255, (3, 12, 16), np.uint8),
    "image gray": box(0, 255, (12, 16), np.uint8),
    "image float": box(0, 1, (10, 12, 4)),
    "image float unbounded": box(-INF, INF, (10, 12, 4)),
    "image bool": box(0, 1, (10, 10, 6), np.bool_),
    "image uint8 0..1": box(0, 1, (10, 10, 6), np.uint8),
    "discrete": spaces.Discrete(5),
    "discrete start": spaces.Discrete(5, start=-2),
    "discrete one": spaces.Discrete(1),
    "discrete int8": spaces.Discrete(27, start=100, dtype=np.int8),
    "discrete wide": spaces.Discrete(100_000, start=-7),
    "multi discrete": spaces.MultiDiscrete([3, 2, 4]),
    "multi discrete start": spaces.MultiDiscrete([3, 2000, 4], start=[1, -5, 10]),
    "multi discrete 2-D": spaces.MultiDiscrete([[3, 2], [4, 5]]),
    "multi binary": spaces.MultiBinary(4),
    "multi binary 2-D": spaces.MultiBinary([2, 3]),
    "text": spaces.Text(4, min_length=1, charset="abc"),
    "text alphanumeric": spaces.Text(3, min_length=0),
    "dict": spaces.Dict(level=box(0, 2), mode=spaces.Discrete(3, start=1), on=spaces.MultiBinary(2)),
    "dict empty": spaces.Dict({}),
    "dict kept order": spaces.Dict([("z", box(0, 1)), ("a", spaces.Discrete(2))]),
    "dict integer keys": spaces.Dict({1: box(0, 1), 2: spaces.Discrete(2)}),
    "dict keys like paths": spaces.Dict(
        {
            "p.q": box(0, 1),
            "p": spaces.Dict({"q": spaces.Discrete(2)}),
            "a b": box(-1, 1),
            "x[0]": box(0, 2),
            "": box(0, 3),
        }
    ),
    "tuple": spaces.Tuple((box(-1, 1, (2,)), spaces.Discrete(3))),
    "nested": spaces.Dict(
        tank=spaces.Dict(valves=spaces.Tuple((box(0, 1, (2,)), spaces.Discrete(4))), name=spaces.Text(3)),
        sensors=spaces.Tuple((spaces.Tuple((box(-1, 1, ()),)), spaces.MultiBinary(3))),
    ),
    "images and numbers": spaces.Dict(
        front=box(0, 255, (12, 16, 3), np.uint8),
        rear=box(0, 1, (1, 8, 9)),
        speed=box(-1, 1, (2,)),
        gear=spaces.Discrete(4),
    ),
    "one of": spaces.OneOf(
        (
            spaces.Discrete(3),
            box(-1, 1, (2,)),
            spaces.Dict(text=spaces.Text(2), big=box(0, 255, (9, 9), np.uint8)),
        )
    ),
    "dict with one of": spaces.Dict(pick=spaces.OneOf((spaces.Discrete(2), spaces.Discrete(3))), x=box(0, 1)),
}

ACTIONS = {
    "discrete": spaces.Discrete(5),
    "discrete start": spaces.Discrete(20, start=1),
    "discrete negative start": spaces.Discrete(3, start=-1),
    "discrete int32": spaces.Discrete(4, dtype=np.int32),
    "discrete wide": spaces.Discrete(5000, start=-7),
    "discrete one": spaces.Discrete(1),
    "multi discrete": spaces.MultiDiscrete([3, 2, 4]),
    "multi discrete start": spaces.MultiDiscrete([3, 2], start=[5, -2]),
    "multi discrete 2-D": spaces.MultiDiscrete([[3, 2], [4, 5]], dtype=np.int32),
    "multi binary": spaces.MultiBinary(4),
    "multi binary 2-D": spaces.MultiBinary([2, 2]),
    "text": spaces.Text(3, min_length=1, charset="abc"),
    "text fixed": spaces.Text(2, min_length=2, charset=string.digits),
    "box": box(-1, 1, (2,)),
    "box bounds": spaces.Box(np.array([-3.0, 0.1], np.float32), np.array([0.7, 1e6], np.float32)),
    "box shape ()": box(-2, 3, ()),
    "box 2-D": box(-2, 3, (2, 3)),
    "box float64": box(-0.1, 0.3, (2,), np.float64),
    "box float16": box(-0.1, 0.3, (2,), np.float16),
    "box point": box(0.3, 0.3, (2,)),
    "box unbounded": box(-INF, INF, (2,)),
    "box unbounded float16": box(-INF, INF, (2,), np.float16),
    "box largest float32": box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (2,)),
    "box huge float64": box(-1e300, 1e300, (2,), np.float64),
    "box half-bounded below": box(0.1, INF, (2,)),
    "box half-bounded above": box(-INF, 0.1, (2,)),
    "box every bound": spaces.Box(np.array([-1, 0, -INF, -INF], np.float32), np.array([1, INF, 0, INF], np.float32)),
    "box int32": box(-10, 10, (1,), np.int32),
    "box int shape ()": box(0, 7, (), np.int64),
    "box uint8": box(0, 255, (2,), np.uint8),
    "box int8": box(-128, 127, (2,), np.int8),
    "box bool": box(0, 1, (3,), np.bool_),
    "box int large": box(-1000, 1000, (2,), np.int32),
    "box int16 whole": box(-32768, 32767, (2,), np.int16),
    "box int64 whole": box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (2,), np.int64),
    "box int64 near limits": box(np.iinfo(np.int64).min + 1, np.iinfo(np.int64).max - 1, (2,), np.int64),
    "box uint64 whole": spaces.Box(np.zeros(2, np.uint64), np.full(2, 2**64 - 1, np.uint64), dtype=np.uint64),
    "box uint64 top": spaces.Box(np.full(2, 2**64 - 9, np.uint64), np.full(2, 2**64 - 2, np.uint64), dtype=np.uint64),
    "box int64 half": spaces.Box(np.array([5]), np.array([np.iinfo(np.int64).max]), dtype=np.int64),
    "box int many choices": box(0, 255, (20,), np.uint8),
    "dict": spaces.Dict(addend=box(-10, 10, (1,), np.int32)),
    "dict keys like paths": spaces.Dict(
        {
            "p.q": box(-1, 1),
            "p": spaces.Dict({"q": spaces.Discrete(3), "r": spaces.Tuple((spaces.Discrete(2), box(0, INF)))}),
            "p.r[0]": box(0, 5, (1,), np.int8),
            "a b": spaces.Discrete(4, start=1),
            "": spaces.MultiBinary(2),
        }
    ),
    "dict mixed": spaces.Dict(force=box(-2, 2, (2,)), gear=spaces.Discrete(3, start=1), on=spaces.MultiBinary(2)),
    "tuple": spaces.Tuple((spaces.Discrete(3), spaces.Discrete(2, start=4))),
    "tuple mixed": spaces.Tuple((box(0, 1, ()), spaces.Discrete(2))),
    "nested": spaces.Dict(
        [
            ("z", spaces.Tuple((box(-1, 1, (2, 1)), spaces.Dict(word=spaces.Text(2, charset="ab"))))),
            ("a", spaces.Dict(step=box(0, 9, (2,), np.int16), dose=box(0, INF, (1,)))),
        ]
    ),
    "with an empty part": spaces.Dict(nothing=spaces.Tuple(()), none=box(0, 1, (0,)), go=spaces.Discrete(2)),
}


def by_name(catalogue):
    """Arguments for parametrize: the spaces, with their names as ids."""
    return {"argvalues": list(catalogue.values()), "ids": list(catalogue)}


def same(a, b):
    """Whether two values of a space are equal, types, dtypes and shapes included."""
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    return type(a) is type(b) and a == b
