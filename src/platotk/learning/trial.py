"""One trial of a tuning under way: `plato train --resume trials/0001`, a process whose journal is read as it grows."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from typing import Any

from ..journal import Follower
from ..process_lock import end_with_parent
from ..run import Run
from .supervisor import STOPPED, python_command

OUTPUT = "output.txt"
"""What a trial's process printed, in its folder."""


class Trial:
    """A trial and, while it trains, its process.

    Args:
        run: The trial's folder.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.trial_id = run.name  # what Ray Tune's schedulers ask of a trial
        self.is_pruned = False
        self._process: subprocess.Popen[bytes] | None = None
        self._journal, self._seen = Follower(run.metrics_path), 0

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing left to train, in this attempt or an earlier one."""
        info = self.run.info
        return bool(info.get("pruned")) or self.run.status in ("finished", "failed")

    def start(self, environment: Mapping[str, str]) -> None:
        """Train it, or go on from its newest checkpoint, in a session of its own: Ctrl-C is handed on by `stop`."""
        with (self.run.path / OUTPUT).open("ab") as output:
            self._process = subprocess.Popen(
                python_command("train", "--resume", str(self.run.path)),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=lambda: end_with_parent(signal.SIGTERM),
            )

    def stop(self) -> None:
        """Ask it to save a checkpoint and end."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """End it at once, with all its processes."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def is_over(self) -> bool:
        """Whether its process has ended; if so, run.json says how."""
        assert self._process is not None
        code = self._process.poll()
        if code is None:
            return False
        if self.is_pruned and code in (0, STOPPED):
            self.run.update(pruned=True)
        elif code not in (0, STOPPED) and self.run.status != "failed":
            self.run.update(status="failed", error=self._last_words() or f"exit code {code}")
        return True

    def new_lines(self) -> list[dict[str, Any]]:
        """Lines of its journal that were not given yet; an attempt that repeats iterations repeats no lines."""
        lines = [line for line in self._journal.new_lines() if line["iteration"] > self._seen]
        if lines:
            self._seen = lines[-1]["iteration"]
        return lines

    def _last_words(self) -> str:
        said = (self.run.path / OUTPUT).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        start = max((at for at, line in enumerate(said) if line.startswith("Error: ")), default=len(said) - 1)
        return "\n".join(said[max(0, start) :])[:2000].removeprefix("Error: ")
