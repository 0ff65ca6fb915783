"""Azure Resource Manager: subscription, resource groups, and what is in them; workspaces and clusters.

A workspace is made as the SDK makes it, by deploying its template: workspace, storage, key vault and logs appear with
the tags that it is given. Clusters and deletions take a moment and are polled for.
"""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Any

from .routing import Answer, Request, Route, error

if TYPE_CHECKING:
    from .emulator import Emulator
    from .state import State

ARM = r"management\.azure\.com"
SUBSCRIPTION = rf"{ARM}/subscriptions/(?P<subscription>[^/]+)"
GROUP = rf"{SUBSCRIPTION}/resourceGroups/(?P<group>[^/]+)"
AML = "Microsoft.MachineLearningServices"
WORKSPACE = rf"{GROUP}/providers/{re.escape(AML)}/workspaces/(?P<workspace>[^/]+)"
APIS = {
    "group": ("2020-06-01", "2021-04-01"),
    "workspace": ("2023-08-01-preview", "2024-10-01-preview", "2025-12-01"),
    "compute": ("2023-08-01-preview",),
    "environment": ("2023-04-01-preview",),
}
"""The versions that are asked for; another one is an error, as at Azure."""
DEPENDENT = {
    "storageAccountName": "Microsoft.Storage/storageAccounts",
    "keyVaultName": "Microsoft.KeyVault/vaults",
    "applicationInsightsName": "Microsoft.Insights/components",
    "logAnalyticsName": "Microsoft.OperationalInsights/workspaces",
}
"""Parameters of the SDK's template, and what they name."""
SIZES = (
    ("Standard_DS3_v2", "standardDSv2Family", 4, 14.0, True, {"Standard": 0.27, "LowPriority": 0.054}),
    ("Standard_E8ds_v5", "standardEDSv5Family", 8, 64.0, True, {"Standard": 0.61, "LowPriority": 0.12}),
    ("Standard_M128s", "standardMSFamily", 128, 2048.0, False, {}),
)


def routes(emulator: Emulator) -> list[Route]:
    """Of Azure Resource Manager."""
    manager = ResourceManager(emulator)
    return [
        Route("GET", SUBSCRIPTION, manager.subscription),
        Route("GET", rf"{SUBSCRIPTION}/providers/(?P<provider>[^/]+)", manager.provider),
        Route(
            "GET",
            rf"{SUBSCRIPTION}(/resourceGroups/[^/]+)?/providers/Microsoft\.Authorization/permissions",
            manager.permissions,
        ),
        Route("GET", GROUP, manager.get_group),
        Route("PUT", GROUP, manager.put_group),
        Route("DELETE", GROUP, manager.delete_group),
        Route("GET", rf"{GROUP}/resources", manager.list_resources),
        Route("PUT", rf"{GROUP}/providers/Microsoft\.Resources/deployments/(?P<name>[^/]+)", manager.deploy),
        Route("GET", rf"{GROUP}(/providers/Microsoft\.Resources)?/deployments/[^/]+/operations", manager.nothing),
        Route("GET", WORKSPACE, manager.get_workspace),
        Route("DELETE", WORKSPACE, manager.delete_workspace),
        Route("GET", rf"{WORKSPACE}/computes", manager.list_computes),
        Route("GET", rf"{WORKSPACE}/computes/(?P<name>[^/]+)", manager.get_compute),
        Route("PUT", rf"{WORKSPACE}/computes/(?P<name>[^/]+)", manager.put_compute),
        Route("DELETE", rf"{WORKSPACE}/computes/(?P<name>[^/]+)", manager.delete_compute),
        Route("GET", rf"{WORKSPACE}/environments/(?P<name>[^/]+)", manager.get_environments),
        Route("GET", rf"{WORKSPACE}/environments/(?P<name>[^/]+)/versions/(?P<version>[^/]+)", manager.get_environment),
        Route("PUT", rf"{WORKSPACE}/environments/(?P<name>[^/]+)/versions/(?P<version>[^/]+)", manager.put_environment),
        Route("GET", rf"{SUBSCRIPTION}/providers/{re.escape(AML)}/locations/[^/]+/vmSizes", manager.sizes),
        Route("GET", rf"{SUBSCRIPTION}/providers/{re.escape(AML)}/locations/[^/]+/usages", manager.usages),
        Route("GET", rf"{SUBSCRIPTION}/operations/(?P<name>[^/]+)", manager.operation),
        Route("GET", rf"{WORKSPACE}/onlineEndpoints", manager.list_endpoints),
        Route(
            "DELETE", rf"{GROUP}/providers/(?P<provider>[^/]+)/(?P<kind>[^/]+)/(?P<name>[^/]+)", manager.delete_resource
        ),
    ]


