"""The backend `azure_ml`: one command job of Azure Machine Learning over N machines of a cluster.

Each machine runs `plato node`, which makes one Ray cluster of them; the first trains on its own disk and copies what
it writes to a folder of a datastore that is mounted there. That folder has one name for the whole life of a run, so a
job that loses its machines, and one that continues a run, find the newest whole checkpoint in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import re
import secrets
import shlex
import tempfile
import time
import zipfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, ClassVar

from ..azure import jobs as azure_jobs
from ..azure import prices
from ..azure.blobs import BlobFiles
from ..azure.client import Azure, NotThereError, asking, connect
from ..azure.options import AzureOptions
from ..azure.sizes import num_cpus
from ..errors import AzureError, PlatoError, SubmitError
from ..own_package import own_package
from ..project import Project
from ..project_fields import Section
from ..run import Run
from . import snapshot
from .base import JOB_VARIABLE, SECRET, Job, JobSpec, JobState, JobStatus
from .idle import idle, idle_in_tuning
from .storage import Storage

FOLDER = "platotk/runs"
"""On the datastore."""
SHM = "8g"
"""What `shm: auto` is: room for Ray's object store. It is a limit, not a reservation."""
SLACK_S = 900
"""How much longer than the job's own time limit Azure's lasts, which ends a job that hangs as a whole."""


