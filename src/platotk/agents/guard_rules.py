"""One forbidden combination of a guard: when it holds, and what stands in its place.

Given a rule of `guard.forbid` as plain data, `Rule` checks its leaves and values against the spaces, tells whether the
combination is there, and writes the replacement. Conditions are comparisons of numbers and text; nothing is evaluated.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from ..errors import ProjectError, SimError
from ..spaces import from_json
from ..spaces.leaves import Space
from .guard_leaves import Leaf, Leaves, Missing

TESTS: dict[str, Callable[[Any, Any], Any]] = {
    "above": operator.gt,
    "at_least": operator.ge,
    "below": operator.lt,
    "at_most": operator.le,
    "equals": operator.eq,
    "differs": operator.ne,
}


class Rule:
    """A combination that may not be.

    Attributes:
        name: What it is called in counts.
        then: "hold", "fallback" or "replace".
        has_action: Whether a condition looks at the action.  has_observation: Likewise.
        values: The leaves that the replacement writes, with what it writes.  written: The leaves alone.
    """

    def __init__(
        self, data: Mapping[str, Any], index: int, leaves: Leaves, action_space: Space, where: Callable[[str], str]
    ) -> None:
        """Check it.

        Raises:
            ProjectError: A leaf that does not exist, a value that does not fit, a replacement that ends nothing.
        """
        key = f"guard.forbid.{index}"
        self.name = str(data.get("name") or f"forbid[{index}]")
        self._conditions = [
            _condition(leaves.find(name, where(f"{key}.when.{name}")), one, where(f"{key}.when.{name}"))
            for name, one in data["when"].items()
        ]
        self.has_action = any(leaf.side == "action" for leaf, _ in self._conditions)
        self.has_observation = any(leaf.side == "observation" for leaf, _ in self._conditions)
        then = data["then"]
        self.then = then if isinstance(then, str) else "replace"
        self.values = (
            []
            if isinstance(then, str)
            else [
                _value(
                    leaves.find(name, where(f"{key}.then.{name}"), sides=("action",)), one, where(f"{key}.then.{name}")
                )
                for name, one in then.items()
            ]
        )
        self.written = [leaf for leaf, _ in self.values]
        if self.then == "replace" and self.has_action and not self._ends():
            raise ProjectError(
                f"{where(f'{key}.then')}: with it, the combination is still there.",
                hint="Write a value that the condition on that leaf does not hold for.",
            )

    def holds(self, action: Any, observation: Any) -> bool:
        """Whether the combination is there; what is missing holds for nothing."""
        return all(_test(leaf, tests, action, observation) for leaf, tests in self._conditions)

    def replace(self, action: Any) -> Any:
        """The action with the rule's own values."""
        for leaf, value in self.values:
            action = leaf.written(action, value)
        return action

    def is_same(self, action: Any, other: Any) -> bool:
        """Whether both have the same values where the rule writes."""
        return all(np.array_equal(leaf.read(action), leaf.read(other)) for leaf in self.written)

    def _ends(self) -> bool:
        """Whether a condition on the action fails once the values are written."""
        values = {(leaf.path, leaf.index): value for leaf, value in self.values}
        for leaf, tests in self._conditions:
            if leaf.side != "action":
                continue
            value = values.get((leaf.path, leaf.index), values.get((leaf.path, None)))
            if value is not None and not _is_met(value, tests):
                return True
        return False


Tests = list[tuple[Callable[[Any, Any], Any], Any]]


def _condition(leaf: Leaf, given: Mapping[str, Any], where: str) -> tuple[Leaf, Tests]:
    is_text = isinstance(leaf.space, spaces.Text)
    for word, bound in given.items():
        if is_text and not (isinstance(bound, str) and word in ("equals", "differs")):
            raise ProjectError(f"{where}: {leaf.name} is text; compare it with equals or differs, and text.")
        if not is_text and isinstance(bound, str):
            raise ProjectError(f"{where}: {leaf.name} is a number, and {word} is {bound!r}.")
    return leaf, [(TESTS[word], bound) for word, bound in given.items()]


def _value(leaf: Leaf, given: Any, where: str) -> tuple[Leaf, Any]:
    """A value to write, in the leaf's own type.

    Raises:
        ProjectError: It is not one of the leaf's values.
    """
    if leaf.index is None:
        shape = leaf.space.shape
        if shape and isinstance(given, (int, float)):  # one number for all elements
            given = np.full(shape, given).tolist()
        try:
            return leaf, from_json(leaf.space, given, name=leaf.name)
        except SimError as error:
            raise ProjectError(f"{where}: {error.message}", hint=error.hint) from None
    low, high = leaf.bounds()
    is_number = isinstance(given, (bool, int, float)) and not (leaf.is_integer and given != int(given))
    if not is_number or not low <= given <= high:
        raise ProjectError(f"{where}: {given!r} is not a value of {leaf.name}, {low:g} to {high:g}.")
    return leaf, np.float64(given)


def _test(leaf: Leaf, tests: Tests, action: Any, observation: Any) -> bool:
    try:
        return _is_met(leaf.read(action if leaf.side == "action" else observation), tests)
    except (Missing, TypeError, ValueError):
        return False


def _is_met(value: Any, tests: Tests) -> bool:
    """Whether any element passes every test."""
    if isinstance(value, str):
        return all(test(value, bound) for test, bound in tests)
    array = np.asarray(value, np.float64)
    return bool(np.logical_and.reduce([test(array, bound) for test, bound in tests]).any())
