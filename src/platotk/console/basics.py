"""JSON and bare answers for programs on stdout; notes, errors and what takes its time for people on stderr."""

from __future__ import annotations

import json as _json
import sys
import traceback as _traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import PlatoError
from ..formats import finite, from_users_code, typable
from .people import is_live, is_unicode, people, say, styled
from .streams import answer, tell


def json(value: Any) -> None:
    """The answer for programs: one JSON value on stdout."""
    answer(_json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def text(value: str) -> None:
    """A bare answer on stdout."""
    answer(f"{value}\n")


def note(line: str, style: str | None = None) -> None:
    """One line for people."""
    say(people(), line, style)


def confirmed(question: str, *, if_alone: bool = False) -> bool:
    """Whether a person says yes; `if_alone` is the answer where nobody sits at a terminal."""
    if not sys.stdin.isatty():
        return if_alone
    say(people(), f"{question} Type yes:")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def error(problem: PlatoError) -> None:
    """Two lines: what is wrong, and what to do."""
    out = people()
    out.print(styled("Error: ", "bold red") + styled(typable(problem.message)), soft_wrap=True)
    if problem.hint:
        say(out, f"  {typable(problem.hint)}")


def traceback(problem: BaseException, *, skip_own_frames: bool = False) -> None:
    """A whole traceback; without the frames above the user's own code if asked to skip ours."""
    trace = from_users_code(problem.__traceback__) if skip_own_frames else problem.__traceback__
    tell("".join(_traceback.format_exception(type(problem), problem, trace)))


@contextmanager
def waiting(line: str) -> Iterator[None]:
    """A line that moves while something takes its time (terminals only)."""
    out = people()
    if not is_live(out):
        yield
        return
    with out.status(styled(f"{line} ..."), spinner="dots" if is_unicode(out) else "line"):
        yield


@contextmanager
def counting(line: str) -> Iterator[Any]:
    """A bar; gives a function of (done, total). Shown on terminals only."""
    out = people()
    if not is_live(out):
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task(line, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
