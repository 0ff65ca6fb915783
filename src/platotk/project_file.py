"""Where a project's file lies: found without reading it, and so without what reading it needs.

Given a directory, `find_project_file` gives the nearest plato.yaml upward. It stands apart from `project` because a
server looks for a project and never opens one: the model of it and YAML would be loaded for nothing.
"""

from __future__ import annotations

from pathlib import Path

from .errors import ProjectError

FILE_NAME = "plato.yaml"


def find_project_file(start: str | Path | None = None) -> Path:
    """The nearest plato.yaml: in `start` (default: here) or in a directory above it.

    Raises:
        ProjectError: There is none.
    """
    start = Path(start or ".").resolve()
    for directory in (start, *start.parents):
        if (directory / FILE_NAME).is_file():
            return directory / FILE_NAME
        if (directory / "plato.yml").is_file():
            raise ProjectError(
                f"{directory / 'plato.yml'}: the project file is called {FILE_NAME}",
                hint=f"Rename it: mv plato.yml {FILE_NAME}",
            )
    raise ProjectError(f"no {FILE_NAME} in {start} or above it", hint="Start a project with: plato init")