class ResourceManager:
    """Answers from the emulator's state."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator, self._state = emulator, emulator.state
        self._operations: dict[str, dict[str, Any]] = {}

    # --- subscription

    def subscription(self, request: Request) -> Answer:
        return 200, {}, {"subscriptionId": request.match["subscription"], "state": "Enabled", "displayName": "Tests"}

    def provider(self, request: Request) -> Answer:
        kind = {"resourceType": "workspaces", "locations": ["West Europe"], "apiVersions": ["2025-12-01"]}
        about = {"namespace": request.match["provider"], "registrationState": "Registered", "resourceTypes": [kind]}
        return 200, {}, about

    def permissions(self, request: Request) -> Answer:
        return 200, {}, {"value": [{"actions": list(self._emulator.actions), "notActions": []}]}

    def sizes(self, request: Request) -> Answer:
        return 200, {}, {"value": [_size(*size) for size in SIZES]}

    def usages(self, request: Request) -> Answer:
        listed = [
            ("Total Cluster Dedicated Regional vCPUs", self._emulator.quota),
            ("Standard DSv2 Family Cluster Dedicated vCPUs", self._emulator.quota),
            ("Total Cluster LowPriority Regional vCPUs", 100),
        ]
        named = [{"value": name, "localizedValue": name} for name, _ in listed]
        about = {"type": f"{AML}/usages", "unit": "Count", "currentValue": 0}
        return (
            200,
            {},
            {
                "value": [
                    {**about, "limit": limit, "name": name} for name, (_, limit) in zip(named, listed, strict=True)
                ]
            },
        )

    # --- resource groups

    def get_group(self, request: Request) -> Answer:
        found = self._state.resource_groups.get(request.match["group"])
        if found is None:
            return error(404, "ResourceGroupNotFound", f"Resource group '{request.match['group']}' could not be found.")
        return 200, {}, found

    def put_group(self, request: Request) -> Answer:
        name, body = request.match["group"], request.json
        is_new = name not in self._state.resource_groups
        path = f"/subscriptions/{request.match['subscription']}/resourceGroups/{name}"
        made = {"id": path, "name": name, "type": "Microsoft.Resources/resourceGroups", **body}
        made["properties"] = {"provisioningState": "Succeeded"}
        self._state.resource_groups[name] = made
        return 201 if is_new else 200, {}, made

    def delete_group(self, request: Request) -> Answer:
        """With everything in it, as at Azure: asking it twice is on who asks."""
        if self._state.resource_groups.pop(request.match["group"], None) is None:
            return self.get_group(request)
        for things in (self._state.resources, self._state.workspaces):
            for key in [key for key, one in things.items() if f"/{request.match['group']}/" in one["id"]]:
                del things[key]
        return 202, {}, None

    def list_resources(self, request: Request) -> Answer:
        if request.match["group"] not in self._state.resource_groups:
            return self.get_group(request)
        inside = f"/resourceGroups/{request.match['group']}/".lower()
        listed = [*self._state.workspaces.values(), *self._state.resources.values()]
        keys = ("id", "name", "type", "location", "tags")
        return 200, {}, {"value": [{k: one.get(k) for k in keys} for one in listed if inside in one["id"].lower()]}

    def delete_resource(self, request: Request) -> Answer:
        gone = [key for key in self._state.resources if key.lower() == request.path.lower()]
        for key in gone:
            del self._state.resources[key]
        return (200, {}, None) if gone else (204, {}, None)

    # --- workspaces

    def deploy(self, request: Request) -> Answer:
        """The template of a workspace."""
        given = {key: value.get("value") for key, value in request.json["properties"]["parameters"].items()}
        if request.match["group"] not in self._state.resource_groups:
            return self.get_group(request)
        group = f"/subscriptions/{request.match['subscription']}/resourceGroups/{request.match['group']}"
        about = {"location": given["location"], "tags": given["tagValues"]}
        paths = {}
        for parameter, kind in DEPENDENT.items():
            path = f"{group}/providers/{kind}/{given[parameter]}"
            paths[parameter] = path
            self._state.resources[path] = {"id": path, "name": given[parameter], "type": kind, **about}
        name = given["workspaceName"]
        self._state.workspaces[name] = workspace(group, name, about, paths)
        done = {"provisioningState": "Succeeded", "duration": "PT1S", "mode": "Incremental"}
        return 201, {}, {"id": request.path, "name": request.match["name"], "properties": done}

    def nothing(self, request: Request) -> Answer:
        return 200, {}, {"value": []}

    def get_workspace(self, request: Request) -> Answer:
        found = self._state.workspaces.get(request.match["workspace"])
        if found is None or f"/{request.match['group']}/".lower() not in found["id"].lower():
            return error(404, "ResourceNotFound", f"The Resource '{request.path}' was not found.")
        return 200, {}, found

    def delete_workspace(self, request: Request) -> Answer:
        if self._state.workspaces.pop(request.match["workspace"], None) is None:
            return 204, {}, None
        self._state.computes.clear()
        self._state.endpoints.clear()
        return self._later(request)

    # --- clusters

    def list_computes(self, request: Request) -> Answer:
        return 200, {}, {"value": list(self._state.computes.values())}

    def get_compute(self, request: Request) -> Answer:
        found = self._state.computes.get(request.match["name"])
        if found is None:
            return error(404, "ResourceNotFound", f"The compute {request.match['name']} was not found.")
        return 200, {}, found

    def put_compute(self, request: Request) -> Answer:
        """Size and priority stay as they were made; quota is looked at."""
        body, name = request.json, request.match["name"]
        inner = body["properties"]["properties"]
        before = self._state.computes.get(name)
        if before is not None:
            was = before["properties"]["properties"]
            for key in ("vmSize", "vmPriority"):
                if str(was.get(key, "")).lower() != str(inner.get(key, "")).lower():
                    return error(400, "UserError", f"{key} of a compute cannot be updated.")
        made = {
            "id": request.path,
            "name": name,
            "type": f"{AML}/workspaces/computes",
            "location": body.get("location"),
            "tags": body.get("tags") or {},
            "properties": {**body["properties"], "provisioningState": "Succeeded", "properties": {**inner, **_idle()}},
        }
        self._state.computes[name] = made
        return self._later(request, 200 if before is not None else 201, made)

    def delete_compute(self, request: Request) -> Answer:
        if request.query.get("underlyingResourceAction") != "Delete":
            return error(400, "UserError", "underlyingResourceAction is needed")
        if self._state.computes.pop(request.match["name"], None) is None:
            return self.get_compute(request)
        return self._later(request)

    def list_endpoints(self, request: Request) -> Answer:
        return 200, {}, {"value": list(self._state.endpoints.values())}

    # --- environments

    def get_environments(self, request: Request) -> Answer:
        """The container of all versions."""
        name = request.match["name"]
        versions = [key.rpartition(":")[2] for key in self._state.environments if key.rpartition(":")[0] == name]
        if not versions:
            return error(404, "UserError", f"{name} not found")
        return 200, {}, {"id": request.path, "name": name, "properties": {"latestVersion": versions[-1]}}

    def get_environment(self, request: Request) -> Answer:
        found = self._state.environments.get(f"{request.match['name']}:{request.match['version']}")
        return error(404, "UserError", f"{request.path} not found") if found is None else (200, {}, found)

    def put_environment(self, request: Request) -> Answer:
        key = f"{request.match['name']}:{request.match['version']}"
        is_new = key not in self._state.environments
        properties = {**request.json["properties"], "environmentType": "UserCreated", "provisioningState": "Succeeded"}
        about = {
            "id": request.path,
            "name": request.match["version"],
            "type": f"{AML}/workspaces/environments/versions",
        }
        self._state.environments[key] = {**about, "properties": properties}
        return 201 if is_new else 200, {}, self._state.environments[key]

    # --- what takes a moment

    def _later(self, request: Request, status: int = 202, body: Any = None) -> Answer:
        """Accepted: the SDK asks once how it went before it is done."""
        name = str(uuid.uuid4())
        self._operations[name] = {"status": "Succeeded", "percentComplete": 100.0}
        url = f"https://management.azure.com/subscriptions/{request.match['subscription']}/operations/{name}"
        headers = {"Azure-AsyncOperation": f"{url}?api-version={request.api}", "Retry-After": "0"}
        return status, headers, body

    def operation(self, request: Request) -> Answer:
        found = self._operations.get(request.match["name"])
        return error(404, "NotFound", "no such operation") if found is None else (200, {}, found)


def build_image(state: State, workspace: str, environment: str) -> None:
    """An environment's image is needed: the first one that has to be built brings the workspace a registry, untagged.

    Args:
        state: What Azure remembers.
        workspace: Its name.
        environment: `name:version`.
    """
    properties = (state.environments.get(environment) or {}).get("properties") or {}
    owner = state.workspaces.get(workspace)
    if owner is None or not (properties.get("condaFile") or properties.get("build")):
        return
    if owner["properties"].get("containerRegistry") is None:
        group, kind = owner["id"].partition("/providers/")[0], "Microsoft.ContainerRegistry/registries"
        name = str(owner["properties"]["workspaceId"]).replace("-", "")
        path = f"{group}/providers/{kind}/{name}"
        state.resources[path] = {"id": path, "name": name, "type": kind, "location": owner["location"], "tags": None}
        owner["properties"]["containerRegistry"] = path


def workspace(group: str, name: str, about: dict[str, Any], paths: dict[str, str]) -> dict[str, Any]:
    """A workspace in wire format."""
    path = f"{group}/providers/{AML}/workspaces/{name}"
    place = about["location"]
    return {
        "id": path,
        "name": name,
        "type": f"{AML}/workspaces",
        **about,
        "properties": {
            "friendlyName": name,
            "storageAccount": paths.get("storageAccountName"),
            "keyVault": paths.get("keyVaultName"),
            "applicationInsights": paths.get("applicationInsightsName"),
            "provisioningState": "Succeeded",
            "workspaceId": str(uuid.uuid5(uuid.NAMESPACE_URL, path)),
            "discoveryUrl": f"https://{place}.api.azureml.ms/discovery",
            "mlFlowTrackingUri": f"azureml://{place}.api.azureml.ms/mlflow/v1.0{path}",
        },
        "identity": {"type": "SystemAssigned"},
        "sku": {"name": "Basic", "tier": "Basic"},
    }


def cluster(path: str, name: str, location: str, *, max_nodes: int) -> dict[str, Any]:
    """A cluster in wire format."""
    scaling = {"minNodeCount": 0, "maxNodeCount": max_nodes, "nodeIdleTimeBeforeScaleDown": "PT2M"}
    inner = {"vmSize": "Standard_DS3_v2", "vmPriority": "Dedicated", "scaleSettings": scaling, **_idle()}
    properties = {"computeType": "AmlCompute", "provisioningState": "Succeeded", "properties": inner}
    kind = f"{AML}/workspaces/computes"
    return {"id": path, "name": name, "type": kind, "location": location, "tags": {}, "properties": properties}


def _idle() -> dict[str, Any]:
    """A cluster on which nothing runs."""
    states = ("preparing", "running", "idle", "unusable", "leaving", "preempted")
    counts = {f"{state}NodeCount": 0 for state in states}
    return {"currentNodeCount": 0, "targetNodeCount": 0, "nodeStateCounts": counts, "allocationState": "Steady"}


def _size(
    name: str, family: str, cpus: int, memory_gb: float, has_low_priority: bool, prices: dict[str, float]
) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": name,
        "family": family,
        "vCPUs": cpus,
        "gpus": 0,
        "osVhdSizeMB": 1047552,
        "maxResourceVolumeMB": 28672,
        "memoryGB": memory_gb,
        "lowPriorityCapable": has_low_priority,
        "premiumIO": True,
        "supportedComputeTypes": ["AmlCompute"],
    }
    if prices:
        values = [{"retailPrice": price, "osType": "Linux", "vmTier": tier} for tier, price in prices.items()]
        made["estimatedVMPrices"] = {"billingCurrency": "USD", "unitOfMeasure": "OneHour", "values": values}
    return made
