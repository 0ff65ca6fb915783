"""Which kinds of backend there are, and the one that a project means by a name.

Built-in kinds are named here, others come from installed packages by the entry point group `platotk.backends`; a
module is imported when its kind is asked for. project.py checks its `backends:` through `options_model`.
"""

from __future__ import annotations

import difflib
import os
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from ..errors import BackendError, ProjectError
from ..project_fields import Section
from .base import JOB_VARIABLE, Backend

if TYPE_CHECKING:
    from ..project import Project

GROUP = "platotk.backends"
BUILT_IN = {
    "local": "platotk.compute.local:LocalBackend",
    "ray": "platotk.compute.ray_jobs:RayBackend",
    "azure_ml": "platotk.compute.azure_ml:AzureBackend",
}
LOCAL = "local"
"""The name that every project has: a detached process on this machine."""


def kinds() -> list[str]:
    """Every `type` that `backends:` may name."""
    return sorted({*BUILT_IN, *(point.name for point in _entry_points())})


def options_model(kind: str) -> type[Section] | None:
    """The options of a kind of backend; None for a kind that nobody offers."""
    found = _class(kind)
    return None if found is None else found.Options


def is_inside_a_job() -> bool:
    """Whether this process runs in a job, where backends are not used and a kind may not be installed."""
    return JOB_VARIABLE in os.environ


def get_backend(project: Project, name: str) -> Backend:
    """The backend that a project calls by this name.

    Raises:
        ProjectError: It has none of that name.
    """
    options = project.backends.get(name)
    if options is None and name == LOCAL:
        options = {"type": LOCAL}
    if options is None:
        there = sorted({LOCAL, *project.backends})
        near = difflib.get_close_matches(name, there, n=1)
        raise ProjectError(
            f"no backend is called {name!r}.",
            hint=(f"Did you mean {near[0]}? " if near else "")
            + f"There are: {', '.join(there)}. Others stand under backends: in plato.yaml.",
        )
    found = _class(str(options["type"]))
    if found is None:
        raise unknown_kind(project.where(f"backends.{name}.type"), str(options["type"]))
    return found(name, found.Options.model_validate(options))


def unknown_kind(where: str, kind: str) -> ProjectError:
    """The error for a `type` that nobody offers."""
    there = kinds()
    near = difflib.get_close_matches(kind, there, n=1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    return ProjectError(
        f"{where}: no kind of backend is called {kind!r}.{meant}", hint=f"There are: {', '.join(there)}"
    )


def _class(kind: str) -> type[Backend] | None:
    if kind in BUILT_IN:
        module, _, name = BUILT_IN[kind].partition(":")
        found: type[Backend] = getattr(import_module(module), name)
        return found
    for point in _entry_points():
        if point.name == kind:
            return _checked(point)
    return None


def _entry_points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _checked(point: EntryPoint) -> type[Backend]:
    """An installed backend, refused when it is not one."""
    found: Any = point.load()
    wanted = ("Options", "request", "submit", "status", "logs", "stop", "fetch")
    missing = [name for name in wanted if not hasattr(found, name)]
    if missing:
        raise BackendError(
            f"backend {point.name!r} of {point.dist.name if point.dist else point.value} lacks {', '.join(missing)}.",
            hint="See platotk.compute.base.Backend for what a backend is.",
        )
    return found  # type: ignore[no-any-return]
