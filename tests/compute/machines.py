"""Machines for tests: Linux network namespaces with an address each, joined by a bridge in one more.

Each has its own network, as on a cluster; none can reach anything else. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TOKEN = "0123456789abcdef" * 4


def can_make_machines() -> bool:
    return os.geteuid() == 0 and shutil.which("ip") is not None


# CI makes sure of both: where they are missing there, the tests fail and are not skipped.
needs_machines = pytest.mark.skipif(
    not can_make_machines() and not os.environ.get("CI"), reason="needs root and iproute2"
)


@dataclass
class Machine:
    """One machine: a network namespace, an address, and a folder to work in."""

    name: str
    address: str
    folder: Path

    def start(self, *command: str, log: str = "out.txt", **env: str) -> subprocess.Popen[bytes]:
        """Run a command on this machine; its output goes to a file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / log).open("ab") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                cwd=self.folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self, log: str = "out.txt") -> str:
        return (self.folder / log).read_text(errors="replace")

    def processes(self) -> list[int]:
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        return [int(word) for word in listed.stdout.split()]

    def kill(self) -> None:
        """As if the plug were pulled: every process at once, none is asked."""
        deadline = time.monotonic() + 10
        while (pids := self.processes()) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def link(self, state: str) -> None:
        """`down` pulls the network cable, `up` puts it back."""
        _run("ip", "netns", "exec", self.name, "ip", "link", "set", "eth0", state)


@contextlib.contextmanager
def machines(number: int, folder: Path) -> Iterator[list[Machine]]:
    """So many machines, and nothing left of them afterwards."""
    prefix = f"pl{os.getpid()}x{time.monotonic_ns() % 10000}"
    bridge = f"{prefix}b"
    made = [Machine(f"{prefix}n{at}", f"10.77.0.{at + 1}", folder / f"node{at}") for at in range(number)]
    try:
        _run("ip", "netns", "add", bridge)
        _run("ip", "-n", bridge, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", bridge, "link", "set", "br0", "up")
        for at, machine in enumerate(made):
            _run("ip", "netns", "add", machine.name)
            _run("ip", "-n", bridge, "link", "add", f"p{at}", "type", "veth", "peer", "eth0", "netns", machine.name)
            _run("ip", "-n", bridge, "link", "set", f"p{at}", "master", "br0", "up")
            _run("ip", "-n", machine.name, "link", "set", "lo", "up")
            _run("ip", "-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", "eth0")
            _run("ip", "-n", machine.name, "link", "set", "eth0", "up")
            machine.folder.mkdir(parents=True, exist_ok=True)
        yield made
    finally:
        for machine in made:
            machine.kill()
        for name in [machine.name for machine in made] + [bridge]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def start_node(
    machine: Machine,
    rank: int,
    nodes: int,
    *command: str,
    head: str = "10.77.0.1",
    options: tuple[str, ...] = ("--num-cpus", "1", "--start-within", "90"),
    **env: str,
) -> subprocess.Popen[bytes]:
    """`plato node` on one machine, placed as PyTorch's distribution places it."""
    variables = {"NODE_RANK": str(rank), "WORLD_SIZE": str(nodes), "MASTER_ADDR": head, "RAY_AUTH_TOKEN": TOKEN}
    return machine.start(sys.executable, "-m", "platotk", "node", *options, "--", *command, **{**variables, **env})


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
