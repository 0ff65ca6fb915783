"""The fallback controller of a guard: a user's own function, named in a manifest and run only where it is allowed.

Given `module:function`, and leave to import it, `load_controller` gives the function. An agent's folder is data from
anywhere: without leave nothing is imported, and nothing that lies inside the folder is imported even with leave.
"""

from __future__ import annotations

import importlib
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from ..errors import AgentError, PlatoError
from .guards import Controller

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def load_controller(target: str, *, allowed: bool | Path, folder: Path) -> Controller:
    """The controller that an agent names.

    Args:
        target: `module:function`.
        allowed: False: not at all. True: from Python's own path. A folder: from there first.
        folder: The agent's own.

    Raises:
        AgentError: It is not allowed, lies inside the agent's folder, cannot be imported, or is no function.
    """
    if not _NAME.fullmatch(target):
        raise AgentError(f"{folder}: {target!r} is not module:function.", hint="Export the agent again.")
    if allowed is False:
        raise AgentError(
            f"{folder} names the fallback controller {target}, which is code, and code of an agent is not run unasked.",
            hint="If you trust it: add --controllers to the command, or Agent.load(path, controllers=True).",
        )
    module, _, name = target.partition(":")
    root = allowed if isinstance(allowed, Path) else None
    _require_elsewhere(module, root, folder)
    try:
        found = _imported(module, root)
        for part in name.split("."):
            found = getattr(found, part)
    except PlatoError as error:
        raise AgentError(f"{folder}: {error.message}", hint=error.hint) from error
    except (ImportError, AttributeError) as error:
        raise AgentError(
            f"{folder}: the fallback controller {target} cannot be imported: {error}",
            hint="Put its file beside plato.yaml, or on PYTHONPATH, where the agent runs.",
        ) from error
    if not callable(found):
        raise AgentError(f"{folder}: the fallback controller {target} is {type(found).__name__}, not a function.")
    controller: Controller = found
    return controller


def _imported(module: str, root: Path | None) -> object:
    if root is None:
        return importlib.import_module(module)
    from ..sims.importing import import_from_root

    return import_from_root(module, root)


def _require_elsewhere(module: str, root: Path | None, folder: Path) -> None:
    """Refuse a module that would come out of the agent's own folder; looks, and imports nothing."""
    top, inside = module.partition(".")[0], folder.resolve()
    path = [str(root), *sys.path] if root is not None else sys.path
    found = PathFinder.find_spec(top, [entry or "." for entry in path])
    places = [] if found is None else [found.origin, *(found.submodule_search_locations or [])]
    loaded = getattr(sys.modules.get(top), "__file__", None)
    for place in (*places, loaded):
        if place and Path(place).resolve().is_relative_to(inside):
            raise AgentError(
                f"{folder}: the fallback controller's module {module} lies in the agent's own folder.",
                hint="Code is never run from there: keep the controller with the server, in another folder.",
            )
