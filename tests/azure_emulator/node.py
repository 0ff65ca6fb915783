"""One node of a job: its disk, its processes, and the environment that the service gives them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.compute.machines import Machine

from .mounts import REFUSING

MARK = "EMULATOR_NODE"
"""In the environment of every process of a node, however it came to be."""
LOCAL = "127.0.0.1"


class Node:
    """One machine for one attempt.

    Args:
        rank: From 0.
        folder: Its disk.
        network: Its own network; None: that of this machine.

    Attributes:
        code: Where the job's code is, and its command runs.
        process: Its command; None until it is started.
    """

    def __init__(self, rank: int, folder: Path, network: Machine | None) -> None:
        self.rank, self._folder, self._network = rank, folder, network
        self.code = folder / "code"
        self.process: subprocess.Popen[bytes] | None = None
        self._mark = uuid.uuid4().hex
        for name in ("home", "tmp", "code"):
            (folder / name).mkdir(parents=True)

    @property
    def address(self) -> str:
        """As the other nodes see it."""
        return LOCAL if self._network is None else self._network.address

    def start(self, command: str, environ: Mapping[str, str], log: Path) -> None:
        """Run the job's command."""
        words = ["bash", "-c", command]
        if self._network is not None:
            words = ["ip", "netns", "exec", self._network.name, *words]
        own = {MARK: self._mark, "HOME": str(self._folder / "home"), "TMPDIR": str(self._folder / "tmp")}
        if cache := os.environ.get("XDG_CACHE_HOME"):  # as if the image held what is compiled once per machine
            own["XDG_CACHE_HOME"] = cache
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                words,
                cwd=self.code,
                env={**environ, **own},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def refuse_rename(self, places: list[str]) -> dict[str, str]:
        """What makes every Python here refuse rename and append below these places."""
        site = self._folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(REFUSING)
        return {"PYTHONPATH": str(site), "EMULATOR_MOUNTS": os.pathsep.join(places)}

    def exit_code(self) -> int | None:
        """How its command ended; None while it runs, or has not begun."""
        return None if self.process is None else self.process.poll()

    def kill(self) -> None:
        """As if the plug were pulled: every process at once, none is asked."""
        deadline = time.monotonic() + 10
        while (pids := self._processes()) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        if self.process is not None:
            self.process.wait(10)

    def _processes(self) -> list[int]:
        """Whatever session or group they are in; one that has ended shows no environment."""
        mark = f"{MARK}={self._mark}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes():
                    found.append(int(path.parent.name))
        return found


def distribution(properties: Mapping[str, Any]) -> str:
    """`pytorch`, `mpi`, or empty."""
    return str((properties.get("distribution") or {}).get("distributionType") or "").lower()


def variables(
    job: Mapping[str, Any], rank: int, hosts: list[str], proxy: str, azure: Mapping[str, str]
) -> dict[str, str]:
    """The environment of a node: where it is, which run it works for, and what the job asks for.

    Args:
        job: In wire format.
        rank: Of the node.
        hosts: The addresses of all nodes.
        proxy: The way to Azure.
        azure: The emulator's environment; no secret of it is handed on.
    """
    properties, parts, kind = job["properties"], str(job["id"]).split("/"), distribution(job["properties"])
    here = ",".join([LOCAL, "localhost", *hosts])
    made = {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HTTPS_PROXY": proxy,
        "NO_PROXY": here,
        "no_proxy": here,
        "REQUESTS_CA_BUNDLE": azure["REQUESTS_CA_BUNDLE"],
        "SSL_CERT_FILE": azure["REQUESTS_CA_BUNDLE"],
        "AZUREML_RUN_ID": str(job["name"]),
        "AZUREML_ARM_SUBSCRIPTION": parts[2],
        "AZUREML_ARM_RESOURCEGROUP": parts[4],
        "AZUREML_ARM_WORKSPACE_NAME": parts[8],
        "AZUREML_ARM_PROJECT_NAME": str(properties.get("experimentName") or "Default"),
        "AZUREML_EXPERIMENT_ID": str(uuid.uuid5(uuid.NAMESPACE_URL, str(properties.get("experimentName")))),
        "AZUREML_NODE_COUNT": str(len(hosts)),
        "AZUREML_CR_NODE_RANK": str(rank),
        "AZ_BATCH_IS_CURRENT_NODE_MASTER": str(rank == 0).lower(),
    }
    if len(hosts) > 1:
        made |= {"AZ_BATCH_HOST_LIST": ",".join(hosts), "AZ_BATCH_NODE_LIST": ";".join(hosts)}
        made["AZ_BATCH_MASTER_NODE"] = f"{hosts[0]}:6000"
    if kind == "pytorch":
        made |= {"MASTER_ADDR": hosts[0], "MASTER_PORT": "6105", "NODE_RANK": str(rank), "RANK": str(rank)}
        made |= {"WORLD_SIZE": str(len(hosts)), "LOCAL_RANK": "0"}
    elif kind == "mpi":
        made |= {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": str(len(hosts))}
        made |= {"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
        made["AZ_BATCHAI_MPI_MASTER_NODE"] = hosts[0]
    elif kind:
        raise ValueError(f"the emulator starts no {kind}")
    return made | {name: str(value) for name, value in (properties.get("environmentVariables") or {}).items()}
