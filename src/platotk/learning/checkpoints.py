"""Checkpoints that are there whole or not at all.

A checkpoint is a folder `checkpoints/000050/` of a run: `rllib/`, which RLlib itself can open, what RLlib
leaves out beside it, the run's counters, and `MANIFEST.json`, written last, with size and SHA-256 of every
file. It is valid when the manifest matches; nothing else is believed. RLlib's part is made of pickles: open
checkpoints only from people you trust (the manifest finds damage, not malice).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm

SCHEMA = 1
MANIFEST = "MANIFEST.json"
RLLIB = "rllib"
EXTRA = "extra.json"
LEFT_OUT = "left_out.json"
LEFT_OUT_ARRAYS = "left_out.npz"
BEST = "best.json"

NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF}
"""What mounted storage says that knows no fsync, or none of folders."""
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


def save(algo: Algorithm, run_path: Path, iteration: int, *, extra: dict[str, Any]) -> Path:
    """Write the checkpoint of an iteration, whole or not at all.

    Args:
        algo: The algorithm, between two calls of `train()`.
        run_path: The run's folder.
        iteration: What the checkpoint is named by; a valid one that is there already is left as it is.
        extra: The run's own counters, JSON; `restore` gives them back. `not_kept` is added to them: what the
            checkpoint lacks, in words.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: It could not be written (disk full, ...); earlier checkpoints are as they were.
    """
    import numpy as np

    from . import left_out

    def write(folder: Path) -> None:
        has_settled = left_out.settle(algo)
        algo.save_to_path(str((folder / RLLIB).resolve()))
        _require_whole(folder / RLLIB)
        arrays, meta = left_out.collect(algo)
        if not has_settled:
            meta["notes"].append("the learner was busy while the checkpoint was written: it may mix two updates")
        np.savez(folder / LEFT_OUT_ARRAYS, allow_pickle=False, **arrays)
        _write_json(folder / LEFT_OUT, meta)
        about = {**extra, "iteration": iteration, "algorithm": type(algo).__name__, "saved": _now()}
        about["not_kept"] = meta["notes"]
        _write_json(folder / EXTRA, about)

    return publish(run_path, iteration, write)


def restore(algo: Algorithm, checkpoint: Path) -> dict[str, Any]:
    """Give an algorithm, built from the same project, the state of a checkpoint.

    Returns:
        The `extra` that was saved; `notes` in it says what goes on otherwise than without the interruption.

    Raises:
        CheckpointError: The checkpoint is damaged or does not fit.
    """
    import numpy as np

    from . import left_out

    checkpoint = Path(checkpoint)
    if problems := verify(checkpoint):
        raise CheckpointError(
            f"checkpoint {checkpoint} is damaged: {problems[0]}",
            hint="Resume the run; it takes the newest whole one.",
        )
    extra = read_extra(checkpoint)
    meta = json.loads((checkpoint / LEFT_OUT).read_text(encoding="utf-8"))
    with np.load(checkpoint / LEFT_OUT_ARRAYS, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if extra.get("algorithm") != type(algo).__name__:
        raise CheckpointError(
            f"checkpoint {checkpoint} is of {extra.get('algorithm')}, not of {type(algo).__name__}.",
            hint="Resume with the run's own algorithm, or start a new run with: plato train",
        )
    left_out.settle(algo)
    try:
        _restore_rllib(algo, str((checkpoint / RLLIB).resolve()))
    except (RuntimeError, ValueError, KeyError) as error:
        first = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(
            f"checkpoint {checkpoint} does not fit the algorithm: {first}",
            hint="Resume with the project and the versions that the run was started with (see its run.json).",
        ) from error
    notes = left_out.apply(algo, arrays, meta)
    return {**extra, "notes": [*extra.get("notes", []), *notes]}


def read_extra(checkpoint: Path) -> dict[str, Any]:
    """The counters saved with a checkpoint, without opening the rest of it."""
    extra: dict[str, Any] = json.loads((Path(checkpoint) / EXTRA).read_text(encoding="utf-8"))
    return extra


def publish(run_path: Path, iteration: int, write: Callable[[Path], None]) -> Path:
    """Have `write` fill a hidden folder, then make it a checkpoint: manifest last, then the name.

    Raises:
        CheckpointError: It could not be written; nothing is left of it.
    """
    folder = Path(run_path) / "checkpoints"
    final = folder / f"{iteration:06d}"
    temporary = folder / f".tmp-{iteration:06d}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(folder)
        if final.exists():
            if not verify(final):
                return final
            _remove(final)
        temporary.mkdir()
        write(temporary)
        _sync_tree(temporary)
        _write_manifest(temporary, iteration)
        _name(temporary, final)
        _sync(folder)
    except OSError as error:
        raise _unwritten(final, error) from error
    finally:
        # An interrupted save leaves nothing behind; after a good one the name is gone.
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def verify(path: Path, *, hashes: bool = True) -> list[str]:
    """What is wrong with a checkpoint; empty when it is valid.

    Args:
        path: The checkpoint's folder.
        hashes: Whether to read every file; otherwise names and sizes only.
    """
    path = Path(path)
    if path.is_symlink() or not path.is_dir():
        return ["it is not a folder"]
    try:
        files = _read_manifest(path)
    except _Damaged as damaged:
        return [str(damaged)]
    problems, found = [], set()
    for name, mode in _walk(path):
        if not stat.S_ISREG(mode):
            problems.append(f"{name} is a link or a special file")
        elif name != MANIFEST and name not in files:
            problems.append(f"{name} is not in {MANIFEST}")
        found.add(name)
    for name, entry in files.items():
        if not _is_safe(name):
            problems.append(f"{MANIFEST} names {name!r}, outside the checkpoint")
        elif name not in found:
            problems.append(f"{name} is missing")
        elif problem := _compare(path / name, entry, hashes):
            problems.append(f"{name} {problem}")
    return problems


def newest_valid(run_path: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest valid checkpoint, and the newer ones that are not, each with what is wrong."""
    damaged: list[tuple[Path, str]] = []
    for path in reversed(_named(Path(run_path) / "checkpoints")):
        problems = verify(path)
        if not problems:
            return path, damaged
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        damaged.append((path, problems[0] + more))
    return None, damaged


