"""What `plato azure up` and `down` would do, as data before anything is done: one step for each thing.

`plan_up` and `plan_down` read how things stand and change nothing. Everything that is made carries a tag that names
the workspace it was made for; only what carries it is ever changed or deleted.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import AzureError
from . import prices
from .client import Azure, NotThereError, asking
from .environments import environment
from .jobs import COMPUTE_API, WORKSPACE_API

if TYPE_CHECKING:
    from ..project import Project

TAG = "platotk-up"
"""Its value is the workspace that a thing was made for."""
GROUP_API = "2021-04-01"
Kind = Literal["resource group", "workspace", "compute", "environment", "resource"]
Action = Literal["create", "reuse", "update", "delete", "keep"]


@dataclass(frozen=True)
class Step:
    """One thing and what is done with it.

    Attributes:
        kind: What it is.
        name: Its name.
        action: `reuse` and `keep` change nothing.
        why: What speaks for it, or what it comes to.
        tags: That it gets, when it is made.
        id: Its path in Azure Resource Manager, where it has one.
    """

    kind: Kind
    name: str
    action: Action
    why: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    id: str = ""

    @property
    def is_done(self) -> bool:
        """Whether nothing is to do."""
        return self.action in ("reuse", "keep")


@dataclass(frozen=True)
class Plan:
    """Steps in the order in which they are done.

    Attributes:
        steps: One for each thing.
        cost: What an hour of the whole cluster comes to; None where nothing is made.
        job: What a job comes to at most, likewise.
        notes: What to know before it is done.
    """

    steps: tuple[Step, ...]
    cost: prices.Cost | None = None
    job: prices.Cost | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether nothing is to do."""
        return all(step.is_done for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "steps": [{**asdict(step), "tags": dict(step.tags)} for step in self.steps],
            "cost": None if self.cost is None else self.cost.to_dict(),
            "job": None if self.job is None else self.job.to_dict(),
            "notes": list(self.notes),
            "is_done": self.is_done,
        }


def plan_up(azure: Azure, project: Project | None = None) -> Plan:
    """What is there and what has to be made: resource group, workspace, cluster, environment.

    Args:
        azure: Signed in.
        project: Whose environment is prepared; None for none.

    Raises:
        AzureError: Azure does not say, or the options lack a region that is needed.
    """
    options = azure.options
    group = read_group(azure)
    if group is None and options.location is None:
        raise AzureError(
            f"the resource group {options.resource_group} is not there, and no region is named to make it in.",
            hint="Say location: westeurope (az account list-locations) under this backend, or correct resource_group:",
        )
    workspace = None if group is None else read_workspace(azure)
    compute = None if workspace is None else read_compute(azure)
    steps = [
        Step("resource group", options.resource_group, "create", f"in {options.location}", made_for(azure))
        if group is None
        else Step("resource group", options.resource_group, "reuse", f"in {group.get('location')}"),
        Step("workspace", options.workspace, "create", "with storage, key vault, logs", made_for(azure))
        if workspace is None
        else Step("workspace", options.workspace, "reuse", f"in {workspace.get('location')}"),
        _cluster(azure, compute),
    ]
    if project is not None:
        steps.append(_environment(azure, project, has_workspace=workspace is not None))
    notes = []
    if options.min_nodes:
        notes.append(f"min_nodes: {options.min_nodes} keeps {options.min_nodes} running, and billed, day and night.")
    there = (workspace or {}).get("location")
    if there and options.location and there != options.location:
        notes.append(f"the workspace is in {there}, not in {options.location}; its clusters are where it is.")
    region = there or options.location or (group or {}).get("location")
    full = prices.cost(azure, nodes=options.max_nodes, hours=1, location=region)
    job = replace(full, nodes=options.nodes, hours=None if options.timeout_s is None else options.timeout_s / 3600)
    return Plan(tuple(steps), full, job, tuple(notes))


