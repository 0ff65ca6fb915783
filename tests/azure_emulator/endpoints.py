"""Managed online endpoints: each deployment really runs its scoring script in Microsoft's inference server.

An endpoint is an address with keys and a share of the traffic for each deployment; a deployment is a process with the
model and the code that were registered. No image is built: a Python of the tests with Microsoft's server runs it, or,
where `emulator.serves` is "plainly", this one (scoring.py), which needs nothing installed.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.agents.inference_server import inference_python

from .mounts import fetch, place_of
from .nodes import DATASTORE_URI
from .resource_manager import AML, SUBSCRIPTION, WORKSPACE, build_image
from .routing import Answer, Request, Route, error

if TYPE_CHECKING:
    from .emulator import Emulator

ENDPOINT = rf"{WORKSPACE}/onlineEndpoints/(?P<endpoint>[^/]+)"
DEPLOYMENT = rf"{ENDPOINT}/deployments/(?P<deployment>[^/]+)"
OPERATION = rf"{SUBSCRIPTION}/providers/{re.escape(AML)}/locations/[^/]+/mfeOperationsStatus/(?P<operation>[^/]+)"
SCORING = r"(?P<endpoint>[^./]+)\.(?P<region>[a-z0-9]+)\.inference\.ml\.azure\.com(?:/.*)?"
UP_WITHIN_S = 60.0


def routes(emulator: Emulator) -> list[Route]:
    """Of endpoints, their deployments, and what they answer."""
    endpoints = Endpoints(emulator)
    emulator.closers.append(endpoints.close)
    return [
        Route("GET", OPERATION, endpoints.operation),
        Route("GET", ENDPOINT, endpoints.get),
        Route("PUT", ENDPOINT, endpoints.put),
        Route("DELETE", ENDPOINT, endpoints.delete),
        Route("POST", rf"{ENDPOINT}/listKeys", endpoints.keys),
        Route("GET", rf"{ENDPOINT}/deployments", endpoints.list_deployments),
        Route("GET", DEPLOYMENT, endpoints.get_deployment),
        Route("PUT", DEPLOYMENT, endpoints.put_deployment),
        Route("DELETE", DEPLOYMENT, endpoints.delete_deployment),
        Route("POST", rf"{DEPLOYMENT}/getLogs", endpoints.logs),
        Route("GET", SCORING, endpoints.score),
        Route("POST", SCORING, endpoints.score),
    ]


class Deployment:
    """One deployment: what was asked for, and the process that runs it."""

    def __init__(self, wire: dict[str, Any], folder: Path) -> None:
        self.wire, self._folder = wire, folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def start(self, emulator: Emulator) -> str:
        """Fetch model and code and start the server; gives what went wrong, or nothing once it is healthy."""
        properties = self.wire["properties"]
        shutil.rmtree(self._folder, ignore_errors=True)
        code = emulator.state.codes[_version(properties["codeConfiguration"]["codeId"])]["properties"]["codeUri"]
        container, path = place_of(code)
        fetch(emulator.blobs.container(container), path, self._folder / "code")
        version = _version(properties["model"])
        model = self._folder / "azureml-models" / version.replace(":", "/")
        uri = emulator.state.models[version]["properties"]["modelUri"]
        match = DATASTORE_URI.fullmatch(uri)
        if match is not None:
            container, path = emulator.blobs.container_of(match["store"]), match["path"].strip("/")
        else:
            container, path = place_of(uri)
        fetch(emulator.blobs.container(container), path, model / path.rpartition("/")[2])
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        script = self._folder / "code" / properties["codeConfiguration"]["scoringScript"]
        if emulator.serves == "plainly":
            words = [sys.executable, str(Path(__file__).with_name("scoring.py")), str(self.port)]
        else:
            server = (
                "-m",
                "gunicorn",
                "-b",
                f"127.0.0.1:{self.port}",
                "azureml_inference_server_http.server.entry:app",
            )
            words = [str(inference_python()), *server]
        with (self._folder / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(
                words,
                env={
                    "PATH": f"{Path(words[0]).parent}:{os.environ['PATH']}",
                    "HOME": str(self._folder),
                    "AML_APP_ROOT": str(script.parent),
                    "AZUREML_ENTRY_SCRIPT": str(script),
                    "AZUREML_MODEL_DIR": str(model),
                    **(properties.get("environmentVariables") or {}),
                },
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + UP_WITHIN_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                return "User container has crashed or terminated. See the deployment's logs."
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.ask("GET", "/", b"", {})[0] == 200:
                    return ""
            time.sleep(0.1)
        return "The deployment's container was not ready in time. See the deployment's logs."

    def ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """One request to the server."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.connect()
            # Headers and body come apart: an answer to the first that is put off would cost 40 ms each time.
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def log(self, lines: int) -> str:
        """The end of what it printed."""
        path = self._folder / "log.txt"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def stop(self) -> None:
        """End it and its workers."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)


class Endpoints:
    """Answers from the emulator's state and from the running deployments."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator, self._state = emulator, emulator.state
        self._deployments: dict[tuple[str, str], Deployment] = {}
        self._keys: dict[str, tuple[str, str]] = {}
        self._operations: dict[str, dict[str, Any]] = {}

    def close(self) -> None:
        """Nothing is left running."""
        for deployment in self._deployments.values():
            deployment.stop()
        self._deployments.clear()

    # --- endpoints

    def get(self, request: Request) -> Answer:
        found = self._state.endpoints.get(request.match["endpoint"])
        return _missing(request) if found is None else (200, {}, found)

    def put(self, request: Request) -> Answer:
        name, body = request.match["endpoint"], request.json
        traffic = body["properties"].get("traffic") or {}
        unknown = [one for one in traffic if (name, one) not in self._deployments]
        if unknown:
            return error(400, "UserError", f"There is no deployment {unknown[0]} to give traffic to.")
        if sum(traffic.values()) not in (0, 100):
            return error(400, "UserError", f"Traffic adds up to {sum(traffic.values())}, not to 0 or 100.")
        is_new = name not in self._state.endpoints
        if is_new:
            self._keys[name] = (secrets.token_urlsafe(24), secrets.token_urlsafe(24))
        host = f"https://{name}.{body['location']}.inference.ml.azure.com"
        given = {"scoringUri": f"{host}/score", "swaggerUri": f"{host}/swagger.json", "provisioningState": "Succeeded"}
        made = {
            "id": request.path,
            "name": name,
            "type": f"{AML}/workspaces/onlineEndpoints",
            "kind": "Managed",
            "location": body["location"],
            "tags": body.get("tags") or {},
            "identity": {"type": "SystemAssigned", "principalId": str(uuid.uuid4()), "tenantId": str(uuid.uuid4())},
            "properties": {**body["properties"], "traffic": traffic, **given},
        }
        self._state.endpoints[name] = made
        return 201 if is_new else 200, self._begun(request, "Succeeded"), made

    def delete(self, request: Request) -> Answer:
        name = request.match["endpoint"]
        if self._state.endpoints.pop(name, None) is None:
            return 204, {}, None
        for key in [key for key in self._deployments if key[0] == name]:
            self._deployments.pop(key).stop()
        return 202, self._begun(request, "Succeeded"), None

    def keys(self, request: Request) -> Answer:
        name = request.match["endpoint"]
        if name not in self._state.endpoints:
            return _missing(request)
        first, second = self._keys[name]
        return 200, {}, {"primaryKey": first, "secondaryKey": second}

    # --- deployments

    def list_deployments(self, request: Request) -> Answer:
        name = request.match["endpoint"]
        if name not in self._state.endpoints:
            return _missing(request)
        return 200, {}, {"value": [one.wire for key, one in self._deployments.items() if key[0] == name]}

    def get_deployment(self, request: Request) -> Answer:
        found = self._deployments.get(_key(request))
        return _missing(request) if found is None else (200, {}, found.wire)

    def put_deployment(self, request: Request) -> Answer:
        """Start it in a thread; the SDK asks for the operation until it is healthy, or is not."""
        if request.match["endpoint"] not in self._state.endpoints:
            return _missing(request)
        key, body = _key(request), request.json
        for kind, there in (("model", self._state.models), ("environmentId", self._state.environments)):
            named = body["properties"].get(kind)
            if named is not None and _version(named) not in there:
                return error(400, "UserError", f"There is no {named}.")
        if body["properties"].get("environmentId") is not None:
            build_image(self._state, request.match["workspace"], _version(body["properties"]["environmentId"]))
        before = self._deployments.pop(key, None)
        if before is not None:
            before.stop()
        wire = {
            "id": request.path,
            "name": request.match["deployment"],
            "type": f"{AML}/workspaces/onlineEndpoints/deployments",
            "kind": "Managed",
            **body,
            "properties": {
                **body["properties"],
                # What was left out is filled in.
                "scaleSettings": body["properties"].get("scaleSettings") or {"scaleType": "Default"},
                "provisioningState": "Creating",
            },
        }
        folder = self._emulator.folder / "endpoints" / "-".join(key)
        deployment = self._deployments[key] = Deployment(wire, folder)
        headers = self._begun(request, "InProgress")
        operation = self._operations[headers["Azure-AsyncOperation"].partition("?")[0].rpartition("/")[2]]

        def run() -> None:
            try:
                why = deployment.start(self._emulator)
            except Exception as failure:  # the operation must end, whatever it was
                why = f"the emulator could not start it: {type(failure).__name__}: {failure}"
            wire["properties"]["provisioningState"] = "Failed" if why else "Succeeded"
            if why:
                operation["error"] = {"code": "ResourceNotReady", "message": why}
            operation["status"] = "Failed" if why else "Succeeded"

        threading.Thread(target=run, daemon=True).start()
        return 201 if before is None else 200, headers, wire

    def delete_deployment(self, request: Request) -> Answer:
        key = _key(request)
        traffic = self._state.endpoints.get(key[0], {}).get("properties", {}).get("traffic") or {}
        if traffic.get(key[1]):
            return error(400, "UserError", f"Deployment {key[1]} has {traffic[key[1]]} % of the traffic.")
        found = self._deployments.pop(key, None)
        if found is None:
            return 204, {}, None
        found.stop()
        traffic.pop(key[1], None)
        return 202, self._begun(request, "Succeeded"), None

    def logs(self, request: Request) -> Answer:
        found = self._deployments.get(_key(request))
        if found is None:
            return _missing(request)
        return 200, {}, {"content": found.log(int((request.json or {}).get("tail") or 1000))}

    # --- scoring

    def score(self, request: Request) -> Answer:
        """By key to a deployment: the one that is named, or by the traffic's shares."""
        name = request.match["endpoint"]
        endpoint = self._state.endpoints.get(name)
        if endpoint is None:
            return error(404, "NotFound", f"there is no endpoint {name}")
        if request.headers.get("authorization", "").removeprefix("Bearer ") not in self._keys[name]:
            return 401, {}, {"error": {"code": "key_auth_access_denied", "message": "Access denied: invalid key."}}
        shares = {color: share for color, share in (endpoint["properties"].get("traffic") or {}).items() if share}
        chosen = request.headers.get("azureml-model-deployment")
        if chosen is None and shares:
            chosen = random.choices(list(shares), list(shares.values()))[0]
        deployment = self._deployments.get((name, chosen or ""))
        if deployment is None or deployment.wire["properties"]["provisioningState"] != "Succeeded":
            return error(404, "NotFound", "Specified deployment could not be found.")
        headers = {key: value for key, value in request.headers.items() if key in ("content-type", "accept")}
        try:
            status, told, body = deployment.ask(request.method, request.path or "/", request.body, headers)
        except OSError:
            return error(503, "ServiceUnavailable", "no healthy upstream")
        given = {"azureml-model-deployment": str(chosen), "Content-Type": told.get("Content-Type", "application/json")}
        if status != 200:
            # What the model answers is 424 to clients, with its own status beside it.
            given |= {"ms-azureml-model-error-statuscode": str(status), "ms-azureml-model-error-reason": "model_error"}
            status = 424
        return status, given, body

    # --- what takes a moment

    def operation(self, request: Request) -> Answer:
        found = self._operations.get(request.match["operation"])
        return _missing(request) if found is None else (200, {}, found)

    def _begun(self, request: Request, status: str) -> dict[str, str]:
        """The headers of an answer whose outcome is asked for."""
        name = str(uuid.uuid4())
        self._operations[name] = {"id": name, "name": name, "status": status}
        base = f"https://management.azure.com/subscriptions/{request.match['subscription']}"
        url = f"{base}/providers/{AML}/locations/westeurope/mfeOperationsStatus/{name}?api-version={request.api}"
        return {"Azure-AsyncOperation": url, "Retry-After": "0"}


def _key(request: Request) -> tuple[str, str]:
    return request.match["endpoint"], request.match["deployment"]


def _version(path: str) -> str:
    """`name:version` of `.../models/name/versions/version`."""
    words = path.split("/")
    return f"{words[-3]}:{words[-1]}"


def _missing(request: Request) -> Answer:
    return error(404, "ResourceNotFound", f"{request.path.rpartition('/workspaces/')[2]} was not found")
