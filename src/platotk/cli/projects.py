"""`plato init` and `plato check`: the beginnings of a project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import console
from .base import AsJson, Command, Overrides, ProjectPath, app, examples, load_project


@app.command(
    cls=Command,
    epilog=examples("plato init", "plato init --from CartPole-v1", "plato init adder --from simple-adder"),
)
def init(
    path: Annotated[
        Path,
        typer.Argument(metavar="[PATH]", help="The folder; made if need be. Default: here.", show_default=False),
    ] = Path(),
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="WHAT", help="A Gymnasium id, or simple-adder. Default: a sim.py to fill in."),
    ] = None,
    project: Annotated[Path | None, typer.Option("-C", metavar="PATH", help="Where PATH begins.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start a project: a commented plato.yaml, and a sim.py to fill in."""
    from .. import starters

    folder = (project or Path()) / path
    files = starters.init(folder, source=source)
    if as_json:
        console.json([str(file) for file in files])
    else:
        console.started(folder, files)


@app.command(cls=Command, epilog=examples("plato check", "plato check --json", "plato check --set algorithm=SAC"))
def check(
    project: ProjectPath = None,
    overrides: Overrides = None,
    time_limit_s: Annotated[
        float,
        typer.Option("--time-limit", metavar="SECONDS", min=1, help="How long the whole check may take."),
    ] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Find what is wrong with the simulator, and how to cure it."""
    from ..sims import checks

    loaded = load_project(project, overrides)
    with console.waiting(f"Checking {loaded.name}"):
        findings = checks.check(loaded, time_limit_s=time_limit_s)
    if as_json:
        console.json([finding.to_dict() for finding in findings])
    else:
        console.findings(findings, loaded)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)
