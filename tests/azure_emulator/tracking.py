"""MLflow of a workspace: a real MLflow server behind the address that azureml-mlflow talks to, within Azure's limits.

The server is mlflow-skinny's own, in a Python that adds what skinny leaves out; it starts with the first request. A job
has a run under the job's name; the server numbers its runs itself, so names are exchanged on the way.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import secrets
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

from tests.compute.beside import python_with
from tests.uncovered import uncovered

from .history import REGION, WORKSPACE
from .routing import Answer, Request, Route

if TYPE_CHECKING:
    from .emulator import Emulator

ADDED = ("flask", "flask-cors", "graphene", "waitress", "sqlalchemy", "alembic")
"""What MLflow's server imports and mlflow-skinny does not bring."""
UP_WITHIN_S = 60.0
MAX_PARAMS, MAX_PARAMS_A_CALL, MAX_PARAM_CHARS, MAX_METRIC_NAMES = 200, 100, 500, 50
MISSING = ("/logged-models", "/traces", "/preview/")
"""Calls of MLflow 3 that Azure does not have."""


def routes(emulator: Emulator) -> list[Route]:
    """Of MLflow."""
    tracking = Tracking(emulator)
    emulator.closers.append(tracking.close)
    pattern = rf"{REGION}/mlflow/v[12]\.0{WORKSPACE}(?P<rest>/api/2\.0/.*)"
    return [Route(method, pattern, tracking.ask) for method in ("GET", "POST", "PATCH", "DELETE")]


