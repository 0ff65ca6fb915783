"""The emulator's machines: what a job finds on them, what is left of it, and what happens when they fail or vanish."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.azure_emulator import nodes
from tests.azure_emulator.emulator import WORKSPACE, Emulator
from tests.azure_emulator.fixtures import running

Start = Callable[..., nodes.NodeRun]


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with running(tmp_path_factory.mktemp("azure")) as emulator:
        yield emulator


@pytest.fixture
def start(azure: Emulator, request: pytest.FixtureRequest) -> Start:
    """A job on two nodes with one mounted output, straight to the nodes."""

    def started(command: str, **properties: Any) -> nodes.NodeRun:
        name = "".join(char if char.isalnum() else "-" for char in request.node.name)
        uri = f"azureml://datastores/workspaceblobstore/paths/runs/{name}"
        job: dict[str, Any] = {
            "id": f"{azure.group_path}/providers/Microsoft.MachineLearningServices/workspaces/{WORKSPACE}/jobs/{name}",
            "name": name,
            "properties": {
                "command": command,
                "computeId": "x/computes/rl-cpu",
                "distribution": {"distributionType": "PyTorch", "processCountPerInstance": 1},
                "outputs": {"run": {"mode": "ReadWriteMount", "jobOutputType": "uri_folder", "uri": uri}},
                "resources": {"instanceCount": 2},
                **properties,
            },
        }
        azure.state.jobs[name] = job
        return nodes.start(job, azure)

    return started


def blobs(azure: Emulator, datastore: str, path: str) -> dict[str, bytes]:
    container = azure.blobs.container(azure.blobs.container_of(datastore))
    return {
        blob.name.removeprefix(f"{path}/"): container.download_blob(blob.name).readall()
        for blob in container.list_blobs(name_starts_with=f"{path}/")
    }


def until(condition: Callable[[], object], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "did not come"
        time.sleep(0.05)


def test_every_node_has_its_place_and_its_disk_and_one_mount_in_common(azure: Emulator, start: Start) -> None:
    run = start(
        'echo "rank $NODE_RANK of $WORLD_SIZE, $AZUREML_RUN_ID"; touch ~/mine; ls ~ | wc -l; mkdir logs; '
        "echo own > logs/$NODE_RANK.txt; echo whole > ${{outputs.run}}/from-$NODE_RANK; env > env.txt; "
        "grep -c -E 'CLIENT_SECRET|PYTEST' env.txt; true"
    )
    assert run.wait() == "Completed", run.why
    assert [run.log(rank).split("\n")[:3] for rank in (0, 1)] == [
        [f"rank {rank} of 2, {run.name}", "1", "0"] for rank in (0, 1)
    ]
    assert blobs(azure, "workspaceblobstore", f"runs/{run.name}") == {"from-0": b"whole\n", "from-1": b"whole\n"}
    kept = blobs(azure, "workspaceartifactstore", f"ExperimentRun/dcid.{run.name}")
    assert set(kept) == {
        *(f"user_logs/std_log_process_0{rank}.txt" for rank in (0, 1)),
        *(f"logs/{rank}.txt" for rank in (0, 1)),
    }


@pytest.mark.slow
def test_without_root_nodes_are_processes_that_meet_wherever_nobody_else_does(
    azure: Emulator, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azure, "nodes", "processes")
    count = "import ray; ray.init(logging_level='ERROR'); print(sum(one['Alive'] for one in ray.nodes()), 'nodes')"
    with contextlib.ExitStack() as others:
        for port in (6379, 6380):  # as another job's nodes would, were they the same for all
            with contextlib.suppress(OSError):
                others.enter_context(socket.create_server(("", port)))
        run = start(
            f'exec python -m platotk node --num-cpus 1 -- python -c "{count}"',
            environmentVariables={"RAY_AUTH_TOKEN": "0123456789abcdef" * 2},
        )
        assert run.wait(90) == "Completed", run.log(0) + run.log(1)
    assert run.log(0).splitlines()[-1] == "2 nodes"


def test_what_others_write_to_the_datastore_shows_up_on_the_mount(azure: Emulator, start: Start) -> None:
    wait = "until [ -e ${{outputs.run}}/stop ]; do sleep 0.1; done; rm ${{outputs.run}}/stop"
    run = start(wait, resources={"instanceCount": 1}, distribution=None)
    until(lambda: run.status() == "Running")
    container = azure.blobs.container(azure.blobs.container_of("workspaceblobstore"))
    container.upload_blob(f"runs/{run.name}/stop", b"now")
    assert run.wait(20) == "Completed"
    assert blobs(azure, "workspaceblobstore", f"runs/{run.name}") == {}


def test_evicted_machines_lose_their_disks_and_the_job_goes_on_from_the_mount(azure: Emulator, start: Start) -> None:
    run = start(
        "[ $NODE_RANK = 1 ] && { sleep 1000 & wait; }\n"
        "if [ -e ${{outputs.run}}/checkpoint ]; then ls ~; cat ${{outputs.run}}/checkpoint; exit 3; fi\n"
        "touch ~/mine; echo 7 > ${{outputs.run}}/checkpoint; sleep 1000",
        limits={"timeout": "PT20S"},
    )
    until(lambda: "checkpoint" in blobs(azure, "workspaceblobstore", f"runs/{run.name}"))
    earlier = run.nodes
    run.evict()
    until(lambda: run.log(0) == "7\n")
    assert run.attempts == 2
    assert all(node.exit_code() == -9 for node in earlier)
    inner = azure.state.computes["rl-cpu"]["properties"]["properties"]
    assert inner["nodeStateCounts"]["preemptedNodeCount"] == 2
    run.cancel()
    assert run.wait() == "Canceled"


def test_one_node_that_fails_fails_the_job_and_mpirun_ends_the_others(start: Start) -> None:
    rank = "${OMPI_COMM_WORLD_RANK}"
    mpi = {"distributionType": "Mpi", "processCountPerInstance": 1}
    run = start(f"[ {rank} = 0 ] && exec sleep 1000; echo no simulator here; exit 3", distribution=mpi)
    assert run.wait() == "Failed"
    assert "node 1 exited with status code 3. no simulator here" in run.why


def test_a_node_whose_processes_are_killed_fails_the_job(start: Start) -> None:
    run = start("[ $NODE_RANK = 0 ] && exec true; setsid sleep 1000 & wait")
    until(lambda: run.status() == "Running" and run.nodes[1].process is not None)
    run.kill(1)
    assert run.wait() == "Failed"
    assert "status code 137" in run.why


def test_the_time_limit_ends_it(start: Start) -> None:
    run = start("sleep 1000", limits={"timeout": "PT1S"})
    assert run.wait() == "Canceled"
    assert "time limit of 1 s" in run.why


def test_more_nodes_than_the_cluster_has_are_waited_for_until_somebody_cancels(start: Start) -> None:
    run = start("true", resources={"instanceCount": 5})
    time.sleep(1.0)
    assert run.status() == "Queued"
    run.cancel()
    assert run.wait() == "Canceled"


def test_a_node_may_come_late(azure: Emulator, start: Start) -> None:
    azure.faults.late_worker(1, seconds=1.5)
    run = start("date +%s%N")
    assert run.wait() == "Completed"
    azure.faults.clear()
    assert int(run.log(1)) - int(run.log(0)) > 1.4e9


def test_a_mount_may_take_whole_files_only(azure: Emulator, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azure, "refuses_rename", True)
    run = start(
        "cd ${{outputs.run}}; python -c \"open('a', 'w').write('whole')\"; "
        "python -c \"open('a', 'a').write('more')\"; python -c \"import os; os.replace('a', 'b')\"; "
        "cd ~; python -c \"open('a', 'a').write('mine'); import os; os.replace('a', 'b')\"",
        resources={"instanceCount": 1},
        distribution=None,
    )
    assert run.wait() == "Completed", run.why
    assert run.log().count("OSError: [Errno 95]") == 2
    assert blobs(azure, "workspaceblobstore", f"runs/{run.name}") == {"a": b"whole"}
