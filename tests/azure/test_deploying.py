"""`deploy` against the emulator: registered, started by Microsoft's own server, proven, switched over, deleted."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.azure.recorded_agent import write_recorded_agent
from tests.azure_emulator.fixtures import running

from platotk.azure.endpoints import delete, deploy
from platotk.azure.options import AzureOptions
from platotk.azure.smoke import Scoring
from platotk.errors import AzureError


@pytest.mark.slow
def test_an_agent_answers_behind_an_endpoint_and_the_next_takes_its_place(tmp_path: Path) -> None:
    agent = write_recorded_agent(tmp_path / "agent")
    with running(tmp_path / "azure") as azure:
        options = AzureOptions(**azure.options)
        first = deploy(agent, options)
        assert (first.deployment, first.replaced) == ("blue", None)
        assert first.smoke.is_equal
        with pytest.raises(AzureError, match="401"):
            Scoring(first.url, "wrong").ask({})
        second = deploy(agent, options)
        assert (second.deployment, second.replaced, second.is_kept) == ("green", "blue", False)
        assert azure.state.endpoints[first.endpoint]["properties"]["traffic"] == {"green": 100}
        assert [name for name in azure.state.models] == ["tank:1"]  # the same agent is registered once
        assert delete(first.endpoint, options) is True
        assert azure.state.endpoints == {}
        assert delete(first.endpoint, options) is False