def retain(run_path: Path, keep: int, protect: set[Path] | None = None) -> list[Path]:
    """Delete old checkpoints; to be called after a new one was published.

    Args:
        run_path: The run's folder.
        keep: How many of the newest valid ones stay, at least one; a damaged one does not count.
        protect: Others that stay; the best one (best.json) always does.

    Returns:
        What was deleted.
    """
    run_path = Path(run_path)
    protected = {path.resolve() for path in protect or ()}
    if (chosen := best(run_path)) is not None:
        protected.add((run_path / chosen["checkpoint"]).resolve())
    num_kept, deleted = 0, []
    for path in reversed(_named(run_path / "checkpoints")):
        if num_kept < max(1, keep):
            num_kept += not verify(path, hashes=False)
        elif path.resolve() not in protected:
            _remove(path)
            deleted.append(path)
    return deleted


def set_best(run_path: Path, checkpoint: Path, return_mean: float, by: str, episodes: int) -> None:
    """Write which checkpoint is the best, at once and whole.

    Args:
        run_path: The run's folder.
        checkpoint: A checkpoint in it.
        return_mean: Its mean return.
        by: How it was found: "evaluation" or "training".
        episodes: Over how many episodes.
    """
    name = f"checkpoints/{Path(checkpoint).name}"
    content = {"checkpoint": name, "return_mean": float(return_mean), "by": by, "episodes": int(episodes)}
    path = Path(run_path) / BEST
    temporary = path.with_name(f".{BEST}-{os.getpid()}")
    try:
        _write_json(temporary, content)
        _sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritten(path, error) from error


