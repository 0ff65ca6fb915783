"""A fixed number of env runners that leaves half of the CPUs idle is spoken of before anything is sent."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from platotk import Project
from platotk.compute import jobs
from platotk.compute.idle import idle


def said(cpus: float, **fields: Any) -> str:
    return idle(Project(sim="CartPole-v1", **fields), cpus, "2 x Standard_E8ds_v5 have 16 CPUs")


def test_it_says_how_many_are_busy_and_the_line_to_write() -> None:
    assert said(16, env_runners={"num_env_runners": 2}) == (
        "2 x Standard_E8ds_v5 have 16 CPUs, and 2 env runners keep 3 of them busy. "
        "Say env_runners: {num_env_runners: auto} (15 here), or take fewer or smaller nodes."
    )
    assert "without env runners one process keeps 1 of them busy" in said(16)


@pytest.mark.parametrize(
    "fields",
    [
        {"env_runners": {"num_env_runners": "auto"}},
        {"env_runners": {"num_env_runners": 14}, "learners": {"num_learners": 1}},
        {"env_runners": {"num_env_runners": 5, "num_cpus_per_env_runner": 2}},
        {"env_runners": {"num_env_runners": 6}, "evaluation": {"evaluation_num_env_runners": 4}},
        {"algorithm": "train:config"},
    ],
)
def test_nothing_is_said_where_the_cpus_are_used_or_only_code_knows(fields: dict[str, Any]) -> None:
    assert said(16, **fields) == ""


def test_nothing_is_said_of_a_small_machine() -> None:
    assert said(2) == ""
    assert said(4) != ""


@contextlib.contextmanager
def dashboard(cpus: list[float]) -> Iterator[tuple[str, list[str]]]:
    """A Ray cluster's dashboard: nodes with these CPUs, and one that is gone; what it was asked."""
    asked: list[str] = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            nodes = [{"state": "ALIVE", "resources_total": {"CPU": number, "memory": 1.0}} for number in cpus]
            nodes += [{"state": "ALIVE", "resources_total": {}}, {"state": "DEAD", "resources_total": {"CPU": 64.0}}]
            answers: dict[str, Any] = {"/api/v0/nodes": {"result": True, "data": {"result": {"result": nodes}}}}
            text = json.dumps(answers.get(self.path, {"ray_version": "2.60.0", "version": "4"})).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing to stderr."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_a_ray_cluster_is_asked_how_large_it_is(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="the Jobs API comes with ray[default]")
    with dashboard([8.0, 16.0]) as (address, asked):
        backends = {"cluster": {"type": "ray", "address": address, "storage": str(tmp_path)}}
        project = Project(sim="CartPole-v1", backends=backends, env_runners={"num_env_runners": 3})
        (line,) = jobs.advice(project, on="cluster")
        assert line.startswith("the cluster has 24 CPUs on 3 nodes, and 3 env runners keep 4 of them busy.")
        assert "/api/v0/nodes" in asked
        asked.clear()
        assert jobs.advice(project, on="cluster", is_offline=True) == []
        assert asked == []


def test_a_cluster_that_is_away_is_for_the_submission_to_speak_of(tmp_path: Path) -> None:
    backends = {"cluster": {"type": "ray", "address": "http://127.0.0.1:9", "storage": str(tmp_path)}}
    assert jobs.advice(Project(sim="CartPole-v1", backends=backends), on="cluster") == []
