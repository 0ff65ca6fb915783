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
    exported,
    exporting,
    findings,
    run,
    runs,
    started,
    verified,
)
from .basics import counting, error, json, note, text, traceback, waiting
from .training import TrainingView

__all__ = [
    "TrainingView",
    "acting",
    "agent",
    "assessed",
    "compared",
    "counting",
    "error",
    "exported",
    "exporting",
    "findings",
    "json",
    "note",
    "run",
    "runs",
    "started",
    "text",
    "traceback",
    "verified",
    "waiting",
]
