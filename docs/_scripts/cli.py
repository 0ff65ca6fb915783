"""Write docs/reference/cli.md from the Typer app: every command with its arguments, options and help.

Given nothing but `platotk.cli.app`; gives back one Markdown page. `tests/test_docs.py` holds them together.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "reference/cli.md"
INTRO = """# Commands

<!-- Written by docs/_scripts/cli.py. -->

Commands take `-C PATH` (the project; default: the nearest `plato.yaml` upward), `--json` (one JSON
value on stdout and nothing else) and `--help`.
RUN is a name, the beginning of a name that is clear, or a path; left out, it is the newest.
Exit codes: 0 good; 1 the work failed or a verdict is negative; 2 wrong usage or project; 75 stopped early,
resume me.
"""


def page() -> str:
    """The whole page, in the order in which `plato --help` lists the commands."""
    import typer

    from platotk.cli import app

    group: Any = typer.main.get_command(app)
    context = group.context_class(group, info_name="plato")
    commands = [group.get_command(context, name) for name in group.list_commands(context)]
    told = []
    for command in commands:
        inner = getattr(command, "commands", {})
        told += [_command(one, f"{command.name} {one.name}") for one in inner.values() if not one.hidden]
        told += [] if command.hidden or inner else [_command(command, command.name)]
    return "\n".join([INTRO, *told])


def _command(command: Any, name: str) -> str:
    arguments = [_metavar(p) for p in command.params if p.param_type_name == "argument"]
    usage = " ".join([f"plato {name}", *arguments, "[OPTIONS]"])
    help_text = inspect.cleandoc(command.help or "").replace("\f", "")
    lines = [f"## plato {name}", "", f"`{usage}`", "", help_text, ""]
    if command.epilog:
        lines += ["```text", *_examples(command.epilog), "```", ""]
    rows = [_row(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
    if rows:
        lines += ["| Argument or option | |", "| --- | --- |", *rows, ""]
    return "\n".join(lines)


def _examples(epilog: str) -> list[str]:
    return [line.strip() for line in epilog.splitlines() if line.startswith("  ")]


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = f"`{_metavar(parameter)}`"
    else:
        flags = ", ".join(f"`{flag}`" for flag in [*parameter.opts, *parameter.secondary_opts])
        name = flags if parameter.is_flag else f"{flags} `{_metavar(parameter)}`"
    help_text = " ".join((getattr(parameter, "help", None) or "").split())
    default = parameter.default
    if (
        default is not None
        and not callable(default)
        and default not in (False, (), [])
        and str(default) not in help_text
    ):
        help_text += f" Default: `{default}`."
    return f"| {name} | {help_text.replace('|', chr(92) + '|')} |"


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or (parameter.name.upper() if parameter.required else f"[{parameter.name.upper()}]"))


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
