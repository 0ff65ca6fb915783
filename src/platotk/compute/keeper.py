"""The process that stays with a local job when the shell is gone: `python -m platotk.compute.keeper FOLDER`.

It is given the job's folder with `job.json`, runs the command in a process group of its own with its output in
`log.txt`, hands SIGTERM on, kills what does not stop in time, and leaves `exit.json` behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from ..process_lock import describe_process, this_process

TIMED_OUT = 124
"""Exit code of a command that ran out of time, as `timeout` of coreutils gives it."""
POLL_S = 0.2


def main(folder: Path) -> int:
    """Run the job of a folder to its end."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    watch = _Watch(float(job["grace_s"]), job.get("timeout_s"))
    # Ctrl-C at the shell that submitted it is not meant for the job.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, watch.ask)
    with (folder / "log.txt").open("ab", buffering=0) as log:
        try:
            child = subprocess.Popen(
                job["command"],
                cwd=job["working_dir"],
                env={**os.environ, **job["environment"]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_listen_again,
            )
        except OSError as error:
            log.write(f"{job['command'][0]} cannot be started: {error.strerror}\n".encode())
            write_json(folder / "exit.json", {"code": 127, "asked": False, "ended": time.time()})
            write_json(folder / "process.json", {"keeper": this_process(), "child": None})
            return 0
        write_json(folder / "process.json", {"keeper": this_process(), "child": describe_process(child.pid)})
        code = watch.wait(child, log)
    write_json(folder / "exit.json", {"code": code, "asked": watch.is_asked, "ended": time.time()})
    return 0


def write_json(path: Path, content: Any) -> None:
    """Write a file so that it is there whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content) + "\n", encoding="utf-8")
    os.replace(draft, path)


class _Watch:
    """Waits for the command; asks it to stop when asked, or when its time is up, and kills it when it does not."""

    def __init__(self, grace_s: float, timeout_s: float | None) -> None:
        self.is_asked = False
        self._grace_s = grace_s
        self._ends = None if timeout_s is None else time.monotonic() + timeout_s

    def ask(self, number: int, frame: FrameType | None) -> None:
        self.is_asked = True

    def wait(self, child: subprocess.Popen[bytes], log: Any) -> int:
        dies_at: float | None = None
        is_late = False
        while True:
            try:
                code = child.wait(POLL_S)
            except subprocess.TimeoutExpired:
                code = None
            now = time.monotonic()
            if code is not None:
                # Whatever it left behind in its group goes with it.
                _signal_group(child.pid, signal.SIGKILL)
                return TIMED_OUT if is_late else code if code >= 0 else 128 - code
            if not is_late and self._ends is not None and now > self._ends:
                is_late = True
                log.write(b"the time limit is over; stopping\n")
            if dies_at is None and (self.is_asked or is_late):
                dies_at = now + self._grace_s
                with contextlib.suppress(ProcessLookupError):
                    child.send_signal(signal.SIGTERM)
            elif dies_at is not None and now > dies_at:
                log.write(f"it did not stop within {self._grace_s:g} s; killed\n".encode())
                _signal_group(child.pid, signal.SIGKILL)
                dies_at = float("inf")


def _listen_again() -> None:
    """An ignored signal stays ignored in a child; the command decides for itself."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
