"""`plato deploy`: an agent with all that it needs elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import console
from ..errors import ProjectError
from .agents import agent_folder
from .base import AgentRef, AsJson, Command, ProjectPath, Yes, app, examples

AZURE = "azure"


@app.command(
    cls=Command,
    epilog=examples(
        "plato deploy --to docker",
        "plato deploy runs/night/agent --to docker --tag registry.example.com/pump:1",
        "plato deploy --to folder --out pump",
        "plato deploy --to docker --dry-run",
        "plato deploy --to azure --dry-run",
        "plato deploy --to azure --size Standard_DS3_v2",
        "plato deploy --to azure --delete",
    ),
)
def deploy(
    agent: AgentRef = None,
    to: Annotated[str, typer.Option("--to", metavar="WHERE", help="docker, folder or azure.")] = "docker",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="What to write. Default: beside the agent.")] = None,
    tag: Annotated[str | None, typer.Option(metavar="NAME", help="The image's name. Default: of the agent.")] = None,
    build: Annotated[bool, typer.Option("--build/--no-build", help="Build the image, if an engine is there.")] = True,
    on: Annotated[
        str | None, typer.Option("--on", metavar="NAME", help="azure: the backend, where plato.yaml has several.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="NAME", help="azure: the endpoint. Default: made of the agent's name.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="azure: the kind of machine. Default: Standard_DS3_v2.")
    ] = None,
    instances: Annotated[int, typer.Option(metavar="N", min=1, help="azure: how many machines answer.")] = 1,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="azure: keep what answered before, without traffic.")
    ] = False,
    delete: Annotated[bool, typer.Option("--delete", help="azure: delete the endpoint, which ends its bill.")] = False,
    yes: Yes = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written or sent; do nothing.")] = False,
    project: ProjectPath = None,
    as_json: AsJson = False,
) -> None:
    """Have the agent served elsewhere: a container, a folder, Azure."""
    is_azure = to == AZURE
    _refuse_misplaced(
        to,
        {"--out": out, "--tag": tag, "--no-build": not build}
        if is_azure
        else {
            "--on": on,
            "--endpoint": endpoint,
            "--size": size,
            "--instances": instances > 1,
            "--keep-old": keep_old,
            "--delete": delete,
            "--yes": yes,
        },
    )
    if is_azure:
        from . import endpoints

        if delete:
            name = endpoint or endpoints.name_of(agent, project, on)
            return endpoints.delete_endpoint(name, project, on=on, dry_run=dry_run, yes=yes, as_json=as_json)
        return endpoints.deploy_endpoint(
            agent_folder(agent, project),
            project,
            on=on,
            endpoint=endpoint,
            size=size,
            instances=instances,
            keep_old=keep_old,
            dry_run=dry_run,
            yes=yes,
            as_json=as_json,
        )
    from ..agents import bundle

    def tell(event: dict[str, Any]) -> None:
        console.note(f"Building: {event['command']}")

    folder = agent_folder(agent, project)
    made = bundle.deploy(folder, to=to, out=out, tag=tag, build=build, dry_run=dry_run, on_event=tell)
    if as_json:
        console.json({**made.to_dict(), "dry_run": dry_run})
    else:
        console.deployed(made, dry_run=dry_run)


def _refuse_misplaced(to: str, options: dict[str, Any]) -> None:
    """Options that mean nothing where the agent goes to are not overlooked."""
    given = [name for name, value in options.items() if value]
    if given:
        raise ProjectError(f"{', '.join(given)} means nothing with --to {to}.", hint="Leave it out, or see --help.")
