"""The machines of a cluster: `NodeRun` really runs a job's command on as many nodes as it asks for.

A node is a set of processes with a disk of its own (home, temporary folder, the job's code); where we are root, a job
of several nodes has a network namespace with an address for each, elsewhere its nodes meet at ports of its own. No
image is built: every node runs the Python of these tests. What the service gives a node is given: the variables of
PyTorch or MPI, mounts, logs in the workspace, a time limit. Nodes that are taken away lose their disks, while the job
queues again under its name.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.compute.machines import Machine, can_make_machines, machines

from .mounts import Mount, fetch, place_of
from .node import Node, distribution, variables
from .relay import Relay

if TYPE_CHECKING:
    from .emulator import Emulator

SYNC_S = 0.4
"""How often mounts and logs are looked at."""
QUEUED_S = 0.2
ENDED = ("Completed", "Failed", "Canceled")
DATASTORE_URI = re.compile(r"azureml://(?:.*/)?datastores/(?P<store>[^/]+)/paths/(?P<path>.*)", re.IGNORECASE)


def start(job: dict[str, Any], emulator: Emulator) -> NodeRun:
    """Run a job that was just accepted; it is in `emulator.runs` from then on.

    Args:
        job: In wire format; its `status` is kept up to date.
        emulator: Where code, datastores and clusters are.
    """
    run = emulator.runs[str(job["name"])] = NodeRun(job, emulator)
    run.start()
    return run


class NodeRun:
    """One job, from the queue to its end.

    Args:
        job: In wire format; its `status` is kept up to date.
        emulator: Where code, datastores and clusters are, and how nodes are.

    Attributes:
        name: Of the job.
        why: Why it failed, as the run history tells it; empty until it has.
        attempts: How often it was started: once, and once more for each eviction.
        nodes: Of the newest attempt.
    """

    def __init__(self, job: dict[str, Any], emulator: Emulator) -> None:
        self._job, self._emulator, self.name = job, emulator, str(job["name"])
        self._properties = job["properties"]
        self._count = int((self._properties.get("resources") or {}).get("instanceCount") or 1)
        self.why, self.attempts, self.nodes = "", 0, list[Node]()
        self._asked = ""
        self._thread = threading.Thread(target=self._go, name=f"job-{self.name}", daemon=True)

    def start(self) -> None:
        """Queue it."""
        self._properties["status"] = "NotStarted"
        self._thread.start()

    def status(self) -> str:
        """In Azure's words."""
        return str(self._properties["status"])

    def cancel(self) -> None:
        """As a user asks for: its processes are ended."""
        if self.status() not in ENDED:
            self._set("CancelRequested")
            self._asked = "cancel"

    def evict(self) -> None:
        """Azure wants its low-priority machines back: all are gone at once, without a signal; the job queues again."""
        self._asked = self._asked or "evict"

    def kill(self, rank: int) -> None:
        """Every process on one node is killed; the node itself stays with the job."""
        self.nodes[rank].kill()

    def wait(self, within_s: float = 60.0) -> str:
        """Until it has ended, or that long; gives its status."""
        if self._thread.ident is not None:
            self._thread.join(within_s)
        return self.status()

    def close(self) -> None:
        """Nothing of it is left running."""
        self.cancel()
        self.wait()

    def log(self, rank: int = 0) -> str:
        """What a node of the newest attempt has printed."""
        path = self._log(rank)
        return path.read_text(errors="replace") if path.exists() else ""

    # --- one thread per job

    def _go(self) -> None:
        try:
            while (ended := self._attempt()) == "evicted":
                self._count_nodes("preempted", self._count)
        except Exception:  # the run must end, whatever it was
            self.why, ended = f"the emulator could not run it: {traceback.format_exc()}", "Failed"
        self._set(ended)

    def _attempt(self) -> str:
        """Once from the queue to an end: a status, or `evicted`."""
        self.attempts += 1
        self._set("Queued")
        if not self._gets_nodes():
            return "Canceled"
        self._set("Preparing")
        with contextlib.ExitStack() as stack:
            # Short: Ray's sockets are below it, and their paths may have 107 characters.
            disks = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aml", ignore_cleanup_errors=True)))
            networks = self._networks(stack, disks)
            self.nodes = [Node(rank, disks / f"n{rank}", network) for rank, network in enumerate(networks)]
            for node in self.nodes:
                self._unpack(node)
                self._log(node.rank).parent.mkdir(parents=True, exist_ok=True)
                self._log(node.rank).write_bytes(b"")  # of an earlier attempt nothing is shown
            mounts = self._mounts(disks)
            folders = [*mounts.values(), self._upload("user_logs", self._log(0).parent)]
            folders += [self._upload(name, node.code / name) for node in self.nodes for name in ("outputs", "logs")]
            proxy = self._emulator.environ["HTTPS_PROXY"]
            proxies = [stack.enter_context(Relay(one.name, proxy)).url if one else proxy for one in networks]
            # Nodes without a network of their own share this machine's ports, with other jobs too.
            more = {} if None not in networks else {"PLATOTK_PORT": str(_free_ports())}
            self._count_nodes("running", self._count)
            self._set("Running")
            try:
                ended = self._watch(folders, mounts, proxies, more)
            finally:
                for node in self.nodes:
                    node.kill()
                self._count_nodes("running", 0)
            for folder in folders if ended != "evicted" else ():
                folder.sync()
            return ended

    def _watch(self, folders: list[Mount], mounts: dict[str, Mount], proxies: list[str], more: dict[str, str]) -> str:
        """Start every node when it is ready, carry files, and see how it ends."""
        began = synced = time.monotonic()
        late = self._emulator.faults.late
        limit = _seconds((self._properties.get("limits") or {}).get("timeout"))
        places = {name: str(mount.folder) for name, mount in mounts.items()}
        hosts = [node.address for node in self.nodes]
        while True:
            now = time.monotonic()
            for node, proxy in zip(self.nodes, proxies, strict=True):
                if node.process is None and now - began >= late.get(node.rank, 0.0):
                    environ = more | variables(self._job, node.rank, hosts, proxy, self._emulator.environ)
                    if self._emulator.tracks:
                        environ |= self._emulator.tracking_environ(self.name)
                    if self._emulator.refuses_rename:
                        environ |= node.refuse_rename(list(places.values()))
                    node.start(self._command(places), environ, self._log(node.rank))
            if self._asked == "evict":
                self._asked = ""
                return "evicted"
            if self._asked == "cancel":
                return "Canceled"
            if limit is not None and now - began > limit:
                self.why = f"The job has exceeded its time limit of {limit:g} s."
                return "Canceled"
            codes = [node.exit_code() for node in self.nodes]
            failed = {rank: code for rank, code in enumerate(codes) if code}
            # mpirun ends the others when one fails.
            if None not in codes or (failed and distribution(self._properties) == "mpi"):
                return self._told(failed)
            if now - synced > SYNC_S:
                for folder in folders:
                    folder.sync()
                synced = time.monotonic()
            time.sleep(0.05)

    def _told(self, failed: dict[int, int]) -> str:
        """A job is completed when every node ended with 0."""
        if not failed:
            return "Completed"
        rank, code = min(failed.items())
        code = 128 - code if code < 0 else code
        said = " ".join(self.log(rank).strip().splitlines()[-3:])
        told = f"Execution failed. User process 'bash' of node {rank} exited with status code {code}. {said}"
        self.why = json.dumps({"NonCompliant": told})
        return "Failed"

    def _gets_nodes(self) -> bool:
        """Wait for machines; a job for more than the cluster may have waits until somebody cancels it."""
        starts_at = time.monotonic() + QUEUED_S
        while self._asked != "cancel":
            compute = self._emulator.state.computes.get(self._compute) or {}
            inner = (compute.get("properties") or {}).get("properties") or {}
            most = int((inner.get("scaleSettings") or {}).get("maxNodeCount", self._count))
            about = {"AllocationState": "resizing", "PreparingNodeCount": min(most, self._count)}
            about |= {"RunningNodeCount": 0, "CurrentNodeCount": 0}
            tags = self._properties.get("tags") or {}
            self._properties["tags"] = {**tags, "_aml_system_ComputeTargetStatus": json.dumps(about)}
            if self._count <= most and time.monotonic() > starts_at:
                return True
            time.sleep(0.05)
        return False

    # --- what nodes are given

    def _networks(self, stack: contextlib.ExitStack, disks: Path) -> list[Machine] | list[None]:
        asked = self._emulator.nodes
        if asked == "namespaces" or (asked is None and self._count > 1 and can_make_machines()):
            return stack.enter_context(machines(self._count, disks / "machines"))
        return [None] * self._count

    def _unpack(self, node: Node) -> None:
        """The code snapshot, on the node's own disk."""
        code = self._properties.get("codeId")
        if code:
            uri = self._emulator.state.codes[":".join(code.rsplit("/", 3)[-3::2])]["properties"]["codeUri"]
            container, path = place_of(uri)
            fetch(self._emulator.blobs.container(container), path, node.code)

    def _mounts(self, disks: Path) -> dict[str, Mount]:
        """A folder for every named output and every input on a datastore; the same one on all nodes."""
        made = {}
        for kind in ("inputs", "outputs"):
            for name, about in (self._properties.get(kind) or {}).items():
                uri = str(about.get("uri") or "")
                if name == "default" or (kind == "inputs" and not uri):
                    continue
                uri = uri or f"azureml://datastores/workspaceblobstore/paths/azureml/{self.name}/{name}/"
                about["uri"] = uri = uri.replace("${{name}}", self.name)
                match = DATASTORE_URI.fullmatch(uri)
                if match is None:
                    raise ValueError(f"{kind[:-1]} {name} is not on a datastore: {uri}")
                container = self._container(match["store"])
                made[f"{kind}.{name}"] = Mount(container, match["path"], disks / "mnt" / kind / name)
        return made

    def _upload(self, name: str, folder: Path) -> Mount:
        """A folder whose files go to the run's own place in the workspace."""
        container = self._container("workspaceartifactstore")
        return Mount(container, f"ExperimentRun/dcid.{self.name}/{name}", folder, is_watched=False)

    def _container(self, datastore: str) -> Any:
        return self._emulator.blobs.container(self._emulator.blobs.container_of(datastore))

    def _log(self, rank: int) -> Path:
        name = "std_log.txt" if self._count == 1 else f"std_log_process_{rank:02}.txt"
        return self._emulator.folder / "jobs" / self.name / str(self.attempts) / name

    def _command(self, places: dict[str, str]) -> str:
        """With `${{outputs.run}}` and the like filled in."""
        values = dict(places)
        for name, about in (self._properties.get("inputs") or {}).items():
            values.setdefault(f"inputs.{name}", str(about.get("value", "")))
        pattern = re.compile(r"\$\{\{\s*([\w.]+)\s*\}\}")
        return pattern.sub(lambda match: values[match[1]], str(self._properties["command"]))

    # --- what Azure says of it

    @property
    def _compute(self) -> str:
        return str(self._properties.get("computeId") or "").rpartition("/")[2]

    def _set(self, status: str) -> None:
        if self.status() not in ENDED and (self.status() != "CancelRequested" or status in ENDED):
            self._properties["status"] = status

    def _count_nodes(self, kind: str, number: int) -> None:
        compute = self._emulator.state.computes.get(self._compute)
        if compute is not None:
            inner = compute["properties"]["properties"]
            inner.setdefault("nodeStateCounts", {})[f"{kind}NodeCount"] = number
            if kind == "running":
                inner["currentNodeCount"] = number


def _free_ports() -> int:
    """The first of two ports, one after the other, at which nobody listens."""
    while True:
        port = random.randrange(20000, 32000, 2)  # below those that the system gives out
        with contextlib.suppress(OSError), socket.create_server(("", port)), socket.create_server(("", port + 1)):
            return port


def _seconds(duration: str | None) -> float | None:
    """Of an ISO 8601 duration: `PT2H16M`."""
    if not duration:
        return None
    import isodate

    return float(isodate.parse_duration(duration).total_seconds())
