"""Why Azure would say no, before it does: sign-in, permissions, region, quota, versions; each finding with its cure.

`examine` is given the options and asks Azure, and the `az` of this machine where there is one; it changes nothing. A
question that Azure refuses is a finding too, so one answer shows all that is wrong.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PlatoError
from . import prices
from .client import ARM, Azure, NotThereError, asking, connect
from .options import AzureOptions
from .plans import read_compute, read_group, read_workspace, scale

if TYPE_CHECKING:
    from ..sims.checks.findings import Finding

PROVIDER = "Microsoft.MachineLearningServices"
PERMISSIONS_API, PROVIDER_API, SUBSCRIPTION_API = "2022-04-01", "2021-04-01", "2022-12-01"
NEEDED = (
    f"{PROVIDER}/workspaces/write",
    f"{PROVIDER}/workspaces/computes/write",
    f"{PROVIDER}/workspaces/jobs/write",
    f"{PROVIDER}/workspaces/environments/versions/write",
)
"""Actions of Azure's roles; AzureML Data Scientist lacks the first two, which only `plato azure up` needs."""
PACKAGES = ("azure-ai-ml", "azure-identity", "azure-storage-blob", "azureml-mlflow", "fsspec")


def examine(options: AzureOptions, root: Path | None = None) -> list[Finding]:
    """Everything that can be found out without changing anything.

    Args:
        options: What plato.yaml says.
        root: The project's folder, for its conda file.

    Returns:
        Findings in the order in which they matter; none says that all is well.
    """
    azure = connect(options)
    found = [*_versions(), *_conda(options, root)]
    signed_in = list(_asked("azure-sign-in", lambda: _sign_in(azure)))
    if signed_in:
        return [*signed_in, *found]
    looks: tuple[tuple[str, Callable[[], Iterable[Finding]]], ...] = (
        ("azure-subscription", lambda: _subscription(azure)),
        ("azure-provider", lambda: _provider(azure)),
        ("azure-permissions", lambda: _permissions(azure)),
        ("azure-resources", lambda: _resources(azure)),
        ("azure-region", lambda: _region(azure)),
        ("azure-quota", lambda: _quota(azure)),
    )
    for name, look in looks:
        found += _asked(name, look)
    rank = {"error": 0, "warning": 1, "note": 2}
    return sorted(found, key=lambda one: rank[one.severity])


def _finding(name: str, severity: Any, message: str, cure: str | None = None) -> Finding:
    from ..sims.checks.findings import Finding

    return Finding(name, severity, message, None, cure)


