"""What a job comes to is said before it is sent, and asked at a terminal: machines, price, CPUs that would be idle."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.azure_emulator.emulator import Emulator
from tests.azure_emulator.fixtures import running
from tests.uncovered import uncovered
from typer.testing import CliRunner, Result

from platotk import Project
from platotk.cli import app
from platotk.compute.idle import idle_in_tuning
from platotk.run import create_run

pytest.importorskip("azure.ai.ml", reason="needs the extra azure")


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with running(tmp_path_factory.mktemp("azure"), needs_blobs=False) as emulator:
        yield emulator


@pytest.fixture
def project(azure: Emulator, tmp_path: Path) -> Project:
    """On a backend whose trainings take two machines."""
    backend = {**azure.options, "nodes": 2, "timeout": "2h", "environment": {"name": "mine", "version": "3"}}
    fields = {"sim": "CartPole-v1", "backends": {"azure": {**backend, "size": "Standard_E8ds_v5"}}}
    fields["tune"] = {"param_space": {"training.lr": {"grid_search": [1e-4, 1e-3]}}, "num_samples": 1}
    (tmp_path / "plato.yaml").write_text(yaml.safe_dump(fields))
    return Project.load(tmp_path)


def plato(*words: str, at: Path) -> Result:
    return CliRunner().invoke(app, [*words, "-C", str(at)], prog_name="plato")


def test_a_training_takes_the_machines_of_the_backend(project: Project) -> None:
    said = plato("train", "--on", "azure", "--dry-run", at=project.root)
    assert "at most 2 nodes x 2 h = 4 node-hours" in said.stderr
    assert json.loads(said.stdout)["resources"]["instance_count"] == 2


@pytest.mark.parametrize(("words", "nodes"), [((), 1), (("--nodes", "3"), 3)])
def test_an_assessment_takes_one_machine_and_says_its_price(
    project: Project, words: tuple[str, ...], nodes: int
) -> None:
    run = create_run(project)
    said = plato("assess", run.name, "--on", "azure", "--dry-run", *words, at=project.root)
    assert said.exit_code == 0, said.output
    assert f"at most {nodes} node{'s' * (nodes > 1)} x 2 h = {2 * nodes} node-hours" in said.stderr
    request = json.loads(said.stdout)
    assert request["resources"]["instance_count"] == nodes
    assert " assess " in request["command"]


def test_a_tuning_takes_one_machine_and_is_told_what_would_be_idle(project: Project) -> None:
    said = plato("tune", "--on", "azure", "--dry-run", at=project.root)
    assert json.loads(said.stdout)["resources"]["instance_count"] == 1
    assert "at most 1 node x 2 h" in said.stderr
    assert "num_env_runners" not in said.stderr
    assert (
        "Standard_E8ds_v5 has 8 CPUs, and 2 trials at a time keep 2 of them busy. "
        "Say more trials (tune: {num_samples: ...}), or take a smaller size."
    ) in said.stderr
    said = plato("tune", "--on", "azure", "--dry-run", "--nodes", "3", at=project.root)
    assert json.loads(said.stdout)["resources"]["instance_count"] == 3
    assert "All trials train on the first of the 3 nodes, and nothing uses the others." in said.stderr


@pytest.mark.parametrize(
    ("fields", "nodes", "said"),
    [
        ({"tune": {"num_samples": 8}}, 1, ""),
        ({"tune": {"num_samples": 8, "max_concurrent_trials": 2}}, 1, "Say tune: {max_concurrent_trials: auto}"),
        ({"tune": {"num_samples": 2}, "env_runners": {"num_env_runners": 3}}, 1, ""),
        ({"tune": {"num_samples": 2}, "env_runners": {"num_env_runners": 3}}, 3, "3 x E8 have 24 CPUs, and 2 trials"),
        ({"tune": {"num_samples": 2}, "env_runners": {"num_env_runners": "auto"}}, 2, "nothing uses the others"),
        ({"tune": {"num_samples": 2}, "algorithm": "train:config"}, 1, ""),
    ],
)
def test_what_a_tuning_leaves_idle(fields: dict[str, Any], nodes: int, said: str) -> None:
    told = idle_in_tuning(Project(sim="CartPole-v1", **fields), 8, "E8", nodes=nodes)
    assert said in told
    assert bool(said) == bool(told)


def at_a_terminal(*words: str, answer: str, at: Path) -> subprocess.CompletedProcess[str]:
    """A command whose stdin is a terminal at which somebody types."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer.encode())
        return subprocess.run(
            [sys.executable, "-m", "platotk", *words],
            cwd=at,
            env=uncovered(),
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)


def test_at_a_terminal_it_is_asked_before_it_is_paid_for(azure: Emulator, project: Project) -> None:
    said = at_a_terminal("train", "--on", "azure", answer="no\n", at=project.root)
    assert said.returncode == 1
    assert "at 0.61 USD a node-hour: 2.44 USD" in said.stderr
    assert "Submit it? Type yes:" in said.stderr
    assert "Nothing was done." in said.stderr
    assert azure.state.jobs == {}
    assert not (project.root / "runs").exists()


def test_up_asks_at_a_terminal_unless_it_was_answered(azure: Emulator, project: Project) -> None:
    azure.state.clear()
    said = at_a_terminal("azure", "up", answer="n\n", at=project.root)
    assert (said.returncode, azure.state.resource_groups) == (1, {})
    assert "Make this? Type yes:" in said.stderr
    said = at_a_terminal("azure", "up", "-y", answer="n\n", at=project.root)
    assert said.returncode == 0, said.stderr
    assert "rl-cpu" in azure.state.computes


def test_yes_needs_a_place(project: Project) -> None:
    said = plato("train", "--yes", at=project.root)
    assert said.exit_code == 2
    assert "--yes needs --on NAME." in said.stderr