def best(run_path: Path) -> dict[str, Any] | None:
    """What `set_best` wrote (`checkpoint` is relative to the run), or None when there is none yet."""
    try:
        content = json.loads((Path(run_path) / BEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    is_whole = isinstance(content, dict) and {"checkpoint", "return_mean", "by", "episodes"} <= content.keys()
    return content if is_whole and _is_safe(str(content["checkpoint"])) else None


class _Damaged(Exception):
    """A manifest that cannot be read."""


def _restore_rllib(algo: Algorithm, path: str) -> None:
    """RLlib's own restoring, which in 2.60 ends in an error where there are no env runners (BC, MARWIL)."""
    from ray.rllib.utils.checkpoints import Checkpointable

    if algo.env_runner_group is None:
        Checkpointable.restore_from_path(algo, path)
    else:
        algo.restore_from_path(path)


def _require_whole(folder: Path) -> None:
    """RLlib does not look whether a remote learner wrote its part, and leaves empty files when one failed."""
    learner = folder / "learner_group" / "learner"
    if not (learner / "state.pkl").is_file():
        raise CheckpointError("RLlib wrote no learner state.", hint="Is the disk of the learner's machine full?")
    for name, _ in _walk(folder):
        if (folder / name).stat().st_size == 0:
            raise CheckpointError(f"RLlib left {name} empty.", hint="Is the disk full?")


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = path / MANIFEST
    if not os.path.lexists(manifest):
        raise _Damaged(f"{MANIFEST} is missing")
    if manifest.is_symlink() or not manifest.is_file():
        raise _Damaged(f"{MANIFEST} is a link or a special file")
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise _Damaged(f"{MANIFEST} cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise _Damaged(f"{MANIFEST} is not a manifest")
    if content.get("schema") != SCHEMA:
        raise _Damaged(f"{MANIFEST} has schema {content.get('schema')!r}, this platotk reads {SCHEMA}")
    if not content["files"]:
        raise _Damaged(f"{MANIFEST} names no file")
    files: dict[str, Any] = content["files"]
    return files


def _write_manifest(folder: Path, iteration: int) -> None:
    files = {
        name: {"size": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name, _ in _walk(folder)
    }
    content = {"schema": SCHEMA, "iteration": iteration, "created": _now(), "files": files}
    _write_json(folder / MANIFEST, content)
    _sync(folder / MANIFEST)
    _sync(folder)


def _name(temporary: Path, final: Path) -> None:
    """Rename; where the storage cannot (mounted blobs), copy with the manifest last."""
    try:
        os.rename(temporary, final)
        return
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
    try:
        names = [name for name, _ in _walk(temporary) if name != MANIFEST]
        for name in [*names, MANIFEST]:
            (final / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(temporary / name, final / name)
            _sync(final / name)
    except BaseException:
        shutil.rmtree(final, ignore_errors=True)
        raise


def _remove(path: Path) -> None:
    """Delete a checkpoint so that it is never half there: first the name or the manifest, then the files."""
    trash = path.with_name(f".trash-{path.name}-{os.getpid()}")
    try:
        os.rename(path, trash)
    except OSError:
        (path / MANIFEST).unlink(missing_ok=True)
        trash = path
    shutil.rmtree(trash, ignore_errors=True)


def _clear_leftovers(folder: Path) -> None:
    """Remove what dead processes (and earlier failures of this one) left behind."""
    for path in folder.glob(".t*-*"):
        match = re.fullmatch(r"\.(?:tmp|trash)-\d+-(\d+)", path.name)
        if match and (int(match[1]) == os.getpid() or not _is_alive(int(match[1]))):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _named(folder: Path) -> list[Path]:
    """The folders named like checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))


def _walk(folder: Path, prefix: str = "") -> Iterator[tuple[str, int]]:
    """All that is in a folder but folders: name relative to it, with /, and mode; links are not followed."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}", mode


def _is_safe(name: str) -> bool:
    """Whether a name stays inside the folder it is relative to, on any system."""
    path = PurePosixPath(name)
    is_relative = not path.is_absolute() and not PureWindowsPath(name).drive and "\\" not in name
    return bool(path.parts) and is_relative and ".." not in path.parts and path.as_posix() == name


def _compare(path: Path, entry: Any, hashes: bool) -> str | None:
    size, sha256 = (entry.get("size"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
    actual = path.stat().st_size
    if actual != size:
        return f"has {actual:,} bytes instead of {size}"
    if hashes and _sha256(path) != sha256:
        return "has other content than was written (SHA-256)"
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _sync_tree(folder: Path) -> None:
    """Flush every file and folder to the disk; a manifest must not reach it before what it speaks of."""
    for directory, _, names in os.walk(folder):
        for name in names:
            _sync(Path(directory) / name)
        _sync(Path(directory))


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():  # Windows opens no folders
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise
    finally:
        os.close(descriptor)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=None if path.name == LEFT_OUT else 2) + "\n", encoding="utf-8")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _unwritten(path: Path, error: OSError) -> CheckpointError:
    reason = os.strerror(error.errno) if error.errno else (str(error).strip() or repr(error)).splitlines()[0]
    is_full = error.errno in NO_ROOM or "No space left" in str(error)
    hint = "Earlier checkpoints are untouched. "
    hint += (
        f"Make room for {path.parent}, then: plato train --resume" if is_full else f"Can {path.parent} be written to?"
    )
    return CheckpointError(f"{path} could not be written: {reason}", hint=hint)
