"""The parent's side of a check: starts a worker, listens, and ends it when it hangs.

`watch(request, ...)` gives everything the worker found, and how it ended: whole, hanging in a call, dead of a
signal, or gone without a word. Output of the sim is counted, its last lines are kept.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from .places import NoPlaces, stack_frames
from .trial import PROGRESS_SIZE, Progress, Request

_POLL_S = 0.05
_TAIL_BYTES = 4096


@dataclass
class Outcome:
    """What came of one worker.

    Attributes:
        how: `done`; `hang` (a call did not return); `late` (the whole took too long); `signal`; `exit`.
        phase: The phase it was in.
        progress: What it was doing last.
        findings: Fields of the findings.
        measured: Speed, as measured in the steps phase.
        misfits: Fields of the finding that there would be for another algorithm, by its name.
        place: `file:line` where it hung or died, when known.
        code: Exit code, or the signal's name.
        num_printed: Bytes that the sim wrote to its output.
        tail: The last lines of that.
        waited_s: How long a hanging call had been running when it was given up.
    """

    how: Literal["done", "hang", "late", "signal", "exit"] = "exit"
    phase: str = "start"
    progress: Progress = field(default_factory=lambda: Progress(0.0, "", 0, 0))
    findings: list[dict[str, Any]] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    misfits: dict[str, dict[str, Any]] = field(default_factory=dict)
    place: str | None = None
    code: str = ""
    num_printed: int = 0
    tail: str = ""
    waited_s: float = 0.0


class _Process(Protocol):
    pid: int

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""

    def kill(self) -> None:
        """End it."""


def watch(request: Request, payload: bytes | None, *, deadline: float, limits_s: tuple[float, float]) -> Outcome:
    """Run one worker to its end, or end it.

    Args:
        request: What it is to do.
        payload: The request, pickled; None runs it in a fork of this process, for what cannot be pickled.
        deadline: When to end it in any case, in `time.monotonic()` seconds.
        limits_s: How long one call of the sim may take, and how long importing or making it may.
    """
    outcome = Outcome()
    with tempfile.TemporaryFile() as memory_file, tempfile.TemporaryFile() as stack:
        memory_file.truncate(PROGRESS_SIZE)
        with mmap.mmap(memory_file.fileno(), PROGRESS_SIZE) as memory, contextlib.ExitStack() as pipes:
            events, events_in = _pipe(pipes)
            printed, printed_in = _pipe(pipes)
            fds = (events_in.fileno(), memory_file.fileno(), stack.fileno())
            start = _fork if payload is None else _spawn
            process = start(request, payload, fds, printed_in.fileno())
            events_in.close()
            printed_in.close()
            try:
                _listen(outcome, process, events, printed, memory, deadline, limits_s)
                outcome.progress = Progress.read(memory)
                outcome.waited_s = time.monotonic() - (outcome.progress.since or time.monotonic())
                if outcome.how in ("hang", "late") and hasattr(signal, "SIGUSR1"):
                    _ask_for_stack(process, stack)
                if outcome.how == "done":
                    _let_end(process, printed)
            finally:
                process.kill()
        stack.seek(0)
        frames = stack_frames(stack.read().decode(errors="replace"))
    outcome.place = NoPlaces(request.spec.root).innermost(frames)
    return outcome


def _pipe(pipes: contextlib.ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    read, write = os.pipe()
    os.set_blocking(read, False)
    return pipes.enter_context(open(read, "rb", 0)), pipes.enter_context(open(write, "wb", 0))


def _spawn(request: Request, payload: bytes | None, fds: tuple[int, ...], output: int) -> _Process:
    source = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        # Unbuffered, so that the last lines before a crash are not lost.
        [sys.executable, "-u", "-m", "platotk.sims.checks.worker", *map(str, fds)],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        pass_fds=fds,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    stdin = process.stdin

    def feed() -> None:
        with contextlib.suppress(OSError):
            if stdin is not None:
                stdin.write(payload or b"")
                stdin.close()

    threading.Thread(target=feed, daemon=True).start()
    return _Spawned(process)


class _Spawned:
    """A process of its own, with its whole process group."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        _kill_group(self.pid)
        self._process.wait()


