"""`plato deploy`: an agent with all that it needs elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import console
from .agents import agent_folder
from .base import AgentRef, AsJson, Command, ProjectPath, app, examples


@app.command(
    cls=Command,
    epilog=examples(
        "plato deploy --to docker",
        "plato deploy runs/night/agent --to docker --tag registry.example.com/pump:1",
        "plato deploy --to folder --out pump",
        "plato deploy --to docker --dry-run",
    ),
)
def deploy(
    agent: AgentRef = None,
    to: Annotated[str, typer.Option("--to", metavar="WHERE", help="docker or folder.")] = "docker",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="What to write. Default: beside the agent.")] = None,
    tag: Annotated[str | None, typer.Option(metavar="NAME", help="The image's name. Default: of the agent.")] = None,
    build: Annotated[bool, typer.Option("--build/--no-build", help="Build the image, if an engine is there.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written; write nothing.")] = False,
    project: ProjectPath = None,
    as_json: AsJson = False,
) -> None:
    """Write the agent with all that it needs to be served elsewhere."""
    from ..agents import bundle

    def tell(event: dict[str, Any]) -> None:
        console.note(f"Building: {event['command']}")

    folder = agent_folder(agent, project)
    made = bundle.deploy(folder, to=to, out=out, tag=tag, build=build, dry_run=dry_run, on_event=tell)
    if as_json:
        console.json({**made.to_dict(), "dry_run": dry_run})
    else:
        console.deployed(made, dry_run=dry_run)
