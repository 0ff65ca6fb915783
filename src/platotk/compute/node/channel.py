"""How the machines of one job talk while Ray forms and runs: a line of JSON at a time, over TCP, proven by the token.

The head's `Switchboard` knows who is there, tells workers to start and to leave, and takes in what went wrong on them;
a worker's `Link` is the other end. Both prove that they know the job's token without sending it, and nothing that is
said makes the other run anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

BEAT_S = 1.0
SILENCE_S = 6.0
"""A side that has said nothing for this long is taken to be unreachable."""
HANDSHAKE_S = 5.0
LONGEST_LINE = 1 << 17


class Refused(Exception):
    """The other side said no; trying again is of no use."""


@dataclass
class Member:
    """A worker as the head knows it."""

    rank: int
    address: str
    line: Line
    has_joined: bool = False
    is_linked: bool = True
    problem: str = ""


class Line:
    """Whole JSON lines over a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._rest = b""
        self._sending = threading.Lock()

    def send(self, **message: Any) -> None:
        """Send one.

        Raises:
            OSError: It cannot be sent.
        """
        with self._sending:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next one; None when none came in time.

        Raises:
            OSError: The connection is broken, closed, or speaks something else.
        """
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                return None
            if not data:
                raise ConnectionResetError("closed")
            self._rest += data
            if len(self._rest) > LONGEST_LINE:
                raise ConnectionAbortedError("a line without an end")
        text, _, self._rest = self._rest.partition(b"\n")
        try:
            message = json.loads(text)
        except ValueError:
            raise ConnectionAbortedError("not JSON") from None
        if not isinstance(message, dict):
            raise ConnectionAbortedError("not an object")
        return message

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Switchboard:
    """The head's side.

    Args:
        address: Where to listen: this machine's address.
        port: The port.
        token: The job's secret.
        nodes: How many machines there are.
        tell: Called with lines for people.
    """

    def __init__(self, address: str, port: int, token: str, nodes: int, tell: Callable[[str], None]) -> None:
        self.session = secrets.token_hex(8)
        self.members: dict[int, Member] = {}
        self.changed = threading.Event()
        self._token, self._nodes, self._tell = token, nodes, tell
        self._go: str | None = None
        self._is_over = False
        self._lock = threading.Lock()
        self._server = socket.create_server((address, port), backlog=max(16, nodes))
        threading.Thread(target=self._accept, name="switchboard", daemon=True).start()
        threading.Thread(target=self._beat, name="switchboard-beat", daemon=True).start()

    def go(self, address: str) -> None:
        """Ray's head can be reached there: workers may join, now and later."""
        with self._lock:
            self._go = address
        self._say_all(go=address)

    def joined(self) -> set[int]:
        """Ranks whose Ray has joined."""
        with self._lock:
            return {rank for rank, member in self.members.items() if member.has_joined and member.is_linked}

    def missing(self) -> list[str]:
        """Who has not joined, and what is known of each."""
        with self._lock:
            known = dict(self.members)
        lines = []
        for rank in range(1, self._nodes):
            member = known.get(rank)
            if member is None:
                lines.append(f"node {rank}: has not been heard of")
            elif not member.is_linked:
                lines.append(f"node {rank} ({member.address}): was here and is gone")
            elif not member.has_joined:
                why = f": {member.problem}" if member.problem else ""
                lines.append(f"node {rank} ({member.address}): is here, but its Ray has not joined{why}")
        return lines

    def close(self, code: int) -> None:
        """The job is over: tell every worker to leave."""
        self._is_over = True
        self._say_all(bye=code)
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while not self._is_over:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(Line(connection),), daemon=True).start()

    def _serve(self, line: Line) -> None:
        """One worker, from its greeting to its end."""
        try:
            member = self._greet(line)
        except (OSError, KeyError, TypeError, ValueError):
            line.close()
            return
        last = time.monotonic()
        try:
            while not self._is_over and time.monotonic() - last < SILENCE_S:
                message = line.receive(BEAT_S)
                if message is None:
                    continue
                last = time.monotonic()
                if message.get("joined"):
                    member.has_joined, member.problem = True, ""
                    self.changed.set()
                if "failed" in message:
                    member.has_joined, member.problem = False, str(message["failed"])[:4000]
                    self._tell(f"Ray on node {member.rank} ({member.address}) ended: {member.problem}")
                    self.changed.set()
        except OSError:
            pass
        with self._lock:
            member.is_linked = False
            is_current = self.members.get(member.rank) is member
        if not self._is_over and is_current:
            self._tell(f"node {member.rank} ({member.address}) is gone; its place is kept")
        self.changed.set()
        line.close()

    def _greet(self, line: Line) -> Member:
        nonce = secrets.token_hex(16)
        line.send(nonce=nonce)
        hello = line.receive(HANDSHAKE_S)
        if hello is None:
            raise ConnectionAbortedError("no greeting")
        rank, address, theirs = int(hello["rank"]), str(hello["address"]), str(hello["nonce"])
        proof = prove(self._token, "worker", nonce, f"{rank} {address} {hello['nodes']}")
        if not hmac.compare_digest(proof, str(hello["proof"])):
            self._tell(f"a machine that does not know this job's token tried to join as node {rank}; refused")
            line.send(refused="the token is not that of this job")
            raise ConnectionAbortedError("wrong token")
        with self._lock:
            there = self.members.get(rank)
            why = None
            if int(hello["nodes"]) != self._nodes or not 0 < rank < self._nodes:
                why = f"this is a job of {self._nodes} nodes, and you are node {rank} of {hello['nodes']}"
            elif there is not None and there.is_linked and there.address != address:
                why = f"node {rank} is here already, at {there.address}"
            if why is not None:
                line.send(refused=why)
                raise ConnectionAbortedError(why)
            member = self.members[rank] = Member(rank, address, line)
            go = self._go
        line.send(proof=prove(self._token, "head", theirs, self.session), session=self.session)
        if go is not None:
            line.send(go=go)
        self._tell(f"node {rank} ({address}) is here")
        self.changed.set()
        return member

    def _beat(self) -> None:
        while not self._is_over:
            self._say_all(alive=True)
            time.sleep(BEAT_S)

    def _say_all(self, **message: Any) -> None:
        with self._lock:
            lines = [member.line for member in self.members.values() if member.is_linked]
        for line in lines:
            with contextlib.suppress(OSError):
                line.send(**message)


