"""HTTP/1.1 for clients that may be slow on purpose.

uvicorn waits without end for the rest of a request, so that a handful of clients that send a byte now and then can hold
all connections. `PatientProtocol` is uvicorn's own, but gives up on a connection when a request has not arrived whole,
or an answer is not taken, within a given time.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_UNFINISHED = (h11.IDLE, h11.SEND_BODY)


class PatientProtocol(H11Protocol):
    """One connection, closed when the client takes longer than `read_timeout_s`."""

    def __init__(self, *args: Any, read_timeout_s: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._read_timeout_s = read_timeout_s
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._relax()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """It sent something; the time runs on until the request is whole."""
        super().data_received(data)
        self._settle()

    def on_response_complete(self) -> None:
        """The answer is written; the client may have sent a part of its next request already."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY or self.transport.is_closing():
            self._watch()

    def pause_writing(self) -> None:
        """The client does not take what was written."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        self._settle()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for a while; an answer that is still not taken is dropped."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _settle(self) -> None:
        is_waiting = self.flow.write_paused or self.transport.is_closing()  # closing: until the last answer is taken
        if is_waiting or self.conn.their_state in _UNFINISHED:
            self._watch()
        else:
            self._relax()

    def _watch(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self._read_timeout_s, self._give_up)

    def _relax(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        self.transport.abort()
