"""Where things stand in the sim's source: `sim.py:42` of a method, of an attribute, of a return, of an error.

`Places` reads the source of the sim's class once; every question has an answer or None, never an error.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sysconfig
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

_OURS = str(Path(__file__).resolve().parents[2])
_INSTALLED = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})


class Places:
    """Places in the source of one sim.

    Args:
        sim: The sim; wrappers around it are looked through.
        root: The project's directory; files in it are named relative to it.
    """

    def __init__(self, sim: Any, root: Path | None) -> None:
        self._root = root
        try:
            inner = sim.unwrapped
        except Exception:
            inner = sim
        self._classes = [one for one in type(inner).__mro__ if _source(one) is not None]
        self._found: dict[str, str | None] = {}

    def method(self, name: str) -> str | None:
        """Where a method is defined; when it is not, where the class is."""
        return self._once(f"def {name}", lambda: self._definition(name))

    def _definition(self, name: str) -> str | None:
        for owner in self._classes:
            function = vars(owner).get(name)
            if function is not None:
                found = _source(inspect.unwrap(function))
                if found is not None:
                    return self._place(found[0], found[1])
        return self.sim()

    def sim(self) -> str | None:
        """Where the sim's class is defined."""
        for owner in self._classes:
            found = _source(owner)
            if found is not None:
                return self._place(found[0], found[1])
        return None

    def returns(self, method: str) -> str | None:
        """Where a method returns (its last `return`)."""
        return self._once(f"return {method}", lambda: self._last_return(method))

    def _last_return(self, method: str) -> str | None:
        for owner in self._classes:
            if method in vars(owner):
                found = _source(inspect.unwrap(vars(owner)[method]))
                lines = [node.lineno for node in _nodes(found) if isinstance(node, ast.Return) and node.value]
                if found is not None and lines:
                    return self._place(found[0], found[1] + max(lines) - 1)
        return self.method(method)

    def attribute(self, name: str) -> str | None:
        """Where `self.name = ...` (or `name = ...` on the class) stands first; else where the class does."""
        for owner in self._classes:
            found = _source(owner)
            for node in _nodes(found):
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                names = [getattr(t, "attr", getattr(t, "id", None)) for t in targets]
                if isinstance(node, (ast.Assign, ast.AnnAssign)) and name in names and found is not None:
                    return self._place(found[0], found[1] + node.lineno - 1)
        return self.sim()

    def raised(self, trace: TracebackType | None) -> str | None:
        """The innermost line of a traceback that is the user's own."""
        frames = []
        while trace is not None:
            frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
            trace = trace.tb_next
        return self.innermost(list(reversed(frames)))

    def innermost(self, frames: list[tuple[str, int]]) -> str | None:
        """The first of these (file, line) pairs, innermost first, that is the user's own (else the sim's)."""
        files = {found[0] for found in map(_source, self._classes) if found is not None}
        for file, line in frames:
            if file in files or is_users(file):
                return self._place(file, line)
        outside = [(file, line) for file, line in frames if not file.startswith((_OURS, "<"))]
        return self._place(*outside[0]) if outside else None

    def _once(self, key: str, find: Callable[[], str | None]) -> str | None:
        """What `find` gives, remembered: places are asked for at every step, and reading source is slow."""
        if key not in self._found:
            self._found[key] = find()
        return self._found[key]

    def _place(self, file: str, line: int) -> str:
        return f"{shown(file, self._root)}:{line}"


class NoPlaces(Places):
    """Places before there is a sim: only tracebacks can be placed."""

    def __init__(self, root: Path | None) -> None:
        self._root = root
        self._classes = []
        self._found = {}


def is_users(file: str) -> bool:
    """Whether a source file is neither Python's, nor installed, nor platotk's."""
    return not file.startswith((_OURS, "<", *_INSTALLED)) and os.path.exists(file)


def shown(file: str, root: Path | None) -> str:
    """A file as a person standing in the project would write it."""
    for base in filter(None, (root, Path.cwd())):
        near = os.path.relpath(os.path.realpath(file), os.path.realpath(base))
        if not near.startswith(os.pardir):
            return near
    return file


def stack_frames(dump: str) -> list[tuple[str, int]]:
    """(file, line) of a stack that `faulthandler` wrote, innermost first; the first thread in it."""
    frames: list[tuple[str, int]] = []
    for line in dump.splitlines():
        match = re.match(r'\s+File "(.+)", line (\d+) in ', line)
        if match:
            frames.append((match[1], int(match[2])))
        elif frames:
            break
    return frames


def _source(thing: Any) -> tuple[str, int, list[str]] | None:
    """File, first line and lines of a class or function, or None for what has no source."""
    try:
        lines, first = inspect.getsourcelines(thing)
        file = inspect.getsourcefile(thing)
    except (OSError, TypeError, IndexError, SyntaxError):
        return None
    is_dull = (
        file is None
        or file.startswith(_OURS)
        or thing.__module__.split(".")[:2]
        in (
            ["gymnasium", "core"],
            ["gym", "core"],
        )
    )
    return None if is_dull or file is None else (file, first, lines)


def _nodes(found: tuple[str, int, list[str]] | None) -> list[ast.AST]:
    """The syntax tree's nodes, in the order of their lines, or none."""
    if found is None:
        return []
    try:
        tree = ast.parse(textwrap.dedent("".join(found[2])))
    except SyntaxError:
        return []
    return sorted(ast.walk(tree), key=lambda node: getattr(node, "lineno", 0))
