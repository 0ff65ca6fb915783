"""From a run's folder to the rows that its curves are drawn from.

Given a `Run`, `curve_rows` gives back its journal thinned out to what a screen can show, `evaluation_rows`
the evaluations of its checkpoints with the best one marked; both as flat dicts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..run import Run


def curve_rows(name: str, run: Run, most: int) -> list[dict[str, Any]]:
    """At most `most` rows of a run's journal.

    Where there are more iterations, each row stands for several: the mean of their mean returns, the lowest
    of their lowest, the highest of their highest, at the last one's steps and time.

    Args:
        name: What the run is called in the rows.
        run: The run.
        most: How many rows.
    """
    lines = run.metrics()
    size = -(-len(lines) // most) if lines else 1
    return [_row(name, lines[at : at + size]) for at in range(0, len(lines), size)]


def evaluation_rows(name: str, run: Run) -> list[dict[str, Any]]:
    """Checkpoints that were judged, by iteration: by us, by RLlib's evaluation, and best.json's one."""
    lines = {line["iteration"]: line for line in run.metrics()}
    best = _best(run)
    found: dict[int, dict[str, Any]] = {}
    for iteration, value, episodes in _judged(run, lines):
        found[iteration] = _evaluation(name, lines[iteration], value, episodes, is_best=False)
    if best is not None and best[0] in lines:
        iteration, value, by, episodes = best
        found[iteration] = _evaluation(name, lines[iteration], value, episodes, is_best=True, by=by)
    return [found[iteration] for iteration in sorted(found)]


def _row(name: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    last = lines[-1]
    low, high = _numbers(lines, "return_min"), _numbers(lines, "return_max")
    return {
        "name": name,
        "iteration": last["iteration"],
        "env_steps": last["env_steps"],
        "time": last.get("time_s"),
        "mean": _mean(_numbers(lines, "return_mean")),
        "min": min(low, default=None),
        "max": max(high, default=None),
        "length": _mean(_numbers(lines, "episode_length_mean")),
        "rate": _mean(_numbers(lines, "env_steps_per_s")),
    }


def _judged(run: Run, lines: Mapping[int, Mapping[str, Any]]) -> Iterator[tuple[int, float, int | None]]:
    """(iteration, mean return, episodes) of each evaluation; ours come last, so that they count."""
    for iteration, line in lines.items():
        theirs = ((line.get("rllib") or {}).get("evaluation") or {}).get("env_runners") or {}
        if isinstance(theirs.get("episode_return_mean"), (int, float)):
            yield iteration, theirs["episode_return_mean"], theirs.get("num_episodes")
    for ours in run.evaluations():
        yield ours["iteration"], ours["return_mean"], ours.get("episodes")


def _best(run: Run) -> tuple[int, float, str, int | None] | None:
    try:
        best = json.loads((run.path / "best.json").read_text(encoding="utf-8"))
        iteration = int(str(best["checkpoint"]).rpartition("/")[2])
        return iteration, float(best["return_mean"]), str(best["by"]), best.get("episodes") or None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _evaluation(
    name: str,
    line: Mapping[str, Any],
    value: float,
    episodes: int | None,
    *,
    is_best: bool,
    by: str = "evaluation",
) -> dict[str, Any]:
    return {
        "name": name,
        "iteration": line["iteration"],
        "env_steps": line["env_steps"],
        "time": line.get("time_s"),
        "mean": value,
        "episodes": episodes,
        "is_best": is_best,
        "by": by,
    }


def _numbers(lines: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [line[key] for line in lines if isinstance(line.get(key), (int, float))]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
