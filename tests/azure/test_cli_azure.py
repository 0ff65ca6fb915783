"""`plato azure` at the prompt, as far as it goes without Azure: which backend is meant, conda files, not signed in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from platotk.cli import app

BACKEND = {
    "type": "azure_ml",
    "subscription": "01234567-89ab-cdef-0123-456789abcdef",
    "resource_group": "rl",
    "workspace": "rl-ws",
}
OLD = "dependencies:\n- python=3.8.5\n- pip:\n  - ray[rllib]==2.3.0\n  - azureml-defaults\n"


def project(folder: Path, **backends: Any) -> Path:
    fields: dict[str, Any] = {"sim": "CartPole-v1"}
    (folder / "plato.yaml").write_text(yaml.safe_dump({**fields, **({"backends": backends} if backends else {})}))
    return folder


def plato(*words: str, at: Path) -> Any:
    return CliRunner().invoke(app, ["azure", *words, "-C", str(at)])


def test_a_project_without_azure_is_told_what_to_add(tmp_path: Path) -> None:
    said = plato("status", at=project(tmp_path))
    assert said.exit_code == 2
    assert "plato.yaml names no Azure." in said.stderr
    assert "type: azure_ml" in said.stderr


def test_one_of_several_has_to_be_named(tmp_path: Path) -> None:
    at = project(tmp_path, one=BACKEND, two={**BACKEND, "workspace": "other"}, here={"type": "local"})
    said = plato("yaml", "--out", str(tmp_path / "out"), at=at)
    assert said.exit_code == 2
    assert "one of: one, two" in said.stderr
    said = plato("yaml", "--on", "here", at=at)
    assert "no backend of type azure_ml is called 'here'" in said.stderr
    said = plato("yaml", "--on", "two", "--out", str(tmp_path / "out"), at=at)
    assert said.exit_code == 0
    assert "--workspace-name other" in said.stdout


def test_a_conda_file_is_cured_on_stdout_and_told_about_on_stderr(tmp_path: Path) -> None:
    (tmp_path / "old.yml").write_text(OLD)
    said = CliRunner().invoke(app, ["azure", "environment", "--migrate", str(tmp_path / "old.yml")])
    assert said.exit_code == 0
    assert "python=3.11" in yaml.safe_load(said.stdout)["dependencies"]
    assert "old.yml:4" in said.stderr
    told = json.loads(
        CliRunner().invoke(app, ["azure", "environment", "--migrate", str(tmp_path / "old.yml"), "--json"]).stdout
    )
    assert told["conda"].strip() == said.stdout.strip()
    assert {one["id"] for one in told["findings"]} == {"conda-python", "conda-pin", "conda-needless", "conda-missing"}


def test_the_environment_is_named_and_its_context_can_be_read(tmp_path: Path) -> None:
    at = project(tmp_path, azure=BACKEND)
    told = json.loads(plato("environment", "--out", str(tmp_path / "context"), "--json", at=at).stdout)
    assert told["name"].startswith("platotk-")
    assert "FROM python:" in (Path(told["context"]) / "Dockerfile").read_text()


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which nobody has signed in, and nothing answers."""
    for name in ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("IDENTITY_ENDPOINT", "")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")


@pytest.mark.usefixtures("nobody")
def test_doctor_says_that_nobody_is_signed_in_and_what_else_it_saw(tmp_path: Path) -> None:
    (tmp_path / "old.yml").write_text(OLD)
    at = project(tmp_path, azure={**BACKEND, "environment": {"conda_file": "old.yml"}})
    said = plato("doctor", "--json", at=at)
    assert said.exit_code == 1
    found = {one["id"]: one for one in json.loads(said.stdout)}
    assert "az login" in found["azure-sign-in"]["cure"]
    assert found["conda-python"]["cure"] == "- python=3.11"
    assert found["azure-cli"]["severity"] == "note"
    assert all(one["cure"] for one in found.values())


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("words", [("up",), ("up", "--dry-run"), ("down", "--yes"), ("status",)])
def test_without_signing_in_each_command_says_how_to(tmp_path: Path, words: tuple[str, ...]) -> None:
    said = plato(*words, at=project(tmp_path, azure={**BACKEND, "location": "westeurope"}))
    assert said.exit_code == 1
    assert "not signed in to Azure" in said.stderr
    assert "az login" in said.stderr
    assert "Traceback" not in said.output


def test_help_loads_no_sdk() -> None:
    code = "import sys; sys.argv = ['plato', 'azure', 'up', '--help']\nfrom platotk.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\nprint('azure.ai' in sys.modules, 'yaml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"
