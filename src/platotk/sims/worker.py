"""The far side of `SimWorkers`: one process that has everything imported, and one more for each sim, forked from it.

`python -m platotk.sims.worker FD` is told over a socket to fork a sim's process or to kill one, and tells when one has
ended. A sim's process makes its sim, then answers calls of a few bytes: observations, actions and rewards lie in
`SharedRows`, encoded here. All of them end with the process that started them, even if that one is killed.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import socket
import struct
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any

import cloudpickle  # noqa: F401 - here, so that it is imported once, before forking
import numpy as np

from ..process_lock import end_with_parent
from ..spaces import Adapter
from ..spaces.frames import Frames
from .answers import of_reset, of_step
from .encoding import MASK_KEY, encode
from .loading import SimSpec
from .process import OUTPUT_LIMIT_BYTES, SimFailure, named
from .shared import SharedRows

HEADER = struct.Struct("<cI")
"""Of each message between a sim's process and the near side: its kind, and how many bytes follow."""
ORDER = struct.Struct("<cI")
"""To the forking process: FORK or KILL, and the number of the sim's process."""
ENDED = struct.Struct("<Ii")
"""From the forking process: the number of a sim's process, and how it ended (as `Popen.returncode`)."""
JOB, RESET, STEP, DONE, FAILED = b"j", b"r", b"s", b"d", b"f"
FORK, KILL = b"f", b"k"
LAST_S = 2.0
"""How long sims may take to close."""


@dataclass(frozen=True)
class Job:
    """What a sim's process is to run.

    Attributes:
        spec: How to make the sim.
        adapter: Encodes observations, decodes actions.
        row: Which row of the shared block is this sim's.
        num_rows: How many rows there are.
        max_episode_steps: Truncate an episode at this many steps; None never does.
    """

    spec: SimSpec
    adapter: Adapter
    row: int
    num_rows: int
    max_episode_steps: int | None


def send(connection: socket.socket, kind: bytes, payload: bytes = b"") -> None:
    """One message."""
    connection.sendall(HEADER.pack(kind, len(payload)) + payload)


def receive(connection: socket.socket) -> tuple[bytes, bytes]:
    """The next message: kind and payload.

    Raises:
        EOFError: The other side has closed.
    """
    kind, size = HEADER.unpack(_exactly(connection, HEADER.size))
    return kind, _exactly(connection, size) if size else b""


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = connection.recv(size)
    if len(data) == size:
        return data
    parts = bytearray(data)
    while len(parts) < size:
        data = connection.recv(size - len(parts))
        if not data:
            raise EOFError
        parts += data
    return bytes(parts)


class SharedSim:
    """One sim whose observations and actions lie in shared rows."""

    def __init__(self, job: Job, shared: SharedRows) -> None:
        self._job, self._shared = job, shared
        self._frames = Frames(job.adapter.frame_stack, 1)
        self._sim = job.spec.make()
        self._num_steps = 0

    def reset(self, options: dict[str, Any] | None) -> dict[str, Any]:
        """Begin an episode; what the sim says beside its observation."""
        seed = int(self._shared.seeds[self._job.row])
        observation, info = of_reset(self._sim.reset(seed=None if seed < 0 else seed, options=options))
        self._num_steps = 0
        self._frames.reset(slice(None))
        self._show(observation, info, is_over=False)
        return info

    def step(self) -> dict[str, Any]:
        """Do the action in this sim's row; what the sim says beside observation, reward and flags."""
        job, shared = self._job, self._shared
        # A copy: a sim may keep its actions.
        action = job.adapter.decode(_copied(shared.actions, job.row))
        observation, reward, terminated, truncated, info = of_step(self._sim.step(action))
        self._num_steps += 1
        if job.max_episode_steps is not None and self._num_steps >= job.max_episode_steps:
            truncated = truncated or not terminated
        self._show(observation, info, is_over=terminated or truncated)
        shared.rewards[job.row] = reward
        shared.terminated[job.row], shared.truncated[job.row] = terminated, truncated
        return info

    def close(self) -> None:
        """Close the sim."""
        self._sim.close()  # type: ignore[no-untyped-call]

    def _show(self, observation: Any, info: dict[str, Any], *, is_over: bool) -> None:
        adapter = self._job.adapter
        encoded = encode(adapter, observation, info, step=self._num_steps, is_over=is_over)
        if adapter.frame_stack > 1:
            encoded = _of_one(self._frames.push(_as_batch(encoded)))
        _write(self._shared.observations, self._job.row, encoded)


