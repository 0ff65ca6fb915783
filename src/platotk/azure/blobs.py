"""The files behind a datastore of a workspace: where runs go through, and where Azure keeps what jobs print.

`BlobFiles` has the few methods that `compute.storage.Storage` asks of a file system, on a container of blobs. The way
in is what the workspace hands out, an account key or a signed address, else the user's own sign-in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import AzureError, missing_extra
from .client import Azure, AzureUnreachableError, NotThereError, as_azure_error, asking

Value = TypeVar("Value")
API = "2024-10-01-preview"
"""The newest version of datastores that azure-ai-ml uses."""
PAUSES_S = (1.0, 2.0, 4.0)
"""Before storage that asks for fewer requests is asked again."""
LASTS_S = 1800.0
"""Signed addresses are asked for an hour and used for half of it."""


class BlobFiles:
    """The container of a datastore, with the methods of an fsspec file system that `Storage` uses.

    Args:
        azure: Where the workspace is.
        datastore: `workspaceblobstore`, `workspaceartifactstore` or the user's own.

    Raises:
        AzureError: There is no such datastore, or it does not hold blobs.
    """

    def __init__(self, azure: Azure, datastore: str) -> None:
        self._azure, self._name = azure, datastore
        self._opened: Any = None
        self._opened_at = 0.0

    def find(self, root: str, detail: bool = True) -> dict[str, dict[str, Any]]:
        """Every blob under a path, with its size."""
        start = root.strip("/") + "/"

        def listed() -> dict[str, dict[str, Any]]:
            found = self._container().list_blobs(name_starts_with=start, include=["metadata"])
            # An account with a hierarchical namespace lists its folders too.
            return {one.name: {"size": one.size} for one in found if not _is_folder(one)}

        return self._ask(listed)

    def cat_file(self, path: str, start: int = 0) -> bytes:
        """The bytes of a blob, from a place on.

        Raises:
            FileNotFoundError: There is none.
        """
        return self._ask(lambda: bytes(self._container().download_blob(path.strip("/"), offset=start).readall()))

    def size(self, path: str) -> int:
        """Of a blob, in bytes.

        Raises:
            FileNotFoundError: There is none.
        """
        return self._ask(lambda: int(self._container().get_blob_client(path.strip("/")).get_blob_properties().size))

    def pipe_file(self, path: str, data: bytes) -> None:
        """Write a whole blob."""
        self._ask(lambda: self._container().upload_blob(path.strip("/"), data, overwrite=True))

    def rm_file(self, path: str) -> None:
        """Delete a blob.

        Raises:
            FileNotFoundError: There is none.
        """
        self._ask(lambda: self._container().delete_blob(path.strip("/")))

    def exists(self, path: str) -> bool:
        """Whether there is such a blob."""
        try:
            self.size(path)
        except FileNotFoundError:
            return False
        return True

    def makedirs(self, path: str, exist_ok: bool = True) -> None:
        """Blobs have no folders."""

    def invalidate_cache(self) -> None:
        """Nothing is kept."""

    def _ask(self, call: Callable[[], Value]) -> Value:
        """Once more with a new way in when the old one is refused; what is not there is a FileNotFoundError."""
        is_new = False
        for pause_s in (*PAUSES_S, None):
            try:
                return call()
            except (AzureError, FileNotFoundError):
                raise
            except Exception as error:
                told = as_azure_error(error, f"datastore {self._name}")
                if isinstance(told, NotThereError) and getattr(error, "error_code", "") != "ContainerNotFound":
                    raise FileNotFoundError(told.message) from None
                status = getattr(error, "status_code", None)
                if status in (401, 403) and not is_new:
                    is_new, self._opened = True, None
                elif status == 429 and pause_s is not None:
                    time.sleep(pause_s)  # 5xx are waited out by the SDK, this is not
                else:
                    raise told from error
        raise AzureUnreachableError(f"datastore {self._name} does not answer.")

    def _container(self) -> Any:
        if self._opened is None or time.monotonic() - self._opened_at > LASTS_S:
            self._opened, self._opened_at = self._open(), time.monotonic()
        return self._opened

    def _open(self) -> Any:
        try:
            from azure.storage.blob import ContainerClient, ExponentialRetry
        except ImportError:
            raise missing_extra("azure-storage-blob", "azure") from None
        what = f"datastore {self._name}"
        path = f"{self._azure.workspace_path}/datastores/{self._name}"
        about = (self._azure.arm("GET", path, API, what=what) or {}).get("properties", {})
        account, container = about.get("accountName"), about.get("containerName") or about.get("filesystem")
        if not account or not container:
            raise AzureError(
                f"{what} holds no blobs: it is {about.get('datastoreType', 'of an unknown kind')}.",
                hint="datastore: workspaceblobstore is there in every workspace.",
            )
        url = f"{about.get('protocol') or 'https'}://{account}.blob.{about.get('endpoint') or 'core.windows.net'}"
        with asking(what):
            retry = ExponentialRetry(initial_backoff=1, increment_base=2, retry_total=4)
            return ContainerClient(url, container, credential=self._credential(path, about), retry_policy=retry)

    def _credential(self, path: str, about: dict[str, Any]) -> Any:
        """An account key, a signature, or, where a workspace keeps none, the user's own sign-in."""
        kind = str((about.get("credentials") or {}).get("credentialsType") or "None")
        if kind.lower() == "none":
            return self._azure.credential
        body = {"expirableSecret": True, "expireAfterHours": 1}
        what = f"the key of datastore {self._name}"
        secret = self._azure.arm("POST", f"{path}/listSecrets", API, body, what=what) or {}
        key, signature = secret.get("key"), secret.get("sasToken")
        # Some answers hold a signature where the key belongs.
        if key and "sig=" in key:
            key, signature = None, key
        if signature:
            return str(signature).lstrip("?")
        return key or self._azure.credential


def _is_folder(blob: Any) -> bool:
    return str((getattr(blob, "metadata", None) or {}).get("hdi_isfolder", "")).lower() == "true"
