"""What a workspace may hand out for its datastores, and how its nodes may be told of each other: each works."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.azure_emulator.emulator import Emulator
from tests.azure_emulator.fixtures import running
from tests.compute.places import Place

from platotk import Project
from platotk.azure.options import AzureOptions
from platotk.compute.azure_ml import AzureBackend
from platotk.compute.base import JobStatus

pytest.importorskip("azure.ai.ml", reason="needs the extra azure")

CODE = """
import os, pathlib, sys
import ray
ray.init(logging_level="ERROR")
nodes = sum(node["Alive"] for node in ray.nodes())
variable = "OMPI_COMM_WORLD_SIZE" if "OMPI_COMM_WORLD_SIZE" in os.environ else "WORLD_SIZE"
(pathlib.Path(sys.argv[1]) / "told.txt").write_text(f"{nodes} nodes by {variable}")
"""


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with running(tmp_path_factory.mktemp("azure")) as emulator:
        yield emulator


@pytest.mark.parametrize(
    ("sign", "distribution"),
    [
        ("sas", "mpi"),
        pytest.param("sas", "pytorch", marks=pytest.mark.slow),
        pytest.param("key", "mpi", marks=pytest.mark.slow),
    ],
)
def test_a_job_of_two_nodes(
    azure: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: str, distribution: str
) -> None:
    monkeypatch.setattr(azure, "sign", sign)
    fields = {**azure.options, "sync": 0.5, "grace": 5, "distribution": distribution}
    (tmp_path / "plato.yaml").write_text(json.dumps({"name": "adder", "sim": "sim:Sim", "backends": {"azure": fields}}))
    (tmp_path / "sim.py").write_text("")
    place = Place(lambda: AzureBackend("azure", AzureOptions(**fields)), Project.load(tmp_path), tmp_path / "runs")

    run = place.run()
    job = place.submit(CODE, run, nodes=2)
    ended, text = place.end(job)
    assert ended.status is JobStatus.SUCCEEDED, text
    place.make().fetch(job, run)
    variable = "OMPI_COMM_WORLD_SIZE" if distribution == "mpi" else "WORLD_SIZE"
    assert (run.path / "told.txt").read_text() == f"2 nodes by {variable}"
