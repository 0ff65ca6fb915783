"""Makes and deletes what a plan says, one step after the other, and tells how things stand.

`up` can be asked again at any time: what is there is used, what failed half-way is gone on with. `down` deletes what
carries our tag and nothing else; it reads everything anew right before, so that nothing that came meanwhile is lost.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AzureError
from .client import Azure, NotThereError, asking, connect
from .environments import environment
from .options import AzureOptions
from .plans import (
    GROUP_API,
    TAG,
    Plan,
    Step,
    is_ours,
    is_registry,
    mark,
    plan_down,
    plan_up,
    read_compute,
    read_group,
    read_workspace,
    resources,
    scale,
)

if TYPE_CHECKING:
    from ..project import Project

Tell = Callable[[str], None]
APIS = {
    "microsoft.storage/storageaccounts": "2023-01-01",
    "microsoft.keyvault/vaults": "2023-07-01",
    "microsoft.insights/components": "2020-02-02",
    "microsoft.operationalinsights/workspaces": "2022-10-01",
    "microsoft.containerregistry/registries": "2023-07-01",
}
"""Of what a workspace comes with; each provider has versions of its own."""
GONE_WITHIN_S = 600.0


def _silent(line: str) -> None:
    """Nobody listens."""


def up(
    options: AzureOptions, project: Project | None = None, *, plan: Plan | None = None, tell: Tell = _silent
) -> Plan:
    """Make what is missing.

    Args:
        options: What plato.yaml says.
        project: Whose environment is prepared; None for none.
        plan: Of `plan_up`, if it has been shown already.
        tell: Given a line before each step that changes something.

    Returns:
        The plan that was carried out.

    Raises:
        AzureError: Azure refused; what was made before stays and is used next time.
    """
    azure = connect(options)
    plan = plan or plan_up(azure, project)
    for step in plan.steps:
        if step.is_done:
            continue
        tell(f"{step.action} {step.kind} {step.name}" + (f": {step.why}" if step.why else ""))
        if step.kind == "resource group":
            body = {"location": options.location, "tags": dict(step.tags)}
            azure.arm("PUT", azure.group_path, GROUP_API, body, what=f"resource group {step.name}")
        elif step.kind == "workspace":
            _make_workspace(azure, step)
        elif step.kind == "compute":
            _make_cluster(azure, step)
        elif step.kind == "environment" and project is not None:
            _make_environment(azure, project)
    return plan


def down(options: AzureOptions, *, tell: Tell = _silent) -> Plan:
    """Delete what carries our tag for this workspace.

    Args:
        options: What plato.yaml says.
        tell: Given a line before each step.

    Returns:
        The plan that was carried out; its steps with `keep` are still there.

    Raises:
        AzureError: Azure refused; asking again goes on with the rest.
    """
    azure = connect(options)
    plan = plan_down(azure)
    deleted = [step for step in plan.steps if step.action == "delete"]
    for step in deleted:
        if step.kind == "resource group":
            continue
        tell(f"delete {step.kind} {step.name}")
        _delete(azure, step)
    if any(step.kind == "resource group" for step in deleted):
        left = resources(azure)
        if left:
            names = ", ".join(str(one["name"]) for one in left)
            raise AzureError(
                f"the resource group {options.resource_group} holds {names}, which came meanwhile: it stays.",
                hint="Look with: plato azure status",
            )
        tell(f"delete resource group {options.resource_group}")
        what = f"resource group {options.resource_group}"
        azure.arm("DELETE", azure.group_path, GROUP_API, what=what)
        _wait_until(lambda: read_group(azure) is None, what)
    return plan


def status(options: AzureOptions) -> dict[str, Any]:
    """How things stand: what is there, whose it is, the cluster's nodes, what bills.

    Raises:
        AzureError: Azure does not say.
    """
    azure = connect(options)
    group = read_group(azure)
    workspace = None if group is None else read_workspace(azure)
    compute = None if workspace is None else read_compute(azure)
    return {
        "resource_group": _about(options.resource_group, group),
        "workspace": {**_about(options.workspace, workspace), **_studio(azure, workspace)},
        "compute": {
            **_about(options.compute, compute),
            **({} if compute is None else {"made_by_plato": is_ours(azure, compute), **_nodes(compute)}),
        },
        "resources": [
            {
                "name": one["name"],
                "type": one["type"],
                "is_ours": is_ours(azure, one) or is_registry(azure, workspace, one),
            }
            for one in ([] if group is None else resources(azure))
        ],
    }


def _make_workspace(azure: Azure, step: Step) -> None:
    """With storage, key vault and logs, all tagged; the SDK's own template makes them."""
    what = f"workspace {step.name}"
    with asking(what), _without_chatter():
        from azure.ai.ml.entities import Workspace

        location = azure.options.location or str((read_group(azure) or {}).get("location"))
        entity = Workspace(name=step.name, location=location, tags=dict(step.tags))
        azure.ml.workspaces.begin_create(entity).result()
    if read_workspace(azure) is None:
        raise AzureError(f"{what} was asked for and is not there.", hint="Try again; details in the portal.")


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """The SDK writes the progress of workspaces to stderr, by handlers of its own."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def _make_cluster(azure: Azure, step: Step) -> None:
    """A new cluster; of one that is there only the scaling is changed, whatever else somebody set stays."""
    options = azure.options
    with asking(f"compute {step.name}"):
        from azure.ai.ml.entities import AmlCompute

        if step.action == "update":
            entity = azure.ml.compute.get(step.name)
            entity.min_instances, entity.max_instances = options.min_nodes, options.max_nodes
            entity.idle_time_before_scale_down = int(options.idle_s)
            azure.ml.compute.begin_update(entity).result()
        else:
            entity = AmlCompute(
                name=step.name,
                size=options.size,
                tier=options.tier,
                min_instances=options.min_nodes,
                max_instances=options.max_nodes,
                idle_time_before_scale_down=int(options.idle_s),
                tags=dict(step.tags),
                description=mark(azure),
            )
            azure.ml.compute.begin_create_or_update(entity).result()
    state = str(((read_compute(azure) or {}).get("properties") or {}).get("provisioningState") or "absent")
    if state.lower() != "succeeded":
        raise AzureError(f"compute {step.name} is {state}.", hint="plato azure doctor looks at quota and region.")


def _make_environment(azure: Azure, project: Project) -> None:
    with tempfile.TemporaryDirectory() as folder:
        entity = environment(azure.options, project, Path(folder))
        with asking(f"environment {entity.name}"):
            azure.ml.environments.create_or_update(entity)


def _delete(azure: Azure, step: Step) -> None:
    """Delete one thing and wait until it is gone; what is gone already is fine."""
    what = f"{step.kind} {step.name}"
    try:
        if step.kind == "workspace":
            with asking(what), _without_chatter():
                azure.ml.workspaces.begin_delete(
                    step.name, delete_dependent_resources=False, permanently_delete=True
                ).result()
        elif step.kind == "compute":
            with asking(what):
                azure.ml.compute.begin_delete(step.name).result()
        else:
            azure.arm("DELETE", step.id, _api(azure, step.id), what=what)
            _wait_until(lambda: all(one["id"] != step.id for one in resources(azure)), what)
    except NotThereError:
        return


def _api(azure: Azure, path: str) -> str:
    """The version of a resource's provider; the newest that it offers, where it is not one that a workspace makes."""
    match = re.search(r"/providers/([^/]+)/([^/]+)/[^/]+$", path)
    provider, kind = ("", "") if match is None else match.groups()
    known = APIS.get(f"{provider}/{kind}".lower())
    if known is not None:
        return known
    told = azure.arm("GET", f"/subscriptions/{azure.options.subscription}/providers/{provider}", GROUP_API) or {}
    for one in told.get("resourceTypes") or []:
        if str(one.get("resourceType")).lower() == kind.lower():
            return str(max(version for version in one["apiVersions"] if "preview" not in version))
    return GROUP_API


