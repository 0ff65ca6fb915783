"""The process around a job elsewhere: it is asked to stop by a note, and leaves one that says how it ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from platotk.compute.base import JOB_VARIABLE
from platotk.compute.storage import Storage

SAVE = """
import pathlib, signal, sys, time
def save(*_):
    (pathlib.Path(sys.argv[1]) / "log.txt").write_text("saved")
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
(pathlib.Path(sys.argv[1]) / "ready.txt").write_text("yes")
time.sleep(60)
"""


def carry(folder: Path, code: str, *, limit_s: float = 0, job: str = "job-1") -> subprocess.Popen[bytes]:
    words = ["night", str(folder), "0.2", str(limit_s), "5", "--", "{python}", "-c", code, "{run}"]
    environ = {**os.environ, JOB_VARIABLE: job}
    return subprocess.Popen([sys.executable, "-m", "platotk.compute.carried", *words], env=environ)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


def test_a_note_asks_it_to_stop(shared: Path) -> None:
    storage = Storage(str(shared))
    storage.leave("stop-another-job", {})
    child = carry(shared, SAVE)
    deadline = time.monotonic() + 30
    while not (shared / "ready.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert child.poll() is None  # a note to another job is none to this one
    storage.leave("stop-job-1", {})
    assert child.wait(20) == 75
    assert (shared / "log.txt").read_text() == "saved"
    assert storage.note("exit-job-1") == {"code": 75, "asked": True}


def test_it_says_how_the_command_ended(shared: Path) -> None:
    assert carry(shared, "import sys; sys.exit(3)").wait(30) == 3
    assert Storage(str(shared)).note("exit-job-1") == {"code": 3, "asked": False}
    assert Storage(str(shared)).get(shared.parent / "back") == []  # notes are no files of the run


def test_a_log_names_no_next_step_in_a_folder_that_goes_with_the_node(shared: Path) -> None:
    says = """
import pathlib, sys
from platotk.console.people import next_step, people
next_step(people(), pathlib.Path(sys.argv[1]), "assess night")
"""
    done = subprocess.run([sys.executable, "-c", says, shared], capture_output=True, text=True, check=True)
    assert "assess night" in done.stderr
    carried = [sys.executable, "-m", "platotk.compute.carried", "night", shared, "0.2", "0", "5", "--"]
    done = subprocess.run([*carried, "{python}", "-c", says, "{run}"], capture_output=True, text=True, check=True)
    assert "Next" not in done.stderr
    assert "assess" not in done.stderr


def test_out_of_time_is_124(shared: Path) -> None:
    assert carry(shared, "import time; time.sleep(60)", limit_s=0.5).wait(30) == 124
    assert (Storage(str(shared)).note("exit-job-1") or {})["code"] == 124
