"""How people are spoken to: a rich console on stderr, lines that survive copying, tables and pairs.

rich is imported inside functions, so that `--help` does without it.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats import figure, label, plato_command, shown
from .streams import Unbroken

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..run import Run

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}
PLAIN_WIDTH = 140
"""Columns of a table when stderr is a file or a pipe."""
STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def people() -> Console:
    """A console on stderr; wide where nobody looks at a terminal, so that nothing is cut off."""
    from rich.console import Console

    width = None if sys.stderr.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH
    heard: Any = Unbroken(sys.stderr)
    return Console(file=heard, stderr=True, highlight=False, markup=False, emoji=False, width=width)


def say(out: Any, line: str, style: str | None = None) -> None:
    """One line, never broken by us: commands and paths must survive copying."""
    out.print(styled(line, style), soft_wrap=True)


def styled(line: str, style: str | None = None) -> Text:
    """A line with a style, never read as markup nor, where somebody else wrote it, as commands to the terminal."""
    from rich.text import Text

    return Text(line.translate(_CONTROLS), style=style or "")


def is_live(out: Console) -> bool:
    """Whether lines can be written over: a real terminal, not a log that asks for colour (FORCE_COLOR)."""
    return sys.stderr.isatty() and out.is_terminal and not out.is_dumb_terminal


def is_unicode(out: Console) -> bool:
    """Whether spinners and sparklines arrive whole."""
    return out.encoding.lower().startswith("utf")


def table(*headings: str) -> Table:
    """An empty table; figures to the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        is_number = heading in ("iterations", "env steps", "return")
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    return table


def pairs(out: Console, values: Mapping[str, Any], skip: Sequence[str] = ()) -> None:
    """A line for each value that says something; a list of lines goes on below its first."""
    told = {key: value for key, value in values.items() if key not in skip and value not in (None, "", [])}
    width = max((len(key) for key in told), default=0)
    for key, value in told.items():
        for at, line in enumerate(value if isinstance(value, list) else [value]):
            say(out, f"  {'' if at else label(key):<{width}}  {figure(key, line)}")


def places(out: Any, run: Run, page: Path | None) -> None:
    """Where a run's folder, its page and its best checkpoint are."""
    say(out, f"  run    {shown(run.path)}")
    if page is not None:
        say(out, f"  curve  {shown(page)}")
    if run.best is not None:
        say(out, f"  best   {shown(run.best)}")


def whereabouts(run: Run) -> tuple[Path, str]:
    """The project's folder, and what to call the run there: a trial of a tuning by its path."""
    from ..trials import tuning_of  # here: it would slow down --help

    tuning = tuning_of(run)
    return (run.path.parent.parent, run.name) if tuning is None else (tuning.parent.parent, shown(run.path))


def next_step(out: Any, root: Path, words: str, *, lead: str = "Next:") -> None:
    """What to type next, ready to be copied; names the project unless it is the one found from here.

    Nothing in a job whose folder goes with its node: the log is read where such a path means nothing.
    """
    from ..compute.base import CARRIED_VARIABLE

    if CARRIED_VARIABLE in os.environ:
        return
    say(out, lead)
    here = Path.cwd()
    nearest = next((folder for folder in (here, *here.parents) if (folder / "plato.yaml").is_file()), here)
    where = "" if nearest == root.resolve() else f" -C {shlex.quote(shown(root))}"
    say(out, f"  {plato_command()} {words}{where}")
