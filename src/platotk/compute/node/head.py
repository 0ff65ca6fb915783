"""The first machine: it starts Ray's head, waits for the others, runs the command, and sends everybody home.

Its exit code is the command's. Workers may be late, vanish and come back; they are waited for at the start only.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from ...errors import BackendError
from .channel import Switchboard
from .placement import Placement, own_address, resolve
from .processes import Child, RayNode, Settings

Tell = Callable[[str], None]
Value = TypeVar("Value")
BEGIN_S = 15.0
"""How long a name that does not resolve and a port that is taken are tried again: a head that was killed and is started
again may meet its own old port."""
POLL_S = 0.1
STDERR = 2
FAILED = 1
HEAD_LOST = 75
"""When Ray's head dies under the command: the same command line goes on from the last checkpoint."""


class Asked:
    """SIGTERM and SIGINT, remembered until somebody looks."""

    def __init__(self) -> None:
        self.number: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._take)

    def _take(self, number: int, frame: object) -> None:
        self.number = number


def lead(placement: Placement, settings: Settings, command: Sequence[str], tell: Tell) -> int:
    """Form the cluster and run the command on it.

    Returns:
        The command's exit code; 1 when the cluster did not form; 75 when Ray's head died under the command.

    Raises:
        BackendError: This machine's address cannot be found, or a port is taken.
    """
    asked = Asked()
    try:
        address, board = _begin(placement, settings, asked, tell)
    except BackendError:
        if asked.number is not None:
            return 128 + asked.number
        raise
    ray = RayNode(address, settings, rank=0, head=None)
    code = FAILED
    absent: list[str] = []
    has_formed = False
    try:
        if ray.note:
            tell(ray.note)
        has_formed = _form(placement, settings, ray, board, f"{address}:{settings.port}", asked, tell)
        if has_formed:
            code = _run(settings, ray, f"{address}:{settings.port}", command, asked, tell)
        elif asked.number is not None:
            code = 128 + asked.number
    finally:
        absent = board.missing()
        board.close(code)
        ray.end()
    for line in absent if has_formed and code else ():
        tell(line)
    return code


def _begin(placement: Placement, settings: Settings, asked: Asked, tell: Tell) -> tuple[str, Switchboard]:
    """This machine's address, and the place where the others report."""
    within_s = min(BEGIN_S, settings.start_s)

    def insist(attempt: Callable[[], Value]) -> Value:
        deadline = time.monotonic() + within_s
        while True:
            try:
                return attempt()
            except OSError:
                if asked.number is not None or time.monotonic() > deadline:
                    raise
            time.sleep(POLL_S)

    try:
        address = insist(lambda: own_address(resolve(placement.head)))
    except OSError as error:
        raise BackendError(
            f"the head {placement.head!r} cannot be found from this machine: {error.strerror or error}.",
            hint="Give an address that the other machines can reach: --head 10.0.0.4",
        ) from None
    port = settings.port
    try:
        insist(lambda: socket.create_server((address, port)).close())  # of Ray, which would only say so in its log
        port += 1
        board = insist(lambda: Switchboard(address, port, settings.token, placement.nodes, tell))
    except OSError as error:
        is_taken, other = error.errno == errno.EADDRINUSE, settings.port + (100 if settings.port < 60000 else -100)
        raise BackendError(
            f"port {port} of {address} " + ("is taken." if is_taken else f"cannot be opened: {error.strerror}."),
            hint=f"What listens there? Or say on every machine: --port {other}",
        ) from None
    return address, board


def _form(
    placement: Placement, settings: Settings, ray: RayNode, board: Switchboard, address: str, asked: Asked, tell: Tell
) -> bool:
    """Wait until everybody is there, or the time is over."""
    deadline = time.monotonic() + settings.start_s
    is_open = False
    told_at = time.monotonic()
    while True:
        if asked.number is not None:
            return False
        if ray.poll() is not None:
            tell(f"Ray's head did not start:\n{ray.tail()}")
            return False
        if not is_open and _answers(address):
            board.go(address)
            is_open = True
        num_there = 1 + len(board.joined())
        if num_there == placement.nodes and ray.is_up():
            tell(f"{num_there} of {placement.nodes} nodes are there")
            return True
        if time.monotonic() > deadline:
            waited = f"after {settings.start_s:g} s {num_there} of {placement.nodes} nodes are there"
            tell("\n".join([waited, *board.missing()]))
            if num_there >= settings.least_nodes and ray.is_up():
                tell("going on without the others; they may still join")
                return True
            return False
        if time.monotonic() - told_at > 30:
            tell("\n".join(["still waiting:", *board.missing()]))
            told_at = time.monotonic()
        board.changed.wait(POLL_S)
        board.changed.clear()


def _run(settings: Settings, ray: RayNode, address: str, command: Sequence[str], asked: Asked, tell: Tell) -> int:
    environment = {**settings.ray_environment, "RAY_ADDRESS": address}
    try:
        child = Child(command, environment=environment, output=STDERR if settings.stdout_to_stderr else None)
    except OSError as error:
        tell(f"{command[0]} cannot be started: {error.strerror}")
        return 127
    is_handed_on = False
    while True:
        code = child.poll()
        if code is not None:
            child.end(0)
            return code
        if ray.poll() is not None:
            tell(f"Ray's head died:\n{ray.tail()}")
            child.end(settings.grace_s)
            return HEAD_LOST
        if asked.number is not None and not is_handed_on:
            tell(f"{signal.Signals(asked.number).name}: the command is asked to stop")
            child.send(asked.number)
            is_handed_on, dies_at = True, time.monotonic() + settings.grace_s
        if is_handed_on and time.monotonic() > dies_at:
            return child.end(0)
        time.sleep(POLL_S)


def _answers(address: str) -> bool:
    """Whether somebody listens there."""
    host, _, port = address.rpartition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=1.0):
        return True
    return False


def alone(settings: Settings, command: Sequence[str], tell: Tell) -> int:
    """One machine is no cluster: the command starts its own Ray, if it wants one."""
    asked = Asked()
    try:
        output = STDERR if settings.stdout_to_stderr else None
        child = Child(command, environment={**os.environ, **settings.environment}, output=output)
    except OSError as error:
        tell(f"{command[0]} cannot be started: {error.strerror}")
        return 127
    dies_at: float | None = None
    while (code := child.poll()) is None:
        if asked.number is not None and dies_at is None:
            child.send(asked.number)
            dies_at = time.monotonic() + settings.grace_s
        if dies_at is not None and time.monotonic() > dies_at:
            return child.end(0)
        time.sleep(POLL_S)
    child.end(0)
    return code
