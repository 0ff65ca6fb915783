"""A run is a folder: everything about one training, in plain files with fixed names.

`create_run` makes one, `runs` lists them, `find_run` finds one by name, prefix or path, and `Run` reads and updates it.
Light: loads neither ray nor torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .errors import PlatoError, RunNotFoundError
from .journal import read
from .project import Project

PACKAGES = ("platotk", "ray", "torch", "gymnasium", "numpy")


class Run:
    """One run's folder.

    Attributes:
        path: The folder, absolute.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def info(self) -> dict[str, Any]:
        """What run.json says now.

        Raises:
            PlatoError: There is no run.json, or it is not JSON.
        """
        try:
            info = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PlatoError(f"{self.path / 'run.json'} cannot be read: {error}") from None
        if not isinstance(info, dict):
            raise PlatoError(f"{self.path / 'run.json'} is not a JSON object.")
        return info

    @property
    def status(self) -> str:
        """created, running, stopped, finished, failed; or interrupted, when its process is gone without a word."""
        info = self.info
        status = str(info.get("status", "created"))
        if status == "running" and info.get("host") == socket.gethostname() and not _is_alive(info.get("pid")):
            return "interrupted"
        return status

    @property
    def project(self) -> Project:
        """The resolved project of this run, with its modules where they were."""
        root = Path(self.info.get("root") or self.path)
        return Project.load(self.path / "plato.yaml", root=root if root.is_dir() else self.path)

    @property
    def metrics_path(self) -> Path:
        """metrics.jsonl."""
        return self.path / "metrics.jsonl"

    @property
    def log_path(self) -> Path:
        """log.txt."""
        return self.path / "log.txt"

    def metrics(self) -> list[dict[str, Any]]:
        """The journal's lines, oldest first."""
        return read(self.metrics_path)

    def checkpoints(self) -> list[Path]:
        """Checkpoint folders with a manifest, oldest first."""
        folders = (self.path / "checkpoints").glob("[0-9]*")
        return sorted(folder for folder in folders if (folder / "MANIFEST.json").is_file())

    @property
    def latest(self) -> Path | None:
        """The newest checkpoint."""
        return next(reversed(self.checkpoints()), None)

    @property
    def best(self) -> Path | None:
        """The best checkpoint, as best.json says."""
        try:
            name = json.loads((self.path / "best.json").read_text(encoding="utf-8"))["checkpoint"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        path = self.path / "checkpoints" / Path(str(name)).name
        return path if path.is_dir() else None

    def update(self, **fields: Any) -> None:
        """Change fields of run.json; the file is there whole at every moment."""
        path = self.path / "run.json"
        info = {**self.info, **fields} if path.is_file() else fields
        draft = path.with_name(f".run.json.{os.getpid()}")
        with draft.open("w", encoding="utf-8") as stream:
            json.dump(info, stream, indent=1, default=str)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, path)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run: one process writes it at a time.

        Raises:
            PlatoError: Another process holds it.
        """
        with (self.path / ".lock").open("a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                stream.seek(0)
                raise PlatoError(
                    f"run {self.name} is being written by process {stream.read().strip() or '?'}.",
                    hint="Wait for it, or stop it first.",
                ) from None
            stream.truncate(0)
            stream.write(str(os.getpid()))
            stream.flush()
            yield

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"


def create_run(
    project: Project,
    *,
    runs_dir: Path | str | None = None,
    run: Path | str | None = None,
    command: Sequence[str] | None = None,
) -> Run:
    """Make a run's folder.

    Args:
        project: What will be trained; its resolved form is kept.
        runs_dir: Where runs lie; default: `runs/` beside plato.yaml.
        run: Exactly this folder instead; it is continued when it is a run already.
        command: The command line, for the record; default: this process's.
    """
    if run is not None:
        made = Run(run)
        if (made.path / "run.json").is_file():
            return made
        made.path.mkdir(parents=True, exist_ok=True)
    else:
        made = Run(_new_folder(Path(runs_dir) if runs_dir is not None else project.root / "runs", project))
    (made.path / "checkpoints").mkdir(exist_ok=True)
    (made.path / "plato.yaml").write_text(project.to_yaml(), encoding="utf-8")
    made.update(
        name=made.name,
        status="created",
        backend="here",
        jobs=[],
        root=str(project.root),
        command=list(command if command is not None else sys.argv),
        git=_git(project.root),
        versions=_versions(),
        created=_now(),
        started=None,
        ended=None,
        seed=project.seed,
        parent=None,
        attempt=0,
        pid=os.getpid(),
        host=socket.gethostname(),
    )
    return made


def runs(runs_dir: Path | str | None = None, *, project: Project | None = None) -> list[Run]:
    """The runs of a folder, newest first; folders without a run.json are passed over."""
    where = Path(runs_dir) if runs_dir is not None else (project.root if project else Path()) / "runs"
    found = [Run(path.parent) for path in where.glob("*/run.json")]
    return sorted(found, key=lambda run: (_created(run), run.name), reverse=True)


def find_run(ref: str | None = None, *, runs_dir: Path | str) -> Run:
    """The run that is meant.

    Args:
        ref: A name, a unique beginning of one, or a path; None for the newest.
        runs_dir: Where runs lie.

    Raises:
        RunNotFoundError: None is, or several are; the hint lists what is there.
    """
    there = runs(runs_dir)
    names = ", ".join(run.name for run in there[:8]) or "none"
    if ref is None:
        if not there:
            raise RunNotFoundError(f"there are no runs in {runs_dir}.", hint="Make one with: plato train")
        return there[0]
    if (Path(ref) / "run.json").is_file():
        return Run(ref)
    matching = [run for run in there if run.name == ref] or [run for run in there if run.name.startswith(ref)]
    if len(matching) == 1:
        return matching[0]
    what = "no run is" if not matching else f"{len(matching)} runs are"
    raise RunNotFoundError(f"{what} called {ref!r} in {runs_dir}.", hint=f"There are: {names}")


def _new_folder(where: Path, project: Project) -> Path:
    algorithm = project.algorithm if isinstance(project.algorithm, str) else None
    word = re.sub(r"[^a-z0-9]+", "-", (algorithm or "ppo" if project.algorithm is None else algorithm or "own").lower())
    stem = f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{project.name}-{word}"
    where.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = where / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1


def _created(run: Run) -> str:
    try:
        return str(run.info.get("created", ""))
    except PlatoError:
        return ""


def _git(root: Path) -> dict[str, Any] | None:
    """Commit, branch and whether anything is uncommitted; None outside a checkout."""

    def ask(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip()

    try:
        return {
            "commit": ask("rev-parse", "HEAD"),
            "branch": ask("rev-parse", "--abbrev-ref", "HEAD"),
            "dirty": bool(ask("status", "--porcelain")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _is_alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (TypeError, ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")
