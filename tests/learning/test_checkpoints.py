"""Checkpoints are there whole or not at all, whatever happens to the process, the disk or the files."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from platotk.errors import CheckpointError
from platotk.learning import checkpoints


@pytest.fixture(scope="module")
def algo(ray_session: None) -> Iterator[Any]:
    from ray.rllib.algorithms.ppo import PPOConfig

    config = PPOConfig().environment("CartPole-v1").env_runners(num_env_runners=0)
    config.training(train_batch_size=64, minibatch_size=64, num_epochs=1)
    made = config.rl_module(model_config={"fcnet_hiddens": [8]}).build_algo()
    made.train()
    yield made
    made.stop()


def write_some_files(folder: Path) -> None:
    """Stands where RLlib writes, for what does not depend on what is written."""
    (folder / "rllib" / "learner").mkdir(parents=True)
    (folder / "rllib" / "state.pkl").write_bytes(b"weights" * 1000)
    (folder / "rllib" / "learner" / "state.pkl").write_bytes(b"moments" * 1000)
    (folder / "extra.json").write_text('{"iteration": 5}\n', encoding="utf-8")


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    """A run with checkpoints 5, 10 and 15."""
    for iteration in (5, 10, 15):
        checkpoints.publish(tmp_path, iteration, write_some_files)
    return tmp_path


def test_saved_and_restored(algo: Any, tmp_path: Path) -> None:
    path = checkpoints.save(algo, tmp_path, 50, extra={"env_steps": 64, "time_s": 1.5, "attempt": 1})

    assert path == tmp_path / "checkpoints" / "000050"
    assert checkpoints.verify(path) == []
    assert checkpoints.newest_valid(tmp_path) == (path, [])
    assert sorted(entry.name for entry in path.iterdir()) == [
        "MANIFEST.json",
        "extra.json",
        "left_out.json",
        "left_out.npz",
        "rllib",
    ]
    extra = checkpoints.restore(algo, path)
    assert (extra["iteration"], extra["env_steps"], extra["time_s"], extra["attempt"]) == (50, 64, 1.5, 1)
    assert extra["notes"] == []
    assert checkpoints.read_extra(path)["algorithm"] == "PPO"
    assert [entry.name for entry in path.parent.iterdir()] == ["000050"]


def test_rllib_itself_opens_it(algo: Any, tmp_path: Path) -> None:
    import torch
    from ray.rllib.algorithms.ppo import PPO

    path = checkpoints.save(algo, tmp_path, 1, extra={})
    opened = PPO.from_checkpoint(str(path / "rllib"))
    try:
        ours, theirs = (each.get_module().state_dict() for each in (algo, opened))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert opened.train()["training_iteration"] == algo.iteration + 1
    finally:
        opened.stop()


def test_valid_checkpoint_is_never_overwritten(run_path: Path) -> None:
    manifest = run_path / "checkpoints" / "000010" / "MANIFEST.json"
    before = manifest.stat().st_mtime_ns

    assert checkpoints.publish(run_path, 10, _must_not_be_called) == manifest.parent
    assert manifest.stat().st_mtime_ns == before


def test_damaged_checkpoint_of_the_same_iteration_is_replaced(run_path: Path) -> None:
    path = run_path / "checkpoints" / "000010"
    (path / "MANIFEST.json").unlink()

    checkpoints.publish(run_path, 10, write_some_files)
    assert checkpoints.verify(path) == []


def flip_a_byte(path: Path) -> None:
    file = path / "rllib" / "state.pkl"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path / "rllib" / "state.pkl", 100)


def remove_a_file(path: Path) -> None:
    (path / "rllib" / "learner" / "state.pkl").unlink()


def remove_the_manifest(path: Path) -> None:
    (path / "MANIFEST.json").unlink()


def empty_the_manifest(path: Path) -> None:
    (path / "MANIFEST.json").write_text("", encoding="utf-8")


def add_a_file(path: Path) -> None:
    # RLlib prefers state.msgpack to state.pkl: one more file is another checkpoint.
    (path / "rllib" / "state.msgpack").write_bytes(b"other weights")


def add_a_link(path: Path) -> None:
    (path / "rllib" / "link").symlink_to("/etc/hostname")


def link_a_file(path: Path) -> None:
    file = path / "rllib" / "state.pkl"
    file.rename(path.parent / "elsewhere")
    file.symlink_to(path.parent / "elsewhere")


def link_the_manifest(path: Path) -> None:
    file = path / "MANIFEST.json"
    file.rename(path.parent / "elsewhere")
    file.symlink_to(path.parent / "elsewhere")


def link_a_folder(path: Path) -> None:
    (path / "rllib" / "learner").rename(path.parent / "elsewhere")
    (path / "rllib" / "learner").symlink_to(path.parent / "elsewhere")


def add_a_pipe(path: Path) -> None:
    os.mkfifo(path / "rllib" / "pipe")


def name_something(name: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        _edit_manifest(path, lambda manifest: manifest["files"].update({name: {"size": 1, "sha256": "0"}}))

    return edit


def write_a_newer_schema(path: Path) -> None:
    _edit_manifest(path, lambda manifest: manifest.update(schema=2))


def forget_the_hash(path: Path) -> None:
    _edit_manifest(path, lambda manifest: manifest["files"].update({"extra.json": None}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flip_a_byte, "rllib/state.pkl has other content"),
        (truncate, "rllib/state.pkl has 100 bytes instead of 7000"),
        (remove_a_file, "rllib/learner/state.pkl is missing"),
        (remove_the_manifest, "MANIFEST.json is missing"),
        (empty_the_manifest, "MANIFEST.json cannot be read"),
        (add_a_file, "rllib/state.msgpack is not in MANIFEST.json"),
        (add_a_link, "rllib/link is a link"),
        (link_a_file, "rllib/state.pkl is a link"),
        (link_the_manifest, "MANIFEST.json is a link"),
        (link_a_folder, "rllib/learner is a link"),
        (add_a_pipe, "rllib/pipe is a link or a special file"),
        (name_something("/etc/passwd"), "MANIFEST.json names '/etc/passwd', outside"),
        (name_something("../000005/extra.json"), "MANIFEST.json names '../000005/extra.json', outside"),
        (name_something("rllib/../../x"), "MANIFEST.json names 'rllib/../../x', outside"),
        (name_something("C:\\x"), "MANIFEST.json names 'C:"),
        (name_something(""), "MANIFEST.json names ''"),
        (write_a_newer_schema, "MANIFEST.json has schema 2"),
        (forget_the_hash, "extra.json has 17 bytes instead of None"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_damage_is_found_and_walked_past(damage: Callable[[Path], None], says: str, run_path: Path, algo: Any) -> None:
    path = run_path / "checkpoints" / "000015"
    damage(path)

    assert any(problem.startswith(says) for problem in checkpoints.verify(path)), checkpoints.verify(path)
    newest, damaged = checkpoints.newest_valid(run_path)
    assert newest == run_path / "checkpoints" / "000010"
    assert [each for each, _ in damaged] == [path]
    with pytest.raises(CheckpointError, match="000015 is damaged"):
        checkpoints.restore(algo, path)


def test_no_valid_checkpoint(run_path: Path, tmp_path: Path) -> None:
    for path in (run_path / "checkpoints").iterdir():
        remove_a_file(path)
    newest, damaged = checkpoints.newest_valid(run_path)

    assert newest is None
    assert [path.name for path, _ in damaged] == ["000015", "000010", "000005"]
    assert checkpoints.newest_valid(tmp_path / "no-run") == (None, [])
    assert checkpoints.verify(tmp_path / "no-run") == ["it is not a folder"]


def test_a_checkpoint_that_is_a_link_is_refused(run_path: Path) -> None:
    link = run_path / "checkpoints" / "000020"
    link.symlink_to(run_path / "checkpoints" / "000015")
    assert checkpoints.verify(link) == ["it is not a folder"]


def test_retention_keeps_the_last_and_the_best(run_path: Path) -> None:
    for iteration in (20, 25, 30):
        checkpoints.publish(run_path, iteration, write_some_files)
    folder = run_path / "checkpoints"
    checkpoints.set_best(run_path, folder / "000010", 12.5, "evaluation", 20)
    remove_the_manifest(folder / "000030")

    deleted = checkpoints.retain(run_path, 2, protect={folder / "000005"})

    # A damaged one does not count as one of the two, and one that is newer is left for a look.
    assert [path.name for path in deleted] == ["000015"]
    assert sorted(os.listdir(folder)) == ["000005", "000010", "000020", "000025", "000030"]
    assert [path.name for path in checkpoints.retain(run_path, 0)] == ["000020", "000005"]
    assert sorted(os.listdir(folder)) == ["000010", "000025", "000030"]


def test_best(run_path: Path) -> None:
    assert checkpoints.best(run_path) is None
    checkpoints.set_best(run_path, run_path / "checkpoints" / "000010", -30.5, "training", 0)
    checkpoints.set_best(run_path, run_path / "checkpoints" / "000015", -30.25, "evaluation", 20)

    assert checkpoints.best(run_path) == {
        "checkpoint": "checkpoints/000015",
        "return_mean": -30.25,
        "by": "evaluation",
        "episodes": 20,
    }
    assert sorted(os.listdir(run_path)) == ["best.json", "checkpoints"]
    (run_path / "best.json").write_text('{"checkpoint": "../../secret"}', encoding="utf-8")
    assert checkpoints.best(run_path) is None


def test_a_failed_write_leaves_nothing(run_path: Path) -> None:
    def fail(folder: Path) -> None:
        write_some_files(folder)
        raise RuntimeError("the learner died")

    with pytest.raises(RuntimeError, match="the learner died"):
        checkpoints.publish(run_path, 20, fail)
    assert sorted(os.listdir(run_path / "checkpoints")) == ["000005", "000010", "000015"]


def test_leftovers_of_dead_processes_are_removed(run_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder = run_path / "checkpoints"
    for name in (f".tmp-000020-{dead.pid}", f".trash-000001-{dead.pid}", f".tmp-000020-{os.getppid()}"):
        (folder / name).mkdir()

    checkpoints.publish(run_path, 20, write_some_files)
    # Another process that lives may be saving right now.
    hidden = [name for name in os.listdir(folder) if name.startswith(".")]
    assert hidden == [f".tmp-000020-{os.getppid()}"]


def test_storage_that_cannot_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mounted blob storage: the files are copied, the manifest last."""

    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    copied: list[str] = []
    copy = shutil.copyfile

    def record(source: Path, target: Path) -> None:
        copied.append(Path(target).name)
        copy(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    monkeypatch.setattr(shutil, "copyfile", record)
    path = checkpoints.publish(tmp_path, 5, write_some_files)

    assert checkpoints.verify(path) == []
    assert copied[-1] == "MANIFEST.json"
    assert os.listdir(path.parent) == ["000005"]
    checkpoints.publish(tmp_path, 10, write_some_files)
    assert [each.name for each in checkpoints.retain(tmp_path, 1)] == ["000005"]
    assert os.listdir(path.parent) == ["000010"]


def test_full_disk(tmp_path: Path) -> None:
    """A disk of 1 MB: the second checkpoint does not fit, the first stays whole."""
    script = """
        import sys
        from pathlib import Path
        from platotk.errors import CheckpointError
        from platotk.learning import checkpoints

        def write(folder):
            (folder / "state.pkl").write_bytes(bytes(600_000))

        run = Path(sys.argv[1])
        checkpoints.publish(run, 5, write)
        try:
            checkpoints.publish(run, 10, write)
        except CheckpointError as error:
            print(error)
        names = sorted(path.name for path in (run / "checkpoints").iterdir())
        print(checkpoints.newest_valid(run)[0].name, names)
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script), encoding="utf-8")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f"mount -t tmpfs -o size=1m none {disk} && {sys.executable} {tmp_path}/script.py {disk}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, check=False)
    if ("unshare" in done.stderr or "mount" in done.stderr) and not os.environ.get("CI"):
        pytest.skip(f"this machine lets nobody mount a small disk: {done.stderr.strip()}")

    assert "000010 could not be written: No space left on device" in done.stdout, done.stderr
    assert "Make room for" in done.stdout
    assert done.stdout.splitlines()[-1] == "000005 ['000005']"


def test_kill_9_while_saving(tmp_path: Path) -> None:
    kill_while_saving(tmp_path, num_kills=10)


@pytest.mark.slow
def test_kill_9_while_saving_at_50_moments(tmp_path: Path) -> None:
    kill_while_saving(tmp_path, num_kills=50)


def kill_while_saving(run_path: Path, num_kills: int) -> None:
    """Processes that save a real RLModule in a loop, each killed at a random moment.

    One process imports RLlib and forks the ones that are killed.
    """
    script = """
        import os, sys
        from pathlib import Path
        import torch
        import gymnasium as gym
        from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
        from platotk.learning import checkpoints

        torch.set_num_threads(1)
        module = DefaultPPOTorchRLModule(
            observation_space=gym.spaces.Box(-1, 1, (4,)),
            action_space=gym.spaces.Discrete(2),
            model_config={"fcnet_hiddens": [64, 64]},
        )
        run = Path(sys.argv[1])

        def write(folder):
            module.save_to_path(str(folder / "rllib"))
            (folder / "extra.json").write_text("{}")

        for line in sys.stdin:
            child = os.fork()
            if child == 0:
                newest, _ = checkpoints.newest_valid(run)
                iteration = int(newest.name) if newest else 0
                while True:
                    iteration += 5
                    checkpoints.publish(run, iteration, write)
                    checkpoints.retain(run, 3)
            print(child, flush=True)
            os.waitpid(child, 0)
            print("gone", flush=True)
    """
    (run_path / "script.py").write_text(textwrap.dedent(script), encoding="utf-8")
    command = [sys.executable, str(run_path / "script.py"), str(run_path)]
    moments = random.Random(0)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        newest = 0
        for _ in range(num_kills):
            parent.stdin.write("go\n")
            parent.stdin.flush()
            pid = int(parent.stdout.readline())
            time.sleep(moments.uniform(0.02, 0.5))
            os.kill(pid, signal.SIGKILL)
            assert parent.stdout.readline() == "gone\n"

            path, damaged = checkpoints.newest_valid(run_path)
            assert damaged == []
            # What was published once is never lost.
            assert (int(path.name) if path else 0) >= newest
            newest = int(path.name) if path else 0
            whole = [each for each in (run_path / "checkpoints").iterdir() if each.name.isdecimal()]
            assert all(checkpoints.verify(each) == [] for each in whole)
            assert len(whole) <= 4
        parent.stdin.close()
        parent.wait(timeout=30)
    assert newest > 0


def _must_not_be_called(folder: Path) -> None:
    raise AssertionError(f"{folder} is written to")


def _edit_manifest(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((path / "MANIFEST.json").read_text(encoding="utf-8"))
    edit(manifest)
    (path / "MANIFEST.json").write_text(json.dumps(manifest), encoding="utf-8")
