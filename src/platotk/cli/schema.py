"""`plato schema`: plato.yaml for editors."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import console
from .base import Command, app, examples


@app.command(cls=Command, epilog=examples("plato schema > plato.schema.json"))
def schema(
    as_json: Annotated[bool, typer.Option("--json", help="Nothing else is ever printed.")] = False,
) -> None:
    """Print the JSON Schema of plato.yaml, for editors."""
    from ..project import Project

    console.json(Project.json_schema())
