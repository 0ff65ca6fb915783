"""Command jobs: taken, started on nodes, asked about, cancelled."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from . import nodes
from .resource_manager import WORKSPACE, build_image
from .routing import Answer, Request, Route, error

if TYPE_CHECKING:
    from .emulator import Emulator

JOB = rf"{WORKSPACE}/jobs/(?P<name>[^/]+)"


def routes(emulator: Emulator) -> list[Route]:
    """Of jobs."""
    jobs = Jobs(emulator)
    return [
        Route("PUT", JOB, jobs.put),
        Route("GET", JOB, jobs.get),
        Route("GET", rf"{WORKSPACE}/jobs", jobs.list),
        Route("POST", rf"{JOB}/cancel", jobs.cancel),
    ]


class Jobs:
    """Answers from the emulator's state; the nodes keep a job's status up to date there."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator, self._state = emulator, emulator.state

    def put(self, request: Request) -> Answer:
        """A new job; it is started at once. The service fills in what was left out."""
        name, properties = request.match["name"], request.json["properties"]
        if name in self._state.jobs:
            return error(409, "UserError", f"A job with this name already exists: {name}")
        refused = self._refusal(properties)
        if refused:
            return error(400, "UserError", refused)
        outputs = {
            "default": {
                "uri": f"azureml://datastores/workspaceartifactstore/ExperimentRun/dcid.{name}",
                "mode": "ReadWriteMount",
                "jobOutputType": "uri_folder",
            },
            **(properties.get("outputs") or {}),
        }
        studio = f"https://ml.azure.com/runs/{name}?wsid={request.path.rpartition('/jobs/')[0]}"
        job = {
            "id": request.path,
            "name": name,
            "type": "Microsoft.MachineLearningServices/workspaces/jobs",
            "properties": {
                **properties,
                "status": "Starting",
                "outputs": outputs,
                "resources": {"instanceCount": 1, "shmSize": "2g", **(properties.get("resources") or {})},
                "services": {"Studio": {"jobServiceType": "Studio", "endpoint": studio}},
            },
            "systemData": {"createdAt": datetime.datetime.now(datetime.timezone.utc).isoformat()},
        }
        self._state.jobs[name] = job
        build_image(self._state, request.match["workspace"], version(str(properties.get("environmentId"))))
        nodes.start(job, self._emulator)
        return 201, {}, job

    def get(self, request: Request) -> Answer:
        found = self._state.jobs.get(request.match["name"])
        if found is None:
            return error(404, "UserError", f"Run {request.match['name']} was not found")
        return 200, {}, found

    def list(self, request: Request) -> Answer:
        return 200, {}, {"value": list(self._state.jobs.values())}

    def cancel(self, request: Request) -> Answer:
        run = self._emulator.runs.get(request.match["name"])
        if run is None:
            return error(404, "UserError", f"Run {request.match['name']} was not found")
        run.cancel()
        where = f"https://management.azure.com{request.path.removesuffix('/cancel')}?api-version=2024-01-01-preview"
        return 202, {"Location": where}, None

    def _refusal(self, properties: dict[str, object]) -> str:
        """What a job names has to be there."""
        cluster = str(properties.get("computeId", "")).rpartition("/")[2]
        if cluster not in self._state.computes:
            return f"Unknown compute target '{cluster}'."
        for key, there in (("codeId", self._state.codes), ("environmentId", self._state.environments)):
            if properties.get(key) is not None and version(str(properties[key])) not in there:
                return f"there is no {properties[key]}"
        return ""


def version(path: str) -> str:
    """`name:version` of `.../codes/name/versions/version`."""
    words = path.split("/")
    return f"{words[-3]}:{words[-1]}" if len(words) > 2 else path