def serve(connection: socket.socket, shared_fd: int) -> None:
    """A sim's process: make the sim, then answer until the other side closes."""
    kind, payload = receive(connection)
    try:
        job: Job = pickle.loads(payload)
        spaces = job.adapter.encoded_observation_space, job.adapter.encoded_action_space
        sim = SharedSim(job, SharedRows(*spaces, job.num_rows, fd=shared_fd))
    except BaseException as error:
        send(connection, FAILED, _described("the constructor", error))
        return
    send(connection, DONE)
    while True:
        try:
            kind, payload = receive(connection)
        except (EOFError, OSError):
            break
        call = "reset" if kind == RESET else "step"
        try:
            info = sim.reset(pickle.loads(payload) if payload else None) if kind == RESET else sim.step()
            said = {key: value for key, value in info.items() if key != MASK_KEY and not str(key).startswith("_")}
        except BaseException as error:  # KeyboardInterrupt too: Ctrl-C does not come here, only the sim raises it
            send(connection, FAILED, _described(f"{call}()", error))
            continue
        try:
            payload = pickle.dumps(said) if said else b""
        except Exception as error:
            send(connection, FAILED, _described(f"sending back what {call}() returned", error))
            continue
        send(connection, DONE, payload)
        # A sim that prints without end must not fill the disk.
        if os.fstat(1).st_size > OUTPUT_LIMIT_BYTES:
            os.ftruncate(1, 0)
            os.lseek(1, 0, os.SEEK_SET)
    with contextlib.suppress(Exception):
        sim.close()


def _described(where: str, error: BaseException) -> bytes:
    """Pickled: one line that says what happened, and the traceback."""
    if isinstance(error, SimFailure):
        return pickle.dumps((error.reason, ""))
    if isinstance(error, SystemExit):
        return pickle.dumps((f"{where} called sys.exit({error.code!r})", traceback.format_exc()))
    return pickle.dumps((f"{where} raised {named(error)}", traceback.format_exc()))


def _copied(columns: Any, row: int) -> Any:
    if isinstance(columns, dict):
        return {key: _copied(part, row) for key, part in columns.items()}
    return columns[row].copy()


def _as_batch(encoded: Any) -> Any:
    if isinstance(encoded, dict):
        return {key: part[np.newaxis] for key, part in encoded.items()}
    return encoded[np.newaxis]


def _of_one(batch: Any) -> Any:
    return {key: part[0] for key, part in batch.items()} if isinstance(batch, dict) else batch[0]


def _write(columns: Any, row: int, encoded: Any) -> None:
    if isinstance(columns, dict):
        for key, part in columns.items():
            _write(part, row, encoded[key])
    else:
        columns[row] = encoded


class ForkingProcess:
    """Forks and kills sims' processes as it is told, and tells of those that have ended.

    It does nothing else, and has one thread only: what it forks starts in milliseconds, with the memory of its imports
    shared, and nothing of the process that samples is in it.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, int] = {}
        self._woken, self._wake = socket.socketpair()

    def run(self) -> None:
        """Until the other side closes; then every child is killed."""
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            readable = select.select([self._control, self._woken], [], [])[0]
            if self._woken in readable:
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(4096)
                self._reap()
            if self._control in readable and not self._obey():
                break
        self._end()

    def _end(self) -> None:
        """Sims that have been left close and end by themselves; those that hang are killed."""
        until = time.monotonic() + LAST_S
        self._control.close()
        while self._children and time.monotonic() < until:
            select.select([self._woken], [], [], until - time.monotonic())
            self._reap()
        for pid in self._children:
            _kill_group(pid)

    def _obey(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self._control, ORDER.size, 3)
        if len(data) < ORDER.size:
            return False
        order, number = ORDER.unpack(data)
        if order == FORK:
            self._fork(number, fds)
            for fd in fds:
                os.close(fd)
        else:
            for pid, known in self._children.items():
                if known == number:
                    _kill_group(pid)
        return True

    def _fork(self, number: int, fds: list[int]) -> None:
        us = os.getpid()
        pid = os.fork()
        if pid:
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)
            self._children[pid] = number
            return
        code = 1
        try:
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _die_with_parent(us)
            for one in (self._control, self._woken, self._wake):
                one.close()
            connection, log, shared = fds
            os.dup2(log, 1)
            os.dup2(log, 2)
            serve(socket.socket(fileno=connection), shared)
            code = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        while self._children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            number = self._children.pop(pid, None)
            _kill_group(pid)  # what the sim has started
            if number is not None:
                with contextlib.suppress(OSError):
                    self._control.sendall(ENDED.pack(number, os.waitstatus_to_exitcode(status)))


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _die_with_parent(parent: int) -> None:
    """Linux: be killed when the parent is, even when hanging in native code; elsewhere the parent's own way must do."""
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    ForkingProcess(socket.socket(fileno=int(sys.argv[1]))).run()