def _fork(request: Request, payload: bytes | None, fds: tuple[int, ...], output: int) -> _Process:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return _Forked(pid)
    code = 1
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - this process ends with it
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        from .worker import run

        run(request, *fds)
        sys.stdout.flush()
        code = 0
    finally:
        os._exit(code)


class _Forked:
    """A fork of this process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def kill(self) -> None:
        _kill_group(self.pid)
        if self._code is None:
            _, status = os.waitpid(self.pid, 0)
            self._code = os.waitstatus_to_exitcode(status)


def _kill_group(pid: int) -> None:
    # The group outlives its leader while the sim's own children run.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _listen(
    outcome: Outcome,
    process: _Process,
    events: IO[bytes],
    printed: IO[bytes],
    memory: mmap.mmap,
    deadline: float,
    limits_s: tuple[float, float],
) -> None:
    """Take in events and output until the worker has ended, or is found to hang."""
    is_done = False
    rest = tail = b""
    with selectors.DefaultSelector() as selector:
        selector.register(events, selectors.EVENT_READ)
        selector.register(printed, selectors.EVENT_READ)
        while True:
            code = process.poll()
            for key, _ in selector.select(0.0 if code is not None else _POLL_S):
                data = _read(key.fileobj)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is printed:
                    outcome.num_printed += len(data)
                    tail = (tail + data)[-_TAIL_BYTES:]
                else:
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        is_done |= _take(outcome, json.loads(line))
            if code is not None and not _has_more(selector):
                break
            how = None if is_done else _overdue(Progress.read(memory), deadline, limits_s)
            if is_done or how is not None:
                outcome.how = how or "done"
                break
    outcome.tail = tail.decode(errors="replace")
    code = process.poll()
    if not is_done and code is not None:
        outcome.how = "signal" if code < 0 else "exit"
        outcome.code = signal.Signals(-code).name if code < 0 else str(code)


def _read(pipe: Any) -> bytes:
    try:
        return pipe.read(1 << 16) or b""
    except OSError:
        return b""


def _has_more(selector: selectors.BaseSelector) -> bool:
    """Whether there is still something to read after the worker has ended."""
    return any(key.fileobj for key, _ in selector.select(0.0))


def _take(outcome: Outcome, event: dict[str, Any]) -> bool:
    if "phase" in event:
        outcome.phase = event["phase"]
    elif "finding" in event:
        outcome.findings.append(event["finding"])
    elif "measured" in event:
        outcome.measured = event["measured"]
    elif "misfits" in event:
        outcome.misfits = event["misfits"]
    return "done" in event


def _overdue(progress: Progress, deadline: float, limits_s: tuple[float, float]) -> Literal["hang", "late"] | None:
    now = time.monotonic()
    is_making = progress.call in ("importing", "the constructor")
    if progress.since and now - progress.since > limits_s[is_making]:
        return "hang"
    if now > deadline:
        return "hang" if progress.since and now - progress.since > 1.0 else "late"
    return None


def _let_end(process: _Process, printed: IO[bytes], patience_s: float = 2.0) -> None:
    """Give a worker that is done the time to end by itself (the sim's own clean-up at exit)."""
    until = time.monotonic() + patience_s
    while process.poll() is None and time.monotonic() < until:
        _read(printed)
        time.sleep(0.01)


def _ask_for_stack(process: _Process, stack: IO[bytes]) -> None:
    """Let the worker write its Python stack; works in C code too, as the signal handler itself writes."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGUSR1)
    for _ in range(20):
        if os.fstat(stack.fileno()).st_size:
            time.sleep(0.05)
            return
        time.sleep(0.025)