def _asked(name: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What a look finds; that it was refused is a finding."""
    try:
        return list(look())
    except PlatoError as error:
        return [_finding(name, "error", error.message, error.hint)]


def _versions() -> Iterator[Finding]:
    """Packages outside platotk's ranges, and the extension `ml` of the CLI."""
    from packaging.requirements import Requirement

    wanted = {Requirement(line).name: Requirement(line) for line in importlib.metadata.requires("platotk") or ()}
    for name in PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            from ..errors import missing_extra

            yield _finding("azure-packages", "error", f"{name} is not installed", missing_extra(name, "azure").hint)
            continue
        if name in wanted and not wanted[name].specifier.contains(version, prereleases=True):
            cure = f"python -m pip install '{name}{wanted[name].specifier}'"
            yield _finding("azure-packages", "warning", f"{name} {version} was never tried with this platotk", cure)
    yield from _cli()


def _cli() -> Iterator[Finding]:
    az = shutil.which("az")
    if az is None:
        told = "az is not installed; platotk does not need it, signing in is easier with it"
        yield _finding("azure-cli", "note", told, "https://learn.microsoft.com/cli/azure/install-azure-cli")
        return
    try:
        answer = subprocess.run([az, "version", "--output", "json"], capture_output=True, timeout=60, check=True)
        extensions = json.loads(answer.stdout).get("extensions") or {}
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        yield _finding("azure-cli", "warning", f"az does not say its version: {error}", "az upgrade")
        return
    if "azure-cli-ml" in extensions:
        told = "the extension azure-cli-ml is version 1, and keeps `az ml` from being version 2"
        yield _finding("azure-cli", "warning", told, "az extension remove --name azure-cli-ml")
    if "ml" not in extensions:
        told = "the extension ml is not installed; only the files of `plato azure yaml` need it"
        yield _finding("azure-cli", "note", told, "az extension add --name ml")
    elif tuple(int(part) for part in re.findall(r"\d+", str(extensions["ml"]))[:2]) < (2, 0):
        yield _finding(
            "azure-cli", "warning", f"the extension ml is {extensions['ml']}", "az extension update --name ml"
        )


def _conda(options: AzureOptions, root: Path | None) -> list[Finding]:
    given = options.environment.get("conda_file")
    if given is None:
        return []
    from .conda_files import findings_of_conda

    try:
        return findings_of_conda((root or Path()) / str(given))
    except PlatoError as error:
        return [_finding("conda-file", "error", error.message, error.hint)]


def _sign_in(azure: Azure) -> list[Finding]:
    with asking("the sign-in"):
        azure.credential.get_token(f"{ARM}/.default")
    return []


def _subscription(azure: Azure) -> Iterator[Finding]:
    path = f"/subscriptions/{azure.options.subscription}"
    told = azure.arm("GET", path, SUBSCRIPTION_API, what="the subscription") or {}
    if told.get("state") not in ("Enabled", None):
        cure = "Switch it on in the portal (Subscriptions), or name another one in plato.yaml."
        yield _finding("azure-subscription", "error", f"the subscription is {told['state']}", cure)


def _provider(azure: Azure) -> Iterator[Finding]:
    path = f"/subscriptions/{azure.options.subscription}/providers/{PROVIDER}"
    told = azure.arm("GET", path, PROVIDER_API, what=PROVIDER) or {}
    if told.get("registrationState") != "Registered":
        cure = f"az provider register --namespace {PROVIDER}"
        state = told.get("registrationState")
        yield _finding("azure-provider", "error", f"the subscription's provider {PROVIDER} is {state}", cure)
    location = azure.options.location
    listed = {
        _plain(place)
        for kind in told.get("resourceTypes") or []
        if kind.get("resourceType") == "workspaces"
        for place in kind.get("locations") or []
    }
    if location is not None and listed and _plain(location) not in listed:
        cure = 'az account list-locations --query "[].name"; then location: in plato.yaml'
        yield _finding("azure-region", "error", f"there are no workspaces in {location!r}", cure)


def _permissions(azure: Azure) -> Iterator[Finding]:
    """What the roles of who is signed in allow, at the resource group, or at the subscription while there is none."""
    group = read_group(azure)
    scope = azure.group_path if group is not None else f"/subscriptions/{azure.options.subscription}"
    needed = NEEDED if group is not None else (*NEEDED, "Microsoft.Resources/subscriptions/resourceGroups/write")
    path = f"{scope}/providers/Microsoft.Authorization/permissions"
    rules = (azure.arm("GET", path, PERMISSIONS_API, what="the permissions") or {}).get("value") or []
    lacking = [action for action in needed if not _is_allowed(action, rules)]
    if lacking:
        where = f"resource group {azure.options.resource_group}" if group is not None else "the subscription"
        is_needed_to_train = any("jobs" in action or "environments" in action for action in lacking)
        yield _finding(
            "azure-permissions",
            "error" if is_needed_to_train else "warning",
            f"on {where} you may not: {', '.join(lacking)}",
            f"az role assignment create --assignee YOU --role Contributor --scope {scope}",
        )


def _resources(azure: Azure) -> Iterator[Finding]:
    """What `plato azure up` would make, and a cluster that is other than plato.yaml says."""
    options = azure.options
    if read_group(azure) is None:
        what = f"resource group {options.resource_group}"
    elif read_workspace(azure) is None:
        what = f"workspace {options.workspace}"
    elif (compute := read_compute(azure)) is None:
        what = f"compute {options.compute}"
    else:
        there = scale(compute)
        for key, wanted in (("size", options.size), ("tier", options.tier), ("max_nodes", options.max_nodes)):
            if str(there[key]).lower() != str(wanted).lower():
                cure = "plato azure up" if key == "max_nodes" else f"{key}: {there[key]}, or compute: another name"
                told = f"compute {options.compute} has {key} {there[key]}, plato.yaml says {wanted}"
                yield _finding("azure-compute", "warning", told, cure)
        return
    yield _finding("azure-resources", "note", f"{what} is not there yet", "plato azure up")


def _region(azure: Azure) -> Iterator[Finding]:
    """Whether the region has the size, and at low priority."""
    options, location = azure.options, _location(azure)
    size = prices.find(prices.sizes(azure, location), options.size)
    if size is None:
        cure = f"az ml compute list-sizes --location {location} --output table; then size: in plato.yaml"
        yield _finding("azure-size", "error", f"{location} has no {options.size}", cure)
    elif options.is_low_priority and not size.has_low_priority:
        yield _finding("azure-size", "error", f"{options.size} is not to be had at low priority", "tier: dedicated")


def _quota(azure: Azure) -> Iterator[Finding]:
    """Whether max_nodes fit the quota of the family, and the region's total."""
    options, location = azure.options, _location(azure)
    size = prices.find(prices.sizes(azure, location), options.size)
    if size is None or not size.cpus:
        return
    with asking(f"the quota of {location}"):
        usages = [_usage(one) for one in azure.ml.compute.list_usage(location=location)]
    tier = "lowpriority" if options.is_low_priority else "dedicated"
    for name, used, limit in usages:
        plain = _plain(name)
        of_family = _plain(size.family) in plain
        if tier not in plain or not (of_family or plain.startswith("total")) or limit < 0:
            continue
        fit = max(0, (limit - used) // size.cpus)
        if fit < options.max_nodes:
            severity = "error" if fit < options.nodes else "warning"
            told = f"{name}: {used} of {limit} are used, so {fit} nodes of {options.size} fit, not {options.max_nodes}"
            cure = "Ask for more in the portal (Subscription, Usage + quotas, Machine Learning), or say " + (
                f"max_nodes: {fit}" if fit else "another size or location"
            )
            yield _finding("azure-quota", severity, told, cure)


def _usage(usage: Any) -> tuple[str, int, int]:
    """Name, used, limit; the SDK spells `currentValue` in two ways."""
    read = dict(vars(usage))
    name = read.get("name")
    about = name if isinstance(name, dict) else {} if name is None else dict(vars(name))
    label = about.get("localizedValue") or about.get("localized_value") or about.get("value") or ""
    used = read.get("current_value") if read.get("current_value") is not None else read.get("currentValue")
    return str(label), int(used or 0), int(-1 if read.get("limit") is None else read["limit"])


def _location(azure: Azure) -> str | None:
    """Where the cluster is or will be."""
    try:
        there = read_workspace(azure)
    except NotThereError:
        there = None
    place = (there or {}).get("location") or azure.options.location or (read_group(azure) or {}).get("location")
    return None if place is None else str(place)


def _is_allowed(action: str, rules: list[dict[str, Any]]) -> bool:
    """Azure's rule: some role allows it and does not except it; stars match anything."""

    def matches(patterns: Any) -> bool:
        return any(fnmatch.fnmatchcase(action.lower(), str(one).lower()) for one in patterns or [])

    return any(matches(rule.get("actions")) and not matches(rule.get("notActions")) for rule in rules)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
