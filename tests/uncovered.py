"""Processes that coverage need not follow: under it, a Python takes a third longer for everything it does."""

from __future__ import annotations

import os


def uncovered() -> dict[str, str]:
    """The environment, without what makes coverage start in a child."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