def plan_down(azure: Azure) -> Plan:
    """What carries our tag for this workspace, and what stays because it does not.

    A workspace stays as long as it has clusters or endpoints that we did not make; the resource group stays unless we
    made it and nothing is left in it. The registry that Azure makes for the images of a workspace of ours carries no
    tag: only the workspace names it, so it goes before the workspace does.

    Raises:
        AzureError: Azure does not say.
    """
    group = read_group(azure)
    if group is None:
        return Plan((), notes=(f"there is no resource group {azure.options.resource_group}",))
    workspace = read_workspace(azure)
    steps = [] if workspace is None else _inside(azure)
    keeps_inside = any(step.action == "keep" for step in steps)
    listed = resources(azure)
    registries = [one for one in listed if is_registry(azure, workspace, one)]
    ours = [one for one in listed if one in registries or is_ours(azure, one)]
    for one in sorted(listed, key=lambda one: (one not in registries, not _is_workspace(azure, one))):
        about = (str(one["name"]), str(one["type"]), str(one["id"]))
        if one not in ours:
            steps.append(_step(about, "keep", "we did not make it"))
        elif keeps_inside:
            steps.append(_step(about, "keep", f"{azure.options.workspace} holds what we did not make"))
        elif one in registries:
            steps.append(_step(about, "delete", f"Azure made it for the images of {azure.options.workspace}"))
        else:
            steps.append(_step(about, "delete", "with all runs and models in it" if _is_workspace(azure, one) else ""))
    why = ""
    if TAG not in (group.get("tags") or {}):
        why = "we did not make it"
    elif any(step.action == "keep" for step in steps):
        why = "it holds what we did not make"
    steps.append(Step("resource group", azure.options.resource_group, "keep" if why else "delete", why))
    is_lost = any(step.action == "delete" and step.kind == "workspace" for step in steps)
    notes = ("Runs that were not fetched are lost with the workspace and its storage.",) if is_lost else ()
    return Plan(tuple(steps), notes=notes)


def mark(azure: Azure) -> str:
    """The description of a cluster that we make: it says the same as the tag, should Azure ML keep no tags of it."""
    return f"Made by plato azure up for {azure.options.workspace}"


def made_for(azure: Azure) -> dict[str, str]:
    """The tags of what is made."""
    return {TAG: azure.options.workspace}


def read_group(azure: Azure) -> dict[str, Any] | None:
    """The resource group; None when there is none."""
    return _read(azure, azure.group_path, GROUP_API, f"resource group {azure.options.resource_group}")


def read_workspace(azure: Azure) -> dict[str, Any] | None:
    """The workspace, in wire format; None when there is none."""
    return _read(azure, azure.workspace_path, WORKSPACE_API, f"workspace {azure.options.workspace}")


def read_compute(azure: Azure) -> dict[str, Any] | None:
    """The cluster, in wire format; None when there is none."""
    path = f"{azure.workspace_path}/computes/{azure.options.compute}"
    return _read(azure, path, COMPUTE_API, f"compute {azure.options.compute}")


def resources(azure: Azure) -> list[dict[str, Any]]:
    """Everything in the resource group that is no part of something else: id, name, type, tags."""
    return _listed(azure, f"{azure.group_path}/resources", GROUP_API, "the resources of the group")


def scale(compute: Mapping[str, Any]) -> dict[str, Any]:
    """A cluster's size, tier and scaling in our words, read from wire format."""
    inner = (compute.get("properties") or {}).get("properties") or {}
    scaling = inner.get("scaleSettings") or {}
    return {
        "size": str(inner.get("vmSize") or ""),
        "tier": "low_priority" if str(inner.get("vmPriority")).lower() == "lowpriority" else "dedicated",
        "min_nodes": int(scaling.get("minNodeCount") or 0),
        "max_nodes": int(scaling.get("maxNodeCount") or 0),
        "idle_s": _seconds(str(scaling.get("nodeIdleTimeBeforeScaleDown") or "")),
    }


def _cluster(azure: Azure, compute: dict[str, Any] | None) -> Step:
    options = azure.options
    path = f"{azure.workspace_path}/computes/{options.compute}"
    tier = options.tier.replace("_", " ")
    scaling = f"{options.min_nodes} to {options.max_nodes} nodes, gone after {options.idle_s:g} s of idleness"
    if compute is None:
        return Step("compute", options.compute, "create", f"{options.size}, {tier}, {scaling}", made_for(azure), path)
    there = scale(compute)
    wanted = {"min_nodes": options.min_nodes, "max_nodes": options.max_nodes, "idle_s": options.idle_s}
    other = [key for key, value in wanted.items() if there[key] is not None and there[key] != value]
    fixed = [
        f"{key} is {there[key]}, which no cluster can change"
        for key, value in (("size", options.size), ("tier", options.tier))
        if str(there[key]).lower() != value.lower()
    ]
    if other and is_ours(azure, compute):
        why = ", ".join(f"{key} {there[key]:g} -> {wanted[key]:g}" for key in other)
        return Step("compute", options.compute, "update", "; ".join([why, *fixed]), made_for(azure), path)
    if other:
        told = ", ".join(f"{key} is {there[key]:g}" for key in other)
        fixed.append(f"{told}; we did not make it, so it stays so")
    return Step("compute", options.compute, "reuse", "; ".join(fixed), id=path)


