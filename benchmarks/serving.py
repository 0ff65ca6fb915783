"""How fast an agent answers, how soon, how large it is: beside bare onnxruntime, a bare Starlette handler, Ray Serve.

Trains and exports two tiny agents first (a Box and a Dict observation; how well they act does not matter here). All
sides of a comparison take turns on this machine in this one run. Ray Serve needs an environment of its own, as `.venv`
does not hold it; without it those lines say so. Prints the table and writes it into its section of
benchmarks/RESULTS.md, and the figures into benchmarks/results/serving.json.

    python3 -m venv /tmp/rayserve && /tmp/rayserve/bin/pip install 'ray[serve]==2.60.0' '.[serve]'
    .venv/bin/python benchmarks/serving.py --ray-serve-python /tmp/rayserve/bin/python
"""

from __future__ import annotations

import argparse
import gc
import http.client
import json
import os
import re
import selectors
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from startup import RESULTS, ROOT, commit, machine, write_section

from platotk.agents.agent import Agent
from platotk.spaces import from_json

KEPT = ROOT / "benchmarks/results/serving.json"
SECTION = "serving"
BATCH = 256
CONNECTIONS = 16
BUSY_LOAD = 2.5

AGENTS = """
import sys
from pathlib import Path
import platotk

tiny = {
    "training": {"train_batch_size_per_learner": 512, "minibatch_size": 128, "num_epochs": 1},
    "stop": {"iterations": 1},
    "tracking": {"mlflow": False},
}
folder = Path(sys.argv[1])
for name, sim in (("box", "Pendulum-v1"), ("dict", sys.argv[2])):
    project = platotk.Project.load(sim).model_dump(include={"sim", "sim_config"}) if name == "dict" else {"sim": sim}
    platotk.export(platotk.train(platotk.Project(**project, **tiny), run=folder / name))
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
import os, sys, time
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
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
sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=Path, help="where the two agents lie, or shall; default: made and removed")
    parser.add_argument("--requests", type=int, default=2000, help="of each side, one by one")
    parser.add_argument("--starts", type=int, default=5, help="cold starts")
    parser.add_argument("--ray-serve-python", help="of an environment with ray[serve] and platotk[serve]")
    parser.add_argument("--no-install", action="store_true", help="leave out the installed size")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.agents or Path(scratch)
        make_agents(folder)
        found: dict[str, Any] = {"about": about()}
        paths = {name: folder / name / "agent" for name in ("box", "dict")}
        found["in_process"] = {name: in_process(path) for name, path in paths.items()}
        found["cold"] = cold_starts(paths["dict"], options.starts)
        found["http"] = over_http(paths["dict"], options.requests, options.ray_serve_python)
        found["installed_mb"] = None if options.no_install else installed_mb(Path(scratch))
    found["about"]["load_after"] = round(os.getloadavg()[0], 1)
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    KEPT.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    text = report(found)
    print(text)
    write_section(RESULTS, SECTION, text)
    return 0


def make_agents(folder: Path) -> None:
    """In a process of its own, so that neither Ray nor torch is loaded where it is measured."""
    if all((folder / name / "agent" / "manifest.json").is_file() for name in ("box", "dict")):
        return
    sim = str(ROOT / "examples/simple-adder")
    command = [sys.executable, "-c", AGENTS, str(folder), sim]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT / "examples/simple-adder")


def in_process(path: Path) -> dict[str, Any]:
    """`act` and `act_batch` beside the same model run by onnxruntime alone, taking turns; seconds."""
    agent = Agent.load(path)
    rows = json.loads((path / "parity.json").read_text())["rows"][:BATCH]
    observations = [from_json(agent.observation_space, row["observation"], check_bounds=False) for row in rows]
    observation, vectors = observations[0], agent.adapter.encode_batch(observations)
    vector: Any = vectors[:1]
    calls: dict[str, Callable[[], Any]] = {
        "bare": lambda: agent._run({"vector": vector}),
        "act": lambda: agent.act(observation),
    }
    gc.collect()
    single = turns(calls, 5000)
    many = turns(
        {"bare": lambda: agent._run({"vector": vectors}), "act_batch": lambda: agent.act_batch(observations)}, 300
    )
    return {
        "observation": str(agent.observation_space),
        **{name: spread(seconds) for name, seconds in single.items()},
        "bare_batch": spread(many["bare"]),
        "act_batch": spread(many["act_batch"]),
    }


def cold_starts(path: Path, num_starts: int) -> dict[str, Any]:
    """From starting `plato serve` to its first answer, and what its process then holds; beside the bare handler."""
    row = json.loads((path / "parity.json").read_text())["rows"][0]["observation"]
    plato = str(Path(sys.executable).with_name("plato"))
    vector = Agent.load(path).adapter.encode(from_json(Agent.load(path).observation_space, row)).tolist()
    sides = {
        "ours": ([plato, "serve", str(path), "--port", "0", "--json"], {"observation": row}),
        "bare": ([sys.executable, "-c", BARE, str(path)], {"vector": vector}),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    resident: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(num_starts + 1):
        for name, (command, body) in sides.items():
            began = time.perf_counter()
            process, place = start(command)
            try:
                ask(http.client.HTTPConnection(place), json.dumps(body))
                seconds[name].append(time.perf_counter() - began)
                resident[name].append(resident_mb(process.pid))
            finally:
                end(process)
    # The first round warms the file cache, and is left out.
    return {name: {"s": spread(seconds[name][1:]), "mb": statistics.median(resident[name])} for name in sides}


def over_http(path: Path, num_requests: int, ray_python: str | None) -> dict[str, Any]:
    """Latency one by one and requests per second at 16 connections, ours beside each other side; a batch of 256.

    Only the two that are compared are alive: Ray's own processes would slow whoever takes the turn after it.
    """
    agent = Agent.load(path)
    rows = [row["observation"] for row in json.loads((path / "parity.json").read_text())["rows"][:BATCH]]
    vector = agent.adapter.encode(from_json(agent.observation_space, rows[0])).tolist()
    plato = str(Path(sys.executable).with_name("plato"))
    bodies = {"ours": json.dumps({"observation": rows[0]}), "bare": json.dumps({"vector": vector})}
    commands = {
        "ours": [plato, "serve", str(path), "--port", "0", "--json"],
        "bare": [sys.executable, "-c", BARE, str(path)],
    }
    if ray_python:
        commands["ray"], bodies["ray"] = [ray_python, "-c", RAY_SERVE, str(path.resolve())], bodies["ours"]
    processes, places = {}, {}
    found: dict[str, Any] = {}

    def begin(name: str) -> None:
        began = time.perf_counter()
        processes[name], places[name] = start(commands[name])
        ask(http.client.HTTPConnection(places[name]), bodies[name])
        found[f"first_answer_s_{name}"] = time.perf_counter() - began

    try:
        begin("ours")
        for other in list(commands)[1:]:
            begin(other)
            pair = ("ours", other)
            times = blocks({name: _asker(places[name], bodies[name]) for name in pair}, num_requests)
            rates: dict[str, list[float]] = {name: [] for name in pair}
            for _ in range(5):
                for name in pair:
                    rates[name].append(throughput(places[name], bodies[name], num_requests))
            found[other] = {name: {"latency": spread(times[name]), "rps": spread(rates[name])} for name in pair}
            end(processes.pop(other))
        many = json.dumps({"observations": rows})
        both = blocks({"one": _asker(places["ours"], bodies["ours"]), "batch": _asker(places["ours"], many)}, 300)
        found["batch"] = {name: spread(seconds) for name, seconds in both.items()}
        return found
    finally:
        for process in processes.values():
            end(process)


def installed_mb(scratch: Path) -> dict[str, float]:
    """What `pip install platotk[serve]` puts into an empty environment, without pip itself; None when it fails."""
    home = scratch / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    packages = next(home.glob("lib/python*/site-packages"))
    before = size_mb(packages)
    command = [str(home / "bin/pip"), "install", "--quiet", f"{ROOT}[serve]"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    found = {"all": size_mb(packages) - before}
    found |= {name: size_mb(packages / name) for name in ("onnxruntime", "numpy", "numpy.libs")}
    shutil.rmtree(home)
    return {name: round(size, 1) for name, size in found.items()}


def report(found: dict[str, Any]) -> str:
    """The section."""
    where, http_side, cold = found["about"], found["http"], found["cold"]
    box, dict_ = found["in_process"]["box"], found["in_process"]["dict"]
    is_busy = where["load"] > BUSY_LOAD  # what it is after is of our own making
    warning = " - **the machine was busy with other work: measure again before leaning on these figures**"
    lines = [
        "## Serving",
        "",
        "An exported agent beside the same model without platotk; both sides alive at once, taking turns: call by call",
        "in process, in blocks of 50 over HTTP. Median (5% to",
        f"95%, n). HTTP over loopback with keep-alive; requests/s from {CONNECTIONS} connections of one thread, which",
        "takes its share of the cores. The Dict agent is the Simple Adder's, the Box agent Pendulum's.",
        "",
        f"- command: `{where['command']}`",
        f"- machine: {where['machine']}",
        f"- versions: {where['versions']}",
        f"- commit: {where['commit']}",
        f"- when: {where['when']}",
        f"- load before and after: {where['load']}, {where['load_after']}{warning if is_busy else ''}",
        "",
        "| | platotk | other side | | ratio | bound | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, side, most in (("Box", box, 2.0), ("Dict", dict_, 5.0)):
        ratio = side["act"]["p50"] / side["bare"]["p50"]
        lines.append(
            _row(
                f"in process: `act`, {name}, p50",
                us(side["act"]),
                "onnxruntime",
                us(side["bare"]),
                f"{ratio:.2f}x",
                f"at most {most:g}x",
                ratio <= most,
            )
        )
    for name, side in (("Box", box), ("Dict", dict_)):
        p99 = side["act"]["p99"]
        lines.append(
            _row(
                f"in process: `act`, {name}, p99",
                f"{p99 * 1e6:.0f} us",
                "onnxruntime",
                f"{side['bare']['p99'] * 1e6:.0f} us",
                "",
                "under 1 ms",
                p99 < 1e-3,
            )
        )
    for name, side in (("Box", box), ("Dict", dict_)):
        gain, bare = (
            side[a]["p50"] * BATCH / side[b]["p50"] for a, b in (("act", "act_batch"), ("bare", "bare_batch"))
        )
        what = f"in process: `act_batch` of {BATCH}, {name}: rate over single calls"
        lines.append(_row(what, f"{gain:.0f}x", "onnxruntime's own gain", f"{bare:.0f}x", "", "", None))
    seconds, mb = cold["ours"]["s"], cold["ours"]["mb"]
    lines += [
        _row(
            "cold start to the first answer",
            s(seconds),
            "bare Starlette",
            s(cold["bare"]["s"]),
            f"{seconds['p50'] / cold['bare']['s']['p50']:.2f}x",
            "under 1.5 s",
            seconds["p50"] < 1.5,
        ),
        _row(
            "resident memory",
            f"{mb:.0f} MB",
            "bare Starlette",
            f"{cold['bare']['mb']:.0f} MB",
            "",
            "under 120 MB",
            mb < 120,
        ),
    ]
    ours, bare = http_side["bare"]["ours"], http_side["bare"]["bare"]
    ratio = ours["latency"]["p50"] / bare["latency"]["p50"]
    lines.append(
        _row(
            "HTTP: p50",
            ms(ours["latency"]),
            "bare Starlette",
            ms(bare["latency"]),
            f"{ratio:.2f}x",
            "at most 1.3x",
            ratio <= 1.3,
        )
    )
    lines.append(
        _row(
            f"requests/s, {CONNECTIONS} connections",
            rate(ours["rps"]),
            "bare Starlette",
            rate(bare["rps"]),
            f"{ours['rps']['p50'] / bare['rps']['p50']:.2f}x",
            "",
            None,
        )
    )
    if "ray" in http_side:
        ours, ray = http_side["ray"]["ours"], http_side["ray"]["ray"]
        slower = ray["latency"]["p50"] / ours["latency"]["p50"]
        faster = ours["rps"]["p50"] / ray["rps"]["p50"]
        lines += [
            _row(
                "HTTP: p50",
                ms(ours["latency"]),
                "Ray Serve",
                ms(ray["latency"]),
                f"{slower:.1f}x lower",
                "at least 10x",
                slower >= 10,
            ),
            _row(
                f"requests/s, {CONNECTIONS} connections",
                rate(ours["rps"]),
                "Ray Serve",
                rate(ray["rps"]),
                f"{faster:.1f}x",
                "at least 15x",
                faster >= 15,
            ),
            _row(
                "first answer",
                f"{http_side['first_answer_s_ours']:.2f} s",
                "Ray Serve",
                f"{http_side['first_answer_s_ray']:.1f} s",
                "",
                "",
                None,
            ),
        ]
    batch = http_side["batch"]
    gain = batch["one"]["p50"] * BATCH / batch["batch"]["p50"]
    lines.append(
        _row(
            f"HTTP: batch of {BATCH}, observations/s",
            ms(batch["batch"]),
            "one by one",
            ms(batch["one"]),
            f"{gain:.0f}x",
            "at least 50x",
            gain >= 50,
        )
    )
    size = found["installed_mb"]
    if size:
        others = ", ".join(f"{name} {size[name]:.0f}" for name in size if name != "all")
        lines.append(
            _row(
                "installed: `platotk[serve]`",
                f"{size['all']:.0f} MB",
                "of which",
                others,
                "",
                "under 220 MB",
                size["all"] < 220,
            )
        )
    if "ray" not in http_side:
        lines += ["", "Ray Serve was not measured in this run (`--ray-serve-python`)."]
    return "\n".join(lines)


def _row(what: str, ours: str, other: str, theirs: str, ratio: str, bound: str, is_kept: bool | None) -> str:
    verdict = "" if is_kept is None else "kept" if is_kept else "**NOT kept**"
    return f"| {what} | {ours} | {other} | {theirs} | {ratio} | {bound} | {verdict} |"


def start(command: list[str]) -> tuple[subprocess.Popen[str], str]:
    """A server's process and where it listens."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    stdout: Any = process.stdout
    for line in stdout:
        found = re.search(r"http://[\w.:\[\]]+", line)
        if found:
            return process, urlsplit(found.group()).netloc
    raise SystemExit(f"it did not start: {shlex.join(command)[:300]}")


