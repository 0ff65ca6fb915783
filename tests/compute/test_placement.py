"""Which machine this is, as PyTorch, MPI and Azure Machine Learning say it; and what fits its memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from platotk import ProjectError
from platotk.compute.node.launcher import launch
from platotk.compute.node.machine import LEAST_BYTES, fit_object_store
from platotk.compute.node.placement import Placement, find_placement

PYTORCH = {"NODE_RANK": "1", "RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "10.0.0.4"}
MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_NODE_RANK": "0",  # not what its name says
    "AZ_BATCH_MASTER_NODE": "10.0.0.4:6000",
}
AZURE = {"AZUREML_CR_NODE_RANK": "1", "AZUREML_NODE_COUNT": "2", "AZ_BATCH_HOST_LIST": "10.0.0.4,10.0.0.5"}


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        (PYTORCH, Placement(1, 3, "10.0.0.4")),
        (MPI, Placement(2, 3, "10.0.0.4")),
        (AZURE, Placement(1, 2, "10.0.0.4")),
        ({}, Placement(0, 1, "")),
        ({"AZUREML_NODE_COUNT": "1"}, Placement(0, 1, "")),
    ],
)
def test_who_this_is(environ: dict[str, str], found: Placement) -> None:
    assert find_placement(environ) == found


def test_what_is_given_goes_first() -> None:
    assert find_placement(PYTORCH, rank=2, nodes=5, head="10.9.9.9") == Placement(2, 5, "10.9.9.9")


@pytest.mark.parametrize(
    ("environ", "what"),
    [
        ({**PYTORCH, "LOCAL_RANK": "1"}, "several processes were started on this machine"),
        ({"AZUREML_NODE_COUNT": "3"}, "nothing says which one this is"),
        ({"NODE_RANK": "3", "WORLD_SIZE": "3", "MASTER_ADDR": "x"}, "rank 3 does not exist among 3 nodes"),
        ({"NODE_RANK": "1", "WORLD_SIZE": "2"}, "nothing says where the head is"),
        ({"NODE_RANK": "one", "WORLD_SIZE": "2"}, "NODE_RANK is 'one'"),
        ({"NODE_RANK": "1"}, "nothing says of how many"),
    ],
)
def test_what_does_not_fit_together_is_refused(environ: dict[str, str], what: str) -> None:
    with pytest.raises(ProjectError, match=what):
        find_placement(environ)


@pytest.mark.parametrize("token", [{}, {"RAY_AUTH_TOKEN": "short"}])
def test_several_machines_need_a_secret(token: dict[str, str]) -> None:
    with pytest.raises(ProjectError, match="RAY_AUTH_TOKEN is"):
        launch(["true"], environ={**PYTORCH, **token})


def test_the_object_store_fits_the_shared_memory(tmp_path: Path) -> None:
    memory = 100 * 1024**3
    store = fit_object_store(tmp_path, shm=Path("/dev/shm"), memory=memory)
    assert LEAST_BYTES <= store.num_bytes <= 0.3 * memory
    small = fit_object_store(tmp_path, shm=tmp_path / "none", memory=memory)
    assert (small.folder, small.num_bytes) == (tmp_path, 1024**3)
    assert "shm_size" in small.note
