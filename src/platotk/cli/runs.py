"""`plato runs`, `show` and `compare`: what has been trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import console
from ..errors import AgentError, ProjectError
from .agents import about_agent, num_bytes
from .base import AsJson, Command, ProjectPath, app, examples, find_runs_dir, load_run


@app.command(cls=Command, epilog=examples("plato runs", "plato runs --json"))
def runs(project: ProjectPath = None, as_json: AsJson = False) -> None:
    """List the runs, newest first."""
    from ..compute.glance import job_states
    from ..learning import curves
    from ..run import runs as list_runs

    found = list_runs(find_runs_dir(project))
    states = job_states(found)
    rows = [{**curves.summary(run), **states.get(run.path, {})} for run in found]
    if as_json:
        console.json(rows)
    else:
        console.runs(rows, find_runs_dir(project))


@app.command(cls=Command, epilog=examples("plato show", "plato show 20261122-2247", "plato show runs/night/agent"))
def show(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN or AGENT]", help="A run, or an agent's folder. Default: the newest run."),
    ] = None,
    project: ProjectPath = None,
    as_json: AsJson = False,
) -> None:
    """Show one run with its learning curve, or one agent."""
    from ..agents.folders import is_agent

    if run is not None and is_agent(run):
        return _show_agent(Path(run), as_json)
    found = load_run(run, project)
    from ..compute.glance import job_states
    from ..learning import curves, right_size
    from ..trials import best_first, is_tuning, summaries

    states = job_states([found])
    page = curves.write_curves(best_first(found) if is_tuning(found) else [found], found.path / curves.PAGE)
    summary = {**curves.summary(found), **right_size.usage_of(found), **states.get(found.path, {})}
    rows = summaries(found) if is_tuning(found) else []
    if as_json:
        console.json({**summary, "page": None if page is None else str(page), **({"trials": rows} if rows else {})})
        return
    console.run(found, summary, page)
    if rows:
        console.trials(rows, found.project.tune.metric)


@app.command(cls=Command, epilog=examples("plato compare 20261122-2247 20261123-0101"))
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Two or more runs, like show's.")],
    project: ProjectPath = None,
    as_json: AsJson = False,
) -> None:
    """Put runs side by side: figures, and a page with their curves."""
    if len(runs) < 2:
        raise ProjectError(f"compare takes two runs or more, got {len(runs)}.", hint="plato runs lists them.")
    found = [load_run(name, project) for name in runs]
    from ..learning import curves

    page = curves.write_curves(found, found[0].path.parent / "compare.html")
    compared = curves.compare(found)
    if as_json:
        console.json({"runs": compared, "page": None if page is None else str(page)})
    else:
        console.compared(compared, page)


def _show_agent(folder: Path, as_json: bool) -> None:
    from ..agents.manifest import read_manifest

    manifest, files = read_manifest(folder)
    try:
        if as_json:
            console.json(about_agent(folder, manifest, files))
        else:
            console.agent(folder, manifest, num_bytes(files))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AgentError(f"{folder} has an incomplete manifest: {error!r}", hint="Export the agent again.") from error
