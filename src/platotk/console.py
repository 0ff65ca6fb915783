"""All that is printed: JSON for programs on stdout, everything for people on stderr.

It is given what the Python functions return, and shows it: tables, findings, a live view of a training,
errors in two lines. The only module that prints or imports rich (inside functions: `--help` does without).
"""
# ruff: noqa: TID251

from __future__ import annotations

import json as _json
import os
import shlex
import sys
import time
import traceback as _traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .errors import PlatoError
from .formats import (
    ago,
    duration,
    figure,
    finite,
    from_users_code,
    label,
    number,
    plato_command,
    shown,
    sparkline,
    typable,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

    from .assessment.assess import Assessment
    from .project import Project
    from .run import Run
    from .sims.checks import Finding

PLAIN_WIDTH = 140
"""Columns of a table when stderr is a file or a pipe."""
PLAIN_EVERY_S = 1.0
"""Where there is no terminal, and in log.txt, iterations are told at most this often."""
STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def json(value: Any) -> None:
    """The answer for programs: one JSON value on stdout."""
    print(_json.dumps(finite(value), indent=2, allow_nan=False))


def text(value: str) -> None:
    """A bare answer on stdout."""
    print(value)


def note(line: str, style: str | None = None) -> None:
    """One line for people."""
    _say(_people(), line, style)


def error(problem: PlatoError) -> None:
    """Two lines: what is wrong, and what to do."""
    people = _people()
    people.print(_text("Error: ", "bold red") + _text(typable(problem.message)), soft_wrap=True)
    if problem.hint:
        _say(people, f"  {typable(problem.hint)}")


def traceback(problem: BaseException, *, skip_own_frames: bool = False) -> None:
    """A whole traceback; without the frames above the user's own code if asked to skip ours."""
    trace = from_users_code(problem.__traceback__) if skip_own_frames else problem.__traceback__
    print("".join(_traceback.format_exception(type(problem), problem, trace)), end="", file=sys.stderr)


def started(folder: Path, files: Sequence[Path]) -> None:
    """What `init` wrote, and how to go on."""
    people = _people()
    for path in files:
        _say(people, f"wrote {shown(path)}")
    sims = [path for path in files if path.name == "sim.py"]
    _next(people, folder, "check", lead=f"Look into {shown(sims[0])}, then:" if sims else "Next:")


def findings(found: Sequence[Finding], project: Project) -> None:
    """Errors first, each finding with its place and its cure as code."""
    people = _people()
    head = None
    for finding in sorted(found, key=lambda item: list(STYLES).index(item.severity)):
        if head != (head := (finding.severity, finding.id, finding.where)):
            _head(people, finding)
        for line in finding.message.splitlines():
            _say(people, f"  {typable(line)}")
        for line in (finding.cure or "").splitlines():
            _say(people, f"    {line}", "green")
    counts = {severity: sum(item.severity == severity for item in found) for severity in STYLES}
    told = [f"{count} {word}{'s' * (count != 1)}" for word, count in counts.items() if count]
    _say(people, f"{project.name}: {', '.join(told) or 'nothing found'}.", "bold")
    if counts["error"]:
        _next(people, project.root, "check", lead="Cure the errors, then check again:")
    else:
        _next(people, project.root, "train")


def runs(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """A table of runs."""
    people = _people()
    if not rows:
        _say(people, f"No runs in {shown(folder)} yet.")
        return _next(people, folder.parent, "train")
    table = _table("run", "status", "when", "algorithm", "iterations", "env steps", "return")
    for row in rows:
        table.add_row(
            str(row["run"]),
            _status(row["status"]),
            ago(row.get("created")),
            str(row.get("algorithm") or ""),
            number(row.get("iteration")),
            number(row.get("env_steps")),
            number(row.get("return_mean")),
        )
    people.print(table)
    _next(
        people,
        folder.parent,
        f"show {shlex.quote(str(rows[0]['run']))}",
        lead="A learning curve, as a page to open:",
    )


def run(found: Run, summary: Mapping[str, Any], page: Path | None) -> None:
    """One run: its figures and where everything is."""
    people = _people()
    _say(people, found.name, "bold")
    _pairs(people, summary, skip=("run", "path", "versions"))
    _places(people, found, page)


def compared(rows: Sequence[Mapping[str, Any]], page: Path | None) -> None:
    """Runs side by side: a column for each, a line for each figure in which one of them has something."""
    people = _people()
    table = _table("", *(str(row["run"]) for row in rows))
    for key in dict.fromkeys(key for row in rows for key in row if key not in ("run", "path")):
        values = [row.get(key) for row in rows]
        if any(value not in (None, "", [], {}) for value in values):
            table.add_row(label(key), *(figure(key, value) for value in values))
    people.print(table)
    if page is not None:
        _say(people, f"  curves  {shown(page)}")


def assessed(assessment: Assessment, run: Run | None) -> None:
    """The figures of an assessment; of a run: and how to export it."""
    people = _people()
    _pairs(people, assessment.summary())
    if assessment.path is not None:
        _say(people, f"  kept in  {shown(assessment.path)}")
    if run is not None:
        _next(people, run.path.parent.parent, f"export {shlex.quote(run.name)}")


def exporting(event: Mapping[str, Any]) -> None:
    """A line for each step of an export."""
    steps = {
        "recording": f"Recording {number(event.get('rows'))} observations and what the trained policy does",
        "tracing": "Tracing the policy to ONNX",
        "verifying": "Verifying that the agent does the same",
    }
    note(steps.get(event["step"], event["step"]))


def exported(folder: Path, run: Run, manifest: Mapping[str, Any], num_bytes: int, example: str | None) -> None:
    """Where the agent is, how equal it is, and an observation to try next."""
    people = _people()
    _say(people, "Exported", "bold")
    _say(people, f"  agent   {shown(folder)}  ({_size(num_bytes)}, checkpoint {manifest['provenance']['checkpoint']})")
    _say(people, f"  parity  {_parity(manifest['parity'])}")
    root = run.path.parent.parent
    _next(people, root, "verify" if example is None else f"act {shlex.quote(example)}")


def verified(folder: Path, proof: Mapping[str, Any]) -> None:
    """The outcome of a replay."""
    people = _people()
    _say(people, f"  agent   {shown(folder)}")
    _say(people, f"  parity  {_parity(proof)}", None if proof["is_equal"] else "bold red")


def agent(folder: Path, manifest: Mapping[str, Any], num_bytes: int) -> None:
    """What an agent says of itself."""
    people = _people()
    came, state = manifest["provenance"], manifest["model"]["state"]
    _say(people, str(manifest["name"]), "bold")
    told = {
        "algorithm": manifest["algorithm"],
        "created": manifest["created"],
        "from run": came["run"],
        "checkpoint": came["checkpoint"],
        "commit": (came.get("git") or {}).get("commit"),
        "versions": "  ".join(f"{name} {version}" for name, version in (came.get("versions") or {}).items()),
        "spaces": manifest["mapping"],
        "memory": ", ".join(f"{entry['input']} {entry['shape']}" for entry in state),
        **(manifest["metrics"] or {}),
        "parity": _parity(manifest["parity"]),
        "files": "  ".join(f"{name} {_size(entry['bytes'])}" for name, entry in manifest["files"].items()),
        "size": _size(num_bytes),
    }
    _pairs(people, told)
    _say(people, f"  agent  {shown(folder)}")


def acting(path: Path, has_memory: bool, *, run: Run | None = None) -> None:
    """Who answers, in one line: plain, because loading rich would take longer than the answer."""
    if run is None:
        line = f"answered by the agent {shown(path)}"
    else:
        line = (
            f"answered by checkpoint {path.name} of {run.name}; an exported agent is faster: {plato_command()} export"
        )
    print(line + (", as the first step of an episode" if has_memory else ""), file=sys.stderr)


@contextmanager
def waiting(line: str) -> Iterator[None]:
    """A line that moves while something takes its time (terminals only)."""
    people = _people()
    if not _is_live(people):
        yield
        return
    with people.status(_text(f"{line} ..."), spinner="dots" if _is_unicode(people) else "line"):
        yield


@contextmanager
def counting(line: str) -> Iterator[Any]:
    """A bar; gives a function of (done, total). Shown on terminals only."""
    people = _people()
    if not _is_live(people):
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=people, transient=True) as progress:
        task = progress.add_task(line, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class TrainingView:
    """Shows a training to people; call it with the training's events.

    On a terminal a bar to the nearest stop rule lives below the notes; elsewhere iterations are plain lines,
    at most one a second. The same plain lines go to the run's log.txt.

    Args:
        run_log: Where lines are kept; None: log.txt of the run that the training names.
    """

    def __init__(self, run_log: Path | None = None) -> None:
        self._people = _people()
        self._log = _Log(run_log)
        self._live: Any = None
        self._began = self._told_at = self._line_at = time.monotonic()
        self._line: dict[str, Any] | None = None
        self._untold: dict[str, Any] | None = None
        self._evaluated = ""
        self._returns: list[float] = []
        self._doing = "Starting"

    def __enter__(self) -> TrainingView:
        if _is_live(self._people):
            from rich.live import Live

            self._live = Live(get_renderable=self._picture, console=self._people, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if problem is not None:
            told = str(problem) if isinstance(problem, PlatoError) else "".join(_traceback.format_exception(problem))
            self._log.add(f"{kind.__name__ if kind else 'Error'}: {told}".rstrip())
        self._log.close()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take in an event of the training."""
        tell = getattr(self, f"_on_{event['event']}", None)
        if tell is not None:
            tell(event)

    def ended(self, run: Run, page: Path | None) -> None:
        """How it ended, where everything is, and what to type next."""
        self._close()
        how = run.status + (f": {run.info['reason']}" if run.info.get("reason") else "")
        self._tell(how[:1].upper() + how[1:], "bold")
        people = _Tee(self._people, self._log)
        _places(people, run, page)
        if run.status == "stopped":
            _next(people, run.path.parent.parent, f"train --resume {shlex.quote(run.name)}", lead="To go on:")
        else:
            _next(people, run.path.parent.parent, "assess")

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
        _say(self._people, line, style)
        self._log.add(line)

    def _tell_iteration(self) -> None:
        """The plain line of the last iteration, if it has not been told."""
        if self._untold is None:
            return
        line = "  ".join(filter(None, [*_figures(self._untold), _distance(self._untold, 0.0), self._evaluated]))
        if self._live is None:
            _say(self._people, line)
        self._log.add(line)
        self._untold, self._told_at = None, time.monotonic()

    def _close(self) -> None:
        """Take the live bar away; where it was, its last state stays as a plain line."""
        if self._live is not None:
            self._live.stop()
            self._live, self._untold = None, self._line
        self._tell_iteration()

    def _picture(self) -> RenderableType:
        """What stands at the bottom of the terminal just now."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        now = time.monotonic()
        if self._line is None:
            return _text(f"{self._doing} ... {duration(now - self._began)}", "dim")
        fraction = self._line["progress"]["fraction"]
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(total=None if fraction is None else 1.0, completed=fraction or 0.0, width=30),
            _text(_distance(self._line, now - self._line_at)),
        )
        lines: list[RenderableType] = [_text("  ".join(_figures(self._line))), bar]
        if self._returns and _is_unicode(self._people):
            lines.append(_text(f"{sparkline(self._returns)}  return"))
        if self._evaluated:
            lines.append(_text(self._evaluated, "dim"))
        if self._doing == "Stopping":
            lines.append(_text("Stopping ...", "yellow"))
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


def _people() -> Console:
    """A console on stderr; wide where nobody looks at a terminal, so that nothing is cut off."""
    from rich.console import Console

    width = None if sys.stderr.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH
    return Console(stderr=True, highlight=False, markup=False, emoji=False, width=width)


def _say(people: Any, line: str, style: str | None = None) -> None:
    """One line, never broken by us: commands and paths must survive copying."""
    people.print(_text(line, style), soft_wrap=True)


def _text(line: str, style: str | None = None) -> Text:
    from rich.text import Text

    return Text(line, style=style or "")


def _is_live(people: Console) -> bool:
    """Whether lines can be written over: a real terminal, not a log that asks for colour (FORCE_COLOR)."""
    return sys.stderr.isatty() and people.is_terminal and not people.is_dumb_terminal


def _is_unicode(people: Console) -> bool:
    return people.encoding.lower().startswith("utf")


def _table(*headings: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        is_number = heading in ("iterations", "env steps", "return")
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    return table


def _head(people: Console, finding: Finding) -> None:
    head = _text(f"{finding.severity}  ", STYLES[finding.severity]) + _text(finding.id, "bold")
    if finding.where:
        head += _text(f"  {finding.where}", "dim")
    people.print(head, soft_wrap=True)


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


def _places(people: Any, run: Run, page: Path | None) -> None:
    _say(people, f"  run    {shown(run.path)}")
    if page is not None:
        _say(people, f"  curve  {shown(page)}")
    if run.best is not None:
        _say(people, f"  best   {shown(run.best)}")


def _pairs(people: Console, values: Mapping[str, Any], skip: Sequence[str] = ()) -> None:
    """A line for each value that says something; a list of lines goes on below its first."""
    told = {key: value for key, value in values.items() if key not in skip and value not in (None, "", [])}
    width = max((len(key) for key in told), default=0)
    for key, value in told.items():
        for at, line in enumerate(value if isinstance(value, list) else [value]):
            _say(people, f"  {'' if at else label(key):<{width}}  {figure(key, line)}")


def _parity(proof: Mapping[str, Any]) -> str:
    """One line on how equal an agent and its training are."""
    verdict = "equal" if proof["is_equal"] else "NOT equal"
    return (
        f"{verdict}: {number(proof['num_rows'])} observations, {number(proof['num_mismatches'])} other choices, "
        f"{number(proof['num_undecided'])} where it was undecided, largest error {proof['max_error']:.1g} of the range"
    )


def _size(num_bytes: int) -> str:
    """Bytes for people: `118 kB`."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1_000_000 else f"{max(1, round(num_bytes / 1000))} kB"


def _status(status: str) -> Any:
    styles = {"running": "cyan", "finished": "green", "stopped": "yellow"}
    return _text(status, styles.get(status, "red" if status in ("failed", "interrupted") else None))


def _next(people: Any, root: Path, words: str, *, lead: str = "Next:") -> None:
    """What to type next, ready to be copied; names the project unless it is the one found from here."""
    _say(people, lead)
    here = Path.cwd()
    nearest = next((folder for folder in (here, *here.parents) if (folder / "plato.yaml").is_file()), here)
    where = "" if nearest == root.resolve() else f" -C {shlex.quote(shown(root))}"
    _say(people, f"  {plato_command()} {words}{where}")
