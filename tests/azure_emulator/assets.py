"""What a workspace keeps beside jobs: datastores with their secrets, code, and models."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from .blobs import ACCOUNT, CONTAINERS, HOST
from .resource_manager import WORKSPACE
from .routing import Answer, Request, Route, error

if TYPE_CHECKING:
    from .emulator import Emulator

STORES = rf"{WORKSPACE}/datastores"
CODES = rf"{WORKSPACE}/codes/(?P<name>[^/]+)/versions"
MODELS = rf"{WORKSPACE}/models/(?P<name>[^/]+)"
VERSION = r"(?P<version>[^/]+)"


def routes(emulator: Emulator) -> list[Route]:
    """Of datastores, codes and models."""
    assets = Assets(emulator)
    return [
        Route("GET", STORES, assets.list_stores),
        Route("GET", rf"{STORES}/(?P<name>[^/]+)", assets.get_store),
        Route("POST", rf"{STORES}/(?P<name>[^/]+)/listSecrets", assets.secrets),
        Route("GET", CODES, assets.find_code),
        Route("POST", rf"{CODES}/{VERSION}/startPendingUpload", assets.upload),
        Route("GET", rf"{CODES}/{VERSION}", assets.get_code),
        Route("PUT", rf"{CODES}/{VERSION}", assets.put_code),
        Route("GET", MODELS, assets.get_models),
        Route("GET", rf"{MODELS}/versions", assets.list_models),
        Route("GET", rf"{MODELS}/versions/{VERSION}", assets.get_model),
        Route("PUT", rf"{MODELS}/versions/{VERSION}", assets.put_model),
    ]


class Assets:
    """Answers from the emulator's state and its blob store."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator, self._state = emulator, emulator.state

    def list_stores(self, request: Request) -> Answer:
        names = ["workspaceblobstore"] if request.query.get("isDefault") == "true" else list(CONTAINERS)
        base = request.path.rstrip("/")
        return 200, {}, {"value": [self._store(f"{base}/{name}", name) for name in names]}

    def get_store(self, request: Request) -> Answer:
        name = request.match["name"]
        if name not in CONTAINERS:
            return error(404, "UserError", f"Could not find datastore {name}")
        return 200, {}, self._store(request.path, name)

    def secrets(self, request: Request) -> Answer:
        """The account's key, or a signature where the workspace hands out those."""
        container = CONTAINERS[request.match["name"]]
        if self._emulator.sign == "sas":
            return 200, {}, {"secretsType": "Sas", "sasToken": self._emulator.blobs.signature(container)}
        return 200, {}, {"secretsType": "AccountKey", "key": self._emulator.blobs.key}

    def find_code(self, request: Request) -> Answer:
        """Codes of the same content, whatever they are called."""
        wanted = request.query.get("hash")
        return 200, {}, {"value": [one for one in self._state.codes.values() if _hash(one) == wanted]}

    def upload(self, request: Request) -> Answer:
        """A container of its own, and a signature for it."""
        container = str(uuid.uuid4())
        self._emulator.blobs.container(container)
        url = f"https://{HOST}:443/{container}"
        account = f"{self._emulator.group_path}/providers/Microsoft.Storage/storageAccounts/{ACCOUNT}"
        credential = {"credentialType": "SAS", "sasUri": f"{url}?{self._emulator.blobs.signature(container)}"}
        reference = {"blobUri": url, "storageAccountArmId": account, "credential": credential}
        about = {"pendingUploadId": container, "pendingUploadType": "TemporaryBlobReference"}
        return 200, {}, {**about, "blobReferenceForConsumption": reference}

    def get_code(self, request: Request) -> Answer:
        found = self._state.codes.get(_key(request))
        return error(404, "UserError", "no such code") if found is None else (200, {}, found)

    def put_code(self, request: Request) -> Answer:
        made = _versioned(request, {"provisioningState": "Succeeded"})
        known = made["properties"].get("properties") or {}
        made["properties"]["properties"] = {key: str(value) for key, value in known.items()}
        self._state.codes[_key(request)] = made
        return 201, {}, made

    def get_models(self, request: Request) -> Answer:
        """The container of all versions."""
        versions = self._versions(request)
        if not versions:
            return error(404, "UserError", f"Could not find model {request.match['name']}")
        newest = max(int(version) for version in versions)
        properties = {"latestVersion": str(newest), "nextVersion": str(newest + 1)}
        return 200, {}, {"id": request.path, "name": request.match["name"], "properties": properties}

    def list_models(self, request: Request) -> Answer:
        if not self._versions(request):
            return error(404, "UserError", f"Could not find model {request.match['name']}")
        name = request.match["name"]
        return 200, {}, {"value": [one for key, one in self._state.models.items() if key.startswith(f"{name}:")]}

    def get_model(self, request: Request) -> Answer:
        found = self._state.models.get(_key(request))
        return error(404, "UserError", "no such model") if found is None else (200, {}, found)

    def put_model(self, request: Request) -> Answer:
        flavors = request.json["properties"].get("flavors") or {}
        made = _versioned(request, {"flavors": flavors, "stage": None, "provisioningState": "Succeeded"})
        self._state.models[_key(request)] = made
        return 201, {}, made

    def _versions(self, request: Request) -> list[str]:
        name = request.match["name"]
        return [key.rpartition(":")[2] for key in self._state.models if key.rpartition(":")[0] == name]

    def _store(self, path: str, name: str) -> dict[str, Any]:
        properties = {
            "isDefault": name == "workspaceblobstore",
            "credentials": {"credentialsType": "Sas" if self._emulator.sign == "sas" else "AccountKey"},
            "datastoreType": "AzureBlob",
            "accountName": ACCOUNT,
            "containerName": CONTAINERS[name],
            "endpoint": "core.windows.net",
            "protocol": "https",
            "serviceDataAccessAuthIdentity": "WorkspaceSystemAssignedIdentity",
        }
        return {"id": path, "name": name, "properties": properties}


def _key(request: Request) -> str:
    return f"{request.match['name']}:{request.match['version']}"


def _versioned(request: Request, more: dict[str, Any]) -> dict[str, Any]:
    return {"id": request.path, "name": request.match["version"], "properties": {**request.json["properties"], **more}}


def _hash(code: dict[str, Any]) -> str | None:
    found = (code["properties"].get("properties") or {}).get("hash_sha256")
    return None if found is None else str(found)
