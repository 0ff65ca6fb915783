"""How fast an agent answers: in process beside bare onnxruntime, over HTTP beside a bare Starlette handler.

Both sides run in this one run and take turns on the same machine. Ray Serve joins in with --ray-serve. Prints the
machine, the commit and the command.

    .venv/bin/python benchmarks/serving.py runs/20261123-0101/agent
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from platotk.agents.agent import Agent
from platotk.spaces import from_json

ROOT = Path(__file__).resolve().parents[1]
OURS = """
import sys
from platotk.agents.server import serve
serve(sys.argv[1], port=0, on_event=lambda event: print(event["url"], flush=True))
"""
BARE = """
import socket, sys
import numpy, onnxruntime, uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1] + "/policy.onnx", options)

async def act(request):
    vector = numpy.asarray((await request.json())["vector"], numpy.float32)
    return JSONResponse({"action": session.run(None, {"vector": vector[None]})[0].tolist()})

listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio then sets TCP_NODELAY
listener.bind(("127.0.0.1", 0))
listener.listen(1024)
print("http://%s:%d" % listener.getsockname(), flush=True)
app = Starlette(routes=[Route("/act", act, methods=["POST"])])
uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])
"""
RAY_SERVE = """
import sys, time
import ray
from ray import serve
from platotk.agents.agent import Agent
from platotk.spaces import from_json, to_json

@serve.deployment
class Deployed:
    def __init__(self, path):
        self.agent = Agent.load(path)

    async def __call__(self, request):
        data = (await request.json())["observation"]
        agent = self.agent
        return {"action": to_json(agent.action_space, agent.act(from_json(agent.observation_space, data)))}

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": 8765})
serve.run(Deployed.bind(sys.argv[1]), route_prefix="/act")
print("http://127.0.0.1:8765", flush=True)
time.sleep(3600)
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("agent", type=Path, help="an exported agent that takes a vector and has no memory")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--ray-serve", action="store_true")
    options = parser.parse_args()
    agent = Agent.load(options.agent)
    row = json.loads((options.agent / "parity.json").read_text())["rows"][0]["observation"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    print(
        f"machine  {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
    )
    print(f"commit   {commit.strip()}\ncommand  {' '.join(sys.argv)}")
    in_process(agent, row)
    over_http(options.agent, agent, row, options.requests, options.ray_serve)


def in_process(agent: Agent, row: Any) -> None:
    """`act` beside the same model run by onnxruntime alone, taking turns."""
    observation = from_json(agent.observation_space, row)
    vector = agent.adapter.encode(observation)[None]
    calls: dict[str, Callable[[], Any]] = {
        "onnxruntime": lambda: agent._run({"vector": vector}),
        "Agent.act": lambda: agent.act(observation),
    }
    times = turns(calls, 3000)
    for name, seconds in times.items():
        print(f"{name:22} p50 {quantile(seconds, 50) * 1e6:8.1f} us   p99 {quantile(seconds, 99) * 1e6:8.1f} us")
    print(f"{'ratio of p50':22} {quantile(times['Agent.act'], 50) / quantile(times['onnxruntime'], 50):.2f}")


def over_http(path: Path, agent: Agent, row: Any, num_requests: int, has_ray_serve: bool) -> None:
    """Cold start, memory, latency one by one, and requests per second at 16 connections."""
    vector = agent.adapter.encode(from_json(agent.observation_space, row)).tolist()
    bodies = {
        "plato serve": json.dumps({"observation": row}),
        "bare Starlette": json.dumps({"vector": vector}),
    }
    scripts = {"plato serve": OURS, "bare Starlette": BARE}
    if has_ray_serve:
        scripts["Ray Serve"], bodies["Ray Serve"] = RAY_SERVE, bodies["plato serve"]
    processes, places = {}, {}
    try:
        for name, script in scripts.items():
            began = time.perf_counter()
            processes[name] = subprocess.Popen(
                [sys.executable, "-c", script, str(path.resolve())], stdout=subprocess.PIPE, text=True
            )
            stdout: Any = processes[name].stdout
            url = next(line for line in stdout if line.startswith("http://")).strip()
            places[name] = urlsplit(url).netloc
            ask(http.client.HTTPConnection(places[name]), bodies[name])
            cold = time.perf_counter() - began
            print(f"{name:22} first answer after {cold:.2f} s, resident {resident_mb(processes[name].pid):.0f} MB")
        links = {name: http.client.HTTPConnection(place) for name, place in places.items()}
        times = turns({name: lambda n=name: ask(links[n], bodies[n]) for name in scripts}, num_requests)  # type: ignore[misc]
        for name, seconds in times.items():
            print(f"{name:22} p50 {quantile(seconds, 50) * 1e3:.3f} ms   p99 {quantile(seconds, 99) * 1e3:.3f} ms")
        ours = quantile(times["plato serve"], 50)
        for name in list(scripts)[1:]:
            print(f"p50 of plato serve over {name}: {ours / quantile(times[name], 50):.2f}")
        for name, place in places.items():
            print(f"{name:22} {throughput(place, bodies[name], 16, num_requests):.0f} requests/s at 16 connections")
        many = json.dumps({"observations": [row] * 256})
        batches = turns({"batch": lambda: ask(links["plato serve"], many)}, 100)["batch"]
        print(f"batch of 256: {ours * 256 / quantile(batches, 50):.0f} times the rate of single calls")
    finally:
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def turns(calls: dict[str, Callable[[], Any]], num_rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, the calls taking turns; the first tenth warms up and is left out."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(num_rounds + num_rounds // 10):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if number >= num_rounds // 10:
                times[name].append(time.perf_counter() - began)
    return times


def throughput(place: str, body: str, num_connections: int, num_requests: int) -> float:
    """Requests per second of several connections at once, from this process."""

    def work() -> None:
        link = http.client.HTTPConnection(place)
        for _ in range(num_requests // num_connections):
            ask(link, body)

    threads = [threading.Thread(target=work) for _ in range(num_connections)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return num_requests // num_connections * num_connections / (time.perf_counter() - began)


def ask(link: http.client.HTTPConnection, body: str) -> bytes:
    """One answer over a connection that stays open."""
    link.request("POST", "/act", body, {"content-type": "application/json"})
    response = link.getresponse()
    content = response.read()
    if response.status != 200:
        raise RuntimeError(content.decode())
    return content


def resident_mb(pid: int) -> float:
    """Resident memory of one process, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def quantile(values: list[float], percent: int) -> float:
    """A percentile of at least a few values."""
    return statistics.median(values) if percent == 50 else float(np.percentile(values, percent))


if __name__ == "__main__":
    main()
