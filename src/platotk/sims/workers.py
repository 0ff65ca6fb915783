"""Many sims in processes of their own as one vector environment, of which each can be stepped when it is ready.

`SimWorkers` is to RLlib what `SimVector` is: `reset` and `step` of all sims. The engine uses `begin` and `wait`
instead, so that nobody waits for the slowest sim. A sim that hangs, crashes, exits or raises ends its own episode
(truncated) and is started again with a fresh seed, while the others go on.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SimError
from .loading import SimSpec
from .process import START_TIMEOUT_S, SimFailure
from .shared import SharedRows
from .supervised import FailureBudget, seed_stream
from .vector import SimVector
from .worker import ENDED, FAILED, FORK, JOB, KILL, ORDER, RESET, STEP, Job, receive, send

PATIENCE_S = 1.0
"""How long a reset of all sims waits for steps under way; those that take longer get a process of their own anew."""
START = b"m"
CALLS = {START: "the constructor", RESET: "reset()", STEP: "step()"}


class SimWorkers(SimVector):
    """As `SimVector`, each sim in a process of its own; observations, actions and rewards lie in shared memory.

    Attributes:
        in_flight: bool (N,), the sims that have been told to do something and have not answered yet.
        observations: Columns (N, ...): where each sim's last step or reset led.
        rewards, terminated, truncated: (N,), of each sim's last step; zero after a reset.
    """

    def __init__(self, spec: SimSpec, adapter: Any, **settings: Any) -> None:
        super().__init__(spec, adapter, **{**settings, "own_process": True})
        self.in_flight: NDArray[np.bool_] = np.zeros(self.num_envs, dtype=bool)
        self.rewards = np.zeros(self.num_envs)
        self.terminated: NDArray[np.bool_] = np.zeros(self.num_envs, dtype=bool)
        self.truncated: NDArray[np.bool_] = np.zeros(self.num_envs, dtype=bool)
        self.infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        self.observations: Any = None
        self._options: dict[str, Any] | None = None
        self._deadlines = np.full(self.num_envs, math.inf)
        self._workers: list[_Worker] = []
        self._stepped: list[int] = []
        self._begun: list[int] = []
        self._shared: SharedRows | None = None
        self._forking: _ForkServer | None = None

    def assign(self, *stream: int) -> None:
        """Name the stream of seeds, usually the runner's index; must come before the first reset."""
        self.close()
        self._num_told = [0] * self.num_envs
        spec = self._make[0]
        self._workers = [
            _Worker(spec, np.random.SeedSequence([*self._entropy, *stream, row])) for row in range(self.num_envs)
        ]

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all sims; `seed` is ignored in favour of each sim's own stream. A sim that stays under way is ended."""
        self._open()
        until = time.monotonic() + PATIENCE_S
        while self.in_flight.any() and time.monotonic() < until:
            self.wait(until - time.monotonic())
        for row in np.flatnonzero(self.in_flight):
            self._stop(int(row))
        self._needs_reset[:] = True
        self._options = options
        self.begin(np.arange(self.num_envs), None)
        self._wait_for_all()
        self._options = None
        return _copied(self.observations), self._said()

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all sims; one that ended at the last step is reset instead (its action is ignored)."""
        idle = np.flatnonzero(~self.in_flight)
        columns = self._as_columns(actions)
        self.begin(idle, _taken(columns, idle))
        self._wait_for_all()
        arrays = self.rewards.copy(), self.terminated.copy(), self.truncated.copy()
        return (_copied(self.observations), *arrays, self._said())

    def begin(self, sims: NDArray[np.int64], actions: Any) -> None:
        """Tell idle sims to step, or to reset where the last step ended an episode.

        Args:
            sims: int (k,), which.
            actions: Encoded actions of k rows: columns, or a list of them; those of resets are ignored.
        """
        resets = self._needs_reset[sims]
        shared = self._shared
        if shared is None:
            raise SimError("the sims have not been reset yet", hint="Call reset() first.")
        if not resets.all():
            _store(shared.actions, sims, actions)
        self.in_flight[sims] = True
        for sim, is_reset in zip(sims.tolist(), resets.tolist(), strict=True):
            self._ask(sim, RESET if is_reset else STEP)

    def wait(self, timeout_s: float = math.inf) -> NDArray[np.int64]:
        """The sims that have answered: at least one, or none when `timeout_s` has passed.

        Raises:
            SimError: A sim cannot be made, or fails more often than training survives.
        """
        until = time.monotonic() + timeout_s
        answered: list[int] = []
        is_first = True
        while not answered and (is_first or time.monotonic() < until) and self.in_flight.any():
            pause = min(until, float(self._deadlines.min())) - time.monotonic()
            for fd, _ in self._poll.poll(max(0.0, pause) * 1e3 if pause < math.inf else None):
                row = self._by_fd[fd]
                if self._listen(row):
                    answered.append(row)
            now = time.monotonic()
            answered += [row for row in np.flatnonzero(self._deadlines <= now).tolist() if self._is_over(row)]
            is_first = False
        self._take()
        rows = np.array(sorted(answered), dtype=np.int64)
        self.in_flight[rows] = False
        self._needs_reset[rows] = self.terminated[rows] | self.truncated[rows]
        return rows

    def new_failures(self) -> list[str]:
        """As `SimVector.new_failures`."""
        return self._news(self._workers)

    def close_extras(self, **kwargs: Any) -> None:
        """End every process."""
        for worker in self._workers:
            worker.hang_up()
        if self._forking is not None:
            self._forking.close()
        if self._shared is not None:
            self._shared.close()
        self._forking = self._shared = None
        self.in_flight[:] = False
        self._deadlines[:] = math.inf

    def _open(self) -> None:
        if not self._workers:
            self.assign(0)
        if self._shared is not None:
            return
        adapter = self.adapter
        spaces = adapter.encoded_observation_space, adapter.encoded_action_space
        self._shared = SharedRows(*spaces, self.num_envs)
        self.observations = _copied(self._shared.observations)
        if isinstance(self.observations, dict) and "action_mask" in self.observations:
            self.observations["action_mask"][:] = 1
        self._forking = _ForkServer()
        self._poll = select.poll()
        self._by_fd: dict[int, int] = {}

    def _wait_for_all(self) -> None:
        while self.in_flight.any():
            self.wait()

    def _said(self) -> dict[str, Any]:
        return self._infos(self.infos)

    def _ask(self, row: int, call: bytes) -> None:
        """Begin a call; a sim without a process is started first, and reset when it has been."""
        worker = self._workers[row]
        if worker.connection is None:
            self._start(row)
            return
        payload = b""
        if call == RESET:
            assert self._shared is not None
            self._shared.seeds[row] = worker.seed() if worker.needs_seed else -1
            payload = pickle.dumps(self._options) if self._options else b""
        worker.call = call
        self._deadlines[row] = time.monotonic() + self._make[2]
        # A process that has ended is noticed when its answer is read.
        with contextlib.suppress(OSError):
            send(worker.connection, call, payload)

    def _start(self, row: int) -> None:
        worker, shared, forking = self._workers[row], self._shared, self._forking
        if shared is None or forking is None:
            raise SimError("the sims have been closed")
        wait_s = worker.budget.pause_s()
        if wait_s and worker.call != START:
            # Not at once after failures in a row; the others go on meanwhile.
            worker.call = START
            self._deadlines[row] = time.monotonic() + wait_s
            return
        spec, max_episode_steps, timeout_s, _ = self._make
        ours, theirs = socket.socketpair()
        worker.connection, worker.log = ours, tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        with theirs:
            worker.number = forking.fork(theirs.fileno(), worker.log.fileno(), shared.fd)
        self._by_fd[ours.fileno()] = row
        self._poll.register(ours.fileno(), select.POLLIN)
        worker.call, worker.needs_seed = START, True
        self._deadlines[row] = time.monotonic() + max(START_TIMEOUT_S, timeout_s)
        with contextlib.suppress(OSError):
            send(ours, JOB, pickle.dumps(Job(spec, self.adapter, row, self.num_envs, max_episode_steps)))

    def _listen(self, row: int) -> bool:
        """Read an answer; whether the step or reset is over."""
        worker = self._workers[row]
        assert worker.connection is not None
        try:
            kind, payload = receive(worker.connection)
        except (EOFError, OSError):
            return self._failed(row, self._ended(worker))
        try:
            value: Any = pickle.loads(payload) if payload else None
        except Exception as error:
            text = f"what {CALLS[worker.call]} returned cannot be read: {type(error).__name__}: {error}"
            return self._failed(row, SimFailure(text))
        if kind == FAILED:
            return self._failed(row, SimFailure(value[0], details=value[1], output=worker.output()))
        if worker.call == START:
            worker.has_started = True
            self._ask(row, RESET)
            return False
        self._deadlines[row] = math.inf
        self.infos[row] = value or {}
        if worker.call == STEP:
            worker.budget.refund()
            self._stepped.append(row)
        else:
            worker.needs_seed = False
            self._begun.append(row)
        return True

    def _take(self) -> None:
        """Copy what the sims that have answered well left in shared memory, all of them at once."""
        shared = self._shared
        if shared is None:
            return
        if stepped := self._stepped:
            self.rewards[stepped] = shared.rewards[stepped]
            self.terminated[stepped] = shared.terminated[stepped]
            self.truncated[stepped] = shared.truncated[stepped]
        if begun := self._begun:
            self.rewards[begun], self.terminated[begun], self.truncated[begun] = 0.0, False, False
        if rows := [*stepped, *begun]:
            _store(self.observations, rows, _taken(shared.observations, rows))
        self._stepped, self._begun = [], []

    def _is_over(self, row: int) -> bool:
        """A deadline has passed; whether the sim's step is over by that."""
        worker = self._workers[row]
        if worker.connection is None:
            self._start(row)
            return False
        if _is_readable(worker.connection):
            return self._listen(row)  # just in time
        limit_s = START_TIMEOUT_S if worker.call == START else self._make[2]
        text = f"{CALLS[worker.call]} did not return within {limit_s:g} s (step_timeout_s)"
        return self._failed(row, SimFailure(text, output=worker.output(), is_hang=True))

    def _failed(self, row: int, failure: SimFailure) -> bool:
        """End the process; a step is over by that, a start or reset is tried again."""
        worker = self._workers[row]
        call = worker.call
        self._stop(row)
        if call == START and not worker.has_started:
            # A sim that cannot even be made is not worth a second try.
            raise SimError(
                f"the sim {self._make[0].label} cannot be started: {failure.reason}"
                + "".join(f"\n{part.rstrip()}" for part in (failure.details, failure.output) if part),
                hint="Find the cause with: plato check",
            ) from failure
        worker.num_failures += 1
        worker.last_failure = failure
        worker.budget.spend(failure, worker.num_failures)
        if call != STEP:
            self._start(row)
            return False
        self.rewards[row], self.terminated[row], self.truncated[row] = 0.0, False, True
        self.infos[row] = {"sim_failure": failure.reason}
        return True

    def _ended(self, worker: _Worker) -> SimFailure:
        """The failure for a process that ended by itself: how, and what it last said."""
        code = self._forking.exit_code(worker.number) if self._forking is not None else None
        if code is None:
            how = "lost its connection"
        elif code < 0:
            how = f"crashed with {signal.Signals(-code).name}"
        else:
            how = f"exited with code {code}"
        return SimFailure(f"the sim's process {how} in {CALLS[worker.call]}", output=worker.output())

    def _stop(self, row: int) -> None:
        worker = self._workers[row]
        self._deadlines[row] = math.inf
        if worker.connection is None:
            return
        fd = worker.connection.fileno()
        self._poll.unregister(fd)
        del self._by_fd[fd]
        worker.hang_up()
        if self._forking is not None:
            self._forking.kill(worker.number)


