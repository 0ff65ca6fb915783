"""The backend `ray`: any Ray cluster, through the Ray Jobs API (`http://HEAD:8265`).

The project's files and platotk itself travel with the job. Such a cluster has no way to download files, so runs go
through `storage:`, which this machine and every node of the cluster see.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import secrets
import shlex
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import Field

from ..errors import BackendError, PlatoError, SubmitError, missing_extra
from ..project import Project
from ..project_fields import Count, Free, Seconds, Section, Words
from ..run import Run
from . import snapshot
from .base import (
    JOB_VARIABLE,
    STOPPED_EXIT_CODE,
    BaseOptions,
    Job,
    JobSpec,
    JobState,
    JobStatus,
    UnknownJobError,
    UnreachableError,
)
from .following import patiently
from .idle import idle
from .storage import Storage

START_S = 60.0
"""How long a cluster that has just started may take until it can run jobs."""
NOT_READY = re.compile(r"No available agent|Failed to get head node agent")
"""What the Jobs API answers, after 10 s of its own, while the agent of its head node is not there yet."""
UNKNOWN = re.compile(r"status code 404.*[Jj]ob .*does not exist", re.DOTALL)
"""What it answers about a job of a cluster that was there before."""
Value = TypeVar("Value")


class RayOptions(BaseOptions):
    """A Ray cluster that is there already: a laptop's, on VMs, KubeRay's."""

    address: Words = "http://127.0.0.1:8265"
    """Of the cluster's dashboard, where the Jobs API is."""
    storage: Words | None = None
    """Where runs go through: a path that this machine and all nodes see, or an fsspec URL such as s3://bucket/runs."""
    storage_options: Free = Field(default_factory=dict)
    """Of the fsspec file system. No secrets: those come from each machine's own environment."""
    sync: Seconds = 5.0
    """How often a job copies what it has written to the storage."""
    grace: Seconds = 60.0
    """How long a stopped job may take to save itself."""
    timeout: Seconds | None = None
    """How long a job may run; no limit by default."""
    requirements: tuple[Words, ...] = ()
    """Packages to install for the job with pip, when the cluster's image lacks them."""
    cpus: Count | None = None
    """CPUs to keep for the process that trains; 0 by default, which runs it on the head."""

    @property
    def timeout_s(self) -> float | None:
        """`timeout` in seconds."""
        return self.timeout


