"""Leaves of actions and observations by name, as guards are written in plato.yaml.

Given a name such as `tank.valves[0]` or `action.valve`, `Leaves` finds the leaf, or says what was probably meant; a
`Leaf` reads its numbers from a value of the space, and `replaced` puts others in their place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from ..errors import ProjectError
from ..spaces.leaves import Array, Space, bounds_of, did_you_mean, dtype_of, label, meant_path, under_index, under_key

SIDES = ("action", "observation")
_INDEX = re.compile(r"(.*)\[(\d+)\]", re.DOTALL)


class Missing(Exception):
    """There is no value at the leaf."""


@dataclass(frozen=True)
class Leaf:
    """One leaf of a space, or one element of it.

    Attributes:
        side: "action" or "observation".
        path: As in `action_scale`: `tank.valves`; empty for a space that is itself a leaf.
        space: Of the whole leaf.
        keys: The way to it.
        index: Of one element, or None for all.
    """

    side: str
    path: str
    space: Space
    keys: tuple[Any, ...]
    index: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """As it is counted: `valve`, `flows[2]`; `action` where the space is itself the leaf."""
        found = self.path + "".join(f"[{i}]" for i in self.index or ())
        return label(self.side, found) if not self.path else found

    @property
    def is_ordered(self) -> bool:
        """Whether it holds numbers of which one is more than another."""
        if isinstance(self.space, spaces.Box):
            return dtype_of(self.space).kind != "b"
        return isinstance(self.space, (spaces.Discrete, spaces.MultiDiscrete))

    @property
    def is_integer(self) -> bool:
        """Whether only whole numbers fit."""
        return dtype_of(self.space).kind != "f"

    def bounds(self) -> tuple[Array, Array]:
        """Lowest and highest value of each element, float64."""
        low, high = ordered_bounds(self.space)
        at = ... if self.index is None else self.index
        return np.asarray(low[at], np.float64), np.asarray(high[at], np.float64)

    def read(self, value: Any) -> Any:
        """The leaf in a value of the space; an array of its elements, or text.

        Raises:
            Missing: It is not there.
        """
        found = fetch(value, self.keys)
        if isinstance(self.space, spaces.Text):
            return found
        array = np.asarray(found)
        if self.index is None:
            return array
        if array.shape != self.space.shape:
            raise Missing
        return array[self.index]

    def written(self, value: Any, new: Any) -> Any:
        """The value with other numbers (or text) in this leaf, which must fit it."""
        if isinstance(self.space, spaces.Text):
            return replaced(value, self.keys, str(new))
        dtype = dtype_of(self.space)
        if isinstance(self.space, spaces.Discrete):
            return replaced(value, self.keys, dtype.type(int(new)))
        array = np.array(fetch(value, self.keys), dtype).reshape(self.space.shape or ())
        array[... if self.index is None else self.index] = new
        return replaced(value, self.keys, array)


class Leaves:
    """The leaves of both spaces of a sim."""

    def __init__(self, observation_space: Space, action_space: Space) -> None:
        self._by_side = {
            "action": {leaf.path: leaf for leaf in _walk("action", action_space, "", ())},
            "observation": {leaf.path: leaf for leaf in _walk("observation", observation_space, "", ())},
        }

    def of(self, side: str) -> list[Leaf]:
        """All leaves of "action" or "observation"."""
        return list(self._by_side[side].values())

    def find(self, name: str, where: str, *, sides: tuple[str, ...] = SIDES) -> Leaf:
        """The leaf of that name; `action.` or `observation.` may stand before it.

        Raises:
            ProjectError: There is none, or one in each space.
        """
        found = [leaf for side in sides for leaf in [self._find(side, name)] if leaf is not None]
        if len(found) == 1:
            return found[0]
        if found:
            raise ProjectError(
                f"{where}: both the action and the observation have {name!r}.",
                hint=f"Say action.{name} or observation.{name}.",
            )
        known = [leaf.path or side for side in sides for leaf in self.of(side)]
        meant = did_you_mean(name.partition(".")[2] if name.startswith(("action.", "observation.")) else name, known)
        who = "the action and the observation have" if len(sides) > 1 else f"the {sides[0]} has"
        raise ProjectError(f"{where}: {who} no leaf {name!r}.", hint=meant)

    def _find(self, side: str, name: str) -> Leaf | None:
        leaves = self._by_side[side]
        for candidate in (meant_path(one, leaves) for one in (name, *_without(side, name))):
            if candidate in leaves and (candidate or name == side):
                return leaves[candidate]
            rest, index = candidate, tuple[int, ...]()
            while match := _INDEX.fullmatch(rest):  # indices may belong to the path of a Tuple, or to an array
                rest, index = meant_path(match[1], leaves), (int(match[2]), *index)
                if rest in leaves and (rest or candidate != name):
                    leaf = leaves[rest]
                    shape = leaf.space.shape or ()
                    if len(index) == len(shape) and all(i < length for i, length in zip(index, shape, strict=True)):
                        return Leaf(side, leaf.path, leaf.space, leaf.keys, index)
        return None


def ordered_bounds(space: Space) -> tuple[Array, Array]:
    """Lowest and highest value of each element of a leaf of numbers."""
    if isinstance(space, spaces.Discrete):
        return np.asarray(space.start), np.asarray(space.start + (space.n - 1))
    if isinstance(space, spaces.MultiBinary):
        return np.zeros(space.shape), np.ones(space.shape)
    low, high = bounds_of(space)  # type: ignore[arg-type]
    return np.asarray(low), np.asarray(high)


def fetch(value: Any, keys: tuple[Any, ...]) -> Any:
    """What lies at the end of a way through dicts and tuples.

    Raises:
        Missing: Nothing, or None.
    """
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            raise Missing from None
    if value is None:
        raise Missing
    return value


def replaced(value: Any, keys: tuple[Any, ...], new: Any) -> Any:
    """A copy of nested dicts and tuples in which one leaf is another."""
    if not keys:
        return new
    if isinstance(value, Mapping):
        return {**value, keys[0]: replaced(value[keys[0]], keys[1:], new)}
    return tuple(replaced(part, keys[1:], new) if i == keys[0] else part for i, part in enumerate(value))


def _walk(side: str, space: Space, path: str, keys: tuple[Any, ...]) -> Iterator[Leaf]:
    if isinstance(space, spaces.Dict):
        for key, child in space.spaces.items():
            yield from _walk(side, child, under_key(path, key), (*keys, key))
    elif isinstance(space, spaces.Tuple):
        for index, child in enumerate(space.spaces):
            yield from _walk(side, child, under_index(path, index), (*keys, index))
    else:
        yield Leaf(side, path, space, keys)


def _without(side: str, name: str) -> list[str]:
    """The name without the side before it, where that stands there."""
    if name == side:
        return [""]
    return [name[len(side) :].removeprefix(".")] if name.startswith((f"{side}.", f"{side}[")) else []
