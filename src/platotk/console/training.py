"""The live view of a training: a bar where there is a terminal, plain lines elsewhere and in log.txt."""

from __future__ import annotations

import shlex
import time
import traceback as _traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import PlatoError
from ..formats import duration, number, shown, sparkline
from .live import LiveView
from .people import STYLES, is_unicode, next_step, places, say, styled

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from ..run import Run

PLAIN_EVERY_S = 1.0
"""Where there is no terminal, and in log.txt, iterations are told at most this often."""


class TrainingView(LiveView):
    """Shows a training to people; call it with the training's events.

    On a terminal a bar to the nearest stop rule lives below the notes; elsewhere iterations are plain lines,
    at most one a second. The same plain lines go to the run's log.txt.

    Args:
        run_log: Where lines are kept; None: log.txt of the run that the training names.
    """

    def __init__(self, run_log: Path | None = None) -> None:
        super().__init__()
        self._log = _Log(run_log)
        self._told_at = self._line_at = self._began
        self._line: dict[str, Any] | None = None
        self._untold: dict[str, Any] | None = None
        self._evaluated = ""
        self._returns: list[float] = []

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, problem, trace)
        if problem is not None:
            told = str(problem) if isinstance(problem, PlatoError) else "".join(_traceback.format_exception(problem))
            self._log.add(f"{kind.__name__ if kind else 'Error'}: {told}".rstrip())
        self._log.close()

    def ended(self, run: Run, page: Path | None) -> None:
        """How it ended, where everything is, and what to type next."""
        self._close()
        how = run.status + (f": {run.info['reason']}" if run.info.get("reason") else "")
        self._tell(how[:1].upper() + how[1:], "bold")
        self._tell_failures(run)
        out = _Tee(self._people, self._log)
        places(out, run, page)
        if run.status == "stopped":
            next_step(out, run.path.parent.parent, f"train --resume {shlex.quote(run.name)}", lead="To go on:")
        else:
            next_step(out, run.path.parent.parent, "assess")

    def _on_starting(self, event: Mapping[str, Any]) -> None:
        resuming = event.get("resuming")
        self._tell(f"Training {event['project']}" + (f", resuming {resuming}" if resuming else ""), "bold")

    def _on_algorithm(self, event: Mapping[str, Any]) -> None:
        self._tell(f"algorithm {event['algorithm']}")

    def _on_mapping(self, event: Mapping[str, Any]) -> None:
        for line in event["lines"]:
            self._tell(f"  {line}", "dim")

    def _on_run(self, event: Mapping[str, Any]) -> None:
        self._log.open(Path(event["path"]) / "log.txt")
        self._tell(f"run {shown(Path(event['path']))}")
        self._doing = "Building"

    def _on_iteration(self, event: Mapping[str, Any]) -> None:
        self._line = self._untold = dict(event)
        self._line_at = time.monotonic()
        if event["return_mean"] is not None:
            self._returns.append(event["return_mean"])
        if self._line_at - self._told_at >= PLAIN_EVERY_S:
            self._tell_iteration()

    def _on_evaluation(self, event: Mapping[str, Any]) -> None:
        self._evaluated = f"checkpoint {event['iteration']} evaluates to {number(event['return_mean'])}"

    def _on_note(self, event: Mapping[str, Any]) -> None:
        self._tell(f"note: {event['text']}", STYLES["note"])

    def _on_warning(self, event: Mapping[str, Any]) -> None:
        self._tell(f"warning: {event['text']}", STYLES["warning"])

    def _on_stopping(self, event: Mapping[str, Any]) -> None:
        self._doing = "Stopping"
        self._tell_iteration()
        self._tell(f"{event.get('signal') or 'asked to stop'}: saving a checkpoint")

    def _tell(self, line: str, style: str | None = None) -> None:
        say(self._people, line, style)
        self._log.add(line)

    def _tell_iteration(self) -> None:
        """The plain line of the last iteration, if it has not been told."""
        if self._untold is None:
            return
        line = "  ".join(filter(None, [*_figures(self._untold), _distance(self._untold, 0.0), self._evaluated]))
        if self._live is None:
            say(self._people, line)
        self._log.add(line)
        self._untold, self._told_at = None, time.monotonic()

    def _tell_failures(self, run: Run) -> None:
        """How many episodes the sims have cut short, and why the last time."""
        num = (self._line or {}).get("sim_failures")
        if num:
            last = run.info.get("last_sim_failure")
            text = f"{number(num)} sim failure{'s' * (num > 1)}" + (f", the last: {last}" if last else "")
            self._tell(f"warning: {text}", STYLES["warning"])

    def _close(self) -> None:
        """Where the bar was, its last state stays as a plain line."""
        if self._live is not None:
            self._untold = self._line
        super()._close()
        self._tell_iteration()

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        now = time.monotonic()
        if self._line is None:
            return styled(f"{self._doing} ... {duration(now - self._began)}", "dim")
        fraction = self._line["progress"]["fraction"]
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(total=None if fraction is None else 1.0, completed=fraction or 0.0, width=30),
            styled(_distance(self._line, now - self._line_at)),
        )
        lines: list[RenderableType] = [styled("  ".join(_figures(self._line))), bar]
        if self._returns and is_unicode(self._people):
            lines.append(styled(f"{sparkline(self._returns)}  return"))
        if self._evaluated:
            lines.append(styled(self._evaluated, "dim"))
        if self._doing == "Stopping":
            lines.append(styled("Stopping ...", "yellow"))
        return Group(*lines)


class _Log:
    """log.txt: keeps lines until it is known where the run is, then appends."""

    def __init__(self, path: Path | None) -> None:
        self._lines: list[str] = []
        self._file: Any = None
        if path is not None:
            self.open(path)

    def open(self, path: Path) -> None:
        if self._file is None:
            self._file = path.open("a", encoding="utf-8", buffering=1)
            for line in self._lines:
                self.add(line)

    def add(self, line: str) -> None:
        if self._file is None:
            self._lines.append(line)
        else:
            self._file.write(line + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _Tee:
    """A console whose lines also go to a log."""

    def __init__(self, people: Console, log: _Log) -> None:
        self._people, self._log = people, log

    def print(self, line: Any, **options: Any) -> None:
        self._people.print(line, **options)
        self._log.add(str(line))


def _figures(line: Mapping[str, Any]) -> list[str]:
    return [
        f"iteration {number(line['iteration'])}",
        f"return {number(line['return_mean'])}",
        f"{number(line['env_steps'])} steps",
        f"{number(round(line['env_steps_per_s']))} steps/s",
        f"{number(line['episodes'])} episodes",
    ]


def _distance(line: Mapping[str, Any], since_s: float) -> str:
    """How far the nearest stop rule is: `42% of iterations  1:20 left`."""
    rule, fraction, eta_s = (line["progress"].get(key) for key in ("rule", "fraction", "eta_s"))
    if fraction is None:
        return f"until {rule}"
    left = "" if eta_s is None else f"  {duration(max(0.0, eta_s - since_s))} left"
    return f"{fraction:.0%} of {rule}{left}"
