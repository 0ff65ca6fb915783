"""Ray's daemons and the command as children that go when they are told to, and when the launcher dies.

`RayNode` is one `ray start --block` with its log; `Child` is any process in a session of its own. `ray stop` is never
used: it ends every Ray on the machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ...process_lock import end_with_parent
from .machine import fit_object_store

RAY_IS_UP = "Ray runtime started"
"""`ray start` prints this once the node is registered with the cluster."""
RAY_GRACE_S = 3.0
TAIL_BYTES = 2000
KEPT_BYTES = 1 << 20
"""Of each of Ray's own logs, its end."""
HEALTH = {
    # A node that is gone is missed within about 8 s; Ray's own defaults allow for minutes.
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "5",
}


@dataclass(frozen=True)
class Settings:
    """What every machine of a job is started with.

    Attributes:
        port: Of Ray's head; the machines talk at the one after it.
        token: The job's secret.
        start_s: How long the cluster may take to form.
        patience_s: How long a worker waits for a head that has gone without a word.
        least_nodes: Go on with this many when the time is over.
        logs: Where logs go.
        num_cpus: What Ray may use of this machine; None: what it finds.
        grace_s: How long a stopped command may take to save itself.
        stdout_to_stderr: Whether the command is kept from this process's stdout.
        environment: What Ray and the command inherit.
    """

    port: int
    token: str = field(repr=False)
    start_s: float
    patience_s: float
    least_nodes: int
    logs: Path
    num_cpus: int | None = None
    grace_s: float = 30.0
    stdout_to_stderr: bool = False
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def ray_environment(self) -> dict[str, str]:
        """The environment of Ray's processes and of the command."""
        return {
            **HEALTH,
            **self.environment,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            # Ray would report even that nothing is to be reported.
            "RAY_USAGE_STATS_REPORT_URL": "",
            "PYTHONUNBUFFERED": "1",
        }


class Child:
    """A process in a session of its own, which is asked to end when this one dies."""

    def __init__(
        self, command: Sequence[str], *, environment: Mapping[str, str], output: IO[bytes] | int | None = None
    ) -> None:
        self._process = subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: end_with_parent(signal.SIGTERM),
        )

    def poll(self) -> int | None:
        """Its exit code as a shell says it, or None while it runs."""
        code = self._process.poll()
        return code if code is None or code >= 0 else 128 - code

    def send(self, number: int) -> None:
        """A signal to the process itself."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def end(self, grace_s: float) -> int:
        """Ask, wait, then kill all of its session's group; gives the exit code."""
        if self.poll() is None:
            self.send(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        return self.poll() or 0


class RayNode:
    """One `ray start --block` on this machine, head or worker.

    Args:
        address: This machine's address.
        settings: The job's.
        rank: Of this machine.
        head: `address:port` of the head to join; None: be the head.
    """

    def __init__(self, address: str, settings: Settings, *, rank: int, head: str | None) -> None:
        # Unix sockets below it may not have names longer than 107 characters.
        self.temp = Path(tempfile.mkdtemp(prefix="plato-", dir="/tmp"))
        self._logs, self._rank = settings.logs, rank
        store = fit_object_store(self.temp)
        self.note = store.note
        words = ["--block", f"--node-ip-address={address}", f"--temp-dir={self.temp}", "--disable-usage-stats"]
        words += [f"--object-store-memory={store.num_bytes}"]
        words += [] if store.folder is None else [f"--plasma-directory={store.folder}"]
        words += [] if settings.num_cpus is None else [f"--num-cpus={settings.num_cpus}"]
        if head is None:
            words += ["--head", f"--port={settings.port}", "--include-dashboard=false"]
        else:
            words += [f"--address={head}"]
        settings.logs.mkdir(parents=True, exist_ok=True)
        self.log = settings.logs / f"node-{rank:03d}.log"
        self._output = self.log.open("ab")
        self._begins = self._output.tell()
        self._child = Child(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *words],
            environment=settings.ray_environment,
            output=self._output,
        )

    def is_up(self) -> bool:
        """Whether the node has joined its cluster."""
        return RAY_IS_UP in self._said()

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self._child.poll()

    def tail(self) -> str:
        """The last of what it said."""
        return self._said()[-TAIL_BYTES:].strip()

    def end(self) -> None:
        """Stop all of its processes, keep the ends of its logs, leave nothing else behind."""
        self._child.end(RAY_GRACE_S)
        _end_all_of(self.temp)
        self._keep_logs()
        self._output.close()
        shutil.rmtree(self.temp, ignore_errors=True)

    def _said(self) -> str:
        with self.log.open("rb") as stream:
            stream.seek(self._begins)
            return stream.read().decode("utf-8", errors="replace")

    def _keep_logs(self) -> None:
        kept = self._logs / f"node-{self._rank:03d}"
        for path in sorted(self.temp.glob("session_2*/logs/*")):
            if path.suffix in (".out", ".err", ".log") and path.is_file() and path.stat().st_size:
                kept.mkdir(exist_ok=True)
                with path.open("rb") as stream:
                    stream.seek(max(0, path.stat().st_size - KEPT_BYTES))
                    (kept / path.name).write_bytes(stream.read())


def _end_all_of(temp: Path) -> None:
    """Kill what is left of a Ray whose temp folder this is: its processes carry the path on their command lines."""
    mark = os.fsencode(str(temp))
    for _ in range(5):
        found = False
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if mark in line:
                found = True
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(int(entry.name), signal.SIGKILL)
        if not found:
            return
        time.sleep(0.05)
