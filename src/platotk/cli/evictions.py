"""`plato train --simulate-eviction N`: a training that loses its machine N times, on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .. import console

if TYPE_CHECKING:
    from ..project import Project
    from ..run import Run


def simulate(project: Project, times: int, run: Path | None, as_json: bool) -> None:
    """Train, losing the machine `times` times; leaves with 0 when nothing was lost or counted twice."""
    from ..compute import eviction
    from .training import trained

    done = eviction.simulate(
        project,
        times=times,
        run=run,
        environment=_tracking,
        on_text=console.output_to_people,
        on_note=console.note,
    )
    if as_json:
        console.json({**trained(done.run), **done.to_dict()})
    else:
        console.evicted(done)
    raise typer.Exit(done.exit_code or int(bool(done.problems) or len(done.evictions) < times))


def _tracking(run: Run) -> dict[str, str]:
    """The MLflow store of the run, which else would lie on the disk that is deleted."""
    from ..learning.mlflow_log import store_uri

    if run.project.tracking.mlflow is not True or "MLFLOW_TRACKING_URI" in os.environ:
        return {}
    return {"MLFLOW_TRACKING_URI": store_uri(run.project, run)[0]}
