"""What goes wrong on purpose: requests that are answered with an error, tokens that run out, machines that vanish."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .routing import Answer, Request

if TYPE_CHECKING:
    from .nodes import NodeRun
    from .sign_in import SignIn

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
    """The faults that are still to happen.

    Attributes:
        sign_in: Who hands out tokens.
        runs: The nodes of each job.
        late: Seconds that a rank starts after the others.
    """

    sign_in: SignIn
    runs: Mapping[str, NodeRun]
    late: dict[int, float] = field(default_factory=dict)
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

    def expire_tokens(self) -> None:
        """No token is good any more; new ones are."""
        self.sign_in.expire()

    def evict(self, job: str) -> None:
        """A job's machines are wanted back: all are gone at once, without a signal; the job queues again."""
        self.runs[job].evict()

    def kill_node(self, job: str, rank: int) -> None:
        """Every process on one node of a job is killed."""
        self.runs[job].kill(rank)

    def late_worker(self, rank: int, seconds: float) -> None:
        """In jobs that start from now on, a node begins so much later than the others."""
        self.late[rank] = seconds

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        self.left.clear()
        self.late.clear()

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
