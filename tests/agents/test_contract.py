"""The server keeps to its own document: schemathesis sends what fits it and what does not, and judges the answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from jsonschema import Draft202012Validator
from tests.agents.served import ask, served, write_agent
from tests.spaces.catalogue import ACTIONS, OBSERVATIONS

from platotk.agents.openapi import openapi
from platotk.agents.schemas import space_schema
from platotk.errors import SimError
from platotk.spaces import adapt, from_json, to_json

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis needs Python 3.11 or later")

# Bounds are compared in the leaf's own dtype: JSON Schema says the same only of float64.
PLANT = spaces.Dict(
    {
        "level": spaces.Box(0.0, 10.0, (1,), np.float64),
        "valves": spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 5.0]), dtype=np.float64),
        "grid": spaces.Box(-9, 9, (2, 2), np.int32),
        "drift": spaces.Box(-1e6, 1e6, (1,), np.float64),
        "mode": spaces.Discrete(3, start=1),
        "gears": spaces.MultiDiscrete([2, 3], start=[0, -1]),
        "on": spaces.MultiBinary(2),
        "parts": spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (), np.float64))),
    }
)
ROUTES = [
    ("/act", "POST"),
    ("/v1/prediction", "POST"),
    ("/v1/prediction", "GET"),
    ("/v1", "DELETE"),
    ("/reset", "POST"),
]
QUIET: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with served(write_agent(tmp_path_factory.mktemp("plant") / "agent", PLANT)) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def exercise(contract: Any, route: tuple[str, str], mode: str, num_cases: int) -> None:
    """Send cases that fit ("positive") or do not ("negative"), and let schemathesis judge every answer."""
    path, method = route
    generation = schemathesis.GenerationMode(mode)

    @settings(max_examples=num_cases, **QUIET)
    @given(case=contract[path][method].as_strategy(generation_mode=generation))
    def send(case: Any) -> None:
        case.call_and_validate()

    send()


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_the_server_keeps_its_contract(contract: Any, route: tuple[str, str], mode: str) -> None:
    exercise(contract, route, mode, 40 if route[0] == "/act" else 8)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_the_server_keeps_its_contract_for_long(contract: Any, route: tuple[str, str], mode: str) -> None:
    exercise(contract, route, mode, 2000 if route[0] == "/act" else 300)


def test_the_document_names_every_route(contract: Any) -> None:
    document = contract.raw_schema
    Draft202012Validator.check_schema(document["components"]["schemas"]["Observation"])
    for path, operations in document["paths"].items():
        for method in operations:
            assert ask(f"{contract.get_base_url().rstrip('/')}{path}", method=method.upper())[0] not in (404, 405)


INPUTS = [
    (f"observation {name}", space)
    for name, space in {**OBSERVATIONS, **ACTIONS}.items()
    if not isinstance(space, (spaces.Graph, spaces.Sequence))
]


@pytest.mark.parametrize("space", [space for _, space in INPUTS], ids=[name for name, _ in INPUTS])
def test_values_fit_their_schema(space: spaces.Space[Any]) -> None:
    adapter = adapt(spaces.Discrete(2), space) if any(space is action for action in ACTIONS.values()) else None
    validators = [Draft202012Validator(space_schema(space, is_input=is_input)) for is_input in (False, True)]
    space.seed(2)
    for _ in range(5):
        value = space.sample() if adapter is None else adapter.decode(adapter.encoded_action_space.sample())
        data = to_json(space, value)
        assert all(validator.is_valid(data) for validator in validators), data


@pytest.mark.parametrize(
    "change",
    [
        {"level": 11},
        {"level": [1, 2]},
        {"valves": [0, 5.5]},
        {"valves": [-1.5, 0]},
        {"grid": [[0, 1], [2, 10]]},
        {"grid": [[0, 1], [2, 1.5]]},
        {"drift": 1e39},
        {"drift": "1"},
        {"drift": True},
        {"mode": 0},
        {"gears": [1, 2]},
        {"on": [0, 2]},
        {"parts": [0]},
        {"parts": [0, 1, 2]},
        {"more": 1},
    ],
)
def test_what_does_not_fit_the_schema_is_refused_by_the_reader_too(change: dict[str, Any]) -> None:
    good = {"level": 1, "valves": [0, 5], "grid": [[1, 2], [3, 4]], "drift": [1e5], "mode": 1, "gears": [1, 1]}
    good |= {"on": [0, True], "parts": [1, 0.5]}
    validator, adapter = Draft202012Validator(space_schema(PLANT, is_input=True)), adapt(PLANT, spaces.Discrete(2))
    assert validator.is_valid(good)
    adapter.encode(from_json(PLANT, good))
    assert not validator.is_valid({**good, **change})
    with pytest.raises(SimError):
        adapter.encode(from_json(PLANT, {**good, **change}))


def test_an_agent_with_memory_takes_no_batch() -> None:
    adapter = adapt(PLANT, spaces.Discrete(2))
    bodies = openapi(adapter, name="plant", has_memory=True)["paths"]["/act"]["post"]["requestBody"]
    known = [set(body["properties"]) for body in bodies["content"]["application/json"]["schema"]["oneOf"]]
    assert not any("observations" in names for names in known)
