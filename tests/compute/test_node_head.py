"""What the first machine says when it cannot begin: a port that is taken, a name that nobody knows."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from platotk.compute.node import head
from platotk.compute.node.placement import Placement
from platotk.compute.node.processes import Settings

TOKEN = "0123456789abcdef" * 4


def node(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    placed = ["--rank", "0", "--nodes", "2", "--start-within", "1"]
    return subprocess.run(
        [sys.executable, "-m", "platotk", "node", *placed, *words, "--", "true"],
        cwd=folder,
        env={**os.environ, "RAY_AUTH_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def two_free_ports() -> int:
    """The first of two free ports in a row."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = int(first.getsockname()[1])
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
            except (OSError, OverflowError):
                continue
            return port


@pytest.mark.parametrize("which", [0, 1])
def test_a_port_that_is_taken_is_named_with_the_way_round_it(tmp_path: Path, which: int) -> None:
    port = two_free_ports()
    with socket.create_server(("127.0.0.1", port + which)):
        said = node(tmp_path, "--head", "127.0.0.1", "--port", str(port))
    assert said.returncode == 1
    assert f"port {port + which} of 127.0.0.1 is taken." in said.stderr
    assert f"--port {port + 100 if port < 60000 else port - 100}" in said.stderr
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize("name", ["no-such-host.invalid", "a" * 70 + ".invalid"])
def test_a_head_that_no_name_leads_to_is_said(tmp_path: Path, name: str) -> None:
    said = node(tmp_path, "--head", name)
    assert said.returncode == 1
    assert "cannot be found from this machine" in " ".join(said.stderr.split())
    assert "--head 10.0.0.4" in said.stderr
    assert "Traceback" not in said.stderr


def test_a_port_that_is_still_taken_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    """A head that was killed and is started again at once meets what is left of the one before."""
    port = two_free_ports()
    old = socket.create_server(("127.0.0.1", port + 1))
    threading.Timer(0.5, old.close).start()
    settings = Settings(port=port, token=TOKEN, start_s=30, patience_s=1, least_nodes=2, logs=tmp_path)
    nobody = head.Asked.__new__(head.Asked)  # takes no signals of this process
    nobody.number = None
    address, board = head._begin(Placement(0, 2, "127.0.0.1"), settings, nobody, lambda line: None)
    assert address == "127.0.0.1"
    with socket.create_connection(("127.0.0.1", port + 1), timeout=5):
        board.close(0)
