"""One run's log in MLflow: metrics, parameters, tags and the configuration as artifacts.

`MlflowLog` is given journal lines and writes them from a thread of its own, in batches, into the store that the project
names, within what that store takes. A store that is slow or away costs nothing but a warning: what it missed is read
from the journal once it answers. A resume continues the same MLflow run after the last iteration that it has.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ..project import Project
from ..run import Run
from ..trials import tuning_of
from .metrics import chosen_metrics
from .mlflow_limits import TAG_CHARS, Limits, MetricNames, limits_of, params_of

QUEUE_LINES = 200
RETRY_S = 30.0
"""How long a store that did not answer is left alone."""
FLUSH_S = 60.0
"""How long the end of a training may wait for the store; importing MLflow alone can take ten seconds."""
STOP_S = 10.0
"""The same for a training that was asked to stop or failed: a resume logs what is missing."""
SAID_NAMES = 8
"""How many names of metrics that are left out are said."""
THREAD = "platotk-mlflow"
STATUSES = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
STEP_METRIC = "env_steps"
"""Every iteration has it, so its history tells which iterations are there."""


class MlflowLog:
    """Logs one run from a thread of its own, from the first iteration on.

    Args:
        project: What is trained; `tracking.mlflow` is true or a URI.
        run: The run; its run.json keeps the store and the MLflow run's id.
    """

    def __init__(self, project: Project, run: Run) -> None:
        self._project, self._run = project, run
        self._uri, self._is_from_environment = store_uri(project, run)
        self._queue: queue.Queue[Mapping[str, Any] | None] = queue.Queue(QUEUE_LINES)
        self._warnings: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._limits: Limits = limits_of(self._uri, is_from_environment=self._is_from_environment)
        self._names = MetricNames(self._limits.metric_names)
        self._has_warned = self._has_said_names = False
        self._client: Any = None
        self._run_id = ""
        self._last = 0
        self._is_behind = False
        self._retry_at = 0.0
        self._status: str | None = None
        self._thread: threading.Thread | None = None

    def log(self, line: Mapping[str, Any]) -> None:
        """Hand on a journal line; never waits."""
        if self._thread is None:
            # Only now: importing MLflow takes seconds, which the first iteration would have to share.
            self._thread = threading.Thread(target=self._work, name=THREAD, daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self._is_behind = True  # read from the journal later

    def finish(self, status: str) -> None:
        """Log what is left, close the MLflow run, and wait for both up to `FLUSH_S` (`STOP_S` unless finished)."""
        if self._thread is None:
            return
        self._status = status
        with contextlib.suppress(queue.Full):  # then the thread is awake, and will look at the status by itself
            self._queue.put_nowait(None)
        patience_s = FLUSH_S if status == "finished" else STOP_S
        self._thread.join(patience_s)
        if self._thread.is_alive():
            self._warn(f"did not take everything within {patience_s:.0f} s")

    def warnings(self) -> list[str]:
        """What has gone wrong since the last call, for the training's own thread to say."""
        texts = []
        while not self._warnings.empty():
            texts.append(self._warnings.get())
        return texts

    def _work(self) -> None:
        while True:
            lines = self._waiting()
            if lines and time.monotonic() >= self._retry_at:
                self._try(self._send, lines)
            elif lines:
                self._is_behind = True
            if self._status is not None and self._queue.empty():
                self._try(self._end)
                return

    def _waiting(self) -> list[Mapping[str, Any]]:
        """The next lines, once there are any: those of quick iterations go out in one call."""
        lines = [self._queue.get()]
        with contextlib.suppress(queue.Empty):
            while True:
                lines.append(self._queue.get_nowait())
        return [line for line in lines if line is not None]

    def _try(self, action: Any, *arguments: Any) -> None:
        try:
            action(*arguments)
        except Exception as error:  # whatever MLflow, the network or a plugin raises: training goes on
            self._client, self._is_behind = None, True
            self._retry_at = time.monotonic() + RETRY_S
            self._warn(f"cannot be written: {_first_line(error)}")

    def _warn(self, what: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._warnings.put(
                f"MLflow at {without_secrets(self._uri)} {what}. Training goes on; metrics.jsonl has it all."
            )

    def _send(self, lines: list[Mapping[str, Any]]) -> None:
        if self._client is None:
            self._connect()
            self._is_behind = True  # the journal may hold lines from before that never arrived
        if self._is_behind:
            self._is_behind = False
            lines = list(self._run.metrics())
        for batch in self._batches([line for line in lines if line["iteration"] > self._last]):
            self._client.log_batch(self._run_id, metrics=[metric for _, metrics in batch for metric in metrics])
            self._last = batch[-1][0]
        self._say_left_out()

    def _batches(self, lines: Sequence[Mapping[str, Any]]) -> Iterator[list[tuple[int, list[Any]]]]:
        """Whole iterations with their metrics, as many as go into one call."""
        batch: list[tuple[int, list[Any]]] = []
        size = 0
        for line in lines:
            metrics = _metrics(line, self._names)
            if batch and size + len(metrics) > self._limits.metrics_a_call:
                yield batch
                batch, size = [], 0
            batch.append((line["iteration"], metrics))
            size += len(metrics)
        if batch:
            yield batch

    def _say_left_out(self) -> None:
        names = self._names.left_out()
        if names and not self._has_said_names:
            self._has_said_names = True
            more = len(names) - SAID_NAMES
            listed = ", ".join(names[:SAID_NAMES]) + (f" and {more} more" if more > 0 else "")
            self._warnings.put(
                f"MLflow at {without_secrets(self._uri)} gets {self._limits.metric_names} metrics of a run; left out: "
                f"{listed}. metrics.jsonl has them all."
            )

    def _end(self) -> None:
        if self._client is None or self._is_behind:
            self._send([])
        self._tag(platotk_status=self._status)
        if self._run_id != self._run_of_environment():
            self._client.set_terminated(self._run_id, STATUSES.get(self._status or "", "FAILED"))

    def _connect(self) -> None:
        """Find this run in the store or make it there, and see which iteration it has last."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is for --json
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        if urlsplit(self._uri).scheme in ("", "file"):
            # Without it MLflow 3.15 refuses folders; without a server mlflow-skinny can write nothing else.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.tracking import MlflowClient

        logging.getLogger("urllib3.connectionpool").addFilter(_is_not_ours)
        client = MlflowClient(tracking_uri=self._uri)
        known = self._run.info.get("mlflow") or {}
        known_id = known.get("run_id") if known.get("uri") == without_secrets(self._uri) else None
        run_id = self._run_of_environment() or known_id
        is_new = run_id is None or not _is_there(client, run_id)
        if is_new:
            run_id = self._create(client)
        self._client, self._run_id = client, str(run_id)
        self._run.update(mlflow={"uri": without_secrets(self._uri), "run_id": run_id})
        known_names = [] if is_new else client.get_run(run_id).data.metrics
        self._names = MetricNames(self._limits.metric_names, known_names)
        history = [] if is_new else client.get_metric_history(run_id, STEP_METRIC)
        self._last = max((metric.step for metric in history), default=0)
        if is_new or not history:
            self._describe()
        elif run_id != self._run_of_environment():
            client.update_run(run_id, status="RUNNING")
        self._tag(platotk_attempt=self._run.info.get("attempt"), platotk_status="running")

    def _run_of_environment(self) -> str | None:
        """The MLflow run that a job (Azure ML's) has opened for us; it is not ours to close."""
        return os.environ.get("MLFLOW_RUN_ID") if self._is_from_environment else None

    def _create(self, client: Any) -> str:
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self._project.name
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            experiment_id = experiment.experiment_id
        else:
            try:
                experiment_id = client.create_experiment(name)
            except MlflowException:
                experiment = client.get_experiment_by_name(name)  # another run may just have made it
                if experiment is None:
                    raise
                experiment_id = experiment.experiment_id
        return str(client.create_run(experiment_id, run_name=self._run.name).info.run_id)

    def _describe(self) -> None:
        """Parameters, tags, and the whole configuration as files."""
        from mlflow.entities import Param

        config = self._project.to_dict()
        chosen, num_left_out = params_of(config, self._limits)
        params = [Param(name, value) for name, value in chosen]
        for start in range(0, len(params), self._limits.params_a_call):
            self._client.log_batch(self._run_id, params=params[start : start + self._limits.params_a_call])
        if num_left_out:
            of_all = f"{len(params)} of {len(params) + num_left_out} parameters"
            self._warnings.put(f"MLflow at {without_secrets(self._uri)} gets {of_all}; config.json there has them all.")
        info = self._run.info
        git = info.get("git") or {}
        self._tag(
            mlflow_user=_user(),
            mlflow_source_name=self._project.name,
            mlflow_source_git_commit=git.get("commit"),
            platotk_run=self._run.name,
            platotk_path=str(self._run.path),
            platotk_algorithm=info.get("algorithm"),
            platotk_seed=info.get("seed"),
            platotk_parent=info.get("parent"),
            platotk_git_branch=git.get("branch"),
            platotk_git_dirty=git.get("dirty"),
            platotk_versions=" ".join(f"{name}={value}" for name, value in info.get("versions", {}).items()),
        )
        try:
            self._client.log_dict(self._run_id, config, "config.json")
            self._client.log_artifact(self._run_id, str(self._run.path / "plato.yaml"))
        except Exception as error:  # metrics do not need the artifact store, which may be another server
            self._warn(f"does not take files: {_first_line(error)}")

    def _tag(self, **tags: Any) -> None:
        """Set tags; `platotk_git_branch` becomes `platotk.git.branch`. None is left out."""
        from mlflow.entities import RunTag

        given = [RunTag(k.replace("_", "."), str(v)[:TAG_CHARS]) for k, v in tags.items() if v is not None]
        self._client.log_batch(self._run_id, tags=given)


def store_uri(project: Project, run: Run) -> tuple[str, bool]:
    """Where a run is logged, and whether the environment said so.

    A URI in the project comes first, then `MLFLOW_TRACKING_URI`; otherwise a folder `mlruns` beside the
    folder `runs` (beside the run, where that does not lie in a folder of that name). Never MLflow's own
    default, which is a database in the current directory.
    """
    named = project.tracking.mlflow
    if isinstance(named, str):
        is_path = "/" in named and not re.match(r"[\w+.-]{2,}:", named)
        return ((project.root / named).resolve().as_uri() if is_path else named), False
    from_environment = os.environ.get("MLFLOW_TRACKING_URI")
    if from_environment:
        return from_environment, True
    folder = (tuning_of(run) or run.path).parent
    return ((folder.parent if folder.name == "runs" else folder) / "mlruns").as_uri(), False


def without_secrets(uri: str) -> str:
    """A URI without the user and password that it may hold."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def _metrics(line: Mapping[str, Any], names: MetricNames) -> list[Any]:
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    return [Metric(name, value, now_ms, line["iteration"]) for name, value in names.admit(chosen_metrics(line)).items()]


def _is_there(client: Any, run_id: str) -> bool:
    """Whether the store has this MLflow run; that it is out of reach is no answer, and is raised."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _is_not_ours(record: logging.LogRecord) -> bool:
    """Whether a log record is about somebody else's requests; of ours, one warning says it all."""
    return record.threadName != THREAD


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return None


def _first_line(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        extra = "'platotk[train]'" if error.name == "mlflow" else error.name
        return f"{error.name} is not installed (pip install {extra})"
    text = str(error).strip().splitlines()
    return re.sub(r"//[^/@\s]*@", "//", text[0])[:300].rstrip(". ") if text else type(error).__name__