class AzureBackend:
    """Runs a job on a cluster of a workspace."""

    Options: ClassVar[type[Section]] = AzureOptions

    def __init__(self, name: str, options: AzureOptions) -> None:
        self.name, self.options = name, options
        self._azure: Azure | None = None
        self._opened: dict[str, BlobFiles] = {}
        self._read: azure_jobs.Read = {}

    @property
    def azure(self) -> Azure:
        """The workspace; signs in when it is first asked something."""
        if self._azure is None:
            self._azure = connect(self.options)
        return self._azure

    def advice(self, project: Project, nodes: int, *, what: str = "train", is_offline: bool = False) -> list[str]:
        """What to think over before it is submitted; the size's name says its CPUs, so nobody is asked."""
        each, size = num_cpus(self.options.size), self.options.size
        if each is None:
            return []
        if what == "tune":
            said = idle_in_tuning(project, each, size, nodes=nodes)
            return [said] if said else []
        there = f"{nodes} x {size} have {nodes * each} CPUs" if nodes > 1 else f"{size} has {each} CPUs"
        said = idle(project, nodes * each, there)
        return [said] if said else []

    def cost(self, nodes: int, timeout_s: float | None, *, is_offline: bool = False) -> list[str]:
        """What a job comes to at most; without a network, or where Azure gives no price, in node-hours."""
        hours = None if timeout_s is None else timeout_s / 3600
        if is_offline:
            return [prices.Cost(nodes, hours, self.options.size, self.options.tier).told()]
        return [prices.cost(self.azure, nodes=nodes, hours=hours).told()]

    def request(self, job: JobSpec) -> dict[str, Any]:
        """The job as `az ml job create --file` takes it, with a place-holder for the secret."""
        snapshot.size_of(job.working_dir)
        with tempfile.TemporaryDirectory() as folder:
            environment = self._environment(job, Path(folder))
        return self._body(job, job.name, token=SECRET, code=str(job.working_dir), environment=_shown(environment))

    def submit(self, job: JobSpec) -> Job:
        """Check the cluster, put the run's files on the datastore, send code and environment, submit."""
        self._require_cluster(job)
        now = datetime.now(timezone.utc)
        name = f"{re.sub(r'[^A-Za-z0-9_-]', '-', job.name)[:200]}-{secrets.token_hex(3)}"
        self._storage(self._path(job)).put(job.run, {})
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            _code(job.working_dir, root / "code")
            environment = self._sent(self._environment(job, root / "environment"))
            body = self._body(job, name, token=secrets.token_hex(32), code="code", environment=environment)
            (root / "job.yml").write_text(json.dumps(body), encoding="utf-8")
            made = self._create(root / "job.yml", name)
        details = {
            "subscription": self.options.subscription,
            "resource_group": self.options.resource_group,
            "workspace": self.options.workspace,
            "datastore": self.options.datastore,
            "path": self._path(job),
            "studio_url": azure_jobs.studio_url(self.azure, made),
        }
        return Job(id=name, backend=self.name, submitted=now.isoformat(timespec="seconds"), details=details)

    def status(self, job: Job) -> JobState:
        """As Azure says, with the reason; how its command ended is read from the datastore."""
        found = azure_jobs.read(self.azure, job.id)
        now = azure_jobs.state(found, None)
        if not now.status.has_ended:
            return now
        note = self._storage(self._path_of(job)).note(f"exit-{job.id}")
        reason = azure_jobs.failure(self.azure, job.id) if now.status is JobStatus.FAILED and note is None else ""
        return azure_jobs.state(found, note, reason)

    def logs(self, job: Job, start: int = 0) -> tuple[str, int]:
        """From byte `start` of the first machine's log on."""
        return azure_jobs.log(self._files(azure_jobs.LOG_STORE), job.id, start, self._read)

    def stop(self, job: Job) -> None:
        """A note on the datastore, which the job sees within `sync`; asked again after `grace`, Azure cancels it."""
        now = self.status(job)
        if now.status.has_ended:
            return
        storage = self._storage(self._path_of(job))
        asked = storage.note(f"stop-{job.id}")
        if now.status is JobStatus.RUNNING and asked is None:
            storage.leave(f"stop-{job.id}", {"asked": time.time()})
        elif now.status is JobStatus.PENDING or time.time() - float((asked or {}).get("asked", 0)) > self.options.grace:
            azure_jobs.cancel(self.azure, job.id)

    def fetch(self, job: Job, run: Run) -> None:
        """From the datastore; what only this machine knows of the run stays."""
        self._storage(self._path_of(job)).get_run(run)

    def _body(self, job: JobSpec, name: str, *, token: str, code: str, environment: Any) -> dict[str, Any]:
        """The job in the YAML schema of Azure ML."""
        options = self.options
        if job.nodes > options.max_nodes:
            raise SubmitError(
                f"{job.nodes} nodes were asked for; compute {options.compute!r} has at most {options.max_nodes}, "
                "so the job would wait for ever.",
                hint=f"Raise max_nodes under backends: {self.name}: and type: plato azure up",
            )
        carried = [job.name, "${{outputs.run}}", f"{options.sync:g}", f"{job.timeout_s or 0:g}", f"{options.grace:g}"]
        words = " ".join(word if word.startswith("${{") else shlex.quote(word) for word in carried)
        command = " ".join(shlex.quote(word) for word in job.command)
        variables = {
            **{key: str(value) for key, value in dict(options.environment.get("variables") or {}).items()},
            **dict(job.environment),
            JOB_VARIABLE: name,
            "PYTHONUNBUFFERED": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        # A cluster that Azure's own Ray makes takes no token.
        launcher = "" if options.distribution == "ray" else "python -m platotk node -- "
        if job.nodes > 1 and launcher:
            variables["RAY_AUTH_TOKEN"] = token
        body: dict[str, Any] = {
            "$schema": "https://azuremlschemas.azureedge.net/latest/commandJob.schema.json",
            "type": "command",
            "name": name,
            "display_name": job.name,
            "experiment_name": options.experiment or _experiment(job),
            "tags": {"platotk_run": job.name},
            "code": code,
            "command": f'export PYTHONPATH="$PWD/{snapshot.PACKAGE}${{PYTHONPATH:+:$PYTHONPATH}}"\n'
            f"exec {launcher}python -m platotk.compute.carried {words} -- {command}",
            "environment": environment,
            "environment_variables": variables,
            "compute": f"azureml:{options.compute}",
            "resources": {"instance_count": job.nodes, "shm_size": SHM if options.shm == "auto" else options.shm},
            "outputs": {
                "run": {
                    "type": "uri_folder",
                    "mode": "rw_mount",
                    "path": f"azureml://datastores/{options.datastore}/paths/{self._path(job)}",
                }
            },
        }
        if options.distribution == "ray":
            body["distribution"] = {"type": "ray"}
            variables["RAY_ADDRESS"] = "auto"
        elif job.nodes > 1:
            body["distribution"] = {"type": options.distribution, "process_count_per_instance": 1}
        if job.timeout_s is not None:
            body["limits"] = {"timeout": math.ceil(job.timeout_s + options.grace) + SLACK_S}
        return body

    def _environment(self, job: JobSpec, folder: Path) -> Any:
        """The environment that the job needs: an entity of the SDK, or the address of one that is there."""
        given = self.options.environment
        if "name" in given and not {"image", "conda_file", "dockerfile"} & set(given):
            version = f":{given['version']}" if "version" in given else "@latest"
            return f"azureml:{given['name']}{version}"
        from ..azure import environments

        return environments.environment(self.options, _project(job), folder)

    def _sent(self, environment: Any) -> str:
        """Register an environment unless it is there: its name says its content."""
        if isinstance(environment, str):
            return environment
        name, version = environment.name, environment.version
        what = f"environment {name}:{version}"
        try:
            with asking(what):
                self.azure.ml.environments.get(name, version=version)
        except NotThereError:
            with asking(what):
                self.azure.ml.environments.create_or_update(environment)
        return f"azureml:{name}:{version}"

    def _create(self, path: Path, name: str) -> dict[str, Any]:
        """Send the job. An answer that got lost does not make a second job."""
        what = f"job {name}"
        with asking(what):
            from azure.ai.ml import load_job

            entity = load_job(path)
        try:
            with asking(what), contextlib.redirect_stdout(io.StringIO()):
                self.azure.ml.jobs.create_or_update(entity)
        except AzureError:
            # Lost, or asked a second time by the SDK itself ("already exists"): the name is this submission's alone.
            with contextlib.suppress(AzureError):
                return azure_jobs.read(self.azure, name)
            raise
        return azure_jobs.read(self.azure, name)

    def _require_cluster(self, job: JobSpec) -> None:
        """What is not there, or too small, is said before anything is sent."""
        compute = self.options.compute
        what = f"compute {compute} of workspace {self.options.workspace}"
        found = self.azure.workspace_get(f"computes/{compute}", azure_jobs.COMPUTE_API, what=what)
        inner = (found.get("properties") or {}).get("properties") or {}
        most = (inner.get("scaleSettings") or {}).get("maxNodeCount")
        if most is not None and job.nodes > int(most):
            raise SubmitError(
                f"{job.nodes} nodes were asked for; compute {compute!r} has at most {most}, so the job would wait "
                "for ever.",
                hint=f"Say max_nodes: {job.nodes} under backends: {self.name}: and type: plato azure up",
            )

    def _storage(self, path: str) -> Storage:
        return Storage(path, files=self._files(self.options.datastore))

    def _files(self, datastore: str) -> BlobFiles:
        """A datastore's files; its key is asked for once."""
        if datastore not in self._opened:
            self._opened[datastore] = BlobFiles(self.azure, datastore)
        return self._opened[datastore]

    def _path(self, job: JobSpec) -> str:
        """Of the run's folder on the datastore: the run's name, and what tells two of the same name apart."""
        try:
            made = Run(job.run).info
        except PlatoError:
            return f"{FOLDER}/{job.name}"
        whole = f"{made.get('created')} {made.get('root')}"
        return f"{FOLDER}/{job.name}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"

    def _path_of(self, job: Job) -> str:
        try:
            return str(job.details["path"])
        except KeyError:
            raise AzureError(f"job {job.id} does not say where its files are.") from None


def _code(root: Path, folder: Path) -> None:
    """The project's files and the running platotk, as they are uploaded."""
    snapshot.snapshot(root, folder)
    with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(own_package(Path(place))) as wheel:
        wheel.extractall(folder / snapshot.PACKAGE)
    # Without it the SDK would leave out what .gitignore names; .platoignore has had its say.
    (folder / ".amlignore").touch()


def _project(job: JobSpec) -> Project | None:
    """The project of a job: as its run keeps it, or as it stands in its folder."""
    for folder in (job.run, job.working_dir):
        if (folder / "plato.yaml").is_file():
            return Project.load(folder / "plato.yaml", root=job.working_dir)
    return None


def _shown(environment: Any) -> Any:
    """An environment as a dry run prints it."""
    if isinstance(environment, str):
        return environment
    about = {"name": environment.name, "version": environment.version, "image": environment.image}
    if environment.build is not None:
        about["build"] = {"dockerfile_path": environment.build.dockerfile_path or "Dockerfile"}
    return {key: value for key, value in about.items() if value}


def _experiment(job: JobSpec) -> str:
    project = _project(job)
    return re.sub(r"[^A-Za-z0-9_-]", "-", project.name) if project is not None else "platotk"
