"""`plato deploy --to azure`: what would be made, and that it is made, proven, switched over, undone and deleted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.agents.served import with_guard
from tests.azure.recorded_agent import write_recorded_agent
from typer.testing import CliRunner, Result

from platotk.agents import score
from platotk.azure.endpoint_plan import SERVER, endpoint_name, plan
from platotk.azure.options import AzureOptions
from platotk.cli import app
from platotk.errors import AgentError, ProjectError

NEEDED: dict[str, Any] = {
    "type": "azure_ml",
    "subscription": "01234567-89ab-cdef-0123-456789abcdef",
    "resource_group": "rl",
    "workspace": "rl-ws",
}
OPTIONS = AzureOptions(**NEEDED)
PROJECT = f"sim: CartPole-v1\nbackends:\n  azure: {json.dumps(NEEDED)}\n"


def here(*words: str | Path) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(app, ["deploy", *map(str, words)], prog_name="plato")


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    return write_recorded_agent(tmp_path / "agent")


def test_the_plan_is_the_agent_the_serve_extra_and_microsofts_server(agent: Path) -> None:
    planned, _ = plan(agent, OPTIONS)
    assert planned.endpoint == endpoint_name("tank", OPTIONS)
    assert (planned.model, planned.size, planned.instances) == ("tank", "Standard_DS3_v2", 1)
    assert set(planned.agent_files) == {f"agent/{path.name}" for path in agent.iterdir()}
    steps = planned.image["Dockerfile"].decode()
    copied = next(line for line in steps.splitlines() if line.startswith("COPY")).split()[1:-1]
    assert set(copied) == set(planned.image) - {"Dockerfile"}
    assert f"pip install {SERVER}" in steps
    assert "USER 10001" in steps
    assert planned.image["score.py"] == Path(score.__file__).read_bytes()
    assert b"\nray==" not in planned.image["requirements.txt"]
    assert b"\nonnxruntime==" in planned.image["requirements.txt"]


def test_the_same_things_have_the_same_names(agent: Path, tmp_path: Path) -> None:
    one, other = plan(agent, OPTIONS)[0], plan(agent, OPTIONS)[0]
    assert (one.environment, one.manifest, one.endpoint) == (other.environment, other.manifest, other.endpoint)
    elsewhere = AzureOptions(**{**NEEDED, "workspace": "another"})
    assert endpoint_name("tank", elsewhere) != one.endpoint
    assert len(endpoint_name("9-very-" + "long-" * 20, OPTIONS)) <= 32
    assert endpoint_name("9-very-long", OPTIONS).startswith("very-long-")
    assert plan(write_recorded_agent(tmp_path / "other", num_rows=90), OPTIONS)[0].manifest != one.manifest


@pytest.mark.parametrize("name", ["a", "9tank", "tank-", "tank_1", "t" * 33])
def test_a_name_that_azure_does_not_take_is_refused_here(name: str, agent: Path) -> None:
    with pytest.raises(ProjectError, match="no name of an endpoint"):
        plan(agent, OPTIONS, endpoint=name)


def test_what_cannot_be_served_there_is_refused_here(agent: Path, tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="memory of their own"):
        plan(write_recorded_agent(tmp_path / "memory", has_memory=True), OPTIONS, instances=2)
    with pytest.raises(ProjectError, match="no size of machine"):
        plan(agent, OPTIONS, size="big")
    with pytest.raises(AgentError, match="does not act as recorded"):
        plan(write_recorded_agent(tmp_path / "wrong", offset=1.0), OPTIONS)
    (agent / "openapi.json").unlink()
    with pytest.raises(AgentError, match="control:safe"):
        plan(with_guard(agent, on_missing="fallback", fallback="control:safe"), OPTIONS)


# --- the command line, without Azure


def test_a_dry_run_shows_what_would_be_sent_and_what_it_costs(
    agent: Path, project_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project_folder(PROJECT)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nothing may be asked
    said = here(agent, "--to", "azure", "--dry-run", "--instances", "2")
    assert said.exit_code == 0, said.stderr
    for words in ("Would make", "2 x Standard_DS3_v2", "1,460 node-hours", "bills until deleted", "agent/policy.onnx"):
        assert words in said.stderr
    told = json.loads(here(agent, "--to", "azure", "--dry-run", "--json").stdout)
    assert told["endpoint"] == endpoint_name("tank", OPTIONS)
    assert told["dry_run"] is True
    assert "bills until deleted" in " ".join(told["cost"])


def test_nothing_is_made_unasked(agent: Path, project_folder: Callable[..., Path]) -> None:
    project_folder(PROJECT)
    for more in ([], ["--delete"]):
        said = here(agent, "--to", "azure", *more)
        assert said.exit_code == 1
        assert "--yes" in said.stderr


def test_which_workspace_is_meant_is_said(agent: Path, project_folder: Callable[..., Path]) -> None:
    project_folder("sim: CartPole-v1\n")
    said = here(agent, "--to", "azure", "--dry-run")
    assert said.exit_code == 2
    assert "type: azure_ml" in said.stderr
    other = {**NEEDED, "workspace": "other-ws"}
    project_folder(f"{PROJECT}  other: {json.dumps(other)}\n")
    assert "azure, other" in here(agent, "--to", "azure", "--dry-run").stderr
    said = here(agent, "--to", "azure", "--on", "other", "--dry-run", "--json")
    assert json.loads(said.stdout)["endpoint"] == endpoint_name("tank", AzureOptions(**other))


def test_options_of_one_place_are_refused_at_another(agent: Path) -> None:
    for words in (
        ["--to", "docker", "--endpoint", "tank"],
        ["--to", "folder", "--delete"],
        ["--to", "azure", "--tag", "a:1"],
    ):
        said = here(agent, *words)
        assert said.exit_code == 2
        assert f"{words[2]} means nothing with --to {words[1]}" in said.stderr
