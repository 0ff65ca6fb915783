"""`plato check`: what is wrong with a sim, where, and the code that cures it.

`check(project)` gives a list of `Finding`s; `CHECKS` describes every finding there can be.
"""

from __future__ import annotations

from .catalogue import CHECKS, Check
from .checking import check
from .findings import Finding

__all__ = ["CHECKS", "Check", "Finding", "check"]
