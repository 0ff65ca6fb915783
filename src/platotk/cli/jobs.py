"""`plato logs`, `stop`, `fetch` and `node`, and what `--on NAME` means for `train`, `tune` and `assess`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .. import console
from ..errors import ProjectError
from .base import AsJson, Command, ProjectPath, RunRef, app, examples, load_run, require_yes

if TYPE_CHECKING:
    from ..project import Project
    from ..run import Run

On = Annotated[
    str | None,
    typer.Option("--on", metavar="NAME", help="Where: a name under backends:, or local for a detached process."),
]
Detach = Annotated[bool, typer.Option("--detach", help="With --on: return once it is submitted.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="With --on: print what would be sent, and send nothing.")]
Nodes = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="With --on: how many machines. Default: 1; train: as plato.yaml says."),
]
DETACHED = 130
"""Exit code when Ctrl-C ended the following and the job goes on."""


@app.command(cls=Command, epilog=examples("plato logs", "plato logs 20261122-2247 -f"))
def logs(
    run: RunRef = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on to the end; Ctrl-C leaves the job alone.")] = (
        False
    ),
    project: ProjectPath = None,
    as_json: AsJson = False,
) -> None:
    """Print what a run's last job has printed."""
    from ..compute import jobs

    found = load_run(run, project)
    console.studio(found)
    if follow:
        raise typer.Exit(_follow(found, as_json))
    if as_json:
        console.json({"run": found.name, "text": jobs.logs(found, tell=console.note)})
    elif found.info.get("jobs"):
        console.output(jobs.logs(found, tell=console.note))
    else:
        console.output(found.log_path.read_text(encoding="utf-8", errors="replace") if found.log_path.exists() else "")


@app.command(cls=Command, epilog=examples("plato stop", "plato stop 20261122-2247"))
def stop(
    run: RunRef = None,
    is_lost: Annotated[
        bool, typer.Option("--lost", help="Its place is gone for good: give the job up without asking it.")
    ] = False,
    project: ProjectPath = None,
    as_json: AsJson = False,
) -> None:
    """Ask a run's job to save a checkpoint and stop; it can be resumed."""
    from ..compute import jobs

    found = load_run(run, project)
    if is_lost:
        return _write_off(found, as_json)
    was_running = jobs.stop(found)
    if as_json:
        console.json({"run": found.name, "stopping": was_running})
    else:
        console.note(f"{found.name} was asked to stop" if was_running else f"{found.name} had ended already")


@app.command(cls=Command, epilog=examples("plato fetch", "plato fetch 20261122-2247"))
def fetch(run: RunRef = None, project: ProjectPath = None, as_json: AsJson = False) -> None:
    """Bring what a run's job has written so far into its folder here."""
    from ..compute import jobs

    found = jobs.fetch(load_run(run, project), tell=console.note)
    if as_json:
        console.json({"run": found.name, "path": str(found.path), "checkpoints": [p.name for p in found.checkpoints()]})
    else:
        console.note(f"{found.path} is up to date")