class RayBackend:
    """Runs a job on a Ray cluster."""

    Options: ClassVar[type[Section]] = RayOptions

    def __init__(self, name: str, options: RayOptions) -> None:
        self.name, self.options = name, options

    def advice(self, project: Project, nodes: int, *, what: str = "train", is_offline: bool = False) -> list[str]:
        """What to think over before it is submitted: CPUs of the cluster, as it says, that nobody would use."""
        if is_offline or what == "tune":  # trials train on one machine, whichever it is
            return []
        try:
            cpus, num_nodes = _size_of(self._client(), self.options.address)
        except PlatoError:
            return []  # submitting says why
        there = f"the cluster has {cpus:g} CPUs" + (f" on {num_nodes} nodes" if num_nodes > 1 else "")
        said = idle(project, cpus, there)
        return [said] if said else []

    def request(self, job: JobSpec) -> dict[str, Any]:
        """What goes to the Jobs API, with the paths of the folders that are uploaded."""
        if job.nodes != 1:
            raise SubmitError(
                f"{job.nodes} nodes were asked for; backend {self.name!r} has as many as its cluster.",
                hint="Leave --nodes out.",
            )
        url = self._url(job.name)
        snapshot.size_of(job.working_dir)
        command = " ".join(shlex.quote(word) for word in job.command)
        carried = [job.name, url, self.options.sync, job.timeout_s or 0, self.options.grace]
        words = " ".join(shlex.quote(str(word)) for word in carried)
        runtime_env: dict[str, Any] = {
            "working_dir": str(job.working_dir),
            "py_modules": [str(Path(__file__).resolve().parents[1])],
            "env_vars": {
                **dict(job.environment),
                JOB_VARIABLE: job.name,
                "PYTHONUNBUFFERED": "1",
                "RAY_JOB_STOP_WAIT_TIME_S": f"{self.options.grace:g}",
                "PLATOTK_STORAGE_OPTIONS": json.dumps(self.options.storage_options),
            },
        }
        requirements = [*self.options.requirements, *job.requirements]
        if requirements:
            runtime_env["pip"] = requirements
        return {
            "address": self.options.address,
            "entrypoint": f"python -m platotk.compute.carried {words} -- {command}",
            "runtime_env": runtime_env,
            "metadata": {"platotk_run": job.name},
            "entrypoint_num_cpus": self.options.cpus or 0,
        }

    def submit(self, job: JobSpec) -> Job:
        """Check the cluster, put the run into the storage, upload the files, submit."""
        request = self.request(job)
        client = self._client()
        self._require_same_versions(client)
        Storage(self._url(job.name), self.options.storage_options).put(job.run, {})
        now = datetime.now(timezone.utc)
        name = f"{re.sub(r'[^A-Za-z0-9_-]', '-', job.name)}-{secrets.token_hex(3)}"
        request.pop("address")
        request["runtime_env"]["env_vars"][JOB_VARIABLE] = name
        with tempfile.TemporaryDirectory() as folder:
            snapshot.snapshot(job.working_dir, Path(folder) / "project")
            request["runtime_env"]["working_dir"] = str(Path(folder) / "project")
            try:
                patiently(lambda: self._send(client, name, request), START_S)
            except BackendError as error:
                raise SubmitError(error.message, hint=error.hint) from None
        details = {"address": self.options.address, "storage": self._url(job.name)}
        return Job(id=name, backend=self.name, submitted=now.isoformat(timespec="seconds"), details=details)

    def status(self, job: Job) -> JobState:
        """As the Jobs API says, or, of a cluster that is gone or was started anew, as the job's own note says.

        A command that stopped to go on later was stopped, not failed.
        """
        try:
            client = self._client()
            about = _ask(lambda: client.get_job_info(job.id), self.options.address)
        except (UnreachableError, UnknownJobError) as error:
            left = self._left(job)
            if left is not None:
                return left
            if isinstance(error, UnreachableError):
                raise
            why = f"the cluster at {self.options.address} no longer knows it, and it left no word of how it ended"
            return JobState(JobStatus.FAILED, why)
        status, code = JobStatus(str(about.status.value)), about.driver_exit_code
        if status is JobStatus.FAILED and code is None:
            # The cluster lost sight of it; the job itself may have come to its end.
            with contextlib.suppress(UnreachableError):
                left = self._left(job)
                if left is not None:
                    return left
        message = " ".join(str(about.message or "").split())[:300]
        if status is JobStatus.FAILED and code == STOPPED_EXIT_CODE:
            status = JobStatus.STOPPED
        if status is JobStatus.SUCCEEDED:
            return JobState(status, exit_code=0)
        if status is JobStatus.RUNNING:
            return JobState(status)
        return JobState(status, message, code if status.has_ended else None)

    def logs(self, job: Job, start: int = 0) -> tuple[str, int]:
        """From character `start` on; the Jobs API always sends all of it."""
        client = self._client()
        text: str = _ask(lambda: client.get_job_logs(job.id), self.options.address)
        return text[start:], max(start, len(text))

    def stop(self, job: Job) -> None:
        """SIGTERM to the job, which has `grace` to save itself."""
        if self.status(job).status.has_ended:
            return
        client = self._client()
        _ask(lambda: client.stop_job(job.id), self.options.address)

    def fetch(self, job: Job, run: Run) -> None:
        """From the storage; what only this machine knows of the run stays."""
        Storage(str(job.details["storage"]), self.options.storage_options).get_run(run)

    def _left(self, job: Job) -> JobState | None:
        """How a job ended, as it says itself in the storage; None when it does not say."""
        note = Storage(str(job.details["storage"]), self.options.storage_options).note(f"exit-{job.id}")
        if note is None:
            return None
        code, source = int(note["code"]), "as its note in the storage says"
        if code == 0:
            return JobState(JobStatus.SUCCEEDED, source, 0)
        if code == STOPPED_EXIT_CODE or note.get("asked"):
            return JobState(JobStatus.STOPPED, source, code)
        return JobState(JobStatus.FAILED, f"exit code {code}, {source}", code)

    def _url(self, name: str) -> str:
        if self.options.storage is None:
            raise SubmitError(
                f"backend {self.name!r} has no storage: a Ray cluster has no way to send files back.",
                hint="Under it in plato.yaml: storage: a path that all nodes and this machine see, or s3://bucket/runs",
            )
        return f"{self.options.storage.rstrip('/')}/{name}"

    def _client(self) -> Any:
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError:
            raise missing_extra("Ray", "ray") from None
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            return _ask(lambda: JobSubmissionClient(self.options.address), self.options.address)
        except BackendError as error:
            if "ray[default]" in error.message:
                raise missing_extra("ray[default]", "ray") from None
            raise

    def _send(self, client: Any, name: str, request: dict[str, Any]) -> None:
        """Submit; that the job is there already says that an answer was lost, for its name is ours alone."""
        try:
            _ask(lambda: client.submit_job(submission_id=name, **request), self.options.address)
        except BackendError as error:
            if f"{name} already exists" not in error.message:
                raise

    def _require_same_versions(self, client: Any) -> None:
        """A run's checkpoints are only read by the Ray that wrote them, and Ray talks to its own Python only."""
        import importlib.metadata

        theirs, ours = str(getattr(client, "_server_ray_version", "")), importlib.metadata.version("ray")
        image = f"Use an image with both, such as rayproject/ray:{ours}-py3{sys.version_info[1]}"
        if theirs and theirs.split(".")[:2] != ours.split(".")[:2]:
            raise SubmitError(
                f"the cluster at {self.options.address} runs Ray {theirs}, this machine {ours}.", hint=image
            )
        python = _python_of(client, self.options.address)
        if python and python.split(".")[:2] != [str(part) for part in sys.version_info[:2]]:
            raise SubmitError(
                f"the cluster at {self.options.address} runs Python {python}, this machine {platform.python_version()}:"
                " what a run keeps is not read by the other.",
                hint=image,
            )


