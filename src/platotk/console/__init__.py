"""All that is printed: JSON for programs on stdout, everything for people on stderr.

It is given what the Python functions return, and shows it: tables, findings, a live view of a training,
errors in two lines. The only package that prints or imports rich (inside functions: `--help` does without).
"""

from __future__ import annotations

from .answers import (
    acting,
    agent,
    assessed,
    compared,
    deployed,
    exported,
    exporting,
    findings,
    run,
    runs,
    started,
    verified,
)
from .basics import counting, error, json, note, text, traceback, waiting
from .jobs import detached, job_ended, job_state, output, output_to_people, submitted
from .training import TrainingView

__all__ = [
    "TrainingView",
    "acting",
    "agent",
    "assessed",
    "compared",
    "counting",
    "deployed",
    "detached",
    "error",
    "exported",
    "exporting",
    "findings",
    "job_ended",
    "job_state",
    "json",
    "note",
    "output",
    "output_to_people",
    "run",
    "runs",
    "started",
    "submitted",
    "text",
    "traceback",
    "verified",
    "waiting",
]
