"""The section `guard` as plain data, from a manifest that anybody may have written: is it whole?

Given that data, `require_guard` refuses what a project file could not say: an unknown key, a word that is none of the
allowed ones, a limit that is no number, `hold` with nothing to hold. Whether leaves exist and limits fit them is the
business of `guards`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ProjectError
from ..spaces.leaves import did_you_mean, short
from .guard_rules import TESTS
from .guard_whole import OUTCOMES, require_whole

Check = Callable[[Any], str | None]


def require_guard(data: Any, where: Callable[[str], str]) -> None:
    """Refuse data that is no guard.

    Args:
        data: The section.
        where: Names the place of a key for messages; gets `guard.clamp.valve`.

    Raises:
        ProjectError: The key is named.
    """
    for key, value in _entries(data, "guard", where, _CHECKS):
        if wrong := _CHECKS[key](value):
            raise ProjectError(f"{where(f'guard.{key}')}: {short(value)} is not {wrong}.")
    for name, limits in _entries(data.get("clamp", {}), "guard.clamp", where):
        _require_numbers(limits, f"guard.clamp.{name}", where, ("low", "high"))
        if limits.get("low", -math.inf) > limits.get("high", math.inf):
            raise ProjectError(f"{where(f'guard.clamp.{name}')}: low ({limits['low']:g}) is above high.")
    for name, limits in _entries(data.get("slew", {}), "guard.slew", where):
        _require_numbers(limits, f"guard.slew.{name}", where, ("per_step", "per_second"), above=0.0)
    for index, rule in enumerate(data.get("forbid", [])):
        _require_rule(rule, f"guard.forbid.{index}", where)
    try:
        require_whole(data)
    except ValueError as error:
        raise ProjectError(f"{where('guard')}: {error}") from None


def _require_rule(rule: Any, key: str, where: Callable[[str], str]) -> None:
    for name, value in _entries(rule, key, where, ("name", "when", "then")):
        if name == "name" and not isinstance(value, str):
            raise ProjectError(f"{where(f'{key}.name')}: {short(value)} is not text.")
    if not rule.get("when") or "then" not in rule:
        raise ProjectError(f"{where(key)}: a rule has when and then.")
    for leaf, tests in _entries(rule["when"], f"{key}.when", where):
        place = f"{key}.when.{leaf}"
        for word, bound in _entries(tests, place, where, TESTS):
            is_scalar = isinstance(bound, str) if word in ("equals", "differs") else False
            if not is_scalar and not isinstance(bound, bool) and not _is_number(bound):
                raise ProjectError(f"{where(place)}: {word} is {short(bound)}; expected a number.")
        if not tests:
            raise ProjectError(f"{where(place)}: expected one of {', '.join(TESTS)}.")
    then = rule["then"]
    if (then not in OUTCOMES if isinstance(then, str) else not isinstance(then, Mapping)) or not then:
        raise ProjectError(
            f"{where(f'{key}.then')}: {short(then)} is neither hold nor fallback, nor leaves with values."
        )


def _require_numbers(
    limits: Any, key: str, where: Callable[[str], str], known: tuple[str, ...], *, above: float | None = None
) -> None:
    for name, value in _entries(limits, key, where, known):
        if not _is_number(value) or (above is not None and value <= above):
            more = "" if above is None else f" above {above:g}"
            raise ProjectError(f"{where(f'{key}.{name}')}: {short(value)} is not a number{more}.")
    if not limits:
        raise ProjectError(f"{where(key)}: expected {known[0]}, {known[1]} or both.")


def _entries(data: Any, key: str, where: Callable[[str], str], known: Any = None) -> list[tuple[str, Any]]:
    if not isinstance(data, Mapping):
        raise ProjectError(f"{where(key)}: {short(data)} is not a mapping of keys to values.")
    for name in data:
        if not isinstance(name, str) or (known is not None and name not in known):
            raise ProjectError(f"{where(key)}: unknown key {short(name)}.", hint=did_you_mean(str(name), known or ()))
    return list(data.items())


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _seconds(value: Any) -> str | None:
    return None if _is_number(value) and value > 0 else "a number of seconds above 0"


def _outcome(value: Any) -> str | None:
    return None if isinstance(value, str) and value in OUTCOMES else "hold or fallback"


def _outcome_or_clip(value: Any) -> str | None:
    return None if isinstance(value, str) and value in (*OUTCOMES, "clip") else "hold, fallback or clip"


def _count(value: Any) -> str | None:
    return None if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else "a whole number from 1"


def _mapping(value: Any) -> str | None:
    return None if isinstance(value, Mapping) else "a mapping of leaves"


_CHECKS: dict[str, Check] = {
    "clamp": _mapping,
    "slew": _mapping,
    "forbid": lambda value: None if isinstance(value, list) else "a list of rules",
    "stale_s": _seconds,
    "on_stale": _outcome,
    "on_missing": _outcome,
    "on_out_of_range": _outcome_or_clip,
    "max_holds": _count,
    "fallback": lambda value: None if value is not None else "an action",
    "step_s": _seconds,
}
