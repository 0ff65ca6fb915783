"""A watch over a training process whose sims run inside it.

A sim that hangs in Python code is interrupted where it is (`sims.inline`). One that never returns to the
interpreter, in a loop in C, stops the whole process. `supervise` runs the training as a child, listens to its
heartbeat, kills it when that stops, and starts it again from the last checkpoint, each sim in a process of its
own. Light: the parent loads neither ray nor torch.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from .stopping import stop_signals

VARIABLE = "PLATOTK_SUPERVISOR"
OWN_PROCESS_VARIABLE = "PLATOTK_SIM_PROCESS"
BEAT_S = 1.0
MARGIN_VARIABLE = "PLATOTK_SUPERVISOR_MARGIN_S"
MARGIN_S = 20.0
MAX_RESTARTS = 3
STOPPED = 75
"""Exit code of a training that was stopped and can be resumed (EX_TEMPFAIL)."""


def is_supervised() -> bool:
    """Whether this process is the child of `supervise`."""
    return VARIABLE in os.environ


def supervise(
    command: Sequence[str],
    *,
    resume_command: Callable[[str], Sequence[str]],
    tell: Callable[[str], None],
    step_timeout_s: float,
) -> int:
    """Run a training command as a child and start it again when it stops responding.

    Args:
        command: The command line of the child.
        resume_command: From a run's folder to the command line that continues it.
        tell: Called with lines for people.
        step_timeout_s: How long a sim may take for one call; the heartbeat may pause that much longer.

    Returns:
        The exit code of the last child; 128 + the number of the signal that ended it; `STOPPED` when it was asked to
        stop before it could listen.
    """
    child: subprocess.Popen[bytes] | None = None
    is_asked = False

    def forward(number: int, _: FrameType | None) -> None:
        nonlocal is_asked
        is_asked = True
        # Ctrl-C reaches the child by itself (same terminal); everything else is handed on.
        if child is not None and number != signal.SIGINT:
            child.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in stop_signals()}
    try:
        environment = dict(os.environ)
        margin_s = float(environment.get(MARGIN_VARIABLE, MARGIN_S))
        for attempt in range(MAX_RESTARTS + 1):
            read_end, write_end = os.pipe()
            environment[VARIABLE] = str(write_end)
            child = subprocess.Popen(list(command), pass_fds=[write_end], env=environment)
            os.close(write_end)
            run, is_stuck = _listen(child, read_end, step_timeout_s + margin_s)
            code = child.wait()
            if is_asked and code in (-signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP, 128 + signal.SIGINT):
                tell("stopped before training began; the same command starts it again")
                return STOPPED
            if not is_stuck or run is None or attempt == MAX_RESTARTS:
                if code < 0:
                    tell(f"training was ended by {signal.Signals(-code).name}" + _perhaps_memory(-code))
                return code if code >= 0 else 128 - code
            tell("training stopped responding inside the sim; it goes on from its last checkpoint, each in a process")
            command = resume_command(run)
            environment[OWN_PROCESS_VARIABLE] = "own"
        return 1
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Heartbeat:
    """The child's side: a beat every second, from a thread of its own, for as long as the interpreter runs."""

    def __init__(self) -> None:
        self._descriptor = int(os.environ[VARIABLE]) if is_supervised() else None
        if self._descriptor is not None:
            threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def say(self, **message: Any) -> None:
        """Tell the parent something; nothing happens without one."""
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, (json.dumps(message) + "\n").encode())
        except OSError:
            self._descriptor = None

    def _beat(self) -> None:
        while self._descriptor is not None:
            self.say(beat=True)
            time.sleep(BEAT_S)


def _listen(child: subprocess.Popen[bytes], descriptor: int, patience_s: float) -> tuple[str | None, bool]:
    """Follow the child to its end: the run it named, and whether it had to be killed for its silence."""
    run: str | None = None
    buffer = b""
    last_beat: float | None = None
    with os.fdopen(descriptor, "rb", buffering=0) as pipe:
        while child.poll() is None:
            ready, _, _ = select.select([pipe], [], [], BEAT_S)
            if ready:
                chunk = pipe.read(65536) or b""
                if not chunk:
                    child.wait()
                    break
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    run = json.loads(line).get("run", run)
                last_beat = time.monotonic()
            elif last_beat is not None and time.monotonic() - last_beat > patience_s:
                child.kill()
                return run, True
    return run, False


def _perhaps_memory(number: int) -> str:
    return " (often: out of memory; use fewer envs or a smaller batch)" if number == signal.SIGKILL else ""


def python_command(*arguments: str) -> list[str]:
    """`python -m platotk ...` with this interpreter."""
    return [sys.executable, "-m", "platotk", *arguments]