class Tracking:
    """Hands requests on to the server, as the workspace's service would.

    Attributes:
        token: What jobs show instead of a user's token.
    """

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self.token = _token()
        emulator.sign_in.admit(self.token)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._numbers: dict[str, str] = {}
        self._params: dict[str, set[str]] = {}
        self._metrics: dict[str, set[str]] = {}
        emulator.tracking_environ, emulator.tracked = self.environ, self.tracked

    def environ(self, job: str) -> dict[str, str]:
        """What a node is told of its run."""
        about = self._emulator.state.jobs[job]
        workspace = about["id"].partition("/jobs/")[0]
        return {
            "MLFLOW_TRACKING_URI": f"azureml://westeurope.api.azureml.ms/mlflow/v1.0{workspace}",
            "MLFLOW_TRACKING_TOKEN": self.token,
            "MLFLOW_RUN_ID": job,
            "MLFLOW_EXPERIMENT_NAME": str(about["properties"].get("experimentName") or "Default"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def tracked(self, job: str) -> dict[str, list[float]]:
        """The values of each metric that a job has logged, as the server itself tells them."""
        number = self._numbers[job]
        found = json.loads(self._send("GET", f"/api/2.0/mlflow/runs/get?{_query({'run_id': number})}", b"")[1])
        values = {}
        for name in (metric["key"] for metric in found["run"]["data"]["metrics"]):
            asked = _query({"run_id": number, "metric_key": name})
            history = json.loads(self._send("GET", f"/api/2.0/mlflow/metrics/get-history?{asked}", b"")[1])["metrics"]
            values[name] = [float(one["value"]) for one in sorted(history, key=lambda one: int(one.get("step", 0)))]
        return values

    def close(self) -> None:
        """End the server."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def ask(self, request: Request) -> Answer:
        """One call of MLflow's API."""
        refused = self._emulator.sign_in.refuses(request)
        if refused is not None:
            return refused
        if any(part in request.match["rest"] for part in MISSING):
            return 404, {}, {"error_code": "ENDPOINT_NOT_FOUND", "message": f"no {request.match['rest']}"}
        with self._lock:
            self._start()
            self._name_jobs()
        limit = self._refusal(request)
        if limit:
            return 400, {}, {"error_code": "INVALID_PARAMETER_VALUE", "message": limit}
        query = request.target.partition("?")[2]
        target = request.match["rest"] + (f"?{query}" if query else "")
        status, body = self._send(request.method, self._inward(target), self._inward(request.body.decode()).encode())
        return status, {}, self._outward(body, request)

    # --- limits

    def _refusal(self, request: Request) -> str:
        """What the service takes of parameters and metrics."""
        body = request.json if request.body else {}
        rest, run = request.match["rest"], str((body or {}).get("run_id") or "")
        if rest.endswith("/runs/log-batch"):
            params, metrics = body.get("params") or [], body.get("metrics") or []
        elif rest.endswith("/runs/log-parameter"):
            params, metrics = [body], []
        elif rest.endswith("/runs/log-metric"):
            params, metrics = [], [body]
        else:
            return ""
        names = self._params.get(run, set()) | {one["key"] for one in params}
        if len(params) > MAX_PARAMS_A_CALL:
            return f"A batch logging request can contain at most {MAX_PARAMS_A_CALL} params."
        if len(names) > MAX_PARAMS:
            return f"Limit exceeded: FieldName=Parameters, Limit={MAX_PARAMS}, Size={len(names)}."
        if any(len(str(one.get("value"))) > MAX_PARAM_CHARS for one in params):
            return f"A parameter's value is longer than {MAX_PARAM_CHARS} characters."
        keys = self._metrics.get(run, set()) | {one["key"] for one in metrics}
        if len(keys) > MAX_METRIC_NAMES:
            return f"Limit exceeded: FieldName=Metrics, Limit={MAX_METRIC_NAMES}, Size={len(keys)}."
        self._params[run], self._metrics[run] = names, keys
        return ""

    # --- names

    def _name_jobs(self) -> None:
        """A run for every job that has none yet."""
        for name, job in self._emulator.state.jobs.items():
            if name in self._numbers:
                continue
            experiment = {"experiment_name": str(job["properties"].get("experimentName") or "Default")}
            status, body = self._send("GET", f"/api/2.0/mlflow/experiments/get-by-name?{_query(experiment)}", b"")
            if status == 200:
                number = json.loads(body)["experiment"]["experiment_id"]
            else:
                made = json.dumps({"name": experiment["experiment_name"]}).encode()
                number = json.loads(self._send("POST", "/api/2.0/mlflow/experiments/create", made)[1])["experiment_id"]
            run = {"experiment_id": number, "run_name": name, "start_time": int(time.time() * 1000)}
            body = self._send("POST", "/api/2.0/mlflow/runs/create", json.dumps(run).encode())[1]
            self._numbers[name] = json.loads(body)["run"]["info"]["run_id"]

    def _inward(self, text: str) -> str:
        for name, number in self._numbers.items():
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", number, text)
        return text

    def _outward(self, body: bytes, request: Request) -> bytes:
        """Jobs by their names, and files where the workspace keeps them."""
        text = body.decode()
        for name, number in self._numbers.items():
            text = text.replace(number, name)
        try:
            told = json.loads(text)
        except ValueError:
            return text.encode()
        base = f"azureml://{request.host}/mlflow/v2.0{request.path[len('/mlflow/v2.0') :].partition('/api/')[0]}"
        _place_files(told, base)
        return json.dumps(told).encode()

    # --- the server

    def _send(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request(method, target, body or None, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _start(self) -> None:
        if self._process is not None:
            return
        folder = self._emulator.folder / "mlflow"
        folder.mkdir(parents=True, exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        words = [python_with(*ADDED), "-m", "waitress", "--listen", f"127.0.0.1:{self._port}", "mlflow.server:app"]
        with (folder / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(
                words,
                cwd=folder,
                env={
                    **{name: value for name, value in uncovered().items() if not name.startswith(("MLFLOW", "AZURE"))},
                    "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/mlflow.db",
                    "_MLFLOW_SERVER_ARTIFACT_ROOT": str(folder / "files"),
                    "MLFLOW_DISABLE_TELEMETRY": "true",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + UP_WITHIN_S
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"MLflow's server did not start: {(folder / 'log.txt').read_text()[-2000:]}")


def _place_files(told: Any, base: str) -> None:
    if isinstance(told, list):
        for one in told:
            _place_files(one, base)
    elif isinstance(told, dict):
        if "artifact_uri" in told and "run_id" in told:
            place = f"{base}/experiments/{told['experiment_id']}/runs/{told['run_id']}/artifacts"
            told["artifact_uri"] = place
        for one in told.values():
            _place_files(one, base)


def _token() -> str:
    """A JSON web token for a month: azureml-mlflow reads the end of its time."""
    parts = ({"alg": "HS256", "typ": "JWT"}, {"exp": int(time.time()) + 30 * 86400})
    words = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*words, secrets.token_urlsafe(24)])


def _query(values: dict[str, str]) -> str:
    from urllib.parse import urlencode

    return urlencode(values)
