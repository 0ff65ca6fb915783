"""Azure: what would be made or deleted, what is there, what is wrong, which files were written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats import plato_command, shown
from .answers import finding_lines
from .basics import note, text
from .people import next_step, pairs, people, say, table

if TYPE_CHECKING:
    from ..azure.plans import Plan
    from ..project import Project
    from ..sims.checks import Finding


def azure_plan(plan: Plan) -> None:
    """Each thing and what is done with it, and what the cluster costs."""
    out = people()
    grid = table("", "what", "name", "")
    styles = {"create": "green", "update": "yellow", "delete": "red"}
    for step in plan.steps:
        grid.add_row(step.action, step.kind, step.name, step.why, style=styles.get(step.action))
    if plan.steps:
        out.print(grid)
    if plan.cost is not None:
        say(out, f"  a full hour of the cluster: {plan.cost.told()}")
    if plan.job is not None:
        say(out, f"  a job: {plan.job.told()}")
        say(out, "  with min_nodes: 0 nodes bill only while jobs run; storage and registry bill on their own")
    for line in plan.notes:
        say(out, f"  {line}")


def azure_made(plan: Plan, project: Project, name: str, *, dry_run: bool) -> None:
    """What to do next."""
    out = people()
    if dry_run and not plan.is_done:
        say(out, "Nothing was made.", "bold")
        return next_step(out, project.root, "azure up")
    say(out, "Everything is there.", "bold")
    next_step(out, project.root, f"train --on {name}")


def azure_status(found: Mapping[str, Any]) -> None:
    """What is there; on stderr as all that people read."""
    out = people()
    told = {}
    for key in ("resource_group", "workspace", "compute"):
        about = found[key]
        told[key.replace("_", " ")] = about["name"] + (
            f", {about['location']}, {'made by plato azure up' if about['made_by_plato'] else 'not made by us'}"
            if about["is_there"]
            else ": not there"
        )
    compute = found["compute"]
    if compute["is_there"]:
        states = ", ".join(f"{count} {state}" for state, count in compute["node_states"].items() if count)
        told["size"] = f"{compute['size']} ({compute['tier'].replace('_', ' ')})"
        told["nodes"] = f"{compute['nodes']} of {compute['min_nodes']} to {compute['max_nodes']}" + (
            f": {states}" if states else ""
        )
    if found["workspace"].get("studio_url"):
        told["studio"] = found["workspace"]["studio_url"]
    pairs(out, told)
    others = [f"{one['name']} ({one['type']})" for one in found["resources"] if not one["is_ours"]]
    if others:
        say(out, "  also there, and never touched: " + ", ".join(others))


def azure_findings(found: Sequence[Finding], command: str = "") -> None:
    """Findings with their cures; what to do next when nothing stands in the way."""
    finding_lines(found)
    if not any(one.severity == "error" for one in found) and command:
        note(f"Nothing stands in the way of: {command}")


def azure_files(files: Sequence[Path], commands: Sequence[str], folder: Path) -> None:
    """What was written, and the lines that use it."""
    out = people()
    for path in files:
        say(out, f"wrote {shown(path)}")
    say(out, f"Use them from {shown(folder)}:", "bold")
    for line in commands:
        text(line)


def azure_environment(told: Mapping[str, Any]) -> None:
    """Name and version, and what it is made of."""
    out = people()
    pairs(out, {key: str(value) for key, value in told.items() if value})
    if not told.get("image"):
        say(
            out, f"  an image of the project's requirements and platotk; {plato_command()} azure environment --out PATH"
        )
