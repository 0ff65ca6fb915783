"""A finding: one thing that is wrong, or worth knowing, about a sim or the project that trains on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from .catalogue import CHECKS, Severity

_RANK = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        id: Its name in the catalogue, such as `observation-bounds`.
        severity: `error` (training fails or learns the wrong thing), `warning` (it works, worse than it could) or
            `note` (good to know).
        message: What is wrong, with the values seen.
        where: `file:line` of the code or the project file, or None.
        cure: Code to paste, or None for notes that need none.
    """

    id: str
    severity: Severity
    message: str
    where: str | None = None
    cure: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def finding(
    check_id: str,
    message: str,
    *,
    where: str | None = None,
    cure: str | None = None,
    severity: Severity | None = None,
) -> Finding:
    """A finding of the catalogue, with the catalogue's severity and cure unless others are given."""
    known = CHECKS[check_id]
    return Finding(check_id, severity or known.severity, message, where, cure or known.cure)


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes; within each in the catalogue's order, duplicates once."""
    order = {check_id: index for index, check_id in enumerate(CHECKS)}
    return sorted(dict.fromkeys(findings), key=lambda one: (_RANK[one.severity], order[one.id]))
