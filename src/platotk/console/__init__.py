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
from .azure import azure_environment, azure_files, azure_findings, azure_made, azure_plan, azure_status
from .basics import confirmed, counting, error, json, note, text, traceback, waiting
from .endpoints import DeployProgress, endpoint, endpoint_cost, endpoint_plan
from .evictions import evicted
from .jobs import detached, job_ended, job_state, output, output_to_people, studio, submitted
from .training import TrainingView
from .tuning import TuningView, trials

__all__ = [
    "DeployProgress",
    "TrainingView",
    "TuningView",
    "acting",
    "agent",
    "assessed",
    "azure_environment",
    "azure_files",
    "azure_findings",
    "azure_made",
    "azure_plan",
    "azure_status",
    "compared",
    "confirmed",
    "counting",
    "deployed",
    "detached",
    "endpoint",
    "endpoint_cost",
    "endpoint_plan",
    "error",
    "evicted",
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
    "studio",
    "submitted",
    "text",
    "traceback",
    "trials",
    "verified",
    "waiting",
]
