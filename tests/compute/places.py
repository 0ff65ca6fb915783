"""Where the contract of a backend is tried: a backend, a working directory, and runs to submit for."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.uncovered import uncovered

from platotk import Project, Run
from platotk.compute import following
from platotk.compute.base import PYTHON, RUN, Backend, Job, JobSpec, JobState, JobStatus
from platotk.run import create_run

_COUNT = itertools.count()


@dataclass
class Place:
    """One backend to try; `make` gives it anew, as another shell would."""

    make: Callable[[], Backend]
    project: Project
    runs: Path
    texts: list[str] = field(default_factory=list)

    def run(self) -> Run:
        return create_run(self.project, run=self.runs / f"run-{next(_COUNT)}")

    def spec(self, code: str, run: Run | None = None, **fields: Any) -> JobSpec:
        """A job that runs `code` with the run's folder as its argument."""
        run = self.run() if run is None else run
        command = (PYTHON, "-c", code, RUN)
        return JobSpec(name=run.name, run=run.path, command=command, working_dir=self.project.root, **fields)

    def submit(self, code: str, run: Run | None = None, **fields: Any) -> Job:
        return self.make().submit(self.spec(code, run, **fields))

    def again(self, job: Job) -> Job:
        """The job as another shell reads it from run.json."""
        return Job.from_dict(json.loads(json.dumps(job.to_dict())))

    def end(self, job: Job) -> tuple[JobState, str]:
        """Follow it to its end: how it ended, and what it printed."""
        texts: list[str] = []
        ended = following.follow(self.make(), self.again(job), on_text=texts.append)
        return ended, "".join(texts)

    def wait_for(self, job: Job, what: str) -> None:
        """Until the job has printed something."""
        deadline = time.monotonic() + 60
        while what not in (text := self.make().logs(job)[0]):
            if time.monotonic() > deadline or self.make().status(job).status not in (
                JobStatus.PENDING,
                JobStatus.RUNNING,
            ):
                raise AssertionError(f"{what!r} was never printed: {text}")
            time.sleep(0.1)


@contextlib.contextmanager
def ray_cluster() -> Iterator[str]:
    """`ray start --head` with a dashboard, as on somebody's cluster; gives the address of its Jobs API."""
    port, dashboard = free_port(), free_port()
    temp = tempfile.mkdtemp(prefix="ptk", dir="/tmp")
    words = ["--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={temp}", "--num-cpus=2"]
    words += ["--include-dashboard=true", f"--dashboard-port={dashboard}", "--disable-usage-stats"]
    # Ray's own 52365 may belong to another Ray of this machine, and then this one would never run a job.
    words += ["--object-store-memory=80000000", "--dashboard-agent-listen-port=0"]
    cluster = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", *words],
        env={
            **uncovered(),
            "RAY_AUTH_MODE": "disabled",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # as activate does
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 90
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api/version", timeout=2).close()
                if any(Path(temp).glob("session_2*/dashboard_agent_listen_port_*")):
                    break  # the agent of the head node, which runs jobs, is there too
            assert cluster.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield address
    finally:
        cluster.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            cluster.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(cluster.pid, signal.SIGKILL)
        shutil.rmtree(temp, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
