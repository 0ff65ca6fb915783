"""The live view of a tuning, and its trials as a table: plain lines as trials end, a line below on a terminal."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats import duration, number, shown
from .live import LiveView
from .people import next_step, people, places, say, styled, table

if TYPE_CHECKING:
    from rich.text import Text

    from ..run import Run

NUM_SHOWN = 10


class TuningView(LiveView):
    """Shows a tuning to people; call it with the tuning's events.

    Args:
        metric: What trials are judged by.
    """

    def __init__(self, metric: str) -> None:
        super().__init__()
        self._metric = metric
        self._num, self._ended = 0, 0
        self._running: dict[int, Mapping[str, Any]] = {}

    def ended(self, run: Run, page: Path | None) -> None:
        """The trials, best first, where everything is, and what to type next."""
        from ..trials import summaries, trained_run

        self._close()
        how = run.status + (f": {run.info['reason']}" if run.info.get("reason") else "")
        say(self._people, how[:1].upper() + how[1:], "bold")
        rows = summaries(run)
        trials(rows, self._metric)
        places(self._people, run, page)
        root = run.path.parent.parent
        if run.status == "stopped":
            return next_step(self._people, root, f"tune --resume {run.name}", lead="To go on:")
        best = trained_run(run)
        say(self._people, f"  best   {shown(best.path)}")
        changes = " ".join(
            f"--set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in rows[0]["params"].items()
        )
        next_step(self._people, root, f"assess {run.name}", lead="How good is the best one:")
        next_step(self._people, root, f"train {changes}", lead="To train with its settings once more:")

    def _on_tuning(self, event: Mapping[str, Any]) -> None:
        self._num = event["trials"]
        say(self._people, f"Tuning: {event['trials']} trials, {event['parallel']} at a time", "bold")
        say(self._people, f"run {shown(Path(event['path']))}")
        self._doing = "Training"

    def _on_trial_started(self, event: Mapping[str, Any]) -> None:
        self._running[event["trial"]] = {}
        say(self._people, f"trial {event['trial']} begins  {_settings(event['params'])}", "dim")

    def _on_trial_iteration(self, event: Mapping[str, Any]) -> None:
        self._running[event["trial"]] = event["line"]

    def _on_trial_ended(self, event: Mapping[str, Any]) -> None:
        line = self._running.pop(event["trial"], {})
        self._ended += 1
        told = f"{self._metric} {number(event['value'])} at best, iteration {number(line.get('iteration', 0))}"
        why = f": {event['error']}" if event["status"] == "failed" and event.get("error") else f"  {told}"
        style = {"failed": "red", "pruned": "yellow"}.get(event["status"])
        say(self._people, f"trial {event['trial']} {event['status']}{why}", style)

    def _on_stopping(self, event: Mapping[str, Any]) -> None:
        self._doing = "Stopping"
        say(self._people, f"{event.get('signal') or 'out of time'}: the trials save their checkpoints")

    def _picture(self) -> Text:
        at = "  ".join(
            f"{trial}: {number(line.get(self._metric))} at {number(line.get('iteration', 0))}"
            for trial, line in self._running.items()
        )
        past = duration(time.monotonic() - self._began)
        return styled(f"{self._doing} ... {past}  {self._ended} of {self._num} ended  {at}", "dim")


def trials(rows: Sequence[Mapping[str, Any]], metric: str) -> None:
    """A table of trials, best first."""
    out = people()
    keys = list(dict.fromkeys(key for row in rows for key in row["params"]))
    grid = table("trial", "status", metric, "iterations", "env steps", *keys)
    for row in rows[:NUM_SHOWN]:
        settings = [_value(row["params"].get(key)) for key in keys]
        figures = [number(row[key]) for key in ("value", "iteration", "env_steps")]
        grid.add_row(str(row["trial"]), str(row["status"]), *figures, *settings)
    out.print(grid)
    if len(rows) > NUM_SHOWN:
        say(out, f"  and {len(rows) - NUM_SHOWN} more: plato show --json")


def _settings(params: Mapping[str, Any]) -> str:
    return "  ".join(f"{key}={_value(value)}" for key, value in params.items())


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
