"""The public API: one sorted list, and an import that loads nothing heavy."""

from __future__ import annotations

import importlib.metadata
import inspect
import subprocess
import sys

import pytest

import platotk
from platotk import errors

HEAVY = [
    "ray",
    "torch",
    "mlflow",
    "altair",
    "pandas",
    "numpy",
    "gymnasium",
    "pydantic",
    "yaml",
    "rich",
    "typer",
]


def test_the_list_is_sorted_and_without_doubles() -> None:
    assert list(platotk.__all__) == sorted(set(platotk.__all__))


def test_the_list_is_what_is_visible() -> None:
    assert [name for name in dir(platotk) if not name.startswith("_")] == platotk.__all__
    assert all(getattr(platotk, name) is not None for name in platotk.__all__)


def test_every_error_is_public() -> None:
    tree = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert tree <= set(platotk.__all__)
    assert all(issubclass(getattr(platotk, name), platotk.PlatoError) for name in tree)


def test_every_function_has_a_command_of_its_name() -> None:
    from platotk.cli import app

    commands = {command.callback.__name__ for command in app.registered_commands if command.callback}
    functions = {name for name in platotk.__all__ if inspect.isfunction(getattr(platotk, name))}
    options = {"submit", "follow"}  # `--on NAME`, and `plato logs -f`
    assert functions - options <= commands


@pytest.mark.parametrize("what", ["platotk", "platotk.errors", "platotk.cli", "platotk.console"])
def test_importing_loads_nothing_heavy(what: str) -> None:
    code = f"import sys, {what}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == (["typer"] if what == "platotk.cli" else [])


def test_modules_can_be_reached_as_attributes() -> None:
    code = "import platotk; print(platotk.errors.PlatoError is platotk.PlatoError, platotk.spaces.__name__)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["True", "platotk.spaces"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = platotk.trian


def test_the_version_is_that_of_the_distribution() -> None:
    assert importlib.metadata.version("platotk") == platotk.__version__
