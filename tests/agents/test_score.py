"""The scoring script: which agent it takes, what it answers, and that Microsoft's own server runs it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
from pathlib import Path

import pytest
from tests.agents.inference_server import inference_python
from tests.agents.served import ask

from platotk.agents import score
from platotk.errors import AgentError

JSON = {"Content-Type": "application/json"}


def test_the_agent_is_found_where_the_model_was_mounted(adder_agent: Path, tmp_path: Path) -> None:
    model = tmp_path / "pump" / "3"
    shutil.copytree(adder_agent, model / "agent")
    assert score.find_model(tmp_path) == model / "agent"
    assert score.find_model(model / "agent") == model / "agent"
    shutil.copytree(adder_agent, model / "other")
    with pytest.raises(AgentError, match="several agents"):
        score.find_model(tmp_path)
    with pytest.raises(AgentError, match="no agent"):
        score.find_model(tmp_path / "nowhere")


def test_it_answers_as_the_server_does(adder_agent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(adder_agent))
    monkeypatch.setattr(score, "_server", None)
    with pytest.raises(AgentError, match="init"):
        score.run("{}")
    score.init()
    one = score.run('{"observation": {"value": 17}}')
    assert score.run('{"observations": [{"value": 17}, {"value": 17}]}') == {"actions": [one["action"]] * 2}


@pytest.fixture(scope="module")
def inference_server() -> Path:
    return inference_python()


@pytest.mark.slow
def test_microsofts_server_runs_it(adder_agent: Path, inference_server: Path, tmp_path: Path) -> None:
    shutil.copytree(adder_agent, tmp_path / "model" / "agent")
    listing = [inference_server, "-c", "import platotk.agents.score as score; print(score.__file__)"]
    script = subprocess.run(listing, check=True, capture_output=True, text=True, cwd=tmp_path).stdout.strip()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))},
        "AML_APP_ROOT": str(tmp_path),
        "AZUREML_ENTRY_SCRIPT": script,
        "AZUREML_MODEL_DIR": str(tmp_path / "model"),
    }
    command = [inference_server, "-m", "gunicorn", "-b", f"127.0.0.1:{port}"]
    log = tmp_path / "log.txt"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "azureml_inference_server_http.server.entry:app"],
            env=environment,
            cwd=tmp_path,
            stdout=out,
            stderr=out,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            assert _answers(url), log.read_text()
            status, answer = ask(f"{url}/score", {"observation": {"value": 17}}, headers=JSON)
            assert (status, list(answer)) == (200, ["action"])
            status, answer = ask(f"{url}/score", {"observation": {"level": 17}}, headers=JSON)
            assert status == 422
            assert "level" in answer["error"]
            status, _ = ask(f"{url}/score", b"\xff[", headers=JSON)
            assert 400 <= status < 500
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def _answers(url: str) -> bool:
    for _ in range(200):
        try:
            return ask(url)[0] == 200
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    return False
