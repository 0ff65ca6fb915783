"""The process around a job on a machine that is not ours: `python -m platotk.compute.carried ... -- COMMAND`.

It brings the run from storage to this machine's disk, runs the command on it there, copies what the command writes
back every few seconds, and exits with the command's code. SIGTERM is handed on; a note in the storage (`stop-JOB`)
asks for the same where no signal arrives, and `exit-JOB` says there how it ended.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ..errors import BackendError
from ..run import Run
from .base import CARRIED_VARIABLE, JOB_VARIABLE, PYTHON, RUN
from .storage import Storage

LOG = logging.getLogger("platotk.job")
PATIENCE_S = 600.0
"""How long storage may be away before the job is stopped; checkpoints wait on this machine's disk until then."""
TIMED_OUT = 124


def main(words: list[str]) -> int:
    """Carry one job from beginning to end."""
    name, url, every, limit, grace, *rest = words
    storage = Storage(url, json.loads(os.environ.get("PLATOTK_STORAGE_OPTIONS", "{}")))
    folder = Path(tempfile.mkdtemp(prefix="platotk-")) / name
    folder.mkdir()
    storage.get(folder)
    _adopt(Run(folder))
    command = [word.replace(PYTHON, sys.executable).replace(RUN, str(folder)) for word in rest[rest.index("--") + 1 :]]
    return _Carrier(storage, folder, float(every), float(limit) or None, float(grace)).carry(command)


class _Carrier:
    def __init__(self, storage: Storage, folder: Path, every_s: float, limit_s: float | None, grace_s: float) -> None:
        self._storage, self._folder, self._every_s, self._grace_s = storage, folder, every_s, grace_s
        self._sent: dict[str, tuple[int, int]] = {}
        self._ends = None if limit_s is None else time.monotonic() + limit_s
        self._asked = False
        self._job = os.environ.get(JOB_VARIABLE, "")
        self._failing_since: float | None = None

    def carry(self, command: list[str]) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)
        child = subprocess.Popen(command, env={**os.environ, CARRIED_VARIABLE: "1"})
        dies_at: float | None = None
        is_late = False
        copies_at = time.monotonic() + self._every_s
        while child.poll() is None:
            now = time.monotonic()
            is_late = is_late or (self._ends is not None and now > self._ends)
            if dies_at is None and (self._asked or is_late or self._is_cut_off(now)):
                dies_at = now + self._grace_s
                child.send_signal(signal.SIGTERM)
            elif dies_at is not None and now > dies_at:
                child.kill()
            if now > copies_at:
                self._copy()
                self._asked = self._asked or self._is_asked_by_note()
                copies_at = time.monotonic() + self._every_s
            time.sleep(0.1)
        code = child.returncode
        code = TIMED_OUT if is_late else code if code >= 0 else 128 - code
        for _ in range(5):
            if self._copy() and self._leave(code):
                break
            time.sleep(2.0)
        return code

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = True

    def _copy(self) -> bool:
        try:
            self._storage.put(self._folder, self._sent)
        except BackendError as error:
            if self._failing_since is None:
                LOG.warning("%s; trying again", error)
            self._failing_since = self._failing_since or time.monotonic()
            return False
        self._failing_since = None
        return True

    def _is_asked_by_note(self) -> bool:
        try:
            return self._storage.note(f"stop-{self._job}") is not None
        except BackendError:
            return False

    def _leave(self, code: int) -> bool:
        try:
            self._storage.leave(f"exit-{self._job}", {"code": code, "asked": self._asked})
        except BackendError:
            return False
        return True

    def _is_cut_off(self, now: float) -> bool:
        return self._failing_since is not None and now - self._failing_since > PATIENCE_S


def _adopt(run: Run) -> None:
    """The project's modules are in this job's working directory."""
    if (run.path / "run.json").is_file():
        run.update(root=str(Path.cwd()))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
