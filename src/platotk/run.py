"""A run is a folder: everything about one training, in plain files with fixed names.

`create_run` makes one, `runs` lists them, `find_run` finds one by name, prefix or path, and `Run` reads and
updates it. Light: loads neither ray nor torch.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import journal
from .errors import PlatoError, ProjectError, RunNotFoundError
from .formats import finite
from .process_lock import hold, is_gone, this_process

if TYPE_CHECKING:
    from .project import Project

PACKAGES = ("platotk", "ray", "torch", "gymnasium", "numpy")
BROKEN = "broken"
"""The status of a folder that looks like a run but whose run.json cannot be read."""
TRACES = ("metrics.jsonl", "checkpoints")
"""A folder with one of these looks like a run."""
LEFTOVERS = re.compile(r"log\.txt|\..*")
"""What may lie in a folder before it becomes a run."""
NOT_SOURCE = (":(exclude)runs", ":(exclude)mlruns")
"""What training itself writes beside plato.yaml does not make a checkout dirty."""
_UPDATING = threading.Lock()


class Run:
    """One run's folder.

    Attributes:
        path: The folder, absolute.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self._project: Project | None = None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def info(self) -> dict[str, Any]:
        """What run.json says now.

        Raises:
            PlatoError: There is no run.json, or it is not a JSON object.
        """
        path = self.path / "run.json"
        try:
            info = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise PlatoError(f"{path} cannot be read: {why}") from None
        if not isinstance(info, dict):
            raise PlatoError(f"{path} is not a JSON object.")
        return info

    @property
    def problem(self) -> str | None:
        """Why this folder is not a readable run; None when it is one."""
        try:
            _ = self.info
        except PlatoError as error:
            return error.message
        return None

    @property
    def status(self) -> str:
        """created, running, stopped, finished, failed; interrupted (its process is gone); broken."""
        try:
            info = self.info
        except PlatoError:
            return BROKEN
        status = str(info.get("status", "created"))
        return "interrupted" if status == "running" and is_gone(info.get("process")) else status

    @property
    def duration_s(self) -> float | None:
        """Wall-clock seconds of the last attempt, to its end or, while it runs, to now; None when unknown."""
        info = self.info
        started, ended = info.get("started"), info.get("ended")
        if started is None or (ended is None and self.status != "running"):
            return None
        until = datetime.now(timezone.utc) if ended is None else _moment(ended)
        return max(0.0, (until - _moment(started)).total_seconds())

    @property
    def project(self) -> Project:
        """The resolved project of this run, with its modules where they were; can be set.

        A run that was just trained keeps the project it was given, whose sim may be an object that no file can hold.
        """
        if self._project is not None:
            return self._project
        root = Path(self.info.get("root") or self.path)
        from .project import Project  # here: whoever only looks for runs and agents opens no project

        return Project.load(self.path / "plato.yaml", root=root if root.is_dir() else self.path)

    @project.setter
    def project(self, project: Project) -> None:
        self._project = project

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
        return journal.read(self.metrics_path)

    def evaluations(self) -> list[dict[str, Any]]:
        """Evaluations of this run's checkpoints, by iteration; a resume drops those it went back behind."""
        attempts = {line["iteration"]: line.get("attempt") for line in self.metrics()}
        found = {
            line["iteration"]: line
            for line in journal.read(self.path / "evaluations.jsonl")
            if line.get("attempt") == attempts.get(line["iteration"], "gone")
        }
        return [found[iteration] for iteration in sorted(found)]

    def add_evaluation(self, iteration: int, *, env_steps: int, return_mean: float, episodes: int) -> None:
        """Keep what a checkpoint achieved in evaluation episodes, in evaluations.jsonl.

        Args:
            iteration: Of the checkpoint.
            env_steps: Env steps of the run up to it.
            return_mean: Mean return over the episodes.
            episodes: How many were played.
        """
        line = {
            "iteration": iteration,
            "env_steps": env_steps,
            "return_mean": return_mean,
            "episodes": episodes,
            "attempt": self.info.get("attempt"),
        }
        journal.add_line(self.path / "evaluations.jsonl", line)

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
        """Change fields of run.json, which is there whole at every moment; threads may call it."""
        path = self.path / "run.json"
        with _UPDATING:
            info = {**self.info, **fields} if path.is_file() else fields
            _write(path, json.dumps(finite(info), indent=1, allow_nan=False) + "\n")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run, so that one process writes it at a time; run.json says which.

        Raises:
            PlatoError: Another process holds it, or the file system cannot lock.
        """
        with hold(self.path / ".lock", f"run {self.name}"):
            self.update(process=this_process())
            yield

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"


def create_run(
    project: Project,
    *,
    runs_dir: Path | str | None = None,
    run: Path | str | None = None,
    command: Sequence[str] | None = None,
    algorithm: str | None = None,
) -> Run:
    """Make a run's folder.

    Args:
        project: What will be trained; its resolved form is kept.
        runs_dir: Where runs lie; default: `runs/` beside plato.yaml.
        run: Exactly this folder instead; it is continued when it is a run already.
        command: The command line, for the record; default: this process's.
        algorithm: Its name, where the project does not say it (for the folder's name).

    Raises:
        ProjectError: `run` is a folder with other things in it.
    """
    if run is not None:
        made = Run(run)
        _require_run_or_empty(made.path)
        made.path.mkdir(parents=True, exist_ok=True)
    else:
        where = project.root / "runs" if runs_dir is None else Path(runs_dir)
        made = Run(_new_folder(where, project, algorithm))
    if not (made.path / "run.json").is_file():
        made.update(
            name=made.name,
            status="created",
            backend="here",
            jobs=[],
            root=str(project.root),
            command=list(sys.argv if command is None else command),
            git=_git(project.root),
            versions=_versions(),
            created=datetime.now(timezone.utc).isoformat(timespec="microseconds"),
            started=None,
            ended=None,
            seed=project.seed,
            parent=None,
            attempt=0,
            algorithm=algorithm,
            reason=None,
            error=None,
            process=this_process(),
        )
    # After run.json, which makes the folder a run: what a killed call left undone, the next one does.
    if not (made.path / "plato.yaml").is_file():
        _write(made.path / "plato.yaml", project.to_yaml())
    (made.path / "checkpoints").mkdir(exist_ok=True)
    return made


def runs(runs_dir: Path | str | None = None, *, project: Project | None = None) -> list[Run]:
    """The runs of a folder, newest first; after them what looks like a run but is broken (see `Run.problem`).

    Args:
        runs_dir: Where runs lie; default: `runs/` beside the project's plato.yaml, or here.
        project: Whose runs.
    """
    where = Path(runs_dir) if runs_dir is not None else (project.root if project else Path()) / "runs"
    found = []
    for folder in where.iterdir() if where.is_dir() else ():
        is_run = (folder / "run.json").exists() or any((folder / trace).exists() for trace in TRACES)
        if is_run and not folder.name.startswith("."):
            found.append(Run(folder))
    return sorted(found, key=lambda run: (_created(run), run.name), reverse=True)


def find_run(ref: str | os.PathLike[str] | None = None, *, runs_dir: Path | str) -> Run:
    """The run that is meant.

    Args:
        ref: A name, a unique beginning of one, or a path; None for the newest.
        runs_dir: Where runs lie.

    Raises:
        RunNotFoundError: None is, or several are, or it is broken; the hint lists what is there.
    """
    if ref is not None and (Path(ref) / "run.json").is_file():
        return _require_whole(Run(ref))
    there = runs(runs_dir)
    if ref is None:
        newest = next((run for run in there if run.problem is None), None)
        if newest is None:
            raise RunNotFoundError(f"there are no runs in {runs_dir}.", hint="Make one with: plato train")
        return newest
    text = os.fspath(ref)
    matching = [run for run in there if run.name == text] or [run for run in there if run.name.startswith(text)]
    if len(matching) == 1:
        return _require_whole(matching[0])
    if matching:
        names = ", ".join(run.name for run in matching[:8])
        raise RunNotFoundError(f"{len(matching)} runs in {runs_dir} begin with {text!r}.", hint=f"Which: {names}?")
    listed = [run.name for run in there]
    near = get_close_matches(text, listed, n=1)
    meant = f"Did you mean {near[0]}? " if near else ""
    names = ", ".join(listed[:8]) + (" ..." if len(listed) > 8 else "")
    raise RunNotFoundError(f"no run is called {text!r} in {runs_dir}.", hint=f"{meant}There are: {names or 'none'}")


def _require_whole(run: Run) -> Run:
    if run.problem is not None:
        raise RunNotFoundError(f"run {run.name} is broken: {run.problem}", hint="plato runs lists the others.")
    return run


def _require_run_or_empty(path: Path) -> None:
    """Refuse to turn a folder with other things in it into a run: its plato.yaml may be the user's own."""
    if path.is_dir() and not (path / "run.json").is_file():
        strange = sorted(item.name for item in path.iterdir() if not LEFTOVERS.fullmatch(item.name))
        if strange:
            raise ProjectError(
                f"{path} is not a run, and not empty: it holds {', '.join(strange[:4])}.",
                hint="Name a run, an empty folder or one that does not exist yet.",
            )
    elif path.exists() and not path.is_dir():
        raise ProjectError(f"{path} is a file; a run is a folder.")


def _new_folder(where: Path, project: Project, algorithm: str | None) -> Path:
    named = algorithm or (project.algorithm if isinstance(project.algorithm, str) else None)
    word = (named or ("ppo" if project.algorithm is None else "own")).rpartition(":")[2]
    word = re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-")
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


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _write(path: Path, content: str) -> None:
    """Write a file so that it is there whole or not at all, a power cut included."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(draft, path)


def _git(root: Path) -> dict[str, Any] | None:
    """Commit, branch and whether anything is uncommitted; None outside a checkout or without git."""

    def ask(*words: str) -> str:
        command = ["git", "--no-optional-locks", *words]
        done = subprocess.run(
            command, cwd=root, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5, check=True
        )
        return done.stdout.strip()

    try:
        return {
            "commit": ask("rev-parse", "HEAD"),
            "branch": ask("rev-parse", "--abbrev-ref", "HEAD"),
            "dirty": bool(ask("status", "--porcelain", "--", ":(top)", *NOT_SOURCE)),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    """Installed versions, read from their metadata: importing Ray alone would take seconds."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
