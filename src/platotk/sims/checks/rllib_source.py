"""What RLlib's config methods take, read from RLlib's source instead of by importing it.

Importing RLlib takes five seconds of CPU, which a check should not cost; its source is there and is parsed
in a tenth of that. Gives the names of the algorithms and, per algorithm, the keywords of
`AlgorithmConfig.training(...)` etc.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def rllib_home() -> Path | None:
    """The directory of the installed RLlib, or None."""
    found = importlib.util.find_spec("ray")
    for place in found.submodule_search_locations or [] if found else []:
        if (Path(place) / "rllib" / "algorithms" / "registry.py").is_file():
            return Path(place) / "rllib"
    return None


@lru_cache(maxsize=1)
def algorithms() -> tuple[str, ...]:
    """The names of RLlib's algorithms; empty when they cannot be read."""
    for node in _tree("algorithms/registry.py").body:
        is_registry = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "ALGORITHMS"
        if is_registry and isinstance(node.value, ast.Dict):  # type: ignore[attr-defined]
            keys = node.value.keys  # type: ignore[attr-defined]
            return tuple(str(key.value) for key in keys if isinstance(key, ast.Constant))
    return ()


@lru_cache(maxsize=64)
def section_keywords(algorithm: str, section: str) -> frozenset[str]:
    """The keywords of `<algorithm>Config.<section>(...)`, through all parents; empty when unreadable."""
    return _keywords(f"{algorithm}Config", section)


@lru_cache(maxsize=1)
def model_keywords() -> frozenset[str]:
    """The fields of `DefaultModelConfig`, which `rl_module: {model_config: ...}` takes."""
    owner = _class("core/rl_module/default_model_config.py", "DefaultModelConfig")
    fields = [node.target for node in owner.body if isinstance(node, ast.AnnAssign)] if owner else []
    return frozenset(field.id for field in fields if isinstance(field, ast.Name))


def _keywords(class_name: str, method: str) -> frozenset[str]:
    name = class_name.removesuffix("Config").lower()
    path = "algorithms/algorithm_config.py" if name == "algorithm" else f"algorithms/{name}/{name}.py"
    owner = _class(path, class_name)
    if owner is None:
        return frozenset()
    found: frozenset[str] = frozenset()
    for node in owner.body:
        if isinstance(node, ast.FunctionDef) and node.name == method:
            found |= {argument.arg for argument in node.args.kwonlyargs}
    for base in owner.bases:
        if isinstance(base, ast.Name) and base.id.endswith("Config"):
            found |= _keywords(base.id, method)
    return found


def _class(path: str, name: str) -> ast.ClassDef | None:
    nodes = (node for node in _tree(path).body if isinstance(node, ast.ClassDef))
    return next((node for node in nodes if node.name.lower() == name.lower()), None)


@lru_cache(maxsize=16)
def _tree(path: str) -> ast.Module:
    home = rllib_home()
    try:
        return ast.parse((home / path).read_text(encoding="utf-8")) if home else ast.Module([], [])
    except (OSError, SyntaxError):
        return ast.Module([], [])
