"""Agents of a few lines of ONNX, and a real server in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from onnx import TensorProto, helper, numpy_helper

from platotk.agents.agent import Agent
from platotk.agents.application import Server
from platotk.agents.manifest import write_manifest
from platotk.agents.openapi import openapi
from platotk.agents.recorded import pack
from platotk.agents.units import checked_units
from platotk.spaces import adapt, to_json
from platotk.spaces.description import space_from_json

KEY = "0123456789abcdef-not-a-secret"
SCRIPT = """
import sys, json
from platotk.agents.server import serve
options = json.loads(sys.argv[1])
serve(options.pop("agent"), on_event=lambda event: print(event["url"], flush=True), **options)
"""


def write_agent(
    folder: Path,
    observation_space: spaces.Space[Any],
    *,
    has_memory: bool = False,
    num_choices: int = 0,
    num_rows: int = 0,
) -> Path:
    """An agent whose action is the sum of its inputs; with memory, the sum of all inputs since its reset.

    Args:
        folder: Where to.
        observation_space: What it sees; images too.
        has_memory: See above.
        num_choices: Its action is the first choice that a mask from `info` allows, of so many.
        num_rows: Rows of parity.json, which it answers as it should.
    """
    action_space: spaces.Space[Any] = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    if num_choices:
        action_space = spaces.Discrete(num_choices)
    adapter = adapt(observation_space, action_space, action_mask="info" if num_choices else None)
    frame = adapter.frame_space
    parts: dict[str, Any] = dict(frame.spaces) if isinstance(frame, spaces.Dict) else {"vector": frame}
    inputs, nodes, constants = [], [], []
    for name, box in parts.items():
        kind = TensorProto.UINT8 if box.dtype == np.uint8 else TensorProto.FLOAT
        inputs.append(helper.make_tensor_value_info(name, kind, ["batch", *box.shape]))
        nodes += [
            helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", [f"{name}_float"], [f"{name}_flat"], axis=1),
            helper.make_node("MatMul", [f"{name}_flat", f"{name}_ones"], [f"{name}_sum"]),
        ]
        constants.append(numpy_helper.from_array(np.ones((int(np.prod(box.shape)), 1), np.float32), f"{name}_ones"))
    nodes.append(helper.make_node("Sum", [f"{name}_sum" for name in parts], ["sum"]))
    outputs = [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["batch", 1])]
    state: list[dict[str, Any]] = []
    if num_choices:
        nodes.append(helper.make_node("ArgMax", ["action_mask"], ["action"], axis=1, keepdims=0))
        outputs = [helper.make_tensor_value_info("action", TensorProto.INT64, ["batch"])]
    elif has_memory:
        nodes += [
            helper.make_node("Add", ["sum", "before"], ["action"]),
            helper.make_node("Identity", ["action"], ["after"]),
        ]
        inputs.append(helper.make_tensor_value_info("before", TensorProto.FLOAT, ["batch", 1]))
        outputs.append(helper.make_tensor_value_info("after", TensorProto.FLOAT, ["batch", 1]))
        state = [{"input": "before", "output": "after", "shape": [1]}]
    else:
        nodes.append(helper.make_node("Identity", ["sum"], ["action"]))
    graph = helper.make_graph(nodes, "sum", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    folder.mkdir(parents=True)
    (folder / "policy.onnx").write_bytes(model.SerializeToString())
    (folder / "parity.json").write_text(json.dumps({"rows": []}))
    (folder / "openapi.json").write_text(json.dumps(openapi(adapter, name="sum", has_memory=has_memory)))
    entries = {"outputs": ["action"], "state": state}
    write_manifest(folder, {"adapter": adapter.to_json(), "model": entries, "parity": None})
    return with_rows(folder, num_rows) if num_rows else folder


def with_rows(folder: Path, num_rows: int) -> Path:
    """The agent of a folder, from now on with a recording of what it answers, in episodes of five steps."""
    agent = Agent.load(folder)
    agent.observation_space.seed(0)
    rng, rows, session = np.random.default_rng(0), [], agent.session()
    for number in range(num_rows):
        if is_first := number % 5 == 0:
            session.reset()
        observation, mask = agent.observation_space.sample(), None
        if agent.adapter.mask_source == "info":
            mask = rng.integers(0, 2, agent.adapter.num_logits)
            mask[rng.integers(len(mask))] = 1
        action = session.act(observation, mask=mask)
        row = {"observation": pack(agent.observation_space, observation), "is_first": is_first, "margin": 1.0}
        row["action"] = to_json(agent.action_space, action)
        rows.append(row if mask is None else {**row, "mask": mask.tolist()})
    (folder / "parity.json").write_text(json.dumps({"rows": rows}))
    return with_manifest(folder)


def with_guard(folder: Path, **guard: Any) -> Path:
    """The agent of a folder, from now on within these guards."""
    return with_manifest(folder, guard=guard)


def with_units(folder: Path, **units: dict[str, str]) -> Path:
    """The agent of a folder, from now on with units, in its contract too."""
    adapter = adapt(*_spaces(folder))
    contract = openapi(adapter, name="sum", units=checked_units(units, adapter))
    (folder / "openapi.json").write_text(json.dumps(contract))
    return with_manifest(folder, units=units)


def with_manifest(folder: Path, **more: Any) -> Path:
    """The agent of a folder, whose manifest says more from now on."""
    content = json.loads((folder / "manifest.json").read_text())
    for key in ("schema", "kind", "files", "manifest_sha256"):
        del content[key]
    write_manifest(folder, {**content, **more})
    return folder


def _spaces(folder: Path) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    adapter = json.loads((folder / "manifest.json").read_text())["adapter"]
    return space_from_json(adapter["observation_space"]), space_from_json(adapter["action_space"])


@contextmanager
def served(agent: Path, **options: Any) -> Iterator[str]:
    """The URL of a real server; it must end with exit code 0 on SIGTERM."""
    with started(agent, **options) as (url, _):
        yield url


@contextmanager
def started(agent: Path, **options: Any) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The same with its process."""
    given = json.dumps({"agent": str(agent), "port": 0, **options})
    command = [sys.executable, "-c", SCRIPT, given]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        url = process.stdout.readline().strip()  # type: ignore[union-attr]
        if not re.match("http://", url):
            raise RuntimeError(process.stderr.read())  # type: ignore[union-attr]
        yield url, process
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 0, said
        assert KEY not in said
        assert "Traceback" not in said, said
    finally:
        process.kill()
        process.wait()


def ask(
    url: str, body: Any = None, *, method: str | None = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """Status and JSON (or text) of an answer; a body that is not bytes is sent as JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers or {}, method=method or ("GET" if data is None else "POST"))
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            status, content = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read()
    try:
        return status, json.loads(content)
    except ValueError:
        return status, content.decode()


def request(app: Server, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Status and answer, without a socket."""
    sent: list[dict[str, Any]] = []
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": data}

    async def send(message: Any) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "path": path, "method": "POST" if data else "GET", "headers": []}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(app(scope, receive, send))
    text = sent[1]["body"].decode()
    return sent[0]["status"], text if path == "/metrics" else json.loads(text)