def _python_of(client: Any, address: str) -> str:
    """The cluster's version of Python; empty where it does not say."""
    try:
        answer = _ask(lambda: client._do_request("GET", "/api/v0/cluster_metadata"), address)
        about = answer.json() if answer.ok else {}
    except (BackendError, ValueError):
        return ""
    return str(about.get("data", about).get("pythonVersion") or about.get("pythonVersion") or "")


def _size_of(client: Any, address: str) -> tuple[float, int]:
    """CPUs and live nodes of the cluster; none where it does not say."""
    try:
        answer = _ask(lambda: client._do_request("GET", "/api/v0/nodes"), address)
        listed = answer.json()["data"]["result"]["result"] if answer.ok else []
    except (ValueError, KeyError, TypeError):
        return 0.0, 0
    alive = [node for node in listed if node.get("state") == "ALIVE"]
    return sum(float((node.get("resources_total") or {}).get("CPU", 0.0)) for node in alive), len(alive)


def _ask(question: Callable[[], Value], address: str) -> Value:
    """The SDK raises bare RuntimeErrors for what the server says, ConnectionErrors for silence."""
    import requests

    try:
        return question()
    except (ConnectionError, requests.RequestException, TimeoutError):
        raise UnreachableError(
            f"no Ray cluster answers at {address}.",
            hint="Is it up, and its dashboard's port open from here? ssh -L 8265:127.0.0.1:8265 HEAD",
        ) from None
    except RuntimeError as error:
        text = str(error).strip()
        if UNKNOWN.search(text):
            raise UnknownJobError(
                f"the Ray cluster at {address} no longer knows this job.",
                hint="Was it started anew? What the training said is in the run's log.txt: plato fetch",
            ) from None
        is_down = re.search(r"status code 5\d\d", text) is not None and "Traceback" not in text
        if NOT_READY.search(text):
            raise UnreachableError(
                f"the Ray cluster at {address} answers, but its head node runs no jobs.",
                hint="Is it just starting? If not: its dashboard_agent.log says why; often port 52365 was taken when "
                "it started, and ray start --head --dashboard-agent-listen-port 0 takes another.",
            ) from None
        kind = UnreachableError if is_down else BackendError
        raise kind(f"the Ray cluster at {address} refused: {text[:600]}") from None
