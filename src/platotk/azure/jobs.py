"""A job of a workspace as it stands: its state in our words with the reason, what it printed, its end.

Everything is read by name from the workspace, so that any shell gives the same answer; the SDK's own streaming is not
used, because it fails where a workspace hands out signatures instead of keys.
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from typing import Any

from ..compute.base import STOPPED_EXIT_CODE, JobState, JobStatus
from ..compute.local import whole_characters
from ..errors import AzureError
from .blobs import BlobFiles
from .client import Azure, cure

GET_API, CANCEL_API, COMPUTE_API, WORKSPACE_API = (
    "2024-01-01-preview",
    "2023-04-01-preview",
    "2023-08-01-preview",
    "2024-10-01-preview",
)
"""The versions that azure-ai-ml uses for the same questions."""
LOG_STORE = "workspaceartifactstore"
LOG_OF_HEAD = re.compile(r"/user_logs/std_log[^\d/]*0*(?:_ps)?\.txt$")
"""Of the first machine; the others' are std_log_process_01.txt and so on."""
MOST_AT_ONCE = 1 << 20
TAIL_BYTES = 64
Read = dict[str, tuple[int, bytes]]
"""Of a job's log: how far it was read, and the bytes before that."""
WAITING = {
    "NotStarted": "not started yet",
    "Starting": "starting",
    "Provisioning": "machines are being made",
    "Preparing": "its environment is being prepared",
    "Queued": "waiting for {nodes}",
    "Paused": "paused",
}
WORKING = ("Running", "Finalizing", "NotResponding", "CancelRequested")


def read(azure: Azure, name: str) -> dict[str, Any]:
    """The job, in wire format.

    Raises:
        AzureError: There is none of that name.
    """
    return azure.workspace_get(f"jobs/{name}", GET_API, what=f"job {name}")


def studio_url(azure: Azure, job: dict[str, Any]) -> str:
    """Where the job is in the studio."""
    services = job.get("properties", {}).get("services") or {}
    made = f"https://ml.azure.com/runs/{job.get('name', '')}?wsid={azure.workspace_path}"
    return str((services.get("Studio") or {}).get("endpoint") or made)


def state(job: dict[str, Any], note: dict[str, Any] | None, reason: str = "") -> JobState:
    """How a job stands.

    Args:
        job: In wire format.
        note: What the job left at its end: `{"code": 75, "asked": True}`; None when it left nothing.
        reason: Why it failed, as Azure says.
    """
    properties = job.get("properties", {})
    word = str(properties.get("status") or "NotStarted")
    code = None if note is None else int(note.get("code", 1))
    if word == "Completed" and not code:
        return JobState(JobStatus.SUCCEEDED, exit_code=0)
    if word == "Failed" and code == 0:
        # The command has its own last word; a machine that was lost on the way makes Azure call the job failed.
        return JobState(JobStatus.SUCCEEDED, "the command ended well, though Azure lost a machine of the job", 0)
    if word == "Canceled":
        return JobState(JobStatus.STOPPED, "cancelled", code)
    if word in ("Failed", "Completed"):
        if note is not None and (code == STOPPED_EXIT_CODE or note.get("asked")):
            return JobState(JobStatus.STOPPED, exit_code=code)
        return JobState(JobStatus.FAILED, reason or (f"exit code {code}" if code is not None else "failed"), code)
    if word in WORKING:
        return JobState(JobStatus.RUNNING, "Azure hears nothing from it" if word == "NotResponding" else "")
    return JobState(JobStatus.PENDING, _why_it_waits(job, word))


def failure(azure: Azure, name: str) -> str:
    """Why a job failed, as the run history tells it, and what to do where that is known; empty when it is not told."""
    try:
        workspace = azure.arm("GET", azure.workspace_path, WORKSPACE_API, what="the workspace") or {}
        found = azure.arm("GET", workspace["properties"]["discoveryUrl"], "v1.0", what="the workspace") or {}
        url = f"{found['api']}/history/v1.0{azure.workspace_path}/runs/{name}/details"
        told = (azure.arm("GET", url, "v1.0", what=f"job {name}") or {}).get("error") or {}
    except (AzureError, KeyError, TypeError):
        return ""
    said = _sentence((told.get("error") or told).get("message"))
    return " ".join(part for part in (said, cure(said)) if part)


def log(files: BlobFiles, name: str, start: int, read: Read) -> tuple[str, int]:
    """What the first machine has printed from byte `start` on, up to a megabyte, and the position after it.

    A job that lost its machines begins a new log, which is read from its beginning: it is shorter than what was read of
    the old one, or what stands before `start` is not what was read there.

    Args:
        files: The datastore `LOG_STORE`.
        name: Of the job.
        start: A position that an earlier call gave, or 0.
        read: The last of what was read, by job; kept up to date.
    """
    found = {
        path: int(about["size"] or 0)
        for path, about in files.find(f"ExperimentRun/dcid.{name}/user_logs").items()
        if LOG_OF_HEAD.search(f"/{path}")
    }
    if not found:
        return "", start
    path = min(found)
    position, tail = read.get(name, (0, b""))
    if start > found[path]:
        start = 0
    if start == found[path]:
        return "", start
    if position != start:
        tail = b""
    try:
        data = files.cat_file(path, start - len(tail))
        if not data.startswith(tail):
            start, tail = 0, b""
            data = files.cat_file(path)
    except FileNotFoundError:
        return "", start
    data = data[len(tail) :][:MOST_AT_ONCE]
    data = data[: whole_characters(data)]
    read[name] = (start + len(data), (tail + data)[-TAIL_BYTES:])
    return data.decode("utf-8", errors="replace"), start + len(data)


def cancel(azure: Azure, name: str) -> None:
    """Ask Azure to end a job; returns once it has been asked."""
    azure.arm("POST", f"{azure.workspace_path}/jobs/{name}/cancel", CANCEL_API, what=f"job {name}")


def _why_it_waits(job: dict[str, Any], word: str) -> str:
    """`waiting for 2 nodes, 4 min (0 running, 1 being prepared)`."""
    properties = job.get("properties", {})
    nodes = int((properties.get("resources") or {}).get("instanceCount") or 1)
    text = WAITING.get(word, word).format(nodes="1 node" if nodes == 1 else f"{nodes} nodes")
    minutes = _age_s(job) / 60
    if minutes >= 1:
        text += f", {minutes:.0f} min" if minutes < 120 else f", {minutes / 60:.0f} h"
    try:
        cluster = json.loads((properties.get("tags") or {})["_aml_system_ComputeTargetStatus"])
        running, preparing = int(cluster["RunningNodeCount"]), int(cluster["PreparingNodeCount"])
    except (KeyError, TypeError, ValueError):
        return text
    return f"{text} ({running} running, {preparing} being prepared)"


def _age_s(job: dict[str, Any]) -> float:
    """Seconds since it was submitted."""
    made = str((job.get("systemData") or {}).get("createdAt") or "")
    match = re.match(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)", made)
    if match is None:
        return 0.0
    moment = datetime.fromisoformat(f"{match[1]}T{match[2]}").replace(tzinfo=timezone.utc)
    return max(0.0, (datetime.now(timezone.utc) - moment).total_seconds())


def _sentence(message: Any) -> str:
    """AML wraps some messages in JSON: `{"NonCompliant": "Process 'bash' exited with code 1 ..."}`."""
    text = str(message or "").strip()
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    if isinstance(told, dict):
        text = str(told.get("NonCompliant") or told.get("Compliant") or next(iter(told.values()), ""))
    return " ".join(text.split())[:400]
