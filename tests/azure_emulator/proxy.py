"""The way in: a proxy on 127.0.0.1 that is every host of Azure at once.

Programs are pointed at it by `HTTPS_PROXY`. `CONNECT management.azure.com:443` gets a TLS connection with a certificate
of our own authority for that very name, and what comes through it is answered here. Nothing leaves the machine.
"""

from __future__ import annotations

import http.server
import json
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

from .authority import Authority
from .routing import Answer, Request

Responder = Callable[[Request], Answer]


class Proxy:
    """A CONNECT proxy; started and stopped like a context manager."""

    def __init__(self, authority: Authority, answer: Responder) -> None:
        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

        handler = type("Handler", (_Connecting,), {"authority": authority, "answer": staticmethod(answer)})
        self._server = Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """For `HTTPS_PROXY`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *about: Any) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Answering(http.server.BaseHTTPRequestHandler):
    """HTTP/1.1 inside the tunnel."""

    protocol_version = "HTTP/1.1"
    host: str
    answer: Responder

    def log_message(self, format: str, *args: Any) -> None:
        """Tests print nothing."""

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        is_chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        body = self._chunks() if is_chunked else self.rfile.read(length)
        path, _, query = self.path.partition("?")
        request = Request(
            self.command,
            self.host,
            urllib.parse.unquote(path),
            {key: values[0] for key, values in urllib.parse.parse_qs(query, keep_blank_values=True).items()},
            {key.lower(): value for key, value in self.headers.items()},
            body,
            target=self.path,
        )
        status, headers, content = self.answer(request)
        data = content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        given = {key.lower() for key in headers}
        for key, value in headers.items():
            self.send_header(key, value)
        if "content-type" not in given and data:
            self.send_header("Content-Type", "application/json")
        if "content-length" not in given:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = _handle


class _Connecting(http.server.BaseHTTPRequestHandler):
    """The proxy itself."""

    protocol_version = "HTTP/1.1"
    authority: Authority
    answer: Responder

    def log_message(self, format: str, *args: Any) -> None:
        """Tests print nothing."""

    def do_CONNECT(self) -> None:
        host = self.path.rpartition(":")[0]
        self.send_response(200, "Connection established")
        self.end_headers()
        inner = type("Inner", (_Answering,), {"host": host, "answer": staticmethod(self.answer)})
        try:
            with self.authority.context(host).wrap_socket(self.connection, server_side=True) as tunnel:
                tunnel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                inner(tunnel, self.client_address, self.server)
        except (ssl.SSLError, ConnectionError, OSError):
            pass  # who asked has left
        self.close_connection = True

    def _plain(self) -> None:
        """Without TLS nothing of Azure is spoken: addresses of metadata services, most of all."""
        host = urllib.parse.urlsplit(self.path).netloc
        status, _, content = self.answer(Request(self.command, host, urllib.parse.urlsplit(self.path).path, {}, {}))
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _plain
