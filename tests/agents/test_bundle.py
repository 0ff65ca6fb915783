"""`deploy`: what is in the folder, what is not, and that it starts anywhere."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from tests.agents.served import KEY, ask, with_guard
from typer.testing import CliRunner

from platotk.agents.archive import write_archive
from platotk.agents.bundle import deploy
from platotk.cli import app
from platotk.errors import AgentError, ProjectError
from platotk.own_package import own_package

ROOT = Path(__file__).resolve().parents[2]
PIN = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)


@pytest.fixture
def copy(adder_agent: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adder_agent, tmp_path / "agent"))


def test_a_docker_context_is_complete(copy: Path) -> None:
    made = deploy(copy, to="docker", build=False)
    there = {path.relative_to(made.path).as_posix() for path in made.path.rglob("*") if path.is_file()}
    assert there == set(made.files)
    assert {"Dockerfile", ".dockerignore", "README.md", "requirements.txt", "agent/policy.onnx"} <= there
    assert (made.path / "agent/manifest.json").read_bytes() == (copy / "manifest.json").read_bytes()
    assert made.commands[0] == f"docker build --tag {made.tag} ."
    assert "--read-only" in made.commands[1]


def test_the_dockerfile_copies_only_what_is_there_and_ends_as_nobody(copy: Path) -> None:
    made = deploy(copy, to="docker", build=False)
    text = (made.path / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    steps = [(word, rest) for word, rest in lines]
    for word, rest in steps:
        if word == "COPY":
            assert all((made.path / source).exists() for source in rest.split()[:-1]), rest
    assert re.fullmatch(r"BASE_IMAGE=python:3\.\d+\.\d+-slim-\w+", dict(steps)["ARG"])
    assert dict(steps)["USER"] == "10001:10001"
    assert [word for word, _ in steps].index("USER") < [word for word, _ in steps].index("ENTRYPOINT")
    assert "/readyz" in dict(steps)["HEALTHCHECK"]
    assert json.loads(dict(steps)["ENTRYPOINT"])[:3] == ["plato", "serve", "/app/agent"]
    ignored = (made.path / ".dockerignore").read_text().split()
    assert ignored[0] == "*"
    assert all((made.path / line[1:]).exists() for line in ignored[1:])


def test_no_key_and_nothing_else_that_lies_beside_the_agent_comes_along(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLATO_SERVE_KEY", KEY)
    (copy / "key").write_text(KEY)
    for to in ("docker", "folder"):
        made = deploy(copy, to=to, build=False)
        content = b"".join(path.read_bytes() for path in made.path.rglob("*") if path.is_file())
        assert KEY.encode() not in content
        assert "agent/key" not in made.files


def test_requirements_are_the_pins_of_the_lock_each_with_hashes(copy: Path) -> None:
    text = (deploy(copy, to="folder").path / "requirements.txt").read_text()
    pins, locked = set(PIN.findall(text)), set(PIN.findall((ROOT / "requirements.lock").read_text()))
    assert {"onnxruntime", "uvicorn", "gymnasium", "numpy"} <= {name for name, _ in pins}
    assert pins <= locked
    blocks = re.split(r"\n(?=[a-z])", text.partition("\n")[2])
    assert all("--hash=sha256:" in block for block in blocks)
    assert not {"ray", "torch", "mlflow-skinny", "starlette"} & {name for name, _ in pins}


def test_an_archive_deploys_as_its_folder_does(copy: Path, tmp_path: Path) -> None:
    one = deploy(copy, to="folder", out=tmp_path / "one")
    two = deploy(write_archive(copy), to="folder", out=tmp_path / "two")
    assert one.files == two.files


def test_a_dry_run_writes_nothing(copy: Path) -> None:
    made = deploy(copy, to="docker", dry_run=True)
    assert not made.path.exists()
    assert "USER 10001" in made.texts["Dockerfile"]


def test_what_is_wrong_is_said(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="not deployed to 'moon'"):
        deploy(copy, to="moon")
    with pytest.raises(ProjectError, match="is no name of an image"):
        deploy(copy, to="docker", tag="Pump; rm")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(ProjectError, match="is there already"):
        deploy(copy, to="folder", out=tmp_path / "full")
    (copy / "policy.onnx").write_bytes(b"changed")
    with pytest.raises(AgentError, match="hash"):
        deploy(copy, to="folder")


def test_an_agent_that_needs_code_of_its_project_is_not_deployed(copy: Path, tmp_path: Path) -> None:
    with_guard(copy, on_missing="fallback", fallback="control:safe")
    for to in ("docker", "folder"):
        with pytest.raises(AgentError, match="falls back to the controller 'control:safe'") as raised:
            deploy(copy, to=to)
        assert "plato serve --controllers" in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["agent"]
    with_guard(copy, on_missing="hold", fallback={"addend": 0})
    assert deploy(copy, to="folder").path.is_dir()


def test_a_build_that_fails_says_what_docker_said_and_sees_no_key(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a program of that name that answers as an engine does, and cannot build."""
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text('#!/bin/sh\n[ "$1" = version ] && exit 0\nenv; echo no space left on device; exit 17\n')
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{docker.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PLATO_SERVE_KEY", KEY)
    events: list[str] = []
    with pytest.raises(ProjectError, match=r"exit code 17(.|\n)*no space left on device") as raised:
        deploy(copy, to="docker", tag="pump:1", on_event=lambda event: events.append(event["command"]))
    assert events == ["docker build --tag pump:1 ."]
    assert KEY not in str(raised.value)
    docker.write_text("#!/bin/sh\nexit 1\n")  # a client without an engine
    made = deploy(copy, to="docker", tag="pump:1", out=tmp_path / "again")
    assert not made.is_built
    assert made.commands[0] == "docker build --tag pump:1 ."


@pytest.mark.slow
def test_the_image_serves_as_nobody_on_a_read_only_disk(copy: Path) -> None:
    if not has_engine():
        pytest.skip("no Docker engine answers here")
    made = deploy(copy, to="docker")
    assert made.is_built
    assert made.tag is not None
    options = ["--detach", "--rm", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    command = ["docker", "run", *options, "--env", "PLATO_SERVE_KEY", "--publish", "127.0.0.1::8000", made.tag]
    name = subprocess.check_output(command, text=True, env={**os.environ, "PLATO_SERVE_KEY": KEY}).strip()
    try:
        address = subprocess.check_output(["docker", "port", name, "8000"], text=True).split()[0]
        url, headers = f"http://{address}", {"x-api-key": KEY}
        assert any(is_ready(url) for _ in range(100)), subprocess.getoutput(f"docker logs {name}")
        assert ask(f"{url}/act", {"observation": {"value": 17}})[0] == 401
        assert ask(f"{url}/act", {"observation": {"value": 17}}, headers=headers)[0] == 200
        assert subprocess.check_output(["docker", "exec", name, "id", "-u"], text=True).strip() == "10001"
    finally:
        subprocess.run(["docker", "rm", "--force", name], check=False, capture_output=True)
        subprocess.run(["docker", "rmi", "--force", made.tag], check=False, capture_output=True)


def has_engine() -> bool:
    """Whether images can be built here."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], check=False, capture_output=True).returncode == 0


def is_ready(url: str) -> bool:
    """Whether the agent answers, a moment from now."""
    time.sleep(0.2)
    with contextlib.suppress(OSError):
        return ask(f"{url}/readyz")[0] == 200
    return False


def test_the_wheel_holds_every_module_and_file_and_is_the_same_each_time(tmp_path: Path) -> None:
    wheel = own_package(tmp_path / "a")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = ROOT / "src/platotk"
    modules = {f"platotk/{path.relative_to(package).as_posix()}" for path in package.rglob("*.py")}
    assert modules <= names
    assert {"platotk/templates/deploy/serve.lock", "platotk/examples/simple-adder/sim.py"} <= names
    assert own_package(tmp_path / "b").read_bytes() == wheel.read_bytes()


def test_the_command_says_how_to_start_it(copy: Path) -> None:
    said = CliRunner().invoke(app, ["deploy", str(copy), "--to", "docker", "--no-build", "--json"])
    told = json.loads(said.stdout)
    assert told["is_built"] is False
    assert Path(told["path"], "Dockerfile").is_file()
    said = CliRunner().invoke(app, ["deploy", str(copy), "--to", "folder", "--dry-run"])
    assert said.exit_code == 0
    assert "./run.sh" in said.stderr
    assert said.stdout == ""


@pytest.mark.slow
def test_the_folder_starts_in_an_environment_of_its_own(copy: Path) -> None:
    made = deploy(copy, to="folder")
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": ""}
    process = subprocess.Popen(
        [made.path / "run.sh", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        start_new_session=True,
    )
    try:
        said = ""
        while not said.endswith("}\n"):
            said += process.stdout.readline()  # type: ignore[union-attr]
        url = json.loads(said)["url"]
        assert ask(f"{url}/readyz")[0] == 200
        assert ask(f"{url}/act", {"observation": {"value": 17}})[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    packages = next((made.path / ".venv/lib").glob("python*/site-packages"))
    size = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file() and "pip" not in path.parts)
    assert size < 220e6
    assert not (packages / "ray").exists()
