"""Importing a project's own modules, so that two projects that both have a `sim.py` can live in one process.

A module keeps its plain name (pickling, `import helper` and tracebacks work as in a script run from the
project's directory). When another project is loaded, those modules of the first whose names it also uses are
put aside, and come back with the first project.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import sys
import sysconfig
import threading
from pathlib import Path
from types import ModuleType

from ..errors import SimError

_LOCK = threading.RLock()
_ASIDE: dict[Path, dict[str, ModuleType]] = {}
HIDING = sys.stdlib_module_names - {"test", "this"}
"""Modules of Python that must not be hidden by a file of the project."""
_NEVER_ASIDE = frozenset({"__main__", "conftest", "platotk", "setup"})


def import_from_root(name: str, root: Path) -> ModuleType:
    """Import module `name`, from the project directory when it is there, otherwise as Python does.

    Raises:
        SimError: There is no such module, or its file hides a module of Python. What the module itself raises
            while it is imported passes through.
    """
    with _LOCK:
        if name.partition(".")[0] in module_names(root) & HIDING:
            top = name.partition(".")[0]
            raise SimError(
                f"{root / top}.py hides Python's own module {top!r}",
                hint=f"Rename the file, for example to {top}_sim.py, and write {top}_sim:...",
            )
        _enter(root)
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # something that the sim imports is missing
            raise _not_found(name, error.name, root) from None


def module_names(root: Path) -> set[str]:
    """Names of the top-level modules and packages in a directory."""
    try:
        entries = list(root.iterdir())
    except OSError:
        return set()
    files = {entry.stem for entry in entries if entry.suffix == ".py"}
    return files | {entry.name for entry in entries if (entry / "__init__.py").is_file()}


def _enter(root: Path) -> None:
    """Make `root` the first place to import from."""
    importlib.invalidate_caches()
    text = str(root)
    if sys.path[:1] != [text]:
        if text in sys.path:
            sys.path.remove(text)
        sys.path.insert(0, text)
    for top in module_names(root) - _NEVER_ASIDE:
        home = _home(sys.modules.get(top))
        if home is None or home == root:
            continue
        aside = _ASIDE.setdefault(home, {})
        for name in [name for name in sys.modules if name == top or name.startswith(f"{top}.")]:
            aside[name] = sys.modules.pop(name)
    sys.modules.update(_ASIDE.pop(root, {}))


def _home(module: ModuleType | None) -> Path | None:
    """The directory a top-level module was imported from, or None for installed and built-in ones."""
    file = getattr(module, "__file__", None)
    if not file:
        return None
    path = Path(file).resolve()
    home = path.parent.parent if path.name == "__init__.py" else path.parent
    return None if home in _installed() else home


@functools.cache
def _installed() -> set[Path]:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    return {Path(sysconfig.get_path(kind)).resolve() for kind in kinds}


def _not_found(name: str, missing: str, root: Path) -> SimError:
    searched = root.joinpath(*name.split(".")).with_suffix(".py")
    if missing != name or "." in name:
        return SimError(f"there is no module {missing!r} (looked for {searched} and among what is installed)")
    near = difflib.get_close_matches(name, module_names(root), n=1, cutoff=0.5)
    hint = f"Did you mean '{near[0]}:...'?" if near else "Make the file, or correct the name."
    return SimError(f"there is no {searched} and no installed module {name!r}", hint=hint)
