"""One tree of errors; each says what is wrong with the value, what is allowed, and what to type next.

    PlatoError
    ├── ProjectError         plato.yaml or Project(...) is wrong                      exit 2
    ├── SimError             the simulator broke its contract                         exit 1
    ├── RunNotFoundError     no run of that name                                      exit 2
    ├── CheckpointError      a checkpoint is missing, damaged or does not fit         exit 1
    ├── AgentError           an exported agent is damaged or cannot act               exit 1
    ├── BackendError         a place to run said no                                   exit 1
    │   ├── SubmitError      before the job existed
    │   └── JobFailedError   the job ran and failed
    ├── AzureError           Azure said no                                            exit 1
    └── MissingExtraError    an optional dependency is not installed                  exit 2

The user's own exceptions are never wrapped: they pass through whole.
"""

from __future__ import annotations


class PlatoError(Exception):
    """The root of every error that platotk raises on purpose.

    Attributes:
        message: What is wrong, with the value.
        hint: What is allowed or what to type next, or None.
        exit_code: What the command line exits with.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[PlatoError], message: str, hint: str | None) -> PlatoError:
    """Recreate an error on the far side of a process boundary (keyword-only hint)."""
    return kind(message, hint=hint)


class ProjectError(PlatoError):
    """The project file, or `Project(...)`, is wrong."""

    exit_code = 2


class SimError(PlatoError):
    """The simulator broke its contract: a value outside its space, a NaN, a hang, too many failures."""


class RunNotFoundError(PlatoError):
    """No run of that name or path."""

    exit_code = 2


class CheckpointError(PlatoError):
    """A checkpoint is missing, damaged, or does not fit the project."""


class AgentError(PlatoError):
    """An agent is damaged, refused, or cannot act on what it was given."""


class BackendError(PlatoError):
    """A place to run refused or failed."""


class SubmitError(BackendError):
    """The job could not be submitted."""


class JobFailedError(BackendError):
    """The job ran and failed."""


class AzureError(PlatoError):
    """Azure refused or failed."""


class MissingExtraError(PlatoError):
    """An optional dependency is not installed."""

    exit_code = 2


def missing_extra(package: str, extra: str) -> MissingExtraError:
    """The error for an optional dependency that is not there, with the line that installs it."""
    return MissingExtraError(f"{package} is not installed.", hint=f"Install it with: {_install_command(extra)}")


def _install_command(extra: str) -> str:
    """The pip line for this installation: from the checkout it came from (PEP 610), or by name."""
    import importlib.metadata
    import json
    import sys

    what, option = "platotk", ""
    try:
        told = json.loads(importlib.metadata.distribution("platotk").read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        told = {}
    url = str(told.get("url", ""))
    if url.startswith("file://"):
        what = url.removeprefix("file://")
        option = "-e " if told.get("dir_info", {}).get("editable") else ""
    return f"{sys.executable} -m pip install {option}'{what}[{extra}]'"