class Link:
    """A worker's side: connected and proven once made.

    Raises:
        OSError: The head cannot be reached.
        Refused: It does not want this machine, or is not the head of this job.
    """

    def __init__(self, head: str, port: int, token: str, *, rank: int, nodes: int, address: str) -> None:
        connection = socket.create_connection((head, port), timeout=HANDSHAKE_S)
        # A silent network must not hold a message for ever.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._line = Line(connection)
        try:
            self.session = self._greet(token, rank, nodes, address)
        except BaseException:
            self._line.close()
            raise
        self.last_heard = time.monotonic()

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """What the head says next; None when nothing came in time.

        Raises:
            OSError: The head is gone or silent.
        """
        message = self._line.receive(timeout_s)
        if message is not None:
            self.last_heard = time.monotonic()
        elif time.monotonic() - self.last_heard > SILENCE_S:
            raise TimeoutError("the head is silent")
        return message

    def say(self, **message: Any) -> None:
        """Tell the head something.

        Raises:
            OSError: The head is gone.
        """
        self._line.send(**message)

    def close(self) -> None:
        """Hang up."""
        self._line.close()

    def _greet(self, token: str, rank: int, nodes: int, address: str) -> str:
        asked = self._line.receive(HANDSHAKE_S)
        if asked is None:
            raise TimeoutError("no greeting")
        mine = secrets.token_hex(16)
        proof = prove(token, "worker", str(asked.get("nonce")), f"{rank} {address} {nodes}")
        self._line.send(rank=rank, nodes=nodes, address=address, nonce=mine, proof=proof)
        answer = self._line.receive(HANDSHAKE_S)
        if answer is None:
            raise TimeoutError("no answer")
        if "refused" in answer:
            raise Refused(str(answer["refused"]))
        session = str(answer.get("session"))
        if not hmac.compare_digest(prove(token, "head", mine, session), str(answer.get("proof"))):
            raise Refused("who answers there does not know this job's token")
        return session


def prove(token: str, role: str, nonce: str, what: str) -> str:
    """A proof that one knows the token, for this question only."""
    return hmac.new(token.encode(), f"platotk {role} {nonce} {what}".encode(), hashlib.sha256).hexdigest()
