"""Whether a project makes use of the CPUs it is about to be given.

`idle` is given a project and how many CPUs there are, and gives back one sentence with the line to write when a fixed
number of env runners leaves half of them idle; `idle_in_tuning` the same of `plato tune`.
"""

from __future__ import annotations

import math
from typing import Any

from ..project import Project

FEWEST_CPUS = 4
"""Of fewer than these nothing is said: there is hardly a smaller place."""


def idle(project: Project, cpus: float, there: str) -> str:
    """A sentence when half of the CPUs or more would be idle; empty otherwise, and where only code knows.

    Args:
        project: What is about to be sent.
        cpus: Of all machines together.
        there: What they are, as the beginning of the sentence: `2 x Standard_E8ds_v5 have 16 CPUs`.
    """
    runners = project.env_runners
    is_code = project.algorithm is not None and (not isinstance(project.algorithm, str) or ":" in project.algorithm)
    if is_code and "num_env_runners" not in runners:
        return ""
    wanted = _number(runners.get("num_env_runners", 0))
    per_runner = _number(runners.get("num_cpus_per_env_runner", 1))
    others = 1 + (_number(project.learners.get("num_learners", 0)) or 0)
    others += _number(project.evaluation.get("evaluation_num_env_runners", 0)) or 0
    if wanted is None or per_runner is None:
        return ""
    busy = wanted * per_runner + others
    if cpus < FEWEST_CPUS or busy * 2 > cpus:
        return ""
    who = f"{wanted:g} env runner{'s keep' if wanted != 1 else ' keeps'} {busy:g} of them busy"
    if wanted == 0:
        who = f"without env runners one process keeps {busy:g} of them busy"
    room = max(1, int((cpus - others) // max(per_runner, 1e-9)))
    return (
        f"{there}, and {who}. Say env_runners: {{num_env_runners: auto}} ({room} here), or take fewer or smaller nodes."
    )


def idle_in_tuning(project: Project, cpus: float, size: str, *, nodes: int) -> str:
    """A sentence when a tuning would leave half of the CPUs idle or more; empty otherwise, and where only code knows.

    Its trials train side by side, all on the first machine.

    Args:
        project: What is about to be tuned.
        cpus: Of one machine.
        size: What the machines are called.
        nodes: How many there are.
    """
    runners = _number(project.env_runners.get("num_env_runners", 0)) or 0  # auto: a trial samples by itself
    if nodes > 1 and not runners:
        return (
            f"All trials train on the first of the {nodes} nodes, and nothing uses the others. "
            "Leave --nodes out, and take a larger size for more trials at a time."
        )
    if project.algorithm is not None and (not isinstance(project.algorithm, str) or ":" in project.algorithm):
        return ""
    each = 1 + runners + (_number(project.learners.get("num_learners", 0)) or 0)
    grids = [domain["grid_search"] for domain in project.tune.param_space.values() if "grid_search" in domain]
    trials = project.tune.num_samples * math.prod(len(values) for values in grids)
    wish = project.tune.max_concurrent_trials
    at_once = min(trials, max(1, int(cpus // each)) if wish == "auto" else wish)
    if cpus < FEWEST_CPUS or at_once * each * 2 > cpus * nodes:
        return ""
    more = "more trials (tune: {num_samples: ...})" if at_once == trials else "tune: {max_concurrent_trials: auto}"
    who = f"{at_once} trials at a time keep" if at_once != 1 else "one trial at a time keeps"
    have = f"{nodes} x {size} have {nodes * cpus:g}" if nodes > 1 else f"{size} has {cpus:g}"
    return f"{have} CPUs, and {who} {at_once * each:g} of them busy. Say {more}, or take a smaller size."


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
