"""What the name of a size of virtual machine says: its CPUs; and whether a project makes use of them.

From the name alone, so that a dry run needs no network: `Standard_E8ds_v5` has 8. The older D and DS sizes number
their steps instead, and are listed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

STEPS = {1: 1, 2: 2, 3: 4, 4: 8, 5: 16, 11: 2, 12: 4, 13: 8, 14: 16, 15: 20}
"""Of D1 to D15 and DS1 to DS15, in their first and second version."""


def num_cpus(size: str) -> int | None:
    """Virtual CPUs of one machine; None when its name does not say."""
    stepped = re.fullmatch(r"(?:standard|basic)_ds?(\d+)(?:_v2)?", size, re.IGNORECASE)
    if stepped is not None:
        return STEPS.get(int(stepped[1]))
    counted = re.fullmatch(r"(?:standard|basic)_[a-z]+(\d+)(?:-(\d+))?[a-z]*(?:_.*)?", size, re.IGNORECASE)
    return None if counted is None else int(counted[2] or counted[1])


def idle_cpus(size: str, nodes: int, env_runners: Mapping[str, Any], learners: Mapping[str, Any]) -> str:
    """A sentence when a fixed number of env runners leaves half the CPUs or more idle; empty otherwise.

    Args:
        size: Of the machines.
        nodes: How many.
        env_runners: That section of the project.
        learners: That section of the project.
    """
    each, wanted = num_cpus(size), env_runners.get("num_env_runners", 0)
    per_runner = env_runners.get("num_cpus_per_env_runner", 1)
    if each is None or not isinstance(wanted, (int, float)) or not isinstance(per_runner, (int, float)):
        return ""
    others = learners.get("num_learners", 0)
    busy = wanted * per_runner + 1 + (others if isinstance(others, int) else 0)
    if nodes * each < 4 or busy * 2 > nodes * each:
        return ""
    there = f"{nodes} x {size} have {nodes * each} CPUs" if nodes > 1 else f"{size} has {each} CPUs"
    return (
        f"{there}, and {wanted:g} env runners keep {busy:g} of them busy. "
        "Say env_runners: {num_env_runners: auto}, or take fewer or smaller nodes."
    )
