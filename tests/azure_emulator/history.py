"""What the SDKs ask beside Azure Resource Manager: where a region's services are, how a run went, where its data is.

Answers are made from the jobs in the emulator's state and from the blobs that their nodes uploaded.
"""

from __future__ import annotations

import re
import uuid
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from .routing import Answer, Request, Route, error

if TYPE_CHECKING:
    from .emulator import Emulator

REGION = r"(?P<region>[a-z0-9]+)\.api\.azureml\.ms"
WORKSPACE = (
    r"/subscriptions/(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)"
    r"/providers/Microsoft\.MachineLearningServices/workspaces/(?P<workspace>[^/]+)"
)
ARTIFACTS = "workspaceartifactstore"


def routes(emulator: Emulator) -> list[Route]:
    """Of discovery, run history and the data plane."""
    history = History(emulator)
    base = rf"{REGION}/history/v1\.0{WORKSPACE}"
    run = rf"{base}/experiment(?:ids|s)/[^/]+/runs/(?P<run>[^/]+)"
    return [
        Route("GET", rf"{REGION}/discovery(?:/.*)?", history.discovery),
        Route("GET", rf"{base}/runs/(?P<run>[^/]+)/details", history.details),
        Route("GET", rf"{base}/runs/(?P<run>[^/]+)", history.run),
        Route("POST", rf"{base}/rundata", history.rundata),
        Route("GET", rf"{run}/artifacts", history.artifacts),
        Route("GET", rf"{run}/artifacts/contentinfo", history.content),
        Route("POST", rf"{run}/artifacts/batch/metadata", history.new_artifacts),
        Route("POST", rf"{REGION}/data/v1\.0{WORKSPACE}/dataversion/batchGetResolvedUris", history.resolve),
    ]


