"""The one way from a node's own network to "Azure": a port on its loopback that leads to the emulator's proxy.

The socket is made by a thread that has gone into the network namespace; a socket belongs to the network in which it was
made, whoever reads from it. The host's network is not touched, and nodes have no other way out.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
import urllib.parse
from typing import Any

PORT = 3128
CLONE_NEWNET = 0x40000000


class Relay:
    """Listens in a namespace; a context manager.

    Args:
        namespace: Its name, as `ip netns` has it.
        target: Of the proxy: `http://127.0.0.1:4711`.
    """

    url = f"http://127.0.0.1:{PORT}"

    def __init__(self, namespace: str, target: str) -> None:
        about = urllib.parse.urlsplit(target)
        self._namespace, self._target = namespace, (about.hostname or "127.0.0.1", int(about.port or 80))

    def __enter__(self) -> Relay:
        made: list[socket.socket] = []
        failed: list[OSError] = []

        def inside() -> None:
            try:
                made.append(self._listen())
            except OSError as error:
                failed.append(error)

        # Only this thread changes its network, and it ends.
        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        self._listener = made[0]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *about: Any) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _listen(self) -> socket.socket:
        handle = os.open(f"/run/netns/{self._namespace}", os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(handle, CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        finally:
            os.close(handle)
        return socket.create_server(("127.0.0.1", PORT))

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
                outer = socket.create_connection(self._target)
            except OSError:
                return
            for one, other in ((inner, outer), (outer, inner)):
                threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
