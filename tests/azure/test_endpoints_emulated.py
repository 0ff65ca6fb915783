"""Endpoints from beginning to end, against the emulator: blue, green, going back, and the end of the bill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.azure.recorded_agent import write_recorded_agent
from tests.azure_emulator.emulator import Emulator
from tests.azure_emulator.fixtures import running
from typer.testing import CliRunner, Result

from platotk.azure import endpoint_plan, endpoints
from platotk.azure.options import AzureOptions
from platotk.cli import app
from platotk.errors import AzureError

pytest.importorskip("azure.ai.ml", reason="needs the extra azure")

NAME = "tank-ep"


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with running(tmp_path_factory.mktemp("azure")) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def options(azure: Emulator) -> AzureOptions:
    return AzureOptions(**azure.options)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recorded_agent(tmp_path_factory.mktemp("agents") / "tank")


@pytest.fixture(scope="module")
def better(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another agent of the same name."""
    return write_recorded_agent(tmp_path_factory.mktemp("agents") / "better", num_rows=200)


def traffic(options: AzureOptions) -> dict[str, int]:
    """What answers, as Azure tells it; nothing without an endpoint."""
    found = endpoints._find(endpoints.connect(options), NAME)
    return endpoints._traffic(found)


def test_an_agent_answers_and_goes_on_when_the_next_one_fails(
    azure: Emulator, options: AzureOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of a deployment and the way back; with Microsoft's own server below."""
    monkeypatch.setattr(azure, "serves", "plainly")
    monkeypatch.setattr(endpoints, "POLL_S", 0.1)
    first, second = (write_recorded_agent(tmp_path / str(rows), num_rows=rows) for rows in (60, 61))
    made = endpoints.deploy(first, options, endpoint=NAME)
    assert (made.deployment, made.replaced, made.smoke.is_equal, made.smoke.num_rows) == ("blue", None, True, 60)
    assert traffic(options) == {"blue": 100}

    azure.faults.add(match="POST .*/score", status=500, times=1)
    with pytest.raises(AzureError, match="deployment green answered with status 500"):
        endpoints.deploy(second, options, endpoint=NAME)
    assert traffic(options) == {"blue": 100}  # green is gone again
    assert endpoints.delete(NAME, options) is True


@pytest.mark.slow
def test_an_agent_answers_is_replaced_and_deleted(
    azure: Emulator, options: AzureOptions, agent: Path, better: Path
) -> None:
    steps: list[str] = []
    num_before = len(list(endpoints.connect(options).ml.models.list(name="tank")))  # by tests before this one
    made = endpoints.deploy(agent, options, endpoint=NAME, on_event=lambda event: steps.append(event["step"]))
    assert (made.deployment, made.replaced, made.model) == ("blue", None, f"tank:{num_before + 1}")
    assert made.smoke.is_equal
    assert made.smoke.num_rows == 300
    assert 0 < made.smoke.p50_ms <= made.smoke.p95_ms
    assert traffic(options) == {"blue": 100}
    assert steps.index("smoke test") < steps.index("traffic")

    azure.faults.add(match=f"PUT .*/onlineEndpoints/{NAME}/deployments/green", status=400, times=1)
    with pytest.raises(AzureError):
        endpoints.deploy(better, options, endpoint=NAME)
    assert traffic(options) == {"blue": 100}

    azure.faults.add(match="POST .*/score", status=500, times=3)
    with pytest.raises(AzureError, match="deployment green answered with status 500"):
        endpoints.deploy(better, options, endpoint=NAME)
    assert traffic(options) == {"blue": 100}  # green is gone again

    azure.faults.clear()
    other = endpoints.deploy(better, options, endpoint=NAME, keep_old=True)
    assert (other.deployment, other.replaced, other.is_kept) == ("green", "blue", True)
    assert other.model == f"tank:{num_before + 2}"  # registered once, though it was the third attempt
    assert traffic(options) == {"green": 100, "blue": 0}

    third = endpoints.deploy(agent, options, endpoint=NAME)
    assert (third.deployment, third.replaced, third.is_kept, third.model) == ("blue", "green", False, made.model)
    assert traffic(options) == {"blue": 100}

    assert endpoints.delete(NAME, options) is True
    assert traffic(options) == {}
    assert endpoints.delete(NAME, options) is False


@pytest.mark.slow
def test_a_new_endpoint_whose_agent_does_not_start_is_deleted_again(
    options: AzureOptions, agent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> bytes:
        return b"def init():\n    raise OSError('the tank leaks')\n\n\ndef run(raw_data):\n    return raw_data\n"

    monkeypatch.setattr(endpoints, "score_file", broken)
    with pytest.raises(AzureError, match="deployment blue") as raised:
        endpoints.deploy(agent, options, endpoint=NAME)
    assert "the tank leaks" in str(raised.value)  # its log
    assert traffic(options) == {}


def test_an_endpoint_of_somebody_else_is_left_alone(azure: Emulator, options: AzureOptions, agent: Path) -> None:
    from azure.ai.ml.entities import ManagedOnlineEndpoint

    ml = endpoints.connect(options).ml
    ml.online_endpoints.begin_create_or_update(ManagedOnlineEndpoint(name="theirs", auth_mode="key")).result()
    before = len(azure.requests)
    for call in (
        lambda: endpoints.deploy(agent, options, endpoint="theirs"),
        lambda: endpoints.delete("theirs", options),
    ):
        with pytest.raises(AzureError, match="not made by platotk"):
            call()
    assert {one[0] for one in azure.requests[before:] if "onlineEndpoints" in one[2]} == {"GET"}


@pytest.mark.slow
def test_the_command_line(azure: Emulator, agent: Path, tmp_path: Path) -> None:
    where: dict[str, Any] = {**azure.options, "type": "azure_ml"}
    (tmp_path / "plato.yaml").write_text(f"sim: CartPole-v1\nbackends:\n  azure: {json.dumps(where)}\n")

    def here(*words: str) -> Result:
        line = ["deploy", str(agent), "--to", "azure", "-C", str(tmp_path), "--yes", *words]
        return CliRunner().invoke(app, line, prog_name="plato")

    said = here("--json")
    assert said.exit_code == 0, said.stderr
    told = json.loads(said.stdout)
    assert told["endpoint"] == endpoint_plan.endpoint_name("tank", AzureOptions(**azure.options))
    assert told["smoke"]["is_equal"] is True
    assert "bills until deleted" in said.stderr
    assert "key" not in told
    said = here("--delete", "--json")
    assert json.loads(said.stdout) == {"endpoint": told["endpoint"], "deleted": True, "dry_run": False}
