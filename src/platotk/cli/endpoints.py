"""`plato deploy --to azure`: an agent behind a managed online endpoint, and the end of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .. import console
from ..errors import AzureError, ProjectError
from .agents import agent_folder
from .base import load_project, require_yes

if TYPE_CHECKING:
    from ..azure.options import AzureOptions

HOURS_PER_MONTH = 730


def deploy_endpoint(
    agent: Path,
    project: Path | None,
    *,
    on: str | None,
    endpoint: str | None,
    size: str | None,
    instances: int,
    keep_old: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Show what would be made and what it costs, ask, and make it."""
    from ..azure import endpoints
    from ..azure.endpoint_plan import plan

    options = azure_options(project, on)
    planned, _ = plan(agent, options, endpoint=endpoint, size=size, instances=instances)
    if dry_run:
        if as_json:
            console.json({**planned.to_dict(), "cost": cost(options, planned.size, instances), "dry_run": True})
        else:
            console.endpoint_plan(planned)
            console.endpoint_cost(cost(options, planned.size, instances))
        return
    console.endpoint_cost(cost(options, planned.size, instances, ask_azure=True))
    require_yes(f"Make {planned.endpoint} answer?", yes)
    made = endpoints.deploy(
        agent,
        options,
        endpoint=endpoint,
        size=size,
        instances=instances,
        keep_old=keep_old,
        on_event=console.DeployProgress(),
    )
    if as_json:
        console.json(made.to_dict())
    else:
        console.endpoint(made)


def delete_endpoint(
    name: str, project: Path | None, *, on: str | None, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """End an endpoint and its bill."""
    from ..azure import endpoints

    options = azure_options(project, on)
    if dry_run:
        was_there = None
        console.note(f"Would delete the endpoint {name} with all that answers there")
    else:
        require_yes(f"Delete the endpoint {name} with all that answers there?", yes)
        was_there = endpoints.delete(name, options, on_event=console.DeployProgress())
        console.note(f"The endpoint {name} is deleted" if was_there else f"There is no endpoint {name}")
    if as_json:
        console.json({"endpoint": name, "deleted": was_there, "dry_run": dry_run})


def name_of(agent: str | None, project: Path | None, on: str | None) -> str:
    """The endpoint that an agent has unless another is named."""
    from ..agents.bundle import plain_name
    from ..agents.manifest import read_manifest
    from ..azure.endpoint_plan import endpoint_name

    manifest, _ = read_manifest(agent_folder(agent, project))
    return endpoint_name(plain_name(manifest), azure_options(project, on))


def azure_options(project: Path | None, name: str | None) -> AzureOptions:
    """What plato.yaml says of Azure: the one backend of that kind, or the one of that name.

    Raises:
        ProjectError: There is none, or several and no name.
    """
    from ..azure.options import AzureOptions

    loaded = load_project(project, None)
    there = {key: options for key, options in loaded.backends.items() if options.get("type") == "azure_ml"}
    if name is None and len(there) == 1:
        (name,) = there
    if name not in there:
        known = ", ".join(there) or "none; add one under backends:, with type: azure_ml"
        what = "which workspace is not said" if name is None else f"no backend of type azure_ml is called {name!r}"
        raise ProjectError(f"{what}.", hint=f"Name it with --on. There are: {known}.")
    return AzureOptions.model_validate(there[name])


def cost(options: AzureOptions, size: str, instances: int, *, ask_azure: bool = False) -> list[str]:
    """What an endpoint costs, in lines: by the month, as it bills until it is deleted.

    Args:
        options: The workspace.
        size: Of a machine.
        instances: How many.
        ask_azure: Whether to ask for the price; without, and where Azure gives none, node-hours are told.
    """
    lines = [f"{instances} x {size}: {instances * HOURS_PER_MONTH:,} node-hours a month."]
    price = None
    if ask_azure:
        from ..azure import prices
        from ..azure.client import connect

        azure = connect(options)
        try:
            found = prices.find(prices.sizes(azure, options.location), size)
        except AzureError:
            found = None
        finally:
            azure.close()
        price = None if found is None else found.price("dedicated")
        if found is not None and price is not None:
            month = price * instances * HOURS_PER_MONTH
            lines.append(f"{price:,.3g} {found.currency} a node-hour: {month:,.0f} {found.currency} a month.")
    if price is None:
        lines.append("Its price is not known here: https://azure.microsoft.com/pricing/calculator")
    return [*lines, "It bills until deleted, asked or not; while a new agent takes over, both bill."]
