"""`plato tune`: many trainings, each with other settings, best first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from ..errors import ProjectError
from . import jobs
from .base import SO_FAR, AsJson, Command, Overrides, ProjectPath, Yes, app, examples, load_project, load_run

if TYPE_CHECKING:
    from ..run import Run


@app.command(
    cls=Command,
    epilog=examples(
        "plato tune",
        "plato tune --set tune.num_samples=50 --set tune.time_budget_s=2h",
        "plato tune --resume",
        "plato tune --on local --detach",
    ),
)
def tune(
    ctx: typer.Context,
    project: ProjectPath = None,
    overrides: Overrides = None,
    run: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The tuning's folder: made, or continued when it is there.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="[RUN]", help="Continue a tuning. Without a RUN: the newest run.")
    ] = None,
    on: jobs.On = None,
    detach: jobs.Detach = False,
    dry_run: jobs.DryRun = False,
    nodes: jobs.Nodes = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Train with many settings, as tune: in plato.yaml says. Ctrl-C saves all trials; --resume goes on."""
    if run is not None and resume is not None:
        raise ProjectError("--run and --resume exclude each other.", hint="--run PATH continues what is there.")
    changes = overrides or []
    if resume is not None:
        resumed = load_run(None if resume == "last" else resume, project)
        loaded = resumed.project.override(changes) if changes else resumed.project
    else:
        resumed, loaded = None, load_project(project, changes)
    jobs.refuse_without_on(on, detach=detach, dry_run=dry_run, nodes=nodes, yes=yes)
    if on is not None:
        words = [word for change in changes for word in ("--set", change)] if resumed or run is not None else []
        return jobs.submit(
            "tune",
            loaded,
            on=on,
            run=run if resumed is None else resumed,
            words=words,
            detach=detach,
            dry_run=dry_run,
            nodes=nodes,
            yes=yes,
            as_json=as_json,
        )
    from ..learning import curves, tuning
    from ..run import Run

    folder: Path | None = None
    with console.TuningView(loaded.tune.metric) as view:

        def on_event(event: dict[str, Any]) -> None:
            nonlocal folder
            if event["event"] == "tuning":
                folder = Path(event["path"])
                ctx.meta[SO_FAR] = lambda: tuned(Run(event["path"]))
            view(event)

        trials = tuning.tune(loaded, run=run, resume=resumed, on_event=on_event)
        assert folder is not None
        done = Run(folder)
        view.ended(done, curves.write_curves(trials, done.path / curves.PAGE))
    if as_json:
        console.json(tuned(done))
    raise typer.Exit(75 if done.status == "stopped" else 0)


def tuned(run: Run) -> dict[str, Any]:
    """What `plato tune --json` says."""
    from ..trials import summaries

    rows = summaries(run)
    best = rows[0] if rows and rows[0]["value"] is not None else None
    return {
        "run": run.name,
        "path": str(run.path),
        "status": run.status,
        "reason": run.info.get("reason"),
        "best": best and best["path"],
        "trials": rows,
    }
