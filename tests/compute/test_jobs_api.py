"""What needs Ray's Jobs API, in a Python beside this one: its dashboard would slow every other test that starts Ray."""

from __future__ import annotations

import importlib.util
from importlib.metadata import version

import pytest
from tests.compute.beside import python_with, run_tests
from tests.compute.machines import needs_machines

DASHBOARD = f"ray[default]=={version('ray')}"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("aiohttp") is not None, reason="this Python has the Jobs API: the tests run as they are"
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_outlives_a_cluster() -> None:
    run_tests(python_with("-c", "requirements.lock", DASHBOARD), "tests/compute/test_ray_jobs.py", "-m", "slow")


@pytest.mark.timeout(600)
def test_the_contract_of_backends_and_what_is_rays_own() -> None:
    python = python_with("-c", "requirements.lock", DASHBOARD)
    files = [f"tests/compute/test_{name}.py" for name in ("backends", "ray_jobs", "idle")]
    run_tests(python, *files, "-k", "not local and not azure_ml")


@needs_machines
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cluster_whose_nodes_share_an_object_store() -> None:
    """`moto` is the object store, `s3fs` the way to it."""
    python = python_with("-c", "requirements.lock", DASHBOARD, "moto[server]>=5,<6", "s3fs>=2024.6")
    run_tests(python, "tests/compute/test_ray_cluster.py", "-m", "slow or not slow", timeout_s=600)