@app.command(
    cls=Command,
    epilog=examples(
        "plato node -- plato train --run runs/night",
        "plato node --rank 1 --nodes 3 --head 10.0.0.4 -- plato train --run runs/night",
    ),
)
def node(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="What the first machine runs.")],
    rank: Annotated[int | None, typer.Option(metavar="N", min=0, help="Which machine this is. Default: read.")] = None,
    nodes: Annotated[int | None, typer.Option(metavar="N", min=1, help="How many there are. Default: read.")] = None,
    head: Annotated[str | None, typer.Option(metavar="HOST", help="The first machine. Default: read.")] = None,
    port: Annotated[
        int, typer.Option(metavar="N", envvar="PLATOTK_PORT", min=1, max=65534, help="Of Ray; the next is used too.")
    ] = 6379,
    start_s: Annotated[
        float, typer.Option("--start-within", metavar="SECONDS", min=1, help="How long forming the cluster may take.")
    ] = 900.0,
    patience_s: Annotated[
        float, typer.Option("--patience", metavar="SECONDS", min=1, help="How long a worker waits for a lost head.")
    ] = 30.0,
    least_nodes: Annotated[
        int | None, typer.Option("--least-nodes", metavar="N", min=1, help="Go on with so many. Default: all.")
    ] = None,
    num_cpus: Annotated[
        int | None, typer.Option("--num-cpus", metavar="N", min=0, help="For Ray, of this machine. Default: all.")
    ] = None,
    logs: Annotated[Path, typer.Option(metavar="PATH", help="Where each machine's logs go.")] = Path("logs"),
    as_json: AsJson = False,
) -> None:
    """Form one Ray cluster of all machines that run this line."""
    from ..compute.node.launcher import launch

    code = launch(
        command,
        rank=rank,
        nodes=nodes,
        head_address=head,
        port=port,
        start_s=start_s,
        patience_s=patience_s,
        least_nodes=least_nodes,
        num_cpus=num_cpus,
        logs=logs,
        stdout_to_stderr=as_json,
        tell=console.note,
    )
    if as_json:
        console.json({"exit_code": code})
    raise typer.Exit(code)


def submit(
    what: Literal["train", "tune", "assess"],
    project: Project,
    *,
    on: str,
    run: Run | Path | None,
    words: Sequence[str],
    detach: bool,
    dry_run: bool,
    nodes: int | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Submit, follow and fetch; leaves with the job's exit code."""
    from ..compute import jobs

    for line in jobs.advice(project, on=on, what=what, nodes=nodes, is_offline=dry_run):
        console.note(line)
    costs = jobs.cost(project, on=on, what=what, nodes=nodes, is_offline=dry_run)
    for line in costs:
        console.note(line)
    if dry_run:
        console.json(jobs.request(what, project, on=on, run=run, arguments=words, nodes=nodes))
        return
    if costs:
        require_yes("Submit it?", yes, if_alone=True)
    found = jobs.submit(what, project, on=on, run=run, arguments=words, nodes=nodes)
    console.submitted(found)
    if detach:
        if as_json:
            console.json(_job(found))
        return
    raise typer.Exit(_follow(found, as_json))


def refuse_without_on(on: str | None, **options: Any) -> None:
    """`--detach` and its like mean nothing here.

    Raises:
        ProjectError: One is given without `--on`.
    """
    for name, value in options.items():
        if on is None and value:
            raise ProjectError(
                f"--{name.replace('_', '-')} needs --on NAME.", hint="For example: plato train --on local"
            )


def _write_off(run: Run, as_json: bool) -> None:
    """Give up a job whose place is gone."""
    from ..compute import jobs

    why = jobs.write_off(run)
    if as_json:
        console.json({"run": run.name, "stopping": False, "is_lost": True, "not_fetched": why or None})
        return
    console.note(f"the job of {run.name} is given up; the run can be submitted again")
    if why:
        console.note(f"it goes on from what is here, for the rest cannot be fetched: {why}")


def _follow(run: Run, as_json: bool) -> int:
    """Follow to the end; Ctrl-C detaches."""
    from ..compute import jobs

    try:
        ended = jobs.follow(run, on_text=console.output_to_people, on_state=console.job_state)
    except KeyboardInterrupt:
        console.detached(run)
        return DETACHED
    if as_json:
        console.json({**_job(run), "exit_code": ended.exit_code})
    else:
        console.job_ended(run, ended)
    return jobs.exit_code(ended)


def _job(run: Run) -> dict[str, Any]:
    """What `--json` says of a submitted run: what `plato train --json` says, and its job."""
    from .training import trained

    job = run.info["jobs"][-1]
    ended = job.get("ended") or {}
    return {**trained(run), "backend": job["backend"], "job": job["id"], "job_status": ended.get("status", "PENDING")}
