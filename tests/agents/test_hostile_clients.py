"""Clients that mean harm: slow on purpose, without end, or talking nonsense. The server goes on for everybody else."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from gymnasium import spaces
from tests.agents.served import ask, served, write_agent

READ_TIMEOUT_S = 0.6
SPACE = spaces.Box(-1.0, 1.0, (2,), np.float32)
BODY = json.dumps({"observation": [0.5, 0.25]}).encode()
HEAD = b"POST /act HTTP/1.1\r\nHost: localhost\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    agent: Path = write_agent(tmp_path_factory.mktemp("hostile") / "agent", SPACE)
    with served(agent, read_timeout_s=READ_TIMEOUT_S) as address:
        yield address


def connect(url: str) -> socket.socket:
    place = urlsplit(url)
    return socket.create_connection((place.hostname, place.port), timeout=10)


def seconds_until_closed(connection: socket.socket, drip: bytes) -> float:
    """How long the server puts up with a client that sends a byte every tenth of a second."""
    began, at = time.monotonic(), 0
    connection.settimeout(0.1)
    while time.monotonic() - began < 10:
        try:
            connection.sendall(drip[at : at + 1])
            at = min(at + 1, len(drip) - 1)
            if connection.recv(4096) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("first", "drip"),
    [
        (b"", b""),
        (b"", b"POST /act HTTP/1.1\r\nX: " + b"a" * 500),
        (HEAD, b"X-Header: " + b"a" * 500),
        (HEAD + b"Content-Length: 500\r\n\r\n", b'{"observation": ' + b" " * 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\n     \r\n" * 50),
        (HEAD + b"Transfer-Encoding: chunked\r\nX: y\r\n\r\n5\r\n", b"          "),
        (WHOLE, b"POST /act HTTP/1.1\r\nX: " + b"a" * 500),
        (WHOLE + HEAD + b"Content-Length: 500\r\n\r\n", b" " * 400),
        (b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n", b" " * 400),
    ],
    ids=["silent", "request", "headers", "body", "chunks", "chunk", "second request", "second body", "discarded body"],
)
def test_a_slow_client_is_let_go(url: str, first: bytes, drip: bytes) -> None:
    with connect(url) as connection:
        connection.sendall(first)
        assert seconds_until_closed(connection, drip) < 5 * READ_TIMEOUT_S
    assert ask(f"{url}/act", {"observation": [0.5, 0.25]}) == (200, {"action": [0.75]})


def test_many_slow_clients_keep_nobody_out(url: str) -> None:
    """As many as the server takes, and more: they are gone after a moment, and it answers."""
    slow = [connect(url) for _ in range(300)]
    try:
        for connection in slow:
            connection.sendall(HEAD)
        assert ask(f"{url}/act", {"observation": [0.5, 0.25]}) == (200, {"action": [0.75]})
        time.sleep(2 * READ_TIMEOUT_S)
        for connection in slow:
            connection.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
    finally:
        for connection in slow:
            connection.close()


def test_a_client_that_takes_no_answer_is_let_go(url: str) -> None:
    place = urlsplit(url)
    connection = socket.socket()
    # Before it connects: a window that shrinks later makes Linux drop the server's reset as out of the window.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((place.hostname, place.port))
    connection.settimeout(0.2)
    request = b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50
    began = time.monotonic()
    try:
        while time.monotonic() - began < 10:
            try:
                connection.sendall(request)
            except TimeoutError:
                continue
    except OSError:
        pass
    connection.close()
    assert time.monotonic() - began < 8
    assert ask(f"{url}/act", {"observation": [0.5, 0.25]}) == (200, {"action": [0.75]})


def test_an_ordinary_client_may_wait_between_its_requests(url: str) -> None:
    link = http.client.HTTPConnection(urlsplit(url).netloc)
    for _ in range(3):
        link.request("POST", "/act", BODY)
        assert json.loads(link.getresponse().read()) == {"action": [0.75]}
        time.sleep(1.5 * READ_TIMEOUT_S)
    link.close()


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00" * 64,
        b"POST /act HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /act HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1e3\r\n\r\n",
        b"POST /act HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n      ",
        b"POST /act HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /act HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFFFFFFFFF\r\n",
        b"POST /act HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"POST /act HTTP/1.1\r\n\r\n",
        b"POST /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /%ff%00 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
        b"POST http://evil.example/act HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_what_is_no_http_is_a_client_error(url: str, raw: bytes) -> None:
    with connect(url) as connection:
        try:
            connection.sendall(raw)
        except OSError:
            return  # refused before all of it was sent
        try:
            answer = connection.recv(64)
        except ConnectionResetError:
            return
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 404", b"HTTP/1.1 413", b"HTTP/1.1 422")), answer


def test_a_chunked_body_counts_by_what_it_carries(url: str) -> None:
    """One byte a chunk: the limit is on the sum, and a body within it is answered."""
    with connect(url) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n")
        answer = b""
        while not answer.endswith(b'{"action":[0.75]}'):
            part = connection.recv(1000)
            assert part, answer
            answer += part
    with connect(url) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(20):
                connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        except OSError:
            pass
        assert b" 413 " in connection.recv(100)


BOMBS: dict[str, Callable[[], bytes]] = {
    "deep arrays": lambda: b'{"observation": ' + b"[" * 500_000 + b"]" * 500_000 + b"}",
    "deep objects": lambda: b'{"observation": ' + b'{"a":' * 150_000 + b"1" + b"}" * 150_000 + b"}",
    "a deep key": lambda: b'{"observation": [0, 0], "' + b"[" * 900_000 + b'": 1}',
    "huge integer": lambda: b'{"observation": [' + b"9" * 1_000_000 + b", 0]}",
    "many integers of 4,000 digits": lambda: b'{"observation": [' + b",".join([b"9" * 4000] * 250) + b"]}",
    "huge exponent": lambda: b'{"observation": [1e999999999, 0]}',
    "a key twice": lambda: b'{"observation": [0, 0], "observation": [1, 1]}',
    "a key twice inside": lambda: b'{"observation": {"a": 1, "a": 2}}',
    "a hundred thousand keys": lambda: b"{" + b",".join(b'"k%d":1' % i for i in range(80_000)) + b"}",
    "a hundred thousand rows": lambda: b'{"observations": [' + b",".join([b"[0,0]"] * 150_000) + b"]}",
    "invalid UTF-8": lambda: b'{"observation": "\xc3\x28"}',
    "half a surrogate": lambda: b'{"observation": "\\ud800", "client": "\\udfff"}',
    "UTF-16": lambda: '{"observation": [0, 0]}'.encode("utf-16"),
    "a byte order mark": lambda: b"\xef\xbb\xbf" + BODY,
    "NUL": lambda: BODY + b"\x00",
    "two values": lambda: BODY + BODY,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(url: str, name: str) -> None:
    body = BOMBS[name]()
    began = time.monotonic()
    status, answer = ask(f"{url}/act", body)
    assert status in (413, 422), answer
    assert len(json.dumps(answer)) < 1000
    assert time.monotonic() - began < 5
