"""The memory of an agent for each of its clients, bounded in time and number.

Given an agent with memory, `ClientSessions` gives each client id a session of its own. A session that nobody used for
`ttl_s` seconds is forgotten, and when there are more than `limit`, the one unused for longest goes.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from .acting import AgentSession
from .agent import Agent
from .guarded import GuardedSession

DEFAULT_TTL_S = 3600.0
DEFAULT_LIMIT = 1000


class ClientSessions:
    """Sessions by client id, the longest unused first."""

    def __init__(
        self,
        agent: Agent,
        *,
        ttl_s: float = DEFAULT_TTL_S,
        limit: int = DEFAULT_LIMIT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._agent, self._ttl_s, self._limit, self._clock = agent, ttl_s, limit, clock
        self._sessions: OrderedDict[str, tuple[AgentSession | GuardedSession, float]] = OrderedDict()

    def __len__(self) -> int:
        self._forget_unused()
        return len(self._sessions)

    def get(self, client: str) -> AgentSession | GuardedSession:
        """The client's session; a fresh one when it has none (any more)."""
        self._forget_unused()
        held = self._sessions.pop(client, None)
        session = held[0] if held is not None else self._agent.session()
        self._sessions[client] = (session, self._clock())
        if len(self._sessions) > self._limit:
            self._sessions.popitem(last=False)
        return session

    def clear(self, client: str) -> None:
        """Forget what this client's agent remembers."""
        self._sessions.pop(client, None)

    def _forget_unused(self) -> None:
        oldest = self._clock() - self._ttl_s
        while self._sessions:
            client, (_, used) = next(iter(self._sessions.items()))
            if used > oldest:
                return
            del self._sessions[client]
