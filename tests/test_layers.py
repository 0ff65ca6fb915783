"""Three sentences keep the rooms of the house apart; the imports in the source are read, nothing is run.

1. `learning` and `compute` never import each other.
2. `agents`, except what exports, imports no ray, no torch and no pickle.
3. Only `console` prints, and only `console` imports rich.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src/platotk"
FILES = sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere in it, in full: `platotk.learning.training`, `ray.rllib`."""
    package = ("platotk", *path.relative_to(SOURCE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            yield from (word.value for word in node.args[:1] if isinstance(word, ast.Constant))


def prints(path: Path) -> Iterator[str]:
    """Where a file prints, or writes to stdout or stderr itself."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and _called(node) in ("print", "pprint", "echo", "secho", "print_exc"):
            yield f"{name_of(path)}:{node.lineno}"
        if (
            isinstance(node, ast.Attribute)
            and node.attr == "write"
            and isinstance(node.value, ast.Attribute)
            and node.value.attr in ("stdout", "stderr")
        ):
            yield f"{name_of(path)}:{node.lineno}"


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize(("room", "other"), [("learning", "compute"), ("compute", "learning")])
def test_learning_and_compute_never_import_each_other(room: str, other: str) -> None:
    crossing = [
        f"{name_of(path)} imports {module}"
        for path in sorted((SOURCE / room).rglob("*.py"))
        for module in imports(path)
        if within(module, f"platotk.{other}")
    ]
    assert crossing == []


def test_agents_need_neither_ray_nor_torch_nor_pickle() -> None:
    refused = (
        "ray",
        "torch",
        "pickle",
        "cloudpickle",
        "dill",
        "joblib",
        "shelve",
        "marshal",
        "platotk.learning",
    )
    files = [path for path in (SOURCE / "agents").rglob("*.py") if not path.name.startswith("export")]
    assert files
    assert [
        f"{name_of(path)} imports {module}" for path in files for module in imports(path) if within(module, *refused)
    ] == []


def test_agents_never_name_what_runs_code() -> None:
    """An agent is data from anywhere: its readers call and name nothing that turns data into code."""
    refused = {"pickle", "cloudpickle", "dill", "marshal", "eval", "exec", "compile", "allow_pickle"}
    files = [path for path in (SOURCE / "agents").rglob("*.py") if not path.name.startswith("export")]
    assert [f"{name_of(path)}: {name}" for path in files for name in names(path) if name in refused] == []
    assert [f"{name_of(path)}: {name}" for path in files for name in names(path) if name == "torch.load"] == []


def names(path: Path) -> Iterator[str]:
    """Every name that a file uses: plain names, attributes (and `a.b`), keywords of calls, imports, short strings."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute) and not (
            isinstance(node.value, ast.Name) and (node.value.id, node.attr) == ("re", "compile")
        ):
            yield node.attr
            yield ast.unparse(node)
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.alias):
            yield from node.name.split(".")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_only_console_prints() -> None:
    printing = {name_of(path) for path in FILES if list(prints(path))}
    assert {name.split("/")[0] for name in printing} == {"console"}, printing


def test_only_console_imports_rich() -> None:
    using = {name_of(path) for path in FILES for module in imports(path) if within(module, "rich")}
    assert {name.split("/")[0] for name in using} == {"console"}, using


def test_what_is_imported_is_read_right(tmp_path: Path) -> None:
    """The reader itself: relative imports, imports inside functions and by name are all seen."""
    learning = [path for path in FILES if name_of(path) == "learning/training.py"]
    seen = set(imports(learning[0]))
    assert {"platotk.errors.SimError", "platotk.run.Run", "platotk.learning.checkpoints"} <= seen
    page = tmp_path / "page.py"
    page.write_text("def f():\n    print(1)\n    import sys\n    sys.stderr.write('x')\n")
    tree = ast.parse(page.read_text())
    assert [_called(node) for node in ast.walk(tree) if isinstance(node, ast.Call)] == ["print", "write"]
