"""The trials of a tuning: runs in a run's folder, `trials/0001` ..., and which of them is the best.

A tuning is a run whose run.json says `"kind": "tune"`; a trial is a run like any other, whose `parent` is the tuning
and whose `params` are what was drawn for it. Light: loads neither ray nor torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import RunNotFoundError
from .run import Run

KIND = "tune"
FOLDER = "trials"


def is_tuning(run: Run) -> bool:
    """Whether a run is a tuning."""
    return (run.path / FOLDER).is_dir() and run.problem is None and run.info.get("kind") == KIND


def tuning_of(run: Run) -> Path | None:
    """The folder of the tuning that a run is a trial of; None when it is of none."""
    return run.path.parent.parent if run.path.parent.name == FOLDER else None


def trials(tuning: Run) -> list[Run]:
    """The trials that have begun, in their order."""
    folders = sorted((tuning.path / FOLDER).glob("[0-9]*"))
    return [Run(folder) for folder in folders if (folder / "run.json").is_file()]


def value_of(trial: Run, metric: str, mode: str) -> float | None:
    """The best value of a figure over a trial's iterations; None when it has none."""
    values = [line.get(metric) for line in trial.metrics()]
    known = [float(value) for value in values if isinstance(value, (int, float)) and math.isfinite(value)]
    return (max if mode == "max" else min)(known, default=None)


def best_first(tuning: Run) -> list[Run]:
    """The trials, best first; those without a value last, in their order."""
    tune = tuning.project.tune
    values = {trial.path: value_of(trial, tune.metric, tune.mode) for trial in trials(tuning)}
    sign = -1.0 if tune.mode == "max" else 1.0

    def place(trial: Run) -> tuple[bool, float, str]:
        value = values[trial.path]
        return value is None, 0.0 if value is None else sign * value, trial.name

    return sorted(trials(tuning), key=place)


def summaries(tuning: Run) -> list[dict[str, Any]]:
    """A row for each trial, best first: `trial, path, status, value, iteration, env_steps, params, error`."""
    tune = tuning.project.tune
    rows = []
    for trial in best_first(tuning):
        info, lines = trial.info, trial.metrics()
        last: Mapping[str, Any] = lines[-1] if lines else {}
        rows.append(
            {
                "trial": int(trial.name),
                "path": str(trial.path),
                "status": "pruned" if info.get("pruned") else trial.status,
                "value": value_of(trial, tune.metric, tune.mode),
                "iteration": last.get("iteration", 0),
                "env_steps": last.get("env_steps", 0),
                "params": info.get("params", {}),
                "error": info.get("error"),
            }
        )
    return rows


def trained_run(run: Run) -> Run:
    """The run whose policy is meant: of a tuning the best trial, otherwise the run itself.

    Raises:
        RunNotFoundError: No trial of the tuning has a checkpoint yet.
    """
    if not is_tuning(run):
        return run
    for trial in best_first(run):
        if trial.latest is not None:
            return trial
    raise RunNotFoundError(
        f"no trial of {run.name} has a checkpoint yet.", hint=f"Go on with: plato tune --resume {run.name}"
    )