def _wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline, pause = time.monotonic() + GONE_WITHIN_S, 0.2
    while not is_so():
        if time.monotonic() > deadline:
            raise AzureError(f"{what} is still there after {GONE_WITHIN_S / 60:.0f} minutes.", hint="Try again later.")
        time.sleep(pause)
        pause = min(10.0, pause * 2)


def _about(name: str, thing: dict[str, Any] | None) -> dict[str, Any]:
    if thing is None:
        return {"name": name, "is_there": False}
    state = str((thing.get("properties") or {}).get("provisioningState") or "")
    return {
        "name": name,
        "is_there": True,
        "location": thing.get("location"),
        "made_by_plato": _tag(thing) is not None,
        "state": state,
    }


def _studio(azure: Azure, workspace: dict[str, Any] | None) -> dict[str, str]:
    return {} if workspace is None else {"studio_url": f"https://ml.azure.com/?wsid={azure.workspace_path}"}


def _nodes(compute: dict[str, Any]) -> dict[str, Any]:
    """The cluster's scaling and how many nodes do what."""
    inner = (compute.get("properties") or {}).get("properties") or {}
    counts = {key.removesuffix("NodeCount"): value for key, value in (inner.get("nodeStateCounts") or {}).items()}
    return {**scale(compute), "nodes": int(inner.get("currentNodeCount") or 0), "node_states": counts}


def _tag(thing: dict[str, Any]) -> str | None:
    return (thing.get("tags") or {}).get(TAG)
