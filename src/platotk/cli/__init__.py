"""The command line: each command parses, calls the Python function of its name, and `console` prints.

Nothing heavy is imported before a command runs, so that `plato --help` answers at once. A command is a function in
one of these modules; `base.ORDER` says which `plato --help` lists first.
"""

from __future__ import annotations

import gc

from . import agents, azure, deploying, jobs, projects, runs, schema, training, tuning  # noqa: F401  (registers the commands)
from .base import app

__all__ = ["app", "main"]


def main() -> None:
    """The `plato` command."""
    try:
        app(prog_name="plato")
    finally:
        gc.freeze()  # Python looks for cycles once more as it ends: a second, after what training has loaded
