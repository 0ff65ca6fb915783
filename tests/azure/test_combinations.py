"""Which SDK asks, what a workspace hands out for its datastores, how its nodes are told of each other: each works.

Three combinations are tried every time: these two, and test_job.py's (the newest SDK, an account key, PyTorch).
"""

from __future__ import annotations

import itertools
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from tests.azure_emulator.fixtures import running
from tests.compute.beside import python_with, run_tests
from tests.compute.places import Place

from platotk import Project
from platotk.azure.options import AzureOptions
from platotk.compute.azure_ml import AzureBackend
from platotk.compute.base import JobStatus

pytest.importorskip("azure.ai.ml", reason="needs the extra azure")

OLDEST, NEWEST = "1.34.1", "1.35.2"
"""Of azure-ai-ml: what pyproject.toml allows, and what requirements.lock has."""
CHOSEN = [(NEWEST, "sas", "mpi"), (OLDEST, "sas", "pytorch")]
"""Not slow."""
CODE = """
import os, pathlib, sys
import ray
ray.init(logging_level="ERROR")
nodes = sum(node["Alive"] for node in ray.nodes())
variable = "OMPI_COMM_WORLD_SIZE" if "OMPI_COMM_WORLD_SIZE" in os.environ else "WORLD_SIZE"
(pathlib.Path(sys.argv[1]) / "told.txt").write_text(f"{nodes} nodes by {variable}")
"""


def combinations() -> list[Any]:
    every = itertools.product((NEWEST, OLDEST), ("key", "sas"), ("pytorch", "mpi"))
    return [pytest.param(*one, marks=() if one in CHOSEN else pytest.mark.slow) for one in every]


@pytest.mark.parametrize(("sdk", "sign", "distribution"), combinations())
def test_a_job_of_two_nodes(
    request: pytest.FixtureRequest, tmp_path: Path, sdk: str, sign: Any, distribution: str
) -> None:
    if version("azure-ai-ml") != sdk:
        run_tests(python_with("--no-deps", f"azure-ai-ml=={sdk}"), request.node.nodeid, "-m", "slow or not slow")
        return
    with running(tmp_path / "azure", sign=sign) as azure:
        fields = {**azure.options, "sync": 0.5, "grace": 5, "distribution": distribution}
        root = tmp_path / "project"
        root.mkdir()
        (root / "plato.yaml").write_text(json.dumps({"name": "adder", "sim": "sim:Sim", "backends": {"azure": fields}}))
        (root / "sim.py").write_text("")
        place = Place(lambda: AzureBackend("azure", AzureOptions(**fields)), Project.load(root), tmp_path / "runs")

        run = place.run()
        job = place.submit(CODE, run, nodes=2)
        ended, text = place.end(job)
        assert ended.status is JobStatus.SUCCEEDED, text
        place.make().fetch(job, run)
        variable = "OMPI_COMM_WORLD_SIZE" if distribution == "mpi" else "WORLD_SIZE"
        assert (run.path / "told.txt").read_text() == f"2 nodes by {variable}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("azure/test_faults.py",),
        ("azure/test_job.py",),
        ("azure/test_resources.py",),
        ("azure/test_endpoints_emulated.py", "-m", "slow or not slow"),
        (
            "azure/test_azure_pages.py",
            "azure/test_environments.py",
            "azure/test_yaml_files.py",
            "compute/test_azure_ml.py",
        ),
    ],
    ids=lambda words: words[0].rpartition("/")[2],
)
def test_the_oldest_sdk_passes_the_other_tests(words: tuple[str, ...]) -> None:
    """Faults, the Simple Adder, resources, endpoints, environments and files for az."""
    python = python_with("--no-deps", f"azure-ai-ml=={OLDEST}")
    run_tests(python, *(f"tests/{word}" if "/" in word else word for word in words))