def end(process: subprocess.Popen[str]) -> None:
    """Ask it to stop; Ray Serve does when its input ends."""
    if process.stdin:
        process.stdin.close()
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


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


def blocks(calls: dict[str, Callable[[], Any]], num_calls: int, size: int = 50) -> dict[str, list[float]]:
    """The same in blocks, so that what one side leaves running behind its answers is not the next one's burden.

    The first tenth of each block is left out: it still is.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    while any(len(seconds) < num_calls for seconds in times.values()):
        for name, call in calls.items():
            for number in range(size + size // 10):
                began = time.perf_counter()
                call()
                if number >= size // 10:
                    times[name].append(time.perf_counter() - began)
    return times


def throughput(place: str, body: str, num_requests: int) -> float:
    """Requests per second of several connections at once, each asking again as soon as it is answered."""
    host, port = place.rsplit(":", 1)
    head = f"POST /act HTTP/1.1\r\nHost: {place}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    request, answers, sent, done = (head + body).encode(), {}, 0, 0
    with selectors.DefaultSelector() as selector:
        for _ in range(CONNECTIONS):
            link = socket.create_connection((host, int(port)))
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(link, selectors.EVENT_READ)
            answers[link] = b""
        began = time.perf_counter()
        for link in answers:
            link.sendall(request)
            sent += 1
        while done < num_requests:
            for key, _ in selector.select():
                link: Any = key.fileobj
                answers[link] += link.recv(65536)
                if not _is_whole(answers[link]):
                    continue
                answers[link] = b""
                done += 1
                if sent < num_requests:
                    link.sendall(request)
                    sent += 1
        seconds = time.perf_counter() - began
        for link in answers:
            link.close()
    return done / seconds


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(answer.decode())
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return len(body) >= int(length[1]) if length else body.endswith(b"0\r\n\r\n")


def ask(link: http.client.HTTPConnection, body: str) -> bytes:
    """One answer over a connection that stays open."""
    link.request("POST", "/act", body, {"content-type": "application/json"})
    response = link.getresponse()
    content = response.read()
    if response.status != 200:
        raise RuntimeError(content.decode())
    return content


def _asker(place: str, body: str) -> Callable[[], bytes]:
    """Asks again and again over one connection; a new one when the server closed it, idle between two blocks."""
    link = http.client.HTTPConnection(place)

    def again() -> bytes:
        try:
            return ask(link, body)
        except (http.client.HTTPException, OSError):
            link.close()
            return ask(link, body)

    return again


def resident_mb(pid: int) -> float:
    """Resident memory of one process, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def size_mb(folder: Path) -> float:
    """What the files of a folder hold, in MB."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def about() -> dict[str, Any]:
    """Where, when and with what it runs."""
    packages = ("platotk", "numpy", "gymnasium", "onnxruntime", "uvicorn", "starlette", "ray")
    return {
        "command": shlex.join([".venv/bin/python", "benchmarks/serving.py", *sys.argv[1:]]),
        "machine": machine(),
        "versions": ", ".join([f"Python {sys.version.split()[0]}", *(f"{name} {version(name)}" for name in packages)]),
        "commit": commit(),
        "when": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "load": round(os.getloadavg()[0], 1),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, 5%, 95%, 99% and how many."""
    low, middle, high, most = (float(value) for value in np.percentile(values, (5, 50, 95, 99)))
    return {"p50": middle, "p5": low, "p95": high, "p99": most, "n": len(values)}


def us(side: dict[str, float]) -> str:
    return f"{side['p50'] * 1e6:.1f} us ({side['p5'] * 1e6:.1f} to {side['p95'] * 1e6:.1f}, n={side['n']})"


def ms(side: dict[str, float]) -> str:
    return f"{side['p50'] * 1e3:.2f} ms ({side['p5'] * 1e3:.2f} to {side['p95'] * 1e3:.2f}, n={side['n']})"


def s(side: dict[str, float]) -> str:
    return f"{side['p50']:.2f} s ({side['p5']:.2f} to {side['p95']:.2f}, n={side['n']})"


def rate(side: dict[str, float]) -> str:
    return f"{side['p50']:.0f} ({side['p5']:.0f} to {side['p95']:.0f}, n={side['n']})"


if __name__ == "__main__":
    sys.exit(main())
