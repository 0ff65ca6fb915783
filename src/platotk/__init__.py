"""Plato Toolkit: from a Gymnasium simulator to a trained agent, with Ray RLlib.

The public API. Names are imported at their first use, so that `import platotk` loads neither Ray nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agents.agent import Agent
    from .agents.bundle import deploy
    from .agents.export import export
    from .assessment.assess import assess
    from .compute.jobs import fetch, follow, logs, stop, submit
    from .errors import (
        AgentError,
        AzureError,
        BackendError,
        CheckpointError,
        JobFailedError,
        MissingExtraError,
        PlatoError,
        ProjectError,
        RunNotFoundError,
        SimError,
        SubmitError,
    )
    from .learning.training import train
    from .learning.tuning import tune
    from .project import Project
    from .run import Run, runs
    from .sims.checks import Finding, check

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "AgentError",
    "AzureError",
    "BackendError",
    "CheckpointError",
    "Finding",
    "JobFailedError",
    "MissingExtraError",
    "PlatoError",
    "Project",
    "ProjectError",
    "Run",
    "RunNotFoundError",
    "SimError",
    "SubmitError",
    "assess",
    "check",
    "deploy",
    "export",
    "fetch",
    "follow",
    "logs",
    "runs",
    "serve",
    "stop",
    "submit",
    "train",
    "tune",
]

_HOME = {
    "Agent": "agents.agent",
    "Finding": "sims.checks",
    "Project": "project",
    "Run": "run",
    "assess": "assessment.assess",
    "check": "sims.checks",
    "deploy": "agents.bundle",
    "export": "agents.export",
    "fetch": "compute.jobs",
    "follow": "compute.jobs",
    "logs": "compute.jobs",
    "runs": "run",
    "serve": "agents.server",
    "stop": "compute.jobs",
    "submit": "compute.jobs",
    "train": "learning.training",
    "tune": "learning.tuning",
}
"""Which module a name lives in, where it is not `errors`."""


def __getattr__(name: str) -> Any:
    """Import a public name, or a module of the package, at its first use."""
    from importlib import import_module

    if name in __all__:
        value = getattr(import_module(f".{_HOME.get(name, 'errors')}", __name__), name)
        globals()[name] = value
        return value
    if not name.startswith("_"):
        try:
            return import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
