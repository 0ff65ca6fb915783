"""Azure on one machine, for the unmodified SDKs: `with Emulator(folder) as azure:`.

A proxy that is every host of Azure at once, and pieces that answer: the sign-in service, Azure Resource Manager and
whatever else stands in `PIECES`. A request that no piece knows is answered with 404 and kept in `unrouted`; tests fail
when there is one.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from . import sign_in, validation
from .authority import Authority
from .blobs import ACCOUNT, Blobs
from .faults import Faults
from .proxy import Proxy
from .resource_manager import cluster, workspace
from .routing import Answer, Request, Route, error
from .state import State

PIECES = ("sign_in", "endpoints", "resource_manager", "blobs", "assets", "jobs", "history", "tracking")
"""Modules here whose `routes(emulator)` are asked, in this order; one that is not there is left out."""
SUBSCRIPTION = "11111111-2222-3333-4444-555555555555"
GROUP, WORKSPACE, LOCATION = "plato-rg", "plato-ws", "westeurope"
BEARS_TOKENS = ("management.azure.com", ".api.azureml.ms")
"""Hosts that want a token of the sign-in service."""
WITHOUT_TOKEN = ("/discovery", "/mlflow/")
"""Asked by anybody, or with the token of a job."""


class Emulator:
    """Azure with one subscription, a resource group and a workspace.

    Attributes:
        environ: What a program needs in its environment to find this Azure and sign in.
        options: Of `backends:` in plato.yaml.
        state: What Azure remembers.
        requests: Each as (method, host, path, api-version, status).
        unrouted: Those that nobody knew, as `METHOD host/path`, and those at which a piece failed.
        invalid: What was wrong with bodies that were sent or answered.
        faults: What is to go wrong.
        actions: What who signs in may do.
        quota: CPUs, dedicated.
        sign: What the workspace hands out for its datastores: "key" of the account or "sas".
        blobs: The storage account.
        runs: The nodes of each job.
        refuses_rename: Whether the mounts of jobs take whole files only: neither rename nor append.
        tracks: Whether jobs are told of the workspace's MLflow.
        tracked: Of MLflow: the values of each metric that a job has logged, by name.
        serves: How scoring scripts are run: "as azure", by Microsoft's inference server, or "plainly", by this Python.
        nodes: What the nodes of jobs are: "processes" or "namespaces"; None: namespaces for several, where we may.
        closers: Called at the end, the last first.
    """

    def __init__(self, folder: Path, *, sign: Literal["key", "sas"] = "key") -> None:
        self.folder, self.sign = folder, sign
        self.state, self.sign_in = State(), sign_in.SignIn()
        self.runs: dict[str, Any] = {}
        self.faults = Faults(self.sign_in, self.runs)
        self.requests: list[tuple[str, str, str, str, int]] = []
        self.unrouted: list[str] = []
        self.invalid: list[str] = []
        self.actions: tuple[str, ...] = ("*",)
        self.quota = 100
        self.refuses_rename = self.tracks = False
        self.serves: Literal["as azure", "plainly"] = "as azure"
        self.nodes: Literal["processes", "namespaces"] | None = None
        self.authority = Authority(folder / "tls")
        self.group_path = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}"
        self.blobs = Blobs(folder / "blobs")
        self.closers: list[Callable[[], None]] = []
        self.routes: list[Route] = []
        for name in PIECES:
            if importlib.util.find_spec(f"{__package__}.{name}") is None:
                continue
            self.routes += importlib.import_module(f"{__package__}.{name}").routes(self)
        self._proxy = Proxy(self.authority, self.answer)
        self.options: dict[str, Any] = {
            "type": "azure_ml",
            "subscription": SUBSCRIPTION,
            "resource_group": GROUP,
            "workspace": WORKSPACE,
            "location": LOCATION,
            "compute": "rl-cpu",
            "max_nodes": 4,
        }
        self._fill()

    def __enter__(self) -> Emulator:
        self._proxy.__enter__()
        return self

    def __exit__(self, *about: Any) -> None:
        for run in self.runs.values():
            run.close()
        for close in reversed(self.closers):
            close()
        self.blobs.close()
        self._proxy.__exit__(*about)

    @property
    def environ(self) -> dict[str, str]:
        """For `os.environ`."""
        return {
            "HTTPS_PROXY": self._proxy.url,
            "HTTP_PROXY": self._proxy.url,
            "NO_PROXY": "127.0.0.1,localhost",
            "REQUESTS_CA_BUNDLE": str(self.authority.path),
            "SSL_CERT_FILE": str(self.authority.path),
            "AZURE_TENANT_ID": sign_in.TENANT,
            "AZURE_CLIENT_ID": sign_in.CLIENT,
            "AZURE_CLIENT_SECRET": sign_in.SECRET,
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def answer(self, request: Request) -> Answer:
        """The answer to one request."""
        made = self._answer(request)
        self.requests.append((request.method, request.host, request.path, request.api, made[0]))
        return made

    def _answer(self, request: Request) -> Answer:
        fault = self.faults.meet(request)
        if fault is not None:
            return fault
        if request.host.endswith(BEARS_TOKENS) and not request.path.startswith(WITHOUT_TOKEN):
            refused = self.sign_in.refuses(request)
            if refused is not None:
                return refused
        for route in self.routes:
            match = route.fits(request)
            if match is not None:
                request.match = match
                self.invalid += validation.of_request(request)
                try:
                    return self._checked(request, route.handler(request))
                except Exception as failure:  # the emulator's own: a test has to see it
                    self.unrouted.append(f"{request.method} {request.host}{request.path}: {failure!r}")
                    return error(500, "EmulatorFailed", repr(failure))
        self.unrouted.append(f"{request.method} {request.host}{request.path}")
        return error(404, "NotRouted", f"the emulator has no {request.method} {request.host}{request.path}")

    def _checked(self, request: Request, answer: Answer) -> Answer:
        """An answer as it goes out, held to its model."""
        status, headers, body = answer
        if body is None or isinstance(body, bytes):
            return answer
        data = json.dumps(body).encode()  # once: jobs go on, and change, meanwhile
        self.invalid += validation.of_answer(request, status, json.loads(data))
        return status, headers, data

    def _fill(self) -> None:
        """A workspace and its cluster, which are there already."""
        group = self.group_path
        about: dict[str, Any] = {"location": LOCATION, "tags": {}}
        self.state.resource_groups[GROUP] = {"id": group, "name": GROUP, **about}
        storage = f"{group}/providers/Microsoft.Storage/storageAccounts/{ACCOUNT}"
        self.state.resources[storage] = {
            "id": storage,
            "name": ACCOUNT,
            "type": "Microsoft.Storage/storageAccounts",
            **about,
        }
        self.state.workspaces[WORKSPACE] = workspace(group, WORKSPACE, about, {"storageAccountName": storage})
        self.state.computes["rl-cpu"] = cluster(f"{group}/x/computes/rl-cpu", "rl-cpu", LOCATION, max_nodes=4)
