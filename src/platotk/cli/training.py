"""`plato train` and `plato assess`: from a simulator to a policy, and how good it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from ..errors import ProjectError
from . import evictions, jobs
from .base import (
    SO_FAR,
    AsJson,
    CheckpointRef,
    Command,
    Controllers,
    Overrides,
    ProjectPath,
    Yes,
    app,
    controllers_root,
    examples,
    load_project,
    load_run,
    load_trained,
)

if TYPE_CHECKING:
    from ..run import Run


@app.command(
    cls=Command,
    epilog=examples(
        "plato train",
        "plato train --set training.lr=1e-3 --seed 8",
        "plato train --resume",
        "plato train --run runs/night",
        "plato train --on local --detach",
        "plato train --simulate-eviction 3",
    ),
)
def train(
    ctx: typer.Context,
    project: ProjectPath = None,
    overrides: Overrides = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The run's folder: made, or continued when it is there."),
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="[RUN]", help="Continue a run. Without a RUN: the newest.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, help="The same as --set seed=N.")] = None,
    on: jobs.On = None,
    detach: jobs.Detach = False,
    dry_run: jobs.DryRun = False,
    nodes: jobs.Nodes = None,
    yes: Yes = False,
    simulate_eviction: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Lose the machine N times on the way, as low-priority nodes do."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train until a stop rule is met. Ctrl-C saves a checkpoint and exits with 75; --resume goes on."""
    from ..learning import supervisor

    if run is not None and resume is not None:
        raise ProjectError(
            "--run and --resume exclude each other.",
            hint="--run PATH continues that folder when it is a run already.",
        )
    changes = [*(overrides or []), *([] if seed is None else [f"seed={seed}"])]
    if resume is not None:
        resumed = load_run(None if resume == "last" else resume, project)
        loaded = resumed.project.override(changes) if changes else resumed.project
    else:
        resumed, loaded = None, load_project(project, changes)
    jobs.refuse_without_on(on, detach=detach, dry_run=dry_run, nodes=nodes, yes=yes)
    if simulate_eviction is not None:
        if on is not None or resume is not None:
            raise ProjectError(
                "--simulate-eviction is tried here, with a new run: it takes neither --on nor --resume.",
                hint="Leave them out.",
            )
        return evictions.simulate(loaded, simulate_eviction, run, as_json)
    if on is not None:
        words = [word for change in changes for word in ("--set", change)] if resumed or run is not None else []
        given = run if resumed is None else resumed
        return jobs.submit(
            "train",
            loaded,
            on=on,
            run=given,
            words=words,
            detach=detach,
            dry_run=dry_run,
            nodes=nodes,
            yes=yes,
            as_json=as_json,
        )
    if not supervisor.is_supervised():
        again = [word for change in changes for word in ("--set", change)] + ["--json"] * as_json
        code = supervisor.supervise(
            supervisor.python_command(*ctx.find_root().obj),
            resume_command=lambda folder: supervisor.python_command("train", "--resume", folder, *again),
            tell=console.note,
            step_timeout_s=loaded.step_timeout_s,
        )
        raise typer.Exit(code)
    from ..learning import curves, training
    from ..run import Run

    with console.TrainingView() as view:

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "run":
                ctx.meta[SO_FAR] = lambda: trained(Run(event["path"]))
            view(event)

        done = training.train(loaded, run=run, resume=resumed, on_event=on_event)
        view.ended(done, curves.write_curves([done], done.path / curves.PAGE))
    if as_json:
        console.json(trained(done))
    raise typer.Exit(supervisor.STOPPED if done.status == "stopped" else 0)


@app.command(
    cls=Command,
    epilog=examples(
        "plato assess",
        "plato assess --episodes 500 --seed 1",
        "plato assess --set sim_config.noise=2",
        "plato assess --json",
    ),
)
def assess(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[RUN or AGENT]", help="A run, or an agent's folder. Default: the newest run."),
    ] = None,
    episodes: Annotated[int, typer.Option(metavar="N", min=1, help="How many episodes to play.")] = 100,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Of the episodes; the same seed, the same episodes."),
    ] = None,
    checkpoint: CheckpointRef = "best",
    controllers: Controllers = False,
    project: ProjectPath = None,
    overrides: Overrides = None,
    on: jobs.On = None,
    detach: jobs.Detach = False,
    dry_run: jobs.DryRun = False,
    nodes: jobs.Nodes = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Play seeded episodes without exploration: how good is it?"""
    from ..agents.agent import Agent
    from ..agents.folders import is_agent, run_of
    from ..assessment import assess as assessing

    agent = Path(what) if what is not None and is_agent(what) else None
    if controllers and agent is None:
        raise ProjectError("--controllers is for agents; a run has those of its project.", hint="Leave it out.")
    jobs.refuse_without_on(on, detach=detach, dry_run=dry_run, nodes=nodes, yes=yes)
    if on is not None:
        words = ["--episodes", str(episodes), "--checkpoint", checkpoint]
        words += [] if seed is None else ["--seed", str(seed)]
        words += [word for change in overrides or [] for word in ("--set", change)]
        trained_run = load_trained(what, project)
        return jobs.submit(
            "assess",
            trained_run.project,
            on=on,
            run=trained_run,
            words=words,
            detach=detach,
            dry_run=dry_run,
            nodes=nodes,
            yes=yes,
            as_json=as_json,
        )
    found = load_trained(what, project) if agent is None else run_of(agent)
    changed = found.project.override(overrides) if found is not None and overrides else None
    with console.counting("Playing") as count:
        assessment = assessing.assess(
            Agent.load(agent, controllers=controllers_root(project)) if agent and controllers else agent or found,
            project=load_project(project, overrides) if found is None else changed,
            episodes=episodes,
            seed=assessing.DEFAULT_SEED if seed is None else seed,
            checkpoint=checkpoint,
            on_event=lambda event: count(event["done"], event["episodes"]),
        )
    if as_json:
        console.json({**assessment.summary(), "rows": assessment.rows})
    else:
        console.assessed(assessment, found if agent is None else None)


def trained(run: Run) -> dict[str, Any]:
    """What `plato train --json` says."""
    last = (run.metrics() or [{}])[-1]
    return {
        "run": run.name,
        "path": str(run.path),
        "status": run.status,
        "reason": run.info.get("reason"),
        "iteration": last.get("iteration", 0),
        "env_steps": last.get("env_steps", 0),
        "return_mean": last.get("return_mean"),
        "sim_failures": last.get("sim_failures", 0),
        "last_sim_failure": run.info.get("last_sim_failure"),
        "best": None if run.best is None else str(run.best),
    }
