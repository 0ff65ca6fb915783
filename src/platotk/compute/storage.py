"""A run's folder in storage that several machines see: a shared path, or any fsspec URL.

Storage may promise neither rename nor append, so every file is written whole: checkpoints once, their manifest last;
small files that change twice, so that a writer that was killed leaves one of the two whole.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import BackendError, missing_extra
from ..run import Run
from ..trials import FOLDER, trials
from .base import UnreachableError

MANIFEST = "MANIFEST.json"
SPARE = ".spare"
"""Folder of the second copies."""
NOT_SENT = ("jobs", ".lock", ".spare")
KEPT_HERE = ("root", "backend", "jobs", "command", "git", "created")
"""What run.json says here, whatever the job says."""
ONCE = ("checkpoints", "trajectories", "assessments", "agent")
"""Folders whose files never change once they are whole."""


class Storage:
    """One run's folder there.

    Args:
        url: Of the folder: `/mnt/shared/runs/night`, `s3://bucket/runs/night`, `abfss://...`.
        options: Of the fsspec file system; no secrets.
        files: The file system itself, with `url` as the path on it.

    Raises:
        BackendError: No such kind of storage, or its package is not installed.
    """

    def __init__(self, url: str, options: dict[str, Any] | None = None, *, files: Any = None) -> None:
        self.url = url
        if files is not None:
            self._files, self._root = files, url
            return
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise missing_extra("fsspec", "ray") from None
        try:
            self._files, self._root = url_to_fs(url, **(options or {}))
        except (ImportError, ValueError) as error:
            raise BackendError(f"storage {url!r} cannot be used: {error}") from None

    def put(self, folder: Path, sent: dict[str, tuple[int, int]]) -> None:
        """Copy what has changed in a run's folder to the storage.

        Args:
            folder: The run's folder here.
            sent: What was sent already, by name: (size, time of change); kept up to date.
        """
        for path in _in_order(folder):
            name = path.relative_to(folder).as_posix()
            try:
                about = path.stat()
                if sent.get(name) == (about.st_size, about.st_mtime_ns):
                    continue
                data = path.read_bytes()
            except FileNotFoundError:
                continue  # a checkpoint that was just deleted
            try:
                if not _of_a_run(name).startswith(ONCE):
                    self._write(f"{SPARE}/{name}", data)
                self._write(name, data)
            except OSError as error:
                raise UnreachableError(f"{self.url}/{name} cannot be written: {error}") from None
            sent[name] = (about.st_size, about.st_mtime_ns)
        self._forget(folder, sent)

    def get(self, folder: Path) -> list[str]:
        """Copy what is there into a folder here; checkpoints whose manifest is not there yet are left out.

        Returns:
            The names of what came.
        """
        try:
            found = self._names()
        except OSError as error:
            raise UnreachableError(f"{self.url} cannot be read: {error}") from None
        whole = {str(PurePosixPath(name).parent) for name in found if name.endswith(f"/{MANIFEST}")}
        came = []
        for name, size in sorted(found.items(), key=lambda item: item[0].endswith(MANIFEST)):
            parts = PurePosixPath(name).parts
            if parts[0] == SPARE or ".." in parts:
                continue
            within = PurePosixPath(_of_a_run(name)).parts
            if within[0] == "checkpoints" and len(within) > 2 and "/".join(parts[: 2 - len(within)]) not in whole:
                continue
            target = folder / name
            is_once = _of_a_run(name).startswith(ONCE)
            if is_once and target.is_file() and target.stat().st_size == size:
                continue
            try:
                data = bytes(self._files.cat_file(f"{self._root}/{name}"))
                if not is_once:
                    data = _the_whole_one(name, data, self._spare(name))
            except OSError as error:
                raise UnreachableError(f"{self.url}/{name} cannot be read: {error}") from None
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = target.with_name(f".{target.name}.fetched")
            draft.write_bytes(data)
            draft.replace(target)
            came.append(name)
        return came

    def get_run(self, run: Run) -> None:
        """Bring a run here; what only this machine knows of it stays.

        Raises:
            BackendError: It is not there, or cannot be read.
        """
        kept = {key: value for key, value in run.info.items() if key in KEPT_HERE}
        if "run.json" not in self.get(run.path):
            raise BackendError(f"{self.url} holds no run.", hint="If it is a shared path: is it mounted here?")
        run.update(**kept)
        for trial in trials(run):
            trial.update(root=run.info.get("root"))

    def leave(self, name: str, content: dict[str, Any]) -> None:
        """Leave a note beside the run for the other side; it is no file of the run.

        Raises:
            UnreachableError: It cannot be written.
        """
        try:
            self._write(f"{SPARE}/notes/{name}", json.dumps(content).encode())
        except OSError as error:
            raise UnreachableError(f"{self.url} cannot be written: {error}") from None

    def note(self, name: str) -> dict[str, Any] | None:
        """The note that the other side left; None when there is none.

        Raises:
            UnreachableError: The storage does not say.
        """
        try:
            content = json.loads(self._files.cat_file(f"{self._root}/{SPARE}/notes/{name}"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        except OSError as error:
            raise UnreachableError(f"{self.url} cannot be read: {error}") from None
        return content if isinstance(content, dict) else None

    def _write(self, name: str, data: bytes) -> None:
        path = f"{self._root}/{name}"
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._files.pipe_file(path, data)

    def _spare(self, name: str) -> bytes:
        try:
            return bytes(self._files.cat_file(f"{self._root}/{SPARE}/{name}"))
        except FileNotFoundError:
            return b""

    def _names(self) -> dict[str, int]:
        """Every file there, by its name in the folder, with its size."""
        self._files.invalidate_cache()
        listed = self._files.find(self._root, detail=True)
        start = len(str(self._root).rstrip("/")) + 1
        return {path[start:]: int(about.get("size") or 0) for path, about in listed.items()}

    def _forget(self, folder: Path, sent: dict[str, tuple[int, int]]) -> None:
        """A checkpoint that was deleted here goes there too: its manifest first."""
        gone = [name for name in sent if _of_a_run(name).startswith("checkpoints/") and not (folder / name).exists()]
        for name in sorted(gone, key=lambda name: not name.endswith(MANIFEST)):
            try:
                self._files.rm_file(f"{self._root}/{name}")
            except FileNotFoundError:
                pass
            except OSError as error:
                raise UnreachableError(f"{self.url}/{name} cannot be deleted: {error}") from None
            del sent[name]


def _in_order(folder: Path) -> Iterator[Path]:
    """The files of a run, manifests after what they speak of, what changes last."""
    files = []
    # Not rglob: it stumbles over a folder that is renamed meanwhile, as a checkpoint is once it is whole.
    for place, folders, names in os.walk(folder):
        if Path(place) == folder:
            folders[:] = [name for name in folders if name not in NOT_SENT]
            names = [name for name in names if name not in NOT_SENT]
        folders[:] = [name for name in folders if _is_sent(name)]
        files += [path for name in names if _is_sent(name) and (path := Path(place, name)).is_file()]

    def turn(path: Path) -> tuple[bool, bool, str]:
        within = _of_a_run(path.relative_to(folder).as_posix())
        return not within.startswith("checkpoints/"), path.name == MANIFEST, path.name

    yield from sorted(files, key=turn)


def _of_a_run(name: str) -> str:
    """What a file is called in its run, which may be a trial of a tuning: `trials/0001/run.json` is `run.json`."""
    return re.sub(rf"^{FOLDER}/\d+/", "", name)


def _is_sent(name: str) -> bool:
    return not name.startswith(".") and not name.endswith(".tmp")


def _the_whole_one(name: str, first: bytes, second: bytes) -> bytes:
    """Of two copies, of which a killed writer may have torn one, the one that says more."""
    if name.endswith(".json"):
        return first if _is_json(first) or not _is_json(second) else second
    return max(first, second, key=len)


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True
