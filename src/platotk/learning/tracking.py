"""MLflow and TensorBoard beside the run folder.

`Trackers` is given each journal line once and hands it to a thread of its own: a slow or failing server never holds up
training. The run folder stays the record; what is sent here is a curated copy that fits the limits of the strictest
server we know (Azure ML: 200 params of 500 characters, 50 metric names).
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..project import Project
from ..run import Run

METRICS = (
    "env_steps",
    "env_steps_per_s",
    "episodes",
    "return_mean",
    "return_min",
    "return_max",
    "episode_length_mean",
    "sim_failures",
)
LEARNER_METRICS = (
    "total_loss",
    "policy_loss",
    "vf_loss",
    "vf_explained_var",
    "entropy",
    "mean_kl_loss",
    "curr_kl_coeff",
    "qf_loss",
    "alpha_value",
    "td_error_mean",
    "gradients_default_optimizer_global_norm",
    "default_optimizer_learning_rate",
)
MAX_PARAMS = 150
MAX_PARAM_CHARS = 500
QUEUE_SIZE = 1000
FLUSH_TIMEOUT_S = 20.0
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}

Tell = Callable[[dict[str, Any]], None]


class Trackers:
    """The trackers that a project asks for, fed from one queue.

    Args:
        project: `tracking.mlflow` (true, false or a URI) and `tracking.tensorboard`.
        run: Whose lines they are; its run.json keeps the MLflow run id, so that a resume continues the same one.
        tell: Where a warning goes when a tracker fails; it fails once and is then left out.
    """

    def __init__(self, project: Project, run: Run, tell: Tell | None = None) -> None:
        self._project, self._run = project, run
        self._tell = tell or (lambda event: None)
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(QUEUE_SIZE)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; returns at once, connecting happens in the thread."""
        tracking = self._project.tracking
        if tracking.mlflow is not False or tracking.tensorboard:
            self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
            self._thread.start()

    def log(self, line: Mapping[str, Any]) -> None:
        """Hand over one journal line; dropped when a tracker lags a thousand lines behind."""
        if self._thread is not None:
            try:
                self._queue.put_nowait(("line", dict(line)))
            except queue.Full:
                self._warn("tracking lags too far behind; some iterations are in the run folder only")

    def finish(self, status: str) -> None:
        """Say how the run ended, and wait a little for what is still on its way."""
        if self._thread is None:
            return
        self._queue.put(("finish", status))
        self._thread.join(FLUSH_TIMEOUT_S)
        if self._thread.is_alive():
            self._warn(f"tracking did not finish within {FLUSH_TIMEOUT_S:g} s; the run folder is complete")
        self._thread = None

    def _work(self) -> None:
        """The thread: open the trackers, then pass on whatever comes."""
        trackers: list[Any] = []
        for is_wanted, kind in (
            (self._project.tracking.mlflow is not False, MLflow),
            (self._project.tracking.tensorboard, TensorBoard),
        ):
            if is_wanted:
                self._try(kind.__name__, lambda kind=kind: trackers.append(kind(self._project, self._run)))
        while True:
            what, value = self._queue.get()
            for tracker in list(trackers):
                call = tracker.log if what == "line" else tracker.finish
                if not self._try(type(tracker).__name__, lambda call=call: call(value)):
                    trackers.remove(tracker)
            if what == "finish":
                return

    def _try(self, name: str, call: Callable[[], Any]) -> bool:
        try:
            call()
        except Exception as error:
            self._warn(f"{name} is left out from now on: {type(error).__name__}: {str(error).splitlines()[0]}")
            return False
        return True

    def _warn(self, text: str) -> None:
        self._tell({"event": "warning", "text": text})


class MLflow:
    """One MLflow run; a resumed run continues it and sends only iterations later than the last it has."""

    def __init__(self, project: Project, run: Run) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        from mlflow.tracking import MlflowClient

        uri, artifacts = _store(project)
        self._client = MlflowClient(tracking_uri=uri)
        known = run.info.get("mlflow") or {}
        self._id = str(known["run_id"]) if known.get("uri") == uri else self._create(project, run, artifacts)
        run.update(mlflow={"uri": uri, "run_id": self._id})
        history = self._client.get_metric_history(self._id, "env_steps")
        self._last = max((metric.step for metric in history), default=0)
        self._client.update_run(self._id, status="RUNNING")

    def log(self, line: Mapping[str, Any]) -> None:
        """One batch per iteration."""
        from mlflow.entities import Metric

        if line["iteration"] <= self._last:
            return
        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, line["iteration"]) for key, value in curated(line).items()]
        self._client.log_batch(self._id, metrics=metrics)
        self._last = line["iteration"]

    def finish(self, status: str) -> None:
        """Close the MLflow run."""
        self._client.set_terminated(self._id, STATUS.get(status, "FAILED"))

    def _create(self, project: Project, run: Run, artifacts: str | None) -> str:
        given = os.environ.get("MLFLOW_RUN_ID")
        if given:  # a job on a service: the run is there already
            return given
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", project.name)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = (
            experiment.experiment_id
            if experiment is not None
            else self._client.create_experiment(name, artifact_location=artifacts)
        )
        info = run.info
        git = info.get("git") or {}
        tags = {"run": run.name, "algorithm": info.get("algorithm"), "seed": project.seed, "git": git.get("commit")}
        created = self._client.create_run(
            experiment_id, run_name=run.name, tags={key: str(value) for key, value in tags.items() if value is not None}
        )
        run_id = str(created.info.run_id)
        params = list(_params(project.to_dict()).items())[:MAX_PARAMS]
        self._client.log_batch(run_id, params=[Param(key, value) for key, value in params])
        self._client.log_artifact(run_id, str(run.path / "plato.yaml"))
        return run_id


class TensorBoard:
    """Event files in the run's `tensorboard/` folder."""

    def __init__(self, project: Project, run: Run) -> None:
        from tensorboardX import SummaryWriter

        lines = run.metrics()
        # Tells TensorBoard to forget what an interrupted attempt wrote past the checkpoint.
        purge = lines[-1]["iteration"] + 1 if lines else None
        self._writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=purge)

    def log(self, line: Mapping[str, Any]) -> None:
        """All curated metrics of the iteration."""
        for key, value in curated(line).items():
            self._writer.add_scalar(key, value, line["iteration"])
        self._writer.flush()

    def finish(self, status: str) -> None:
        """Close the file."""
        self._writer.close()


def curated(line: Mapping[str, Any]) -> dict[str, float]:
    """The metrics worth a curve, without those that are null: at most 20 names."""
    metrics = {key: float(line[key]) for key in METRICS if line.get(key) is not None}
    learner = ((line.get("rllib") or {}).get("learners") or {}).get("default_policy") or {}
    for key in LEARNER_METRICS:
        value = learner.get(key)
        if isinstance(value, (int, float)):
            metrics[f"learner/{key}"] = float(value)
    return metrics


def _store(project: Project) -> tuple[str, str | None]:
    """The tracking URI, always explicit (MLflow's default makes files wherever one stands), and where artefacts go."""
    wish = project.tracking.mlflow
    if isinstance(wish, str):
        return wish, None
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given, None
    root = Path(project.root).absolute()
    return f"sqlite:///{root / 'mlflow.db'}", (root / "mlruns").as_uri()


def _params(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        return {k: v for key, item in value.items() for k, v in _params(item, f"{prefix}{key}.").items()}
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return {prefix.rstrip("."): text[:MAX_PARAM_CHARS]}
