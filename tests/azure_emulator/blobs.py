"""The blob store: Azurite from npm, behind the host name of the workspace's storage account.

Signatures and keys are checked by Azurite itself; requests are handed on as they came, and its answers likewise.
"""

from __future__ import annotations

import base64
import datetime
import http.client
import os
import secrets
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .azurite import azurite
from .routing import Answer, Request, Route

if TYPE_CHECKING:
    from .emulator import Emulator

ACCOUNT = "platostore"
HOST = f"{ACCOUNT}.blob.core.windows.net"
CONTAINERS = {"workspaceblobstore": "azureml-blobstore-plato", "workspaceartifactstore": "azureml"}
"""Datastores of every workspace, and where they keep things."""
UP_WITHIN_S = 30.0
HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length")


class Blobs:
    """One storage account; starts when it is first used.

    Attributes:
        key: Of the account.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.key = base64.b64encode(secrets.token_bytes(64)).decode()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def service(self) -> Any:
        """A client of the account, past the proxy: what Azure itself would use."""
        self.start()
        return self._client()

    def container(self, name: str) -> Any:
        """A container, made when it is not there."""
        client = self.service.get_container_client(name)
        if not client.exists():
            client.create_container()
        return client

    def container_of(self, datastore: str) -> str:
        """Where a datastore keeps things."""
        return CONTAINERS[datastore]

    def signed(self, container: str, path: str, rights: str = "r") -> str:
        """The address of a blob, signed for an hour."""
        from azure.storage.blob import generate_blob_sas

        until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
        made = generate_blob_sas(ACCOUNT, container, path, account_key=self.key, permission=rights, expiry=until)
        return f"https://{HOST}/{container}/{path}?{made}"

    def signature(self, container: str) -> str:
        """A signature that allows everything in a container for an hour."""
        from azure.storage.blob import ContainerSasPermissions, generate_container_sas

        allowed = ContainerSasPermissions(read=True, write=True, delete=True, list=True, add=True, create=True)
        until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
        return str(generate_container_sas(ACCOUNT, container, account_key=self.key, permission=allowed, expiry=until))

    def relay(self, request: Request) -> Answer:
        """Hand a request on to Azurite."""
        self.start()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        headers = {key: value for key, value in request.headers.items() if key not in HOP_BY_HOP}
        headers.update(host=request.host, **{"content-length": str(len(request.body))})
        connection.request(request.method, request.target, request.body, headers)
        answer = connection.getresponse()
        data = answer.read()
        given = {key: value for key, value in answer.getheaders() if key.lower() not in HOP_BY_HOP}
        if request.method == "HEAD" and answer.getheader("Content-Length"):
            given["Content-Length"] = str(answer.getheader("Content-Length"))
        connection.close()
        return answer.status, given, data

    def close(self) -> None:
        """End Azurite."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def start(self) -> None:
        """Start Azurite, unless it runs."""
        with self._lock:
            if self._process is None:
                self._process = self._started()
                self._wait()

    def _started(self) -> subprocess.Popen[bytes]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._folder.mkdir(parents=True, exist_ok=True)
        words = ["--blobHost", "127.0.0.1", "--blobPort", str(self._port), "--skipApiVersionCheck"]
        words += ["--disableTelemetry", "--silent", "--inMemoryPersistence"]
        return subprocess.Popen(
            [*azurite(), *words],
            cwd=self._folder,
            env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{self.key}"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _wait(self) -> None:
        """Until it answers, and has the containers of the datastores."""
        deadline = time.monotonic() + UP_WITHIN_S
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    break
            time.sleep(0.05)
        client = self._client()
        for name in CONTAINERS.values():
            client.create_container(name)

    def _client(self) -> Any:
        from azure.storage.blob import BlobServiceClient

        return BlobServiceClient(f"http://127.0.0.1:{self._port}/{ACCOUNT}", credential=self.key)


def routes(emulator: Emulator) -> list[Route]:
    """Of the storage account."""
    host = HOST.replace(".", r"\.")
    return [Route(method, rf"{host}/.*", emulator.blobs.relay) for method in ("GET", "HEAD", "PUT", "POST", "DELETE")]
