"""From the values of a project to plain data that YAML can hold.

Given anything that may stand in a `Project`, `plain` gives back dicts, lists, text and numbers; code becomes
`module:name`, the way it is written in plato.yaml.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plain(value: Any, root: Path) -> Any:
    """A value as plain data; `root` is the project's directory, from which `module:name` is imported."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Mapping):
        return {key if isinstance(key, int) else str(key): plain(inner, root) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner, root) for inner in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(inner, root) for inner in value), key=str)
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return value.tolist()
    if isinstance(value, (int, float)):
        return value
    return str(value) if isinstance(value, Path) else reference(value, root)[0]


def reference(value: Any, root: Path) -> tuple[str, bool]:
    """An object as `module:qualname`, and whether importing that would give the object again."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return repr(value), False
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    is_importable = found is value
    if module == "__main__":
        # A script's classes live in __main__ only while it runs; next time they are in its file's module.
        file = Path(getattr(sys.modules["__main__"], "__file__", None) or "?")
        is_importable = is_importable and file.suffix == ".py" and file.resolve().parent == root.resolve()
        module = file.stem if is_importable else module
    return f"{module}:{name}", is_importable
