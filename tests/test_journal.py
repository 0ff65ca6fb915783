"""The journal: what is appended is on disk, rises, and survives a writer that is killed at any moment."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from platotk import PlatoError
from platotk.journal import Follower, Journal, add_line, last, read


def line(iteration: int, **more: Any) -> dict[str, Any]:
    return {"iteration": iteration, "env_steps": iteration * 400, **more}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def journal_of(path: Path, *iterations: int) -> Journal:
    journal = Journal(path)
    for iteration in iterations:
        journal.append(line(iteration))
    return journal


def iterations(path: Path) -> list[int]:
    return [found["iteration"] for found in read(path)]


# --- appending


def test_a_line_is_one_line_of_json_and_at_once_on_disk(path: Path) -> None:
    journal = Journal(path)
    journal.append(line(1, return_mean=-30.5, rllib={"learners": {"default_policy": {"entropy": 0.5}}}))
    assert path.read_text().count("\n") == 1
    assert json.loads(path.read_text())["rllib"]["learners"]["default_policy"]["entropy"] == 0.5


def test_nan_and_infinity_become_null_and_numpy_becomes_plain(path: Path) -> None:
    Journal(path).append(
        line(
            1,
            return_mean=math.nan,
            return_max=np.float32("inf"),
            episodes=np.int64(3),
            lengths=np.arange(3),
            nested={"kl": [np.float64("nan"), np.bool_(True)]},
        )
    )
    assert read(path) == [
        line(1, return_mean=None, return_max=None, episodes=3, lengths=[0, 1, 2], nested={"kl": [None, True]})
    ]


@pytest.mark.parametrize(
    ("next_line", "key"),
    [
        ({"iteration": 2, "env_steps": 1200}, "iteration"),
        ({"iteration": 1, "env_steps": 1200}, "iteration"),
        ({"iteration": 3, "env_steps": 800}, "env_steps"),
    ],
)
def test_iteration_and_env_steps_must_rise(path: Path, next_line: dict[str, int], key: str) -> None:
    journal = journal_of(path, 1, 2)
    with pytest.raises(PlatoError, match=f"the journal's {key} must rise"):
        journal.append(next_line)
    assert iterations(path) == [1, 2]


def test_a_journal_that_is_opened_again_goes_on_rising(path: Path) -> None:
    journal_of(path, 1, 2)
    with pytest.raises(PlatoError, match="2 follows 2"):
        Journal(path).append(line(2))
    Journal(path).append(line(3))
    assert iterations(path) == [1, 2, 3]


def test_no_file_yet_reads_as_no_lines(path: Path) -> None:
    assert read(path) == []
    assert Journal(path).discard_after(0) == 0
    assert not path.exists()


def test_where_there_is_no_room_nothing_is_left_half_written(path: Path) -> None:
    """/dev/full refuses every write as a full disk does."""
    with pytest.raises(OSError, match="No space left"):
        add_line(Path("/dev/full"), line(1))
    journal_of(path, 1)
    limited = (
        "import resource, signal; from pathlib import Path; from platotk.journal import Journal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60, 60))\n"
        f"Journal(Path({str(path)!r})).append({{'iteration': 2, 'env_steps': 800, 'note': 'x' * 100}})\n"
    )
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=False)
    assert "OSError" in done.stderr
    assert path.read_text() == json.dumps(line(1), separators=(",", ":")) + "\n"


@pytest.mark.parametrize("size", [10, 65_000, 65_536, 200_000])
def test_the_last_line_is_read_from_the_end_however_long_it_is(path: Path, size: int) -> None:
    assert last(path) is None
    journal = Journal(path)
    for iteration in (1, 2, 3):
        journal.append(line(iteration, pad="ä" * (size // 6)))
        assert (last(path) or {})["iteration"] == iteration
    with path.open("a") as stream:
        stream.write('{"iteration":4,"pad":"' + "x" * size)
    assert last(path) == read(path)[-1]
    path.write_text("torn")
    assert last(path) is None


# --- going back


def test_lines_past_the_checkpoint_move_to_the_discarded_file(path: Path) -> None:
    journal = journal_of(path, 1, 2, 3, 4, 5)
    assert journal.discard_after(3) == 2
    assert iterations(path) == [1, 2, 3]
    assert iterations(journal.discarded_path) == [4, 5]
    journal.append(line(4, attempt=2))
    assert iterations(path) == [1, 2, 3, 4]


def test_what_was_discarded_before_stays(path: Path) -> None:
    journal = journal_of(path, 1, 2, 3)
    journal.discard_after(2)
    journal.append(line(3, attempt=2))
    journal.append(line(4, attempt=2))
    journal.discard_after(1)
    assert iterations(path) == [1]
    assert [(found["iteration"], found.get("attempt")) for found in read(journal.discarded_path)] == [
        (3, None),
        (2, None),
        (3, 2),
        (4, 2),
    ]


def test_nothing_to_discard_changes_nothing(path: Path) -> None:
    journal = journal_of(path, 1, 2)
    before = path.stat()
    assert journal.discard_after(2) == 0
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not journal.discarded_path.exists()


@pytest.mark.parametrize("second", [3, 1, 0])
def test_killed_between_the_two_files_no_line_is_discarded_twice(path: Path, second: int) -> None:
    """The discarded file was replaced, the journal not yet; the next call may even go back further."""
    journal = journal_of(path, 1, 2, 3, 4, 5)
    whole = path.read_bytes()
    journal.discard_after(3)
    path.write_bytes(whole)
    Journal(path).discard_after(second)
    assert iterations(path) == list(range(1, second + 1))
    assert iterations(journal.discarded_path) == list(range(second + 1, 6))


# --- killed writers


def test_a_torn_last_line_is_read_past_and_set_aside(path: Path) -> None:
    journal = journal_of(path, 1, 2)
    with path.open("a") as stream:
        stream.write('{"iteration":3,"env_st')
    assert iterations(path) == [1, 2]
    assert Journal(path).discard_after(2) == 1
    assert iterations(path) == [1, 2]
    assert journal.discarded_path.read_text() == '{"iteration":3,"env_st\n'


def test_the_next_line_does_not_run_into_a_torn_one(path: Path) -> None:
    journal_of(path, 1)
    with path.open("a") as stream:
        stream.write('{"iteration":2,"env_st')
    journal = Journal(path)
    journal.append(line(2))
    assert path.read_text().splitlines() == [json.dumps(line(n), separators=(",", ":")) for n in (1, 2)]
    assert journal.discarded_path.read_text() == '{"iteration":2,"env_st\n'


def test_a_last_line_without_its_end_is_whole_all_the_same(path: Path) -> None:
    journal_of(path, 1, 2)
    path.write_text(path.read_text().rstrip("\n"))
    journal = Journal(path)
    assert journal.discard_after(2) == 0
    journal.append(line(3))
    assert iterations(path) == [1, 2, 3]
    assert not journal.discarded_path.exists()


WRITER = """
import sys
from pathlib import Path
from platotk.journal import Journal, read
path, start = Path(sys.argv[1]), int(sys.argv[2])
journal = Journal(path)
journal.discard_after(start)
print("ready", flush=True)
n = start
while True:
    n += 1
    journal.append({"iteration": n, "env_steps": n * 400, "attempt": start, "pad": "x" * 5000})
