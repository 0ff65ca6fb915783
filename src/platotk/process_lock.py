"""Which process writes a run: a lock file that one process holds at a time, and whether it is still there.

`hold` is given the lock file and holds it; `this_process` describes this process in plain data, and `is_gone`
says of such a description, on the same machine, whether that process has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import PlatoError


@contextlib.contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file; it says which process does.

    Args:
        path: The lock file, made when it is not there.
        what: What it stands for, for the message: "run 20261122-224731-simple-adder-ppo".

    Raises:
        PlatoError: Another process holds it, or the file system cannot lock.
    """
    import fcntl

    stream = _locked(path, what)
    try:
        stream.truncate(0)
        stream.write(json.dumps(this_process()))
        stream.flush()
        yield
    finally:
        with contextlib.suppress(OSError):
            stream.truncate(0)
        # By name, not by closing alone: children that were forked meanwhile share the lock.
        fcntl.flock(stream, fcntl.LOCK_UN)
        stream.close()


def end_with_parent(number: int) -> None:
    """Be sent this signal when the thread that started this process ends, killed or not; on Linux only."""
    if sys.platform == "linux":
        import ctypes

        PR_SET_PDEATHSIG = 1
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def this_process() -> dict[str, Any]:
    """This process: number, host, boot and start time, so that it is not taken for another one later."""
    return describe_process(os.getpid())


def describe_process(pid: int) -> dict[str, Any]:
    """The same of any process of this machine."""
    return {
        "pid": pid,
        "host": socket.gethostname(),
        "boot_id": _boot_id(),
        "start": _process_start(pid),
    }


def is_gone(process: Any) -> bool:
    """Whether a process that `this_process` described is known to have ended; False when unknown."""
    if not isinstance(process, dict) or process.get("host") != socket.gethostname():
        return False
    if process.get("boot_id") != _boot_id():
        return True
    pid = process.get("pid")
    try:
        os.kill(int(pid), 0)  # type: ignore[arg-type]  # a TypeError is answered
    except (TypeError, ValueError, ProcessLookupError):
        return True
    except PermissionError:
        return False
    # The number may have been given to another process since.
    return process.get("start") != _process_start(int(pid))  # type: ignore[arg-type]


def _boot_id() -> str | None:
    """Linux's name for the time since the last boot; None elsewhere."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _process_start(pid: int) -> int | None:
    """Its start in clock ticks since boot (field 22 of proc(5) stat); None for zombies and off Linux."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the command's own name, in brackets, may hold anything
    return None if fields[0] in "ZX" else int(fields[19])


def _locked(path: Path, what: str) -> Any:
    """The lock file, open and locked for this process alone."""
    import fcntl

    while True:
        stream = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            text = stream.read()
            stream.close()
            holder = _holder(text)
            if holder is not None and is_gone(holder):
                # Held by a child that was forked by a process that is gone: make a new lock file.
                path.unlink(missing_ok=True)
                continue
            who = "another process" if holder is None else f"process {holder['pid']} on {holder['host']}"
            raise PlatoError(f"{what} is being written by {who}.", hint="Wait for it, or stop it first.") from None
        except OSError as error:
            stream.close()
            raise PlatoError(
                f"{path} cannot be locked: {error.strerror}.",
                hint="Keep the run on a local disk: plato train --run PATH",
            ) from None
        if path.exists() and os.fstat(stream.fileno()).st_ino == path.stat().st_ino:
            return stream
        stream.close()  # replaced between opening and locking


def _holder(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) and {"pid", "host"} <= set(value) else None