def _environment(azure: Azure, project: Project, *, has_workspace: bool) -> Step:
    given = azure.options.environment
    if "name" in given and not {"image", "conda_file", "dockerfile"} & set(given):
        return Step("environment", str(given["name"]), "reuse", "named in plato.yaml")
    with tempfile.TemporaryDirectory() as folder:
        made = environment(azure.options, project, Path(folder))
    name = f"{made.name}:{made.version}"
    is_there = False
    if has_workspace:
        try:
            with asking(f"environment {name}"):
                is_there = azure.ml.environments.get(made.name, version=made.version) is not None
        except NotThereError:
            is_there = False
    if is_there:
        return Step("environment", name, "reuse", "the same content")
    return Step("environment", name, "create", "Azure builds its image at the first job, 10 to 20 minutes")


def _inside(azure: Azure) -> list[Step]:
    """The clusters and endpoints of the workspace: they are deleted with it."""
    steps = []
    for kind, api in (("computes", COMPUTE_API), ("onlineEndpoints", "2022-02-01-preview")):
        for one in _listed(azure, f"{azure.workspace_path}/{kind}", api, f"the {kind} of the workspace"):
            name, tags = str(one["name"]), one.get("tags") or {}
            what: Kind = "compute" if kind == "computes" else "resource"
            if is_ours(azure, one):
                steps.append(Step(what, name, "delete", "", id=str(one.get("id") or "")))
            elif kind == "onlineEndpoints" and "platotk" in tags:
                why = f"it serves, and bills: plato deploy --to azure --delete --endpoint {name}"
                steps.append(Step(what, f"endpoint {name}", "keep", why))
            else:
                steps.append(
                    Step(what, name if what == "compute" else f"endpoint {name}", "keep", "we did not make it")
                )
    return steps


def _step(about: tuple[str, str, str], action: Action, why: str) -> Step:
    name, kind, path = about
    if kind.lower() == "microsoft.machinelearningservices/workspaces":
        return Step("workspace", name, action, why, id=path)
    return Step("resource", f"{name} ({kind})", action, why, id=path)


def is_ours(azure: Azure, thing: Mapping[str, Any]) -> bool:
    """Whether a thing carries our tag for this workspace, or a cluster our mark."""
    is_marked = (thing.get("properties") or {}).get("description") == mark(azure)
    return is_marked or (thing.get("tags") or {}).get(TAG) == azure.options.workspace


def is_registry(azure: Azure, workspace: Mapping[str, Any] | None, thing: Mapping[str, Any]) -> bool:
    """Whether a thing is the registry that Azure made for the images of our workspace; a tag would be somebody's."""
    if workspace is None or not is_ours(azure, workspace) or thing.get("tags"):
        return False
    named = (workspace.get("properties") or {}).get("containerRegistry")
    return bool(named) and str(named).lower() == str(thing["id"]).lower()


def _is_workspace(azure: Azure, one: Mapping[str, Any]) -> bool:
    return str(one["id"]).lower() == azure.workspace_path.lower()


def _listed(azure: Azure, path: str, api: str, what: str) -> list[dict[str, Any]]:
    """All pages of a list."""
    found: list[dict[str, Any]] = []
    page = azure.arm("GET", path, api, what=what) or {}
    while True:
        found += page.get("value") or []
        if not page.get("nextLink"):
            return found
        page = azure.arm("GET", str(page["nextLink"]), api, what=what) or {}


def _read(azure: Azure, path: str, api: str, what: str) -> dict[str, Any] | None:
    try:
        return azure.arm("GET", path, api, what=what)
    except NotThereError:
        return None


def _seconds(duration: str) -> float | None:
    """`PT2M30S` (ISO 8601); None for anything else."""
    match = re.fullmatch(r"PT(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?", duration)
    if match is None:
        return None
    return 3600 * int(match[1] or 0) + 60 * int(match[2] or 0) + float(match[3] or 0)
