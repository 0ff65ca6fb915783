"""The smoke test of an endpoint, against the agent's own server: equal is equal, wrong is found, errors are told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.agents.served import KEY, served, with_guard
from tests.azure.recorded_agent import write_recorded_agent

from platotk.agents.agent import Agent
from platotk.azure.smoke import NUM_SINGLE, Scoring, first_body, smoke
from platotk.errors import AzureError

pytest.importorskip("requests", reason="needs the extra azure")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recorded_agent(tmp_path_factory.mktemp("smoke") / "agent")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with served(folder, key=KEY) as address:
        yield f"{address}/act"


def test_every_recorded_observation_is_answered_as_recorded(folder: Path, url: str) -> None:
    found = smoke(Scoring(url, KEY), Agent.load(folder))
    assert found.is_equal
    assert found.num_rows == 300
    assert 0 < found.p50_ms <= found.p95_ms < 1000


def test_an_endpoint_with_another_agent_is_found_out(url: str, tmp_path: Path) -> None:
    """From row 150 on, which only a batch holds."""
    found = smoke(Scoring(url, KEY), Agent.load(write_recorded_agent(tmp_path / "agent", offset=0.01)))
    assert not found.is_equal
    assert found.max_error > 1e-4


def test_agents_with_memory_are_asked_episode_by_episode(tmp_path: Path) -> None:
    agent = write_recorded_agent(tmp_path / "agent", has_memory=True)
    with served(agent) as address:
        found = smoke(Scoring(f"{address}/act", ""), Agent.load(agent))
    assert found.is_equal
    assert found.num_rows == NUM_SINGLE  # over the end of an episode: the memory begins anew


@pytest.mark.parametrize("has_memory", [False, True])
def test_guards_answer_there_as_they_do_here(has_memory: bool, tmp_path: Path) -> None:
    agent = write_recorded_agent(tmp_path / "agent", has_memory=has_memory)
    (agent / "openapi.json").unlink()
    slew = {"action": {"per_second": 2.0, "per_step": 1.0}}
    with_guard(agent, slew=slew, step_s=1.0, stale_s=60, on_stale="hold", fallback=0.0)
    with served(agent) as address:
        found = smoke(Scoring(f"{address}/act", ""), Agent.load(agent))
    assert found.is_equal


def test_what_is_refused_is_told_with_its_status(folder: Path, url: str) -> None:
    body = first_body(Agent.load(folder))
    assert list(Scoring(url, KEY).ask(body)) == ["action"]
    with pytest.raises(AzureError, match="deployment green answered with status 401"):
        Scoring(url, "wrong", "green").ask(body)
    with pytest.raises(AzureError, match=r"status 422: .*level"):
        Scoring(url, KEY).ask({"observation": {"flow": [0, 0]}})
    with pytest.raises(AzureError, match="does not answer") as raised:
        Scoring("http://127.0.0.1:9/act", KEY, "blue").ask(body)
    assert "HTTPS_PROXY" in str(raised.value)
