"""Which keys of a guard need others: the same for plato.yaml and for the manifest of an agent.

Given the section `guard` as plain data, `require_whole` says what is missing. It stands apart because a project is read
without numpy and gymnasium.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OUTCOMES = ("hold", "fallback")
_INPUTS = ("on_stale", "on_missing", "on_out_of_range")


def require_whole(data: Mapping[str, Any]) -> None:
    """Refuse keys that need others.

    Raises:
        ValueError: What is missing.
    """
    outcomes = [(key, data.get(key)) for key in _INPUTS]
    outcomes += [(f"forbid[{index}].then", rule["then"]) for index, rule in enumerate(data.get("forbid", []))]
    holding = [key for key, outcome in outcomes if outcome == "hold"]
    falling = [key for key, outcome in outcomes if outcome == "fallback"]
    if data.get("fallback") is None and falling:
        raise ValueError(f"{falling[0]} is fallback, and there is none; say fallback: {{valve: 0.0}}")
    if data.get("fallback") is None and holding:
        raise ValueError(
            f"{holding[0]} is hold, and at the first step there is nothing to hold; say fallback: {{valve: 0.0}}"
        )
    if (data.get("stale_s") is None) != (data.get("on_stale") is None):
        raise ValueError("stale_s and on_stale belong together; give both or neither")
    if data.get("max_holds") is not None and not set(holding) & set(_INPUTS):
        raise ValueError("max_holds counts inputs that were held, and none is: say on_missing: hold")
    if data.get("step_s") is None and any(one.get("per_second") is not None for one in data.get("slew", {}).values()):
        raise ValueError("slew has per_second, so step_s must say how long a step of the sim lasts")
