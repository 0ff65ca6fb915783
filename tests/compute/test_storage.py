"""A run in storage: whole or not there, whatever moment the writer is killed at; and which files travel."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest

from platotk import Run, SubmitError
from platotk.compute import snapshot
from platotk.compute.storage import MANIFEST, Storage


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "checkpoints/000005").mkdir(parents=True)
    (folder / "checkpoints/000005/state.bin").write_bytes(b"five")
    (folder / "checkpoints/000005" / MANIFEST).write_text("{}")
    (folder / "run.json").write_text('{"name": "run"}')
    (folder / "metrics.jsonl").write_text('{"iteration": 1}\n{"iteration": 2}\n')
    (folder / "jobs/1").mkdir(parents=True)
    (folder / "jobs/1/log.txt").write_text("stays here")
    return folder


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["path", "memory"])
def test_a_run_goes_there_and_comes_back(run: Path, tmp_path: Path, kind: str) -> None:
    url = str(tmp_path / "shared/run") if kind == "path" else f"memory://{tmp_path.name}/run"
    Storage(url).put(run, {})
    Storage(url).get(tmp_path / "back")
    assert names(tmp_path / "back") == {name for name in names(run) if not name.startswith("jobs/")}
    assert (tmp_path / "back/checkpoints/000005/state.bin").read_bytes() == b"five"


def test_what_a_machine_that_is_gone_says_of_itself_does_not_stay(run: Path, tmp_path: Path) -> None:
    """A run, and each trial of a tuning, has its modules here."""
    (run / "trials/0001").mkdir(parents=True)
    for folder in (run, run / "trials/0001"):
        (folder / "run.json").write_text('{"name": "run", "root": "/gone/code", "status": "finished"}')
    Storage(str(tmp_path / "shared")).put(run, {})
    (tmp_path / "here").mkdir()
    (tmp_path / "here/run.json").write_text('{"name": "run", "root": "/here/project", "status": "created"}')
    here = Run(tmp_path / "here")
    Storage(str(tmp_path / "shared")).get_run(here)
    for one in (here, Run(here.path / "trials/0001")):
        assert (one.info["root"], one.status) == ("/here/project", "finished")


def test_only_what_changed_is_sent_and_what_is_deleted_goes(run: Path, tmp_path: Path) -> None:
    there, sent = tmp_path / "shared", dict[str, tuple[int, int]]()
    storage = Storage(str(there))
    storage.put(run, sent)
    (there / "checkpoints/000005/state.bin").write_bytes(b"FIVE")  # would be seen if it were sent again
    (run / "metrics.jsonl").write_text('{"iteration": 1}\n{"iteration": 2}\n{"iteration": 3}\n')
    storage.put(run, sent)
    assert (there / "checkpoints/000005/state.bin").read_bytes() == b"FIVE"
    assert '"iteration": 3' in (there / "metrics.jsonl").read_text()
    for path in sorted((run / "checkpoints/000005").iterdir()):
        path.unlink()
    storage.put(run, sent)
    assert not {name for name in names(there) if name.startswith("checkpoints/")}


def test_a_checkpoint_without_its_manifest_does_not_come(run: Path, tmp_path: Path) -> None:
    there = tmp_path / "shared"
    Storage(str(there)).put(run, {})
    (there / "checkpoints/000010").mkdir()
    (there / "checkpoints/000010/state.bin").write_bytes(b"half")
    Storage(str(there)).get(tmp_path / "back")
    assert sorted(path.name for path in (tmp_path / "back/checkpoints").iterdir()) == ["000005"]


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl"])
@pytest.mark.parametrize("torn", ["", ".spare/"])
def test_a_writer_that_was_killed_leaves_one_copy_whole(run: Path, tmp_path: Path, name: str, torn: str) -> None:
    there = tmp_path / "shared"
    Storage(str(there)).put(run, {})
    path = there / f"{torn}{name}"
    path.write_bytes(path.read_bytes()[:7])
    Storage(str(there)).get(tmp_path / "back")
    assert (tmp_path / "back" / name).read_bytes() == (run / name).read_bytes()


def test_what_travels(tmp_path: Path) -> None:
    root = tmp_path / "project"
    kept = ["plato.yaml", "sim.py", "data/table.csv", "helpers/more.py"]
    left = ["runs/a/run.json", ".env", "helpers/__pycache__/more.pyc", "data/huge.bin", "secret.pem", ".git/config"]
    for name in [*kept, *left]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    (root / snapshot.IGNORE_FILE).write_text("# large\ndata/*.bin\n")
    snapshot.snapshot(root, tmp_path / "sent")
    assert names(tmp_path / "sent") == {*kept, snapshot.IGNORE_FILE}


def test_too_much_is_refused_with_the_largest_file_named(tmp_path: Path) -> None:
    with (tmp_path / "film.mp4").open("wb") as stream:
        stream.truncate(snapshot.MOST_BYTES + 1)
    with pytest.raises(SubmitError, match=r"the largest is film\.mp4"):
        snapshot.size_of(tmp_path)


def test_copying_goes_on_while_checkpoints_are_named_and_deleted(tmp_path: Path) -> None:
    """Training writes a checkpoint under a hidden name and renames it, at any moment of a copy."""
    live, there = tmp_path / "live", tmp_path / "there"
    checkpoints = live / "checkpoints"
    checkpoints.mkdir(parents=True)
    is_over = threading.Event()

    def train() -> None:
        for number in range(100_000):
            if is_over.is_set():
                return
            hidden, final = checkpoints / f".tmp-{number}-1", checkpoints / f"{number:06d}"
            for name in ("a/b/c", "a/d", "e"):
                (hidden / name).mkdir(parents=True)
                (hidden / name / "weights").write_text("x")
            hidden.rename(final)
            shutil.rmtree(checkpoints / f"{number - 3:06d}", ignore_errors=True)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        storage, sent = Storage(str(there)), {}
        ends = time.monotonic() + 1.5
        while time.monotonic() < ends:
            storage.put(live, sent)
    finally:
        is_over.set()
        thread.join()
    storage.put(live, sent)
    assert not list(there.rglob(".tmp-*"))
    left = {path.relative_to(live) for path in live.rglob("weights")}
    assert left
    assert {path.relative_to(there) for path in (there / "checkpoints").rglob("weights")} == left
