"""A folder on a node that is a path on a datastore: what is written in one place appears in the other within moments.

Blobs have no rename and no append; whole files are uploaded in the order in which they were last written, so that what
a job writes last is never there first. What had not been uploaded when a node vanished is lost, as it is on Azure.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Stamp = tuple[int, int]
"""Size and time of change of a file."""

REFUSING = '''\
"""On a node whose mounts take whole files only: rename and append are refused there, as by an object store."""
import errno
import os
import sys

ROOTS = tuple(os.environ["EMULATOR_MOUNTS"].split(os.pathsep))


def refuse(event, args):
    if event == "os.rename":
        paths = args[:2]
    elif event == "open" and isinstance(args[2], int) and args[2] & os.O_APPEND:
        paths = args[:1]
    else:
        return
    for path in paths:
        if isinstance(path, (str, os.PathLike)) and os.path.abspath(path).startswith(ROOTS):
            raise OSError(errno.ENOTSUP, event + " is not supported here", os.fspath(path))


sys.addaudithook(refuse)
'''
"""The sitecustomize of such nodes: every Python on them runs it."""


@dataclass
class _Known:
    etag: str
    stamp: Stamp


class Mount:
    """One path of a container as a folder here.

    Args:
        container: Of the datastore.
        path: On the container.
        folder: Here; made and filled with what is there, if it is watched.
        is_watched: Whether what others write there shows up, too; else files only go up.
    """

    def __init__(self, container: Any, path: str, folder: Path, *, is_watched: bool = True) -> None:
        self._container, self._prefix, self.folder = container, f"{path.strip('/')}/", folder
        self._is_watched = is_watched
        self._known: dict[str, _Known] = {}
        if is_watched:
            folder.mkdir(parents=True, exist_ok=True)
            self.sync()

    def sync(self) -> None:
        """Once in both directions; where both sides changed a file, the node's stays."""
        here = self._listed()
        self._up(here)
        if self._is_watched:
            self._down(here)

    def _up(self, here: dict[str, Stamp]) -> None:
        changed = [name for name, stamp in here.items() if name not in self._known or self._known[name].stamp != stamp]
        for name in sorted(changed, key=lambda name: here[name][1]):
            with contextlib.suppress(FileNotFoundError):
                data = (self.folder / name).read_bytes()
                sent = self._container.get_blob_client(self._prefix + name).upload_blob(data, overwrite=True)
                self._known[name] = _Known(sent["etag"].strip('"'), here[name])
        for name in [name for name in self._known if name not in here]:
            del self._known[name]
            blob = self._container.get_blob_client(self._prefix + name)
            if blob.exists():
                blob.delete_blob()

    def _down(self, here: dict[str, Stamp]) -> None:
        from azure.core.exceptions import ResourceNotFoundError

        there = {
            blob.name.removeprefix(self._prefix): blob.etag.strip('"')
            for blob in self._container.list_blobs(name_starts_with=self._prefix)
        }
        for name, etag in there.items():
            path = self.folder / name
            if name in self._known and self._known[name].etag == etag:
                continue
            if name not in self._known and path.exists():
                continue  # written here since the listing
            try:
                data = self._container.download_blob(self._prefix + name).readall()
            except ResourceNotFoundError:
                continue  # deleted there since the listing
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            self._known[name] = _Known(etag, _stamp(path))
        for name in [name for name in self._known if name not in there]:
            if here.get(name) == self._known[name].stamp:
                (self.folder / name).unlink(missing_ok=True)
                del self._known[name]

    def _listed(self) -> dict[str, Stamp]:
        """Every file here. All are seen before the first is read: what was written before the last one is whole."""
        found = {}
        for path in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    found[path.relative_to(self.folder).as_posix()] = _stamp(path)
        return found


def fetch(container: Any, path: str, folder: Path) -> None:
    """Everything under a path of a container, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = f"{path.strip('/')}/" if path else ""
    for blob in container.list_blobs(name_starts_with=prefix or None):
        target = folder / blob.name.removeprefix(prefix)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(container.download_blob(blob.name).readall())


def place_of(uri: str) -> tuple[str, str]:
    """Container and path of a blob's address."""
    container, _, path = uri.split("://", 1)[-1].partition("/")[2].partition("/")
    return container, path


def _stamp(path: Path) -> Stamp:
    about = path.stat()
    return about.st_size, about.st_mtime_ns
