"""One tiny trained and exported agent for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from platotk.agents.export import export
from platotk.learning.training import train
from platotk.project import Project
from platotk.run import Run

ADDER = Path(__file__).resolve().parents[2] / "examples" / "simple-adder"
TINY = [
    "training.train_batch_size_per_learner=256",
    "training.minibatch_size=64",
    "training.num_epochs=1",
    "rl_module.model_config.fcnet_hiddens=[32]",
    "stop.iterations=1",
    "tracking.mlflow=false",
]


@pytest.fixture(scope="session")
def adder_run(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the Simple Adder, one iteration long."""
    project = Project.load(ADDER, overrides=TINY)
    return train(project, runs_dir=tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def adder_agent(adder_run: Run) -> Path:
    """Its exported agent; do not change it, copy it."""
    return export(adder_run)
