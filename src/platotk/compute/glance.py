"""How the jobs of runs stand, at a glance: for lists, which must not wait for a place that is away.

`job_states` asks about all runs at once and takes what has been answered when its time is over; the rest is unknown.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import PlatoError
from ..run import Run

UNKNOWN = "unknown"
"""How a job stands whose place did not answer in time."""
WITHIN_S = 5.0


def job_states(runs: Sequence[Run], within_s: float = WITHIN_S) -> dict[Path, dict[str, str]]:
    """How the last job of each run stands.

    Args:
        runs: Those without a job are left out of the answer.
        within_s: How long all of it may take.

    Returns:
        By the run's path: `backend`, `job`, `job_status` (a word of `JobStatus` or "unknown") and `job_message`, why it
        waits, failed or is not known; empty when there is nothing to say.
    """
    found: dict[Path, dict[str, str]] = {}
    threads = []
    for run in runs:
        job = _last(run)
        if job is None:
            continue
        about = {"backend": job.get("backend", ""), "job": job.get("id", "")}
        found[run.path] = {**about, "job_status": UNKNOWN, "job_message": ""}
        if job.get("ended"):
            found[run.path]["job_status"] = job["ended"].get("status", UNKNOWN)
            found[run.path]["job_message"] = job["ended"].get("message") or ""
            continue
        # A client may hang in its socket for as long as it likes: nobody waits for these, at the end neither.
        threads.append(threading.Thread(target=_ask, args=(run, found[run.path]), daemon=True))
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + within_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {path: dict(told) for path, told in found.items()}


def _last(run: Run) -> dict[str, Any] | None:
    try:
        listed = run.info.get("jobs") or []
    except PlatoError:
        return None
    return dict(listed[-1]) if listed else None


def _ask(run: Run, told: dict[str, str]) -> None:
    from . import jobs

    try:
        state = jobs.state(run)
    except Exception as error:  # whatever a place or a broken run says, a list is still a list
        told["job_message"] = error.message if isinstance(error, PlatoError) else ""
        return
    if state is not None:
        told["job_status"], told["job_message"] = str(state.status), state.message