class TrainingWorkers(SimWorkers):
    """`SimWorkers` from one mapping, as RLlib makes environments (`config.environment(env=TrainingWorkers)`)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(**config)


class _Worker:
    """What is known here of one sim and its process."""

    def __init__(self, spec: SimSpec, seeds: np.random.SeedSequence) -> None:
        self.connection: socket.socket | None = None
        self.log: IO[bytes] | None = None
        self.number = 0
        self.call = b""
        self.needs_seed = True
        self.has_started = False
        self.num_failures = 0
        self.last_failure: SimFailure | None = None
        self.budget = FailureBudget(spec.label)
        self._seeds = seed_stream(seeds)

    def seed(self) -> int:
        return next(self._seeds)

    def output(self, num_lines: int = 20) -> str:
        """The last lines that the sim has printed."""
        if self.log is None:
            return ""
        size = self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, size - 8192))
        return "\n".join(self.log.read().decode(errors="replace").splitlines()[-num_lines:])

    def hang_up(self) -> None:
        """Close the connection, upon which a sim that does not hang closes and ends."""
        for one in (self.connection, self.log):
            if one is not None:
                one.close()
        self.connection = self.log = None
        self.call = b""


class _ForkServer:
    """The process that forks the sims' processes; it ends them all when this one ends or closes it."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        self._control.settimeout(1.0)
        self._number = 0
        self._codes: dict[int, int] = {}
        source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "platotk.sims.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, **one_thread, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            )

    def fork(self, *fds: int) -> int:
        """Start a sim's process with these file descriptors; its number."""
        self._number += 1
        while _is_readable(self._control) and self._hear():
            pass  # what has ended meanwhile: it must not fill the socket
        socket.send_fds(self._control, [ORDER.pack(FORK, self._number)], list(fds))
        return self._number

    def kill(self, number: int) -> None:
        """End a sim's process, and what it has started."""
        with contextlib.suppress(OSError):
            self._control.sendall(ORDER.pack(KILL, number))

    def exit_code(self, number: int) -> int | None:
        """How a process ended, as `Popen.returncode`; None when that is not known."""
        while number not in self._codes:
            if not self._hear():
                return None
        return self._codes.pop(number)

    def _hear(self) -> bool:
        try:
            data = self._control.recv(ENDED.size, socket.MSG_WAITALL)
        except OSError:
            return False
        if len(data) < ENDED.size:
            return False
        number, code = ENDED.unpack(data)
        self._codes[number] = code
        return True

    def close(self) -> None:
        """End all processes."""
        self._control.close()
        try:
            self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _is_readable(connection: socket.socket) -> bool:
    poll = select.poll()  # not select, which knows the first 1,024 file descriptors only
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _taken(columns: Any, rows: Any) -> Any:
    if isinstance(columns, dict):
        return {key: _taken(part, rows) for key, part in columns.items()}
    if isinstance(columns, np.ndarray):
        return columns[rows]
    return [columns[row] for row in rows]


def _copied(columns: Any) -> Any:
    return {key: _copied(part) for key, part in columns.items()} if isinstance(columns, dict) else columns.copy()


def _store(columns: Any, rows: Any, values: Any) -> None:
    """Write rows of columns; `values` are columns, or a list with one value (or dict of values) per row."""
    if isinstance(columns, dict):
        for key, part in columns.items():
            _store(part, rows, [value[key] for value in values] if isinstance(values, list) else values[key])
    else:
        columns[rows] = values
