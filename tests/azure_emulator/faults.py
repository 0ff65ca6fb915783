"""What goes wrong on purpose: requests that match are answered with an error, so many times."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .routing import Answer, Request

WORDS = {401: "ExpiredAuthenticationToken", 403: "AuthorizationFailed", 409: "Conflict", 429: "TooManyRequests"}


@dataclass
class _Fault:
    match: str
    status: int
    times: int
    body: Any
    headers: Mapping[str, str]


@dataclass
class Faults:
    """The faults that are still to happen."""

    left: list[_Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self,
        match: str,
        status: int = 500,
        times: int = 1,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer requests that match, `PUT .*/computes/`, with this status, so many times."""
        self.left.append(_Fault(match, status, times, body, headers or {}))

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        self.left.clear()

    def meet(self, request: Request) -> Answer | None:
        """The fault that this request meets, if any."""
        line = f"{request.method} {request.host}{request.path}"
        with self._lock:
            for fault in self.left:
                if fault.times > 0 and re.match(fault.match, line, re.IGNORECASE):
                    fault.times -= 1
                    code = WORDS.get(fault.status, "InternalServerError")
                    told = {"error": {"code": code, "message": f"a fault of the test: {fault.status}"}}
                    return fault.status, fault.headers, fault.body or told
        return None
