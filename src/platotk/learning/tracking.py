"""Metrics for MLflow and TensorBoard, besides the run's own journal.

`Trackers` is given each journal line and hands on the few figures that people compare runs by. Nothing here
ever stops or slows a training: what cannot be logged is said once, and the journal has it all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import missing_extra
from ..project import Project
from ..run import Run
from .metrics import chosen_metrics

if TYPE_CHECKING:
    from .mlflow_log import MlflowLog

Tell = Callable[[dict[str, Any]], None]


class Trackers:
    """Where a run's metrics go, as `tracking:` says.

    Args:
        project: Its `tracking` section decides.
        run: The run; its folder holds the TensorBoard files, its run.json the MLflow run.
        tell: Where warnings go, as events; default: Python's logging.
    """

    def __init__(self, project: Project, run: Run, tell: Tell | None = None) -> None:
        self._project, self._run = project, run
        self._tell = tell or _log_warning
        self._mlflow: MlflowLog | None = None
        self._tensorboard: Any = None

    def start(self) -> None:
        """Open what is asked for; call it once, after the journal went back to where training goes on.

        Raises:
            MissingExtraError: TensorBoard files are asked for and tensorboardX is not installed.
        """
        if self._project.tracking.tensorboard:
            self._tensorboard = _open_tensorboard(self._run)
        if self._project.tracking.mlflow is not False:
            from .mlflow_log import MlflowLog

            self._mlflow = MlflowLog(self._project, self._run)

    def log(self, line: Mapping[str, Any]) -> None:
        """Hand on one journal line; returns at once.

        Args:
            line: A line of metrics.jsonl, after it was appended there.
        """
        if self._mlflow is not None:
            self._mlflow.log(line)
            self._warn(self._mlflow.warnings())
        if self._tensorboard is not None:
            try:
                for name, value in chosen_metrics(line).items():
                    self._tensorboard.add_scalar(name, value, line["env_steps"])
                self._tensorboard.flush()
            except OSError as error:
                self._tensorboard = None
                self._warn([f"TensorBoard files cannot be written, training goes on without: {error}"])

    def finish(self, status: str) -> None:
        """Close what was opened. What is still on its way to MLflow is waited for, a minute at most.

        Args:
            status: The run's: "finished", "stopped" or "failed".
        """
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._mlflow is not None:
            self._mlflow.finish(status)
            self._warn(self._mlflow.warnings())
        self._mlflow = self._tensorboard = None

    def _warn(self, texts: list[str]) -> None:
        for text in texts:
            self._tell({"event": "warning", "text": text})


def _open_tensorboard(run: Run) -> Any:
    """A writer into the run's folder; on resume, TensorBoard drops what lies past the journal's last line."""
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError:
        raise missing_extra("tensorboardX", "train") from None
    folder: Path = run.path / "tensorboard"
    lines = run.metrics()
    purge_step = (int(lines[-1]["env_steps"]) if lines else 0) + 1 if folder.is_dir() else None
    # With the attempt in its name: a resume within the same second would write over the file.
    suffix = f".{run.info.get('attempt', 1)}"
    return SummaryWriter(str(folder), purge_step=purge_step, filename_suffix=suffix)


def _log_warning(event: dict[str, Any]) -> None:
    logging.getLogger("platotk").warning(event["text"])
