"""Which agent is meant: finds the folders of exported agents.

Given a path, a run's name or nothing, it gives back the folder of an agent, the newest when several are meant. Nothing
is opened or verified here; `Agent.load` does that.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import AgentError
from .archive import is_archive
from .manifest import NAME

if TYPE_CHECKING:
    from ..run import Run


def find_agent(ref: str | os.PathLike[str] | None = None, *, runs_dir: Path | str) -> Path:
    """The folder of the agent that is meant.

    Args:
        ref: An agent's folder or archive; a run's path, name or the beginning of one, for its newest agent; None for
            the newest of all runs.
        runs_dir: Where runs lie.

    Raises:
        AgentError: The run has none, or no run has.
        RunNotFoundError: There is no such run.
    """
    if ref is not None and is_agent(ref):
        return Path(ref)
    from ..run import find_run, runs  # here: an agent's folder is found without them, in half the time

    if ref is None:
        there = [path for run in runs(runs_dir) for path in agents_of(run)]
        if not there:
            raise AgentError(f"no run in {runs_dir} has an agent yet.", hint="Write one with: plato export")
        return max(there, key=_written)
    run = find_run(ref, runs_dir=runs_dir)
    agent = newest_agent(run)
    if agent is None:
        raise AgentError(f"run {run.name} has no agent yet.", hint=f"Write one with: plato export {run.name}")
    return agent


def is_agent(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the folder of an agent, whole or not, or an archive."""
    return is_archive(path) or _is_folder(Path(path))


def newest_agent(run: Run) -> Path | None:
    """The agent that was exported last from a run; None when there is none."""
    return max(agents_of(run), key=_written, default=None)


def agents_of(run: Run) -> list[Path]:
    """The folders of a run's agents: `agent`, `agent-000050` ...; of a tuning those of its trials."""
    found = [*sorted(run.path.glob("agent*")), *sorted(run.path.glob("trials/*/agent*"))]
    return [path for path in found if _is_folder(path)]


def run_of(agent: Path) -> Run | None:
    """The run that an agent lies in; None when it was taken elsewhere."""
    from ..run import Run

    folder = agent.absolute().parent
    return Run(folder) if (folder / "run.json").is_file() else None


def _is_folder(path: Path) -> bool:
    return (path / NAME).is_file() and not (path / "run.json").exists()


def _written(agent: Path) -> tuple[int, str]:
    return (agent / NAME).stat().st_mtime_ns, agent.name
