"""stdout and stderr, and what happens when nobody reads them any more (`plato runs --json | head`).

An answer that nobody wants ends the command. What is said to people on the way does not: a training goes on when the
pager it was watched in is closed.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import IO, Any

from ..errors import PlatoError


def answer(text: str) -> None:
    """To stdout, at once.

    Raises:
        SystemExit: Whoever read it has gone: with 141, as a shell says of what SIGPIPE has ended.
        PlatoError: It cannot be written, as to a full disk.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _to_nowhere(sys.stdout)
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        _to_nowhere(sys.stdout)
        raise PlatoError(
            f"the answer cannot be written to stdout: {error.strerror}.", hint="Send it somewhere else, and try again."
        ) from error


def tell(text: str) -> None:
    """To stderr, at once, if anybody reads it."""
    stream = Unbroken(sys.stderr)
    stream.write(text)
    stream.flush()


class Unbroken:
    """A stream whose reader may go: a pager is closed, a terminal hangs up, a disk is full. The rest is dropped."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write it, or not."""
        try:
            return self._stream.write(text)
        except OSError:
            _to_nowhere(self._stream)
            return len(text)

    def flush(self) -> None:
        """Hand on what was written, or not."""
        try:
            self._stream.flush()
        except OSError:
            _to_nowhere(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _to_nowhere(stream: IO[str]) -> None:
    """What is written there from now on is dropped, by whoever writes it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
