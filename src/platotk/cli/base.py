"""What the commands share: the Typer app, its options, and how a project, a run or JSON is read from the line.

Errors become two lines and an exit code here, once for all commands.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from .. import __version__, console
from ..errors import PlatoError, ProjectError

if TYPE_CHECKING:
    from ..project import Project
    from ..run import Run

ProjectPath = Annotated[
    Path | None,
    typer.Option("-C", metavar="PATH", help="The project. Default: the nearest plato.yaml upward."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON value on stdout, and nothing else there.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of plato.yaml by its dotted path. Repeatable."),
]
RunRef = Annotated[
    str | None,
    typer.Argument(metavar="[RUN]", help="A name, the beginning of one, or a path. Default: the newest."),
]
AgentRef = Annotated[
    str | None,
    typer.Argument(metavar="[AGENT]", help="An agent's folder, or a run for its newest one. Default: the newest."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before something costs money or is deleted.")]
CheckpointRef = Annotated[str, typer.Option(metavar="WHICH", help="best, last, or an iteration.")]
Controllers = Annotated[
    bool, typer.Option("--controllers", help="Import the fallback controller that the agent names; it is code.")
]

SO_FAR = "platotk.so_far"
"""In a command's `ctx.meta`: a function that gives what `--json` says of what there is already, should it fail."""

ORDER = (
    *("init", "check", "train", "tune", "assess", "export", "verify", "act", "serve", "deploy"),
    *("runs", "show", "compare", "logs", "stop", "fetch", "node", "azure"),
)
"""The path of a user; `plato --help` lists these first."""


class _Plato(TyperGroup):
    """Takes `--debug` anywhere on the line, and lists the commands in the order in which they are used."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return [name for name in ORDER if name in names] + [name for name in names if name not in ORDER]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--debug" in args:
            args = ["--debug", *(word for word in args if word != "--debug")]
        ctx.obj = list(args)
        return super().parse_args(ctx, args)


class Command(TyperCommand):
    """Turns errors into two lines and an exit code, and reads a bare `--resume` as `--resume last`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """A bare `--resume` gets its value."""
        for index, word in enumerate(args):
            if word == "--resume" and (index + 1 == len(args) or args[index + 1].startswith("-")):
                args = [*args[: index + 1], "last", *args[index + 1 :]]
                break
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """An error becomes two lines and an exit code; `--debug` shows all of it."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            raise typer.Exit(128 + signal.SIGINT) from None
        except Exception as error:
            if ctx.find_root().params.get("debug"):
                console.traceback(error)
            elif isinstance(error, PlatoError):
                console.error(error)
            else:
                console.traceback(error, skip_own_frames=True)
            code = error.exit_code if isinstance(error, PlatoError) else 1
            if ctx.params.get("as_json"):
                console.json({**ctx.meta.get(SO_FAR, dict)(), **_told(error, code)})
            raise typer.Exit(code) from None


def examples(*lines: str) -> str:
    """An epilog that keeps its lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


app = typer.Typer(
    cls=_Plato,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # rich is slow to load, and plain help is as clear
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "plato init --from simple-adder",
        "plato check",
        "plato train",
        "plato assess",
        "plato export",
    ),
)


def _version(is_asked: bool) -> None:
    if is_asked:
        console.text(f"plato {__version__}")
        raise typer.Exit


@app.callback()
def plato(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    """From a Gymnasium simulator to a trained agent, with Ray RLlib."""


def require_yes(question: str, yes: bool, *, if_alone: bool = False) -> None:
    """Ask, unless it was answered beforehand; leaves with 1 on a no.

    Args:
        question: What a person is asked.
        yes: The answer that was given on the line.
        if_alone: The answer where nobody sits at a terminal.
    """
    if yes or console.confirmed(question, if_alone=if_alone):
        return
    console.note("Nothing was done. --yes answers the question beforehand.")
    raise typer.Exit(1)


def load_project(path: Path | None, overrides: list[str] | None) -> Project:
    """The project at `path`, or the nearest one upward."""
    from ..project import Project

    return Project.load(Project.find() if path is None else path, overrides=overrides or [])


def find_runs_dir(path: Path | None) -> Path:
    """Where the project's runs are: beside the nearest plato.yaml, or here when there is none."""
    from ..project_file import find_project_file

    try:
        root = find_project_file(path).parent
    except ProjectError:
        root = path or Path()
    return root / "runs"


def controllers_root(path: Path | None) -> Path:
    """Where controllers are looked for first: in the project that is named or found from here, or else here."""
    from ..project_file import find_project_file

    try:
        return find_project_file(path).parent
    except ProjectError:
        return (path or Path()).resolve()


def load_run(name: str | None, path: Path | None) -> Run:
    """The run of that name, prefix or path; the newest without one."""
    from ..run import find_run

    return find_run(name, runs_dir=find_runs_dir(path))


def load_trained(name: str | None, path: Path | None) -> Run:
    """The same; of a tuning its best trial."""
    from ..trials import trained_run

    return trained_run(load_run(name, path))


def parse_json(text: str, what: str) -> Any:
    """JSON from the command line.

    Raises:
        ProjectError: It is not JSON (wrong usage: exit code 2).
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ProjectError(
            f"{what} is not JSON: {error.msg} at character {error.pos + 1} of {_short(text)}",
            hint="Quote it for the shell, with double quotes inside: plato act '{\"value\": 17}'",
        ) from None


def _told(error: Exception, code: int) -> dict[str, Any]:
    """What `--json` says of an error."""
    if isinstance(error, PlatoError):
        return {"error": error.message, "hint": error.hint, "exit_code": code}
    return {"error": f"{type(error).__name__}: {error}", "hint": None, "exit_code": code}


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
