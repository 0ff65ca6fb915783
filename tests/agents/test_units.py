"""Units of spaces: from plato.yaml to the manifest, the HTTP contract and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from tests.agents.served import with_manifest, with_units, write_agent
from typer.testing import CliRunner

from platotk import Agent, Project
from platotk.agents.openapi import openapi
from platotk.agents.page import form
from platotk.agents.units import checked_units, unit_of, units_of
from platotk.cli import app
from platotk.errors import AgentError, ProjectError
from platotk.spaces import adapt

PLANT = adapt(
    spaces.Dict(
        level=spaces.Box(0, 2, (1,), np.float32),
        jets=spaces.Box(0, 9, (2,), np.float32),
        pair=spaces.Tuple([spaces.Discrete(3), spaces.Box(0, 1, (), np.float32)]),
    ),
    spaces.Dict(level=spaces.Box(0, 1, (1,), np.float32)),
    algorithm="PPO",
)
TOLD: dict[str, Any] = {
    "name": "sum",
    "created": "today",
    "mapping": [],
    "metrics": None,
    "provenance": {"run": "one", "checkpoint": "000001"},
    "parity": {"is_equal": True, "num_rows": 1000, "num_mismatches": 0, "num_undecided": 0, "max_error": 0.0},
}
"""What else the manifest of an exported agent says."""
BARE = adapt(spaces.Box(-1, 1, (2,), np.float32), spaces.Box(-1, 1, (1,), np.float32), algorithm="PPO")


def load(tmp_path: Path, units: str) -> Project:
    (tmp_path / "plato.yaml").write_text(f"sim: CartPole-v1\nunits:\n{units}\n")
    return Project.load(tmp_path)


def test_a_name_in_both_spaces_has_a_unit_in_each(tmp_path: Path) -> None:
    project = load(tmp_path, "  observation: {level: m}\n  action: {level: '%'}")
    assert units_of(project, PLANT) == {"observation": {"level": "m"}, "action": {"level": "%"}}
    assert Project.load(_written(tmp_path / "again", project)).units == project.units


def test_an_element_has_its_own_unit_or_the_leafs() -> None:
    units = checked_units({"observation": {"jets": "bar", "jets[1]": "kPa", "pair[1]": "s"}}, PLANT)
    assert [unit_of(units, "observation", "jets", (i,)) for i in (0, 1)] == ["bar", "kPa"]
    assert unit_of(units, "observation", "pair[1]") == "s"
    assert unit_of(units, "observation", "pair[0]") is None


def test_elements_of_an_unnamed_space() -> None:
    units = checked_units({"observation": {"[0]": "rad", "observation[1]": "rad/s"}, "action": {"action": "N"}}, BARE)
    assert units == {"observation": {"observation[0]": "rad", "observation[1]": "rad/s"}, "action": {"action": "N"}}
    assert checked_units(units, BARE) == units, "a manifest reads back as it was written"
    contract = openapi(BARE, name="plant", units=units)["components"]["schemas"]
    assert contract["Observation"]["x-unit"] == ["rad", "rad/s"]
    assert contract["Action"]["x-unit"] == "N"


@pytest.mark.parametrize(
    ("units", "message", "hint"),
    [
        ("  observation: {levle: m}", "plato.yaml:3: the observation has no leaf 'levle'.", "'level'"),
        ("  action:\n    jets: bar", "plato.yaml:4: the action has no leaf 'jets'.", "level"),
        ("  observation:\n    'jets[2]': bar", "the observation has no leaf 'jets[2]'.", "jets"),
        ("  action: {level: m, action.level: m}", "'level' has a unit already.", "level"),
    ],
)
def test_a_leaf_that_is_not_there(tmp_path: Path, units: str, message: str, hint: str) -> None:
    with pytest.raises(ProjectError) as caught:
        units_of(load(tmp_path, units), PLANT)
    assert message in str(caught.value)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ("  acton: {level: m}", "plato.yaml:3: unknown key 'acton' in units. Did you mean 'action'?"),
        ("  action: {level: 3}", "units.action.level is 3; expected text"),
        ("  action: {level: ''}", "units.action.level"),
    ],
)
def test_what_may_stand_there(tmp_path: Path, units: str, message: str) -> None:
    with pytest.raises(ProjectError) as caught:
        load(tmp_path, units)
    assert message in str(caught.value)


def test_the_contract_says_them() -> None:
    units = checked_units({"observation": {"level": "m", "jets[1]": "bar"}, "action": {"level": "%"}}, PLANT)
    schemas = openapi(PLANT, name="plant", units=units)["components"]["schemas"]
    seen = schemas["Observation"]["properties"]
    assert (seen["level"]["x-unit"], seen["level"]["description"]) == ("m", "In m.")
    assert (seen["jets"]["x-unit"], seen["jets"]["description"]) == ([None, "bar"], "Element [1] in bar.")
    assert schemas["Action"]["properties"]["level"]["x-unit"] == "%"
    assert "x-unit" not in json.dumps(openapi(PLANT, name="plant"))


def test_an_agent_knows_its_units_and_one_without_has_none(tmp_path: Path) -> None:
    folder = write_agent(tmp_path / "agent", PLANT.observation_space)
    assert Agent.load(folder).units == {"observation": {}, "action": {}}
    agent = Agent.load(with_units(folder, observation={"level": "m"}))
    assert agent.units["observation"] == {"level": "m"}
    shown: dict[str, Any] = {item["label"]: item["unit"] for item in form(agent, name="sum")["inputs"]}
    assert shown["level"] == "m"
    assert [unit for label, unit in shown.items() if label != "level"] == [None] * (len(shown) - 1)


def test_plato_show_tells_them_and_nothing_where_there_are_none(tmp_path: Path) -> None:
    folder = write_agent(tmp_path / "agent", PLANT.observation_space)
    with_manifest(folder, **TOLD, algorithm="PPO")
    assert "units" not in show(folder)
    with_units(folder, observation={"level": "m", "jets[1]": "bar"})
    assert "units observation: jets[1] in bar, level in m" in " ".join(show(folder).split())


def test_plato_show_of_a_doctored_agent(tmp_path: Path) -> None:
    """Less than every agent says is an error; commands to the terminal are shown, not obeyed."""
    folder = write_agent(tmp_path / "agent", PLANT.observation_space)
    assert "incomplete manifest" in show(folder, exit_code=1)
    assert "Traceback" not in show(folder, exit_code=1)
    with_manifest(folder, **TOLD, algorithm="\x1b]0;owned\x07PPO")
    assert "\\x1b]0;owned\\x07PPO" in show(folder)


def show(folder: Path, exit_code: int = 0) -> str:
    said = CliRunner().invoke(app, ["show", str(folder)], prog_name="plato")
    assert said.exit_code == exit_code, said.stderr
    return said.stderr


def test_a_doctored_unit_is_refused(tmp_path: Path) -> None:
    folder = with_manifest(
        write_agent(tmp_path / "agent", PLANT.observation_space), units={"observation": {"levle": "m"}}
    )
    with pytest.raises(AgentError, match="incomplete manifest"):
        Agent.load(folder)


def _written(folder: Path, project: Project) -> Path:
    folder.mkdir()
    (folder / "plato.yaml").write_text(project.to_yaml())
    return folder


def test_keys_that_read_like_paths_have_units_and_old_names_stay_good() -> None:
    number = spaces.Box(0, 9, (2,), np.float32)
    dotted = adapt(spaces.Dict({"a.b": number, "c": number}), spaces.Dict({"p.q": number, "p": spaces.Dict(q=number)}))
    units = checked_units({"observation": {"a.b": "m", "a.b[1]": "km"}, "action": {'["p.q"]': "%", "p.q": "V"}}, dotted)
    assert units == {
        "observation": {'["a.b"]': "m", '["a.b"][1]': "km"},
        "action": {'["p.q"]': "%", "p.q": "V"},
    }
    assert checked_units(units, dotted) == units
