"""The Ray Serve example, run for real in an environment of its own: this one, and what Ray Serve needs besides."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from tests.agents.conftest import adder_agent, adder_run  # noqa: F401  (fixtures)

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples/ray-serve"
SCRIPT = """
import json, os, sys, urllib.error, urllib.request
import ray
from ray import serve
port = int(sys.argv[1])
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": port})
import app
serve.run(app.app)
for body in ({"observation": {"value": 17}}, {"observation": {"level": 17}}, {}):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request) as answer:
            print("answer", answer.status, answer.read().decode())
    except urllib.error.HTTPError as error:
        print("answer", error.code, error.read().decode())
serve.shutdown()
ray.shutdown()
"""


@pytest.fixture(scope="module")
def python() -> Path:
    """The Python of an environment that sees all of this one, and has `ray[serve]`; made once for a Ray."""
    ray = f"ray[serve]=={importlib.metadata.version('ray')}"
    lock = ROOT / "requirements.lock"
    name = hashlib.sha256(ray.encode() + lock.read_bytes() + sys.prefix.encode()).hexdigest()[:16]
    home = ROOT / f".cache/ray-serve-{name}"
    python = home / "bin/python"
    if not (home / "complete").exists():
        for old in home.parent.glob("ray-serve-*"):
            shutil.rmtree(old)
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        packages = next((home / "lib").glob("python*/site-packages"))
        beneath = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (packages / "beneath.pth").write_text(beneath, encoding="utf-8")
        install = [python, "-m", "pip", "install", "--quiet", "-c", lock, ray]
        subprocess.run(install, check=True, timeout=280)
        (home / "complete").touch()
    return python


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ray_serve_answers_as_the_agent_does(adder_agent: Path, python: Path) -> None:  # noqa: F811
    from platotk import Agent
    from platotk.spaces import from_json, to_json

    agent = Agent.load(adder_agent)
    action = agent.act(from_json(agent.observation_space, {"value": 17}))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {**os.environ, "AGENT": str(adder_agent), "PYTHONPATH": str(EXAMPLE), "RAY_ADDRESS": "local"}
    done = subprocess.run(
        [python, "-c", SCRIPT, str(port)], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    said = [line.split(maxsplit=2)[1:] for line in done.stdout.splitlines() if line.startswith("answer")]
    assert [status for status, _ in said] == ["200", "422", "422"], done.stderr[-3000:]
    assert json.loads(said[0][1]) == {"action": to_json(agent.action_space, action)}
    assert "level" in json.loads(said[1][1])["error"]
