"""What the usage of its machines says about a run: too large, too small, or right.

Given a `Run`, `usage_of` gives back what its last attempt used on average and one line of advice; the thresholds stand
in docs/where/right-size.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import PlatoError
from ..run import Run

IDLE_PERCENT = 50.0
"""Below this share of the CPUs, the others are paid for nothing."""
BUSY_PERCENT = 90.0
"""Above this share, sampling waits for CPUs."""
FULL_PERCENT = 85.0
"""Above this share of a machine's memory, the next env runner may be the one that is killed."""
MOST_LINES = 500
"""Iterations looked at, the newest."""


def usage_of(run: Run) -> dict[str, Any]:
    """What the machines of a run's last attempt did on average.

    Returns:
        `nodes` (at the end), `cpus`, `cpu_percent`, `memory_percent`, and `usage`: what that means, in a line. Empty
        where the journal does not say.
    """
    lines = run.metrics()
    attempt = lines[-1].get("attempt") if lines else None
    timed = [
        (line["cluster"], line["time_s"] - before.get("time_s", 0.0))
        for before, line in zip([{}, *lines], lines, strict=False)
        if line.get("attempt") == attempt and line.get("cluster")
    ][-MOST_LINES:]
    cpu_percent = _mean([(one.get("cpu_percent"), seconds) for one, seconds in timed])
    if cpu_percent is None:
        return {}
    clusters = [one for one, _ in timed]
    memory = _mean([(one.get("memory_percent"), seconds) for one, seconds in timed])
    fullest = max((one.get("fullest_percent") or 0.0 for one in clusters), default=0.0)
    nodes, most = clusters[-1]["nodes"], max(one["nodes"] for one in clusters)
    try:
        project = run.project
        runners: Mapping[str, Any] = project.env_runners
        is_code = not isinstance(project.algorithm, str | None) or ":" in (project.algorithm or "")
    except PlatoError:
        runners, is_code = {}, True
    line = advice(cpu_percent, clusters[-1]["cpus"], fullest, nodes=nodes, wish=_wish(runners, is_code))
    if nodes < most:
        line += f"; {nodes} of {most} nodes were alive at the end"
    return {
        "nodes": nodes,
        "cpus": clusters[-1]["cpus"],
        "cpu_percent": round(cpu_percent, 1),
        "memory_percent": None if memory is None else round(memory, 1),
        "usage": line,
    }


def advice(cpu_percent: float, cpus: float, fullest_percent: float, *, nodes: int = 1, wish: Any = None) -> str:
    """What such usage means, in a line.

    Args:
        cpu_percent: Of all CPUs, on average.
        cpus: How many there are.
        fullest_percent: Of the memory of the machine that had least left, at its highest.
        nodes: How many machines.
        wish: `num_env_runners` as the project says it; None where it is not known.
    """
    busy = f"CPU {cpu_percent:.0f} % busy"
    if fullest_percent >= FULL_PERCENT:
        many = "the fullest machine" if nodes > 1 else "the machine"
        return f"{busy}, memory of {many} {fullest_percent:.0f} % full: more memory or fewer runners"
    if cpu_percent >= BUSY_PERCENT:
        return f"{busy}: all in use, more CPUs would sample faster"
    if cpu_percent >= IDLE_PERCENT:
        return f"{busy}: a fair size"
    smaller = "fewer or smaller nodes" if nodes > 1 else "smaller nodes"
    if cpus <= 2:
        return f"{busy}: the machine is as small as it gets"
    if wish == "auto":
        return f"{busy} with a runner for every CPU: {smaller}"
    how = "" if wish is None else f" (now {wish:g}; env_runners: {{num_env_runners: auto}})"
    return f"{busy}: {smaller} or more runners{how}"


def _wish(runners: Mapping[str, Any], is_code: bool) -> Any:
    """How many env runners a project asks for: a number, "auto", or None where only its code says."""
    given = runners.get("num_env_runners", None if is_code else 0)
    return given if given == "auto" or isinstance(given, int | float) else None


def _mean(values: Sequence[tuple[float | None, float]]) -> float | None:
    """Of values with their weights; None when there is none."""
    told = [(value, max(weight, 1e-3)) for value, weight in values if value is not None]
    return sum(value * weight for value, weight in told) / sum(weight for _, weight in told) if told else None
