"""Following a job to its end: its lines as they come, its status when it changes, patience with the network.

Polling, back-off and tailing live here once, for every backend. `follow` is given a backend and a job and gives back
the state in which it ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from ..errors import BackendError
from .base import Backend, Job, JobState, UnreachableError

Value = TypeVar("Value")
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 3.0
PATIENCE_S = 300.0
"""How long a place may be unreachable before following gives up; the job is not touched."""
LAST_LINES_S = 10.0
"""How long the end of the log of a job that has ended is asked for: its place may have gone with it."""


def follow(
    backend: Backend,
    job: Job,
    *,
    on_text: Callable[[str], None],
    on_state: Callable[[JobState], None] = lambda state: None,
    start: int = 0,
    patience_s: float = PATIENCE_S,
) -> JobState:
    """Follow a job to its end.

    Args:
        backend: Where it runs.
        job: The job.
        on_text: Called with what it prints, as it comes; never twice with the same.
        on_state: Called when its status or message changes.
        start: Where in its log to begin.
        patience_s: How long the place may be unreachable.

    Returns:
        How it ended; all it printed has been given to `on_text`, unless its place went before it was read.

    Raises:
        UnreachableError: The place has not answered for `patience_s`.
    """
    pause_s, told, position = FIRST_PAUSE_S, None, start
    while True:
        # The status first: what was printed before the end is then in the log that is read after it.
        state = patiently(lambda: backend.status(job), patience_s)
        if state != told:
            on_state(state)
            told = state
        if state.status.has_ended:
            try:
                _read(backend, job, position, on_text, min(patience_s, LAST_LINES_S))
            except BackendError as error:
                on_text(f"(the end of the job's log cannot be read: {error.message})\n")
            return state
        grown, position = _read(backend, job, position, on_text, patience_s)
        pause_s = FIRST_PAUSE_S if grown else min(LONGEST_PAUSE_S, pause_s * 1.5)
        time.sleep(pause_s)


def patiently(ask: Callable[[], Value], patience_s: float = PATIENCE_S) -> Value:
    """Ask again, ever more slowly, for as long as a place does not answer.

    Raises:
        UnreachableError: It has not answered for `patience_s`.
    """
    deadline, pause_s = time.monotonic() + patience_s, 0.5
    while True:
        try:
            return ask()
        except UnreachableError:
            if time.monotonic() + pause_s > deadline:
                raise
        time.sleep(pause_s)
        pause_s = min(30.0, pause_s * 2)


def _read(
    backend: Backend, job: Job, position: int, on_text: Callable[[str], None], patience_s: float
) -> tuple[bool, int]:
    """All there is to read now."""
    grown = False
    while True:
        text, after = patiently(partial(backend.logs, job, position), patience_s)
        if not text:
            return grown, after
        on_text(text)
        grown, position = True, after