class History:
    """Answers from the emulator's state."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator

    def discovery(self, request: Request) -> Answer:
        """Asked without a token."""
        region = request.match["region"]
        experiments = f"https://{region}.experiments.azureml.net"
        return (
            200,
            {},
            {
                "api": f"https://{region}.api.azureml.ms",
                "catalog": "https://catalog.cortanaanalytics.com",
                "experimentation": experiments,
                "gallery": "https://gallery.cortanaintelligence.com/project",
                "history": experiments,
                "hyperdrive": experiments,
                "labeling": experiments,
                "modelmanagement": f"https://{region}.modelmanagement.azureml.net",
                "pipelines": f"https://{region}.aether.ms",
                "studio": "https://ml.azure.com",
            },
        )

    def details(self, request: Request) -> Answer:
        job = self._emulator.state.jobs.get(request.match["run"])
        if job is None:
            return self._missing(request)
        about = self._about(job)
        about["logFiles"] = self._logs(job["name"])
        return 200, {}, about

    def run(self, request: Request) -> Answer:
        job = self._emulator.state.jobs.get(request.match["run"])
        return self._missing(request) if job is None else (200, {}, self._metadata(job))

    def rundata(self, request: Request) -> Answer:
        job = self._emulator.state.jobs.get(request.json["runId"])
        if job is None:
            return error(404, "UserError", f"Run {request.json['runId']} was not found")
        definition = {
            "script": None,
            "command": job["properties"].get("command"),
            "history": {"outputCollection": True, "directoriesToWatch": ["logs"]},
        }
        return 200, {}, {"runMetadata": self._metadata(job), "runDefinition": definition, "jobSpecification": None}

    def resolve(self, request: Request) -> Answer:
        """Addresses of named outputs: the ids that `rundata` gave out."""
        found = {}
        for asset in request.json["values"]:
            _, job, name = asset.rsplit(":", 2)
            about = self._emulator.state.jobs[job]["properties"]["outputs"][name]
            # The wire type, which differs from the SDK's own word.
            found[asset] = {"uri": about["uri"], "type": "UriFolder"}
        return 200, {}, {"values": found}

    # --- files that a run logged

    def artifacts(self, request: Request) -> Answer:
        """What lies in one folder of the run."""
        folder = request.query.get("path", "").strip("/")
        prefix = f"{_origin(request.match['run'])}/" + (f"{folder}/" if folder else "")
        listed = []
        for blob in self._container().list_blobs(name_starts_with=prefix):
            path = blob.name.removeprefix(f"{_origin(request.match['run'])}/")
            listed.append(self._artifact(request.match["run"], path))
        return 200, {}, {"value": listed}

    def content(self, request: Request) -> Answer:
        """A signed address of one file."""
        run, path = request.match["run"], request.query["path"]
        return 200, {}, self._information(run, path, self._address(f"{_origin(run)}/{path}"))

    def new_artifacts(self, request: Request) -> Answer:
        """Signed addresses to which files will be written."""
        run = request.match["run"]
        paths = [one["path"] for one in request.json["paths"]]
        return (
            200,
            {},
            {
                "artifacts": {path: self._artifact(run, path) for path in paths},
                "artifactContentInformation": {
                    path: self._information(run, path, self._address(f"{_origin(run)}/{path}", "cw")) for path in paths
                },
                "errors": {},
            },
        )

    # ---

    def _about(self, job: dict[str, Any]) -> dict[str, Any]:
        """What details and metadata have in common."""
        name, properties = job["name"], job["properties"]
        run = self._emulator.runs.get(name)
        why = run.why if run is not None and properties["status"] == "Failed" else ""
        return {
            "runId": name,
            "rootRunId": name,
            "status": properties["status"],
            "target": str(properties.get("computeId") or "").rpartition("/")[2],
            "startTimeUtc": datetime.now(timezone.utc).isoformat(),
            "tags": properties.get("tags") or {},
            "properties": properties.get("properties") or {},
            "error": {"error": {"code": "UserError", "message": why}} if why else None,
            "warnings": [],
            "runDefinition": None,
        }

    def _metadata(self, job: dict[str, Any]) -> dict[str, Any]:
        properties = job["properties"]
        outputs = {
            name: {"assetId": f"azureml:{job['name']}:{name}", "type": "UriFolder"}
            for name in properties.get("outputs") or {}
            if name != "default"
        }
        experiment = str(properties.get("experimentName") or "Default")
        return {
            **{key: value for key, value in self._about(job).items() if key != "runDefinition"},
            "dataContainerId": f"dcid.{job['name']}",
            "experimentId": str(uuid.uuid5(uuid.NAMESPACE_URL, experiment)),
            "runTypeV2": {"orchestrator": "Execution", "traits": ["remote"], "computeType": "AmlcTrain"},
            "inputs": None,
            "outputs": outputs or None,
        }

    def _logs(self, name: str) -> dict[str, str]:
        """Signed addresses of what nodes printed; an SDK before 1.35 reads them."""
        prefix = f"{_origin(name)}/"
        found = self._container().list_blobs(name_starts_with=f"{prefix}user_logs/")
        return {blob.name.removeprefix(prefix): self._address(blob.name) for blob in found}

    def _artifact(self, run: str, path: str) -> dict[str, Any]:
        return {
            "artifactId": f"ExperimentRun/dcid.{run}/{path}",
            "origin": "ExperimentRun",
            "container": f"dcid.{run}",
            "path": path,
        }

    def _information(self, run: str, path: str, address: str) -> dict[str, Any]:
        about = {key: value for key, value in self._artifact(run, path).items() if key != "artifactId"}
        return {**about, "contentUri": address}

    def _container(self) -> Any:
        return self._emulator.blobs.container(self._emulator.blobs.container_of(ARTIFACTS))

    def _address(self, path: str, rights: str = "r") -> str:
        """Signed for an hour."""
        return str(self._emulator.blobs.signed(self._emulator.blobs.container_of(ARTIFACTS), path, rights))

    @staticmethod
    def _missing(request: Request) -> Answer:
        return error(404, "UserError", f"Run {re.sub(r'[^A-Za-z0-9_-]', '?', request.match['run'])} was not found")


def _origin(run: str) -> str:
    return f"ExperimentRun/dcid.{run}"
