"""What a place to run is: a backend runs one command line, and says how it goes.

`JobSpec` is what is asked for, `Job` what a backend gave back for it (plain data, kept in run.json), `JobState` how
it stands. A new backend is one class with the six methods of `Backend` and an options model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ..errors import BackendError
from ..project_fields import Section
from ..run import Run

PYTHON = "{python}"
"""In a command: the interpreter of the place where it runs."""
RUN = "{run}"
"""In a command: the run's folder, as the place where it runs sees it."""
STOPPED_EXIT_CODE = 75
"""What a command exits with that was stopped and can go on."""
JOB_VARIABLE = "PLATOTK_JOB"
"""Set inside a job, to its id."""
CARRIED_VARIABLE = "PLATOTK_CARRIED"
"""Set for a command whose run lies on a disk that goes with the job; who submitted it finds the run elsewhere."""
SECRET = "<secret>"
"""What a dry run shows in place of one."""


class JobStatus(str, Enum):
    """How a job stands, in the words of the Ray Jobs API."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def has_ended(self) -> bool:
        """Whether it stays like this."""
        return self not in (JobStatus.PENDING, JobStatus.RUNNING)

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class JobSpec:
    """What is asked of a backend.

    Attributes:
        name: For people, and for the ids that backends make.
        run: The run's folder on this machine; it was made by who submits.
        command: The command line; `PYTHON` and `RUN` in it are filled in by the backend.
        working_dir: Where the command starts: the project's own files.
        requirements: Packages that it needs beside platotk, as pip takes them.
        nodes: How many machines.
        timeout_s: How long it may run; None for ever.
        environment: Environment variables; no secrets.
    """

    name: str
    run: Path
    command: tuple[str, ...]
    working_dir: Path
    requirements: tuple[str, ...] = ()
    nodes: int = 1
    timeout_s: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def command_with(self, *, python: str, run: str) -> list[str]:
        """The command line for one place."""
        return [word.replace(PYTHON, python).replace(RUN, run) for word in self.command]


@dataclass(frozen=True)
class Job:
    """A job that a backend took; plain data, so that any shell can find it again.

    Attributes:
        id: What the backend calls it.
        backend: The name in plato.yaml, or "local".
        what: The command of `plato` that it runs: "train", "tune" or "assess".
        submitted: When, ISO 8601 in UTC.
        details: What the backend needs to find it again; no secrets.
        fetched: Whether its files are here, whole.
    """

    id: str
    backend: str
    what: str = ""
    submitted: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    fetched: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As it stands in run.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Job:
        """Back from run.json; fields that a newer version wrote are left out.

        Raises:
            BackendError: It names no job.
        """
        known = {one.name for one in fields(cls)}
        try:
            return cls(**{key: value for key, value in data.items() if key in known})
        except TypeError:
            raise BackendError(f"run.json names a job without an id or a backend: {dict(data)!r}.") from None


@dataclass(frozen=True)
class JobState:
    """How a job stands.

    Attributes:
        status: One of five words.
        message: Why it waits or failed, in words; may be empty.
        exit_code: Of the command, once it has ended and where the backend knows it.
    """

    status: JobStatus
    message: str = ""
    exit_code: int | None = None


class Backend(Protocol):
    """A place to run one command line; made from the options that plato.yaml gives it."""

    Options: ClassVar[type[Section]]
    """What may stand under `backends: {NAME: ...}` beside `type`; importing its module loads no SDK."""

    def __init__(self, name: str, options: Any) -> None: ...

    def request(self, job: JobSpec) -> dict[str, Any]:
        """Exactly what `submit` would send, as plain data. Pure: reads files, reaches nothing else."""
        ...

    def submit(self, job: JobSpec) -> Job:
        """Send it.

        Raises:
            SubmitError: Refused; no job exists.
        """
        ...

    def status(self, job: Job) -> JobState:
        """How it stands.

        Raises:
            BackendError: The place cannot be reached, or knows no such job.
        """
        ...

    def logs(self, job: Job, start: int = 0) -> tuple[str, int]:
        """What it has printed from position `start` on, and the position after it."""
        ...

    def stop(self, job: Job) -> None:
        """Ask it to stop so that it can go on later; returns once it has been asked. Nothing when it has ended."""
        ...

    def fetch(self, job: Job, run: Run) -> None:
        """Bring what it has written so far into the run's folder here; what is here already is not sent again."""
        ...


class BaseOptions(Section):
    """What every backend takes."""

    type: str
    """Which kind of place it is."""


class UnreachableError(BackendError):
    """The place did not answer; asking again may help."""


class UnknownJobError(BackendError):
    """The place answers, and knows no such job."""
