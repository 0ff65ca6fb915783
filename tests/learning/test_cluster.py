"""Ray as it is found: a cluster that lives, one that was killed, none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from platotk.learning.cluster import RayStart, left_behind


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `ray start` notes its address."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


def test_a_cluster_that_was_killed_is_not_waited_for(noted: Path) -> None:
    assert left_behind() is None
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        noted.write_text(address)
        assert left_behind() is None
    assert left_behind() == address
    noted.write_text("nonsense")
    assert left_behind() == "nonsense"


def test_ctrl_c_does_not_wait_for_what_was_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start waits for it instead."""
    go, order = threading.Event(), []

    def slow(start: RayStart) -> None:
        order.append("imports begin")
        go.wait(30)
        order.append("imports end")
        start._is_imported.set()

    with monkeypatch.context() as patch:
        patch.setattr(RayStart, "_import", slow)
        with pytest.raises(KeyboardInterrupt), RayStart(with_processes=False):
            raise KeyboardInterrupt
    assert order == ["imports begin"]
    assert RayStart._closing is not None
    following = RayStart(with_processes=False)
    assert not following._is_imported.wait(0.2)
    go.set()
    following.wait()
    assert order == ["imports begin", "imports end"]


def test_env_runners_are_as_nice_as_their_training() -> None:
    """At Ray's own niceness of 15 they would hardly move beside another busy process."""
    code = (
        "import os, ray\n"
        "from platotk.learning.cluster import RayStart\n"
        "with RayStart(with_processes=True) as start:\n"
        "    start.cluster()\n"
        "    print(os.nice(0), ray.get(ray.remote(num_cpus=0)(lambda: os.nice(0)).remote()))\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RAY_worker_niceness", "RAY_ADDRESS")
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    ours, theirs = done.stdout.split()
    assert ours == theirs
