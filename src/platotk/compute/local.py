"""The backend `local`: a detached process on this machine that outlives the shell.

Each job has a folder of plain files under the run's `jobs/`: `job.json` (what was asked), `log.txt` (what it printed),
`process.json` (who runs it, by number and start time) and `exit.json` (how it ended).
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, ClassVar

from ..errors import BackendError, SubmitError
from ..process_lock import is_gone
from ..project_fields import Seconds, Section
from ..run import Run
from .base import JOB_VARIABLE, STOPPED_EXIT_CODE, BaseOptions, Job, JobSpec, JobState, JobStatus
from .keeper import write_json

START_S = 20.0
"""How long the keeper may take to start."""


class LocalOptions(BaseOptions):
    """A detached process on this machine."""

    grace_s: Seconds = 30.0
    """How long a stopped job may take to save itself before it is killed."""


class LocalBackend:
    """Runs a job in a process of its own."""

    Options: ClassVar[type[Section]] = LocalOptions

    def __init__(self, name: str, options: LocalOptions) -> None:
        self.name, self.options = name, options

    def request(self, job: JobSpec) -> dict[str, Any]:
        """The `job.json` that would be written, less its id."""
        if job.nodes != 1:
            raise SubmitError(
                f"{job.nodes} nodes were asked for; backend {self.name!r} is this machine alone.",
                hint="Run the same command on every machine with: plato node --help",
            )
        return {
            "command": job.command_with(python=sys.executable, run=str(job.run)),
            "working_dir": str(job.working_dir),
            "environment": dict(job.environment),
            "timeout_s": job.timeout_s,
            "grace_s": self.options.grace_s,
        }

    def submit(self, job: JobSpec) -> Job:
        """Start it, in a session of its own."""
        request = self.request(job)
        now = datetime.now(timezone.utc)
        name = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        folder = job.run / "jobs" / name
        folder.mkdir(parents=True)
        request["environment"][JOB_VARIABLE] = name
        write_json(folder / "job.json", request)
        with (folder / "log.txt").open("ab") as log:
            keeper = subprocess.Popen(
                [sys.executable, "-m", "platotk.compute.keeper", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while not (folder / "process.json").is_file():
            if keeper.poll() is not None or time.monotonic() > deadline:
                said = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip()
                keeper.kill()
                raise SubmitError(f"the job could not be started: {said or 'no answer'}", hint=f"See {folder}.")
            time.sleep(0.02)
        return Job(
            id=name, backend=self.name, submitted=now.isoformat(timespec="seconds"), details={"folder": str(folder)}
        )

    def status(self, job: Job) -> JobState:
        """From the files alone, so that any shell gives the same answer."""
        folder = _folder(job)
        ended = _read(folder / "exit.json")
        processes = _read(folder / "process.json")
        if ended is None and processes is None:
            raise BackendError(f"{folder} does not hold a job that was started.")
        if ended is None and processes is not None and is_gone(processes["keeper"]):
            # It may have ended between the two looks.
            ended = _read(folder / "exit.json")
            child = processes["child"]
            if ended is None and child is not None and not is_gone(child):
                return JobState(JobStatus.RUNNING, "its keeper is gone, so its exit code will not be known")
            if ended is None:
                return JobState(JobStatus.FAILED, "its process was killed, or the machine was restarted")
        if ended is None:
            return JobState(JobStatus.RUNNING)
        code = int(ended["code"])
        if code == 0:
            return JobState(JobStatus.SUCCEEDED, exit_code=0)
        if code == STOPPED_EXIT_CODE or ended["asked"]:
            return JobState(JobStatus.STOPPED, exit_code=code)
        return JobState(JobStatus.FAILED, f"exit code {code}", code)

    def logs(self, job: Job, start: int = 0) -> tuple[str, int]:
        """From byte `start` of log.txt on, up to a megabyte, never ending inside a character."""
        try:
            with (_folder(job) / "log.txt").open("rb") as stream:
                stream.seek(start)
                data = stream.read(1 << 20)
        except OSError as error:
            raise BackendError(f"the log of job {job.id} cannot be read: {error.strerror}") from None
        whole = whole_characters(data)
        return data[:whole].decode("utf-8", errors="replace"), start + whole

    def stop(self, job: Job) -> None:
        """SIGTERM to the keeper, which hands it on and kills after `grace_s`."""
        if self.status(job).status.has_ended:
            return
        processes = _read(_folder(job) / "process.json") or {}
        keeper, child = processes.get("keeper"), processes.get("child")
        reached = keeper if not is_gone(keeper) else child
        if reached is None:
            return
        try:
            os.kill(int(reached["pid"]), signal.SIGTERM)
        except ProcessLookupError:
            return
        except PermissionError:
            raise BackendError(f"job {job.id} belongs to another user.") from None

    def fetch(self, job: Job, run: Run) -> None:
        """Nothing to do: the job writes the run's folder itself."""


def _folder(job: Job) -> Path:
    try:
        folder = Path(job.details["folder"])
    except KeyError:
        raise BackendError(f"job {job.id} does not say where its files are.") from None
    if not folder.is_dir():
        raise BackendError(f"the files of job {job.id} are gone: {folder}")
    return folder


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BackendError(f"{path} cannot be read: {error}") from None


def whole_characters(data: bytes) -> int:
    """How much of it does not end inside a UTF-8 character."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if needed > back and back < len(data) else len(data)
    return len(data)