"""


def test_killed_at_random_moments_steps_still_rise_without_a_gap(path: Path) -> None:
    """Ten writers, each killed and each going back two lines, as a resume from a checkpoint does."""
    random = np.random.default_rng(0)
    start = 0
    for _ in range(10):
        command = [sys.executable, "-c", WRITER, str(path), str(start)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(random.uniform(0.0, 0.1))
            os.kill(writer.pid, signal.SIGKILL)
        written = iterations(path)
        assert written == list(range(1, len(written) + 1))
        start = max(0, len(written) - 2)
    Journal(path).discard_after(start)
    discarded = [(found["iteration"], found["attempt"]) for found in read(path.with_name("metrics.discarded.jsonl"))]
    assert discarded
    assert len(discarded) == len(set(discarded))


def test_a_follower_gives_each_line_once_and_starts_anew_when_lines_were_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower, journal = Follower(path), Journal(path)
    assert follower.new_lines() == []
    for iteration in (1, 2, 3):
        journal.append({"iteration": iteration, "env_steps": iteration})
    assert [line["iteration"] for line in follower.new_lines()] == [1, 2, 3]
    assert follower.new_lines() == []
    with path.open("a") as stream:
        stream.write('{"iteration": 4, ')
    assert follower.new_lines() == []  # torn: its end is not there yet
    with path.open("a") as stream:
        stream.write('"env_steps": 4}\n')
    assert [line["iteration"] for line in follower.new_lines()] == [4]
    Journal(path).discard_after(1)
    Journal(path).append({"iteration": 2, "env_steps": 2, "filler": "x" * 200})  # longer than before
    assert [line["iteration"] for line in follower.new_lines()] == [1, 2]
