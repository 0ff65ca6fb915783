"""What a piece of the emulator is: routes, each a method, a pattern over host and path, and a function that answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Answer = tuple[int, Mapping[str, str], Any]
"""Status, headers, and a body: bytes as they are, None for nothing, everything else as JSON."""


@dataclass
class Request:
    """One request, decrypted.

    Attributes:
        method: GET, PUT, ...
        host: Whom it is meant for, such as `management.azure.com`.
        path: Without the query.
        query: The first value of each parameter.
        headers: By name in lower case.
        body: As it came.
        match: The groups of the route's pattern.
        target: Path and query as they were sent, which signatures are made over.
    """

    method: str
    host: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""
    match: dict[str, str] = field(default_factory=dict)
    target: str = ""

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body) if self.body else None

    @property
    def api(self) -> str:
        """The version that is asked for."""
        return self.query.get("api-version", "")


@dataclass(frozen=True)
class Route:
    """One kind of request.

    Attributes:
        method: GET, PUT, ...
        regex: Matches host and path as a whole, in any case: `management\\.azure\\.com/subscriptions/(?P<s>[^/]+)`.
        handler: Answers.
    """

    method: str
    regex: str
    handler: Callable[[Request], Answer]

    def fits(self, request: Request) -> dict[str, str] | None:
        """The pattern's groups; None when it is another request."""
        match = re.fullmatch(self.regex, request.host + request.path, re.IGNORECASE)
        return match.groupdict() if match is not None and self.method == request.method else None


def error(status: int, code: str, message: str, **headers: str) -> Answer:
    """An error as Azure words them."""
    return status, headers, {"error": {"code": code, "message": message}}
