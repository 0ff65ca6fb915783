"""Categorical actions: leaves that are learned as choices among a few values.

Given Discrete, MultiDiscrete, MultiBinary, Text and small integer Boxes, says how many choices of how many
values a leaf has; given the indices that a policy chose, gives the leaf's own values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from platotk.errors import SimError
from platotk.spaces.leaves import Array, Space, describe_space, dtype_of, element, label, short

MAX_INTEGER_CHOICES = 256  # an integer Box element with more values than this is continuous
MAX_LOGITS = 4096  # with more in all, the largest integer Boxes are continuous
MAX_CHOICES = 1 << 17  # of what can be learned in no other way (Discrete ...)


def categorical(found: list[tuple[str, Space]]) -> dict[str, Choices]:
    """The leaves learned as choices, by path; if there are too many, the largest integer Boxes give way."""
    chosen = {
        path: Choices(leaf, path)
        for path, leaf in found
        if not isinstance(leaf, spaces.Box) or max(_integer_sizes(leaf), default=0) <= MAX_INTEGER_CHOICES
        if not (isinstance(leaf, spaces.Box) and dtype_of(leaf).kind == "f")
    }
    boxes = [leaf for leaf in chosen.values() if isinstance(leaf.space, spaces.Box)]
    while boxes and _total(chosen) > MAX_LOGITS:
        largest = max(boxes, key=lambda leaf: sum(leaf.nvec))
        boxes.remove(largest)
        del chosen[largest.path]
    if _total(chosen) > MAX_CHOICES:
        worst = max(chosen.values(), key=lambda leaf: sum(leaf.nvec))
        raise SimError(
            f"{worst.label}: {describe_space(worst.space)} has too many choices; all together make "
            f"{_total(chosen):,}, at most {MAX_CHOICES:,} can be learned.",
            hint="Give the sim a Box(low, high, dtype=np.int64) where the choices are ordered "
            "(it is learned as a continuous action and rounded), or decide in several smaller steps.",
        )
    return chosen


def _total(chosen: dict[str, Choices]) -> int:
    return sum(sum(leaf.nvec) for leaf in chosen.values())


class Choices:
    """A leaf that is learned as categorical choices.

    Attributes:
        kind: 1, the place of choices among (numbers, choices).
        nvec: The number of values of each choice.  label: The leaf as people read it.
        line: How it is learned from, for people.
    """

    kind = 1

    def __init__(self, space: Space, path: str) -> None:
        self.space = space
        self.path = path
        self._dtype = np.dtype(np.int64) if isinstance(space, spaces.Text) else dtype_of(space)
        self.label = label("action", path)
        self.shape: tuple[int, ...] = ()
        if isinstance(space, spaces.Discrete):
            self.nvec = [int(space.n)]
            first: Array = np.asarray(space.start)
        elif isinstance(space, spaces.MultiDiscrete):
            self.shape, first = space.shape, space.start
            self.nvec = [int(n) for n in space.nvec.reshape(-1)]
        elif isinstance(space, spaces.MultiBinary):
            self.shape, first = space.shape, np.zeros(space.shape, np.int8)
            self.nvec = [2] * first.size
        elif isinstance(space, spaces.Text):
            size = len(space.character_set)
            self.characters = sorted(space.character_set)
            self.nvec = [
                size + (position >= space.min_length) for position in range(min(space.max_length, MAX_CHOICES + 1))
            ]
            self.shape, first = (len(self.nvec),), np.zeros(len(self.nvec), np.int64)
        elif isinstance(space, spaces.Box):
            self.shape, first = space.shape, space.low
            self.nvec = _integer_sizes(space)
        else:
            raise _refused(space, self.label)
        self.first: Array = first.reshape(-1).astype(np.int64)
        self._exact_first: list[int] = first.reshape(-1).tolist()
        self.line = f"{self.label}: {describe_space(space)} -> {self._how()}"

    def element(self, index: int) -> str:
        """The name of one of the choices."""
        return element(self.label, self.shape, index)

    def scalar(self, action: Any) -> Any:
        """The value of a Discrete leaf for one index, quickly; None when it is anything less plain."""
        if isinstance(self.space, spaces.Discrete) and isinstance(action, (int, np.integer)):
            index = int(action)
            if 0 <= index < self.nvec[0]:
                return self._dtype.type(int(self.space.start) + index)
        return None

    def value(self, chosen: Sequence[int]) -> Any:
        """The leaf's own value for one row of plain choices."""
        space = self.space
        if isinstance(space, spaces.Discrete):
            return self._dtype.type(int(space.start) + chosen[0])
        if isinstance(space, spaces.Text):
            return self._string(chosen)
        exact = [first + index for first, index in zip(self._exact_first, chosen, strict=True)]
        return np.array(exact, self._dtype).reshape(self.shape)

    def indices(self, value: Any) -> list[int]:
        """The choices that `value` gives this value for, where it is one of the leaf's own."""
        if isinstance(self.space, spaces.Text):
            codes = [self.characters.index(character) for character in value]
            return codes + [len(self.characters)] * (len(self.nvec) - len(codes))
        given: list[int] = np.asarray(value).reshape(-1).tolist()
        return [int(one) - first for one, first in zip(given, self._exact_first, strict=True)]

    def column(self, chosen: Array) -> Array | list[str]:
        """The leaf's own values for choices (B, k) int64."""
        if isinstance(self.space, spaces.Text):
            return [self._string(row) for row in chosen]
        # Modulo 2**64, so that int64 carries the largest unsigned bounds as well.
        values: Array = (self.first + chosen).astype(self._dtype).reshape(len(chosen), *self.shape)
        return values

    def _string(self, codes: Sequence[int] | Array) -> str:
        text = ""
        for code in codes:
            if code == len(self.characters):
                break
            text += self.characters[code]
        return text

    def _how(self) -> str:
        sizes = sorted(set(self.nvec))
        if isinstance(self.space, spaces.Text):
            return f"{len(self.nvec)} characters, each a choice of {' or '.join(map(str, sizes))}"
        if not self.nvec:
            return "nothing"
        if len(self.nvec) == 1:
            return f"{self.nvec[0]} choices"
        if len(sizes) == 1:
            return f"{len(self.nvec)} x {sizes[0]} choices"
        return f"{len(self.nvec)} choices of {short(self.nvec)[1:-1]}"


def _integer_sizes(space: spaces.Box) -> list[int]:
    """How many values each element of an integer (or bool) Box has; empty for floats."""
    if dtype_of(space).kind == "f":
        return []
    pairs = zip(space.low.reshape(-1), space.high.reshape(-1), strict=True)
    return [int(high) - int(low) + 1 for low, high in pairs]


def _refused(space: Space, leaf: str) -> SimError:
    what = f"{leaf}: {describe_space(space)} cannot be learned"
    if isinstance(space, spaces.OneOf):
        return SimError(
            f"{what}: a policy gives every part of an action, not one of several.",
            hint=f'Use Dict({{"which": Discrete({len(space.spaces)}), ...}}) with one entry per option; '
            "the sim reads the entry that `which` names.",
        )
    if isinstance(space, (spaces.Sequence, spaces.Graph)):
        return SimError(
            f"{what}: its size is not fixed.",
            hint='Use a fixed size and a count: Dict({"items": Box(low, high, (MAX, k)), '
            '"count": Discrete(MAX + 1)}); the sim ignores what lies beyond the count.',
        )
    return SimError(
        f"{what}: {type(space).__name__} is not one of Gymnasium's own spaces.",
        hint="Build the action from Box, Discrete, MultiDiscrete, MultiBinary, Text, Dict and Tuple.",
    )
