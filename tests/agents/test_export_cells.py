"""Every cell of the table "spaces that train" is exported, and acts as RLlib does on observations it never saw."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.agents.runs import compared, quick_run, require_served

from platotk.agents.agent import Agent
from platotk.agents.export import export
from platotk.learning.greedy import greedy
from platotk.learning.policies import load_policy
from platotk.project import Project
from platotk.spaces import fitting

PARTS = str(Path(__file__).resolve().parents[2] / "docs/_scripts/spaces_table_parts")
ALGORITHMS = ("PPO", "APPO", "IMPALA", "BC", "SAC", "DQN")
NUM_FRESH = 200
LSTM = {"model_config": {"fcnet_hiddens": [16], "use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 5}}
FEW = [
    ("PPO", "image and numbers, mixed", False),
    ("BC", "Text, Text", False),
    ("APPO", "Dict with the mask, choice", True),
]

pytestmark = pytest.mark.usefixtures("ray_session")


def import_part(name: str) -> ModuleType:
    if PARTS not in sys.path:
        sys.path.append(PARTS)
    return importlib.import_module(name)


PAIRS = import_part("pairs").PAIRS
TRAINED = [
    (algorithm, pair, has_memory)
    for pair in PAIRS
    for algorithm in ALGORITHMS
    if algorithm in fitting(PAIRS[pair].observation, PAIRS[pair].action)
    for has_memory in ((False, True) if algorithm in ("PPO", "APPO", "IMPALA", "BC") else (False,))
]


@pytest.mark.parametrize(("algorithm", "pair", "has_memory"), FEW)
def test_a_cell_is_exported(algorithm: str, pair: str, has_memory: bool, tmp_path: Path) -> None:
    require_equal(algorithm, pair, has_memory, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "pair", "has_memory"), [cell for cell in TRAINED if cell not in FEW])
def test_every_cell_is_exported(algorithm: str, pair: str, has_memory: bool, tmp_path: Path) -> None:
    require_equal(algorithm, pair, has_memory, tmp_path)


def test_the_table_has_no_cell_that_is_not_tried_here() -> None:
    import json

    table = json.loads((Path(PARTS).parents[1] / "assets/spaces_table.json").read_text())["pairs"]
    cells = [(name, pair, table[pair]["cells"][name]["outcome"]) for pair in table for name in ALGORITHMS]
    trained = {(name, pair) for name, pair, outcome in cells if outcome == "trained"}
    assert trained == {(algorithm, pair) for algorithm, pair, _ in TRAINED}


def require_equal(algorithm: str, pair: str, has_memory: bool, folder: Path) -> None:
    """Train the cell once, export it, and compare on the recording and on fresh observations."""
    cells: Any = import_part("cells")
    adapter = cells.adapter_of(pair, algorithm)
    settings = dict(cells.SETTINGS[algorithm])
    if has_memory:
        settings["rl_module"] = LSTM
    if algorithm == "BC":
        settings["offline_data"] = cells._recorded(pair, adapter, folder)
    project = Project(sim=cells.Toy, name="toy", sim_config={"pair": pair}, algorithm=algorithm, **settings)
    run = quick_run(project, folder / "run", adapter=adapter)
    agent = Agent.load(export(run))
    assert agent.has_memory == has_memory
    proof = agent.verify()
    assert proof.is_equal
    assert proof.num_rows >= 1000
    observations, masks = fresh(pair)
    policy = load_policy(run)
    fast = greedy(policy)
    assert fast is not policy
    for ours in (agent, fast):
        assert compared(ours, policy, observations, masks).is_equal
    require_served(agent)


def fresh(pair: str) -> tuple[list[Any], list[Any]]:
    """Observations and masks that neither training nor the recording has seen."""
    toy: Any = import_part("pairs").Toy(pair)
    toy.reset(seed=987_654)
    seen = [toy._observe() for _ in range(NUM_FRESH)]
    return [obs for obs, _ in seen], [info.get("action_mask") for _, info in seen]
