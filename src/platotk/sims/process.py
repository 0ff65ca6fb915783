"""One sim in a process of its own, with a deadline on every call.

`SimProcess` starts `python -m platotk.sims.process`, hands it a `SimSpec` over a socket pair and speaks a tiny
request/reply protocol. A sim that hangs is killed at its deadline; one that crashes, aborts or calls `sys.exit` is
noticed at once. Either way the caller gets a `SimFailure` with the last lines the sim printed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from ..errors import SimError
from .loading import SimSpec

OUTPUT_LIMIT_BYTES = 1 << 20
START_TIMEOUT_S = 120.0
NOTHING_ALLOWED = "action mask: nothing is allowed"
"""How the message of a mask begins with which nobody can act: it would come again, so training ends with it."""


class SimFailure(Exception):
    """A sim raised, hung, crashed or left its contract; training goes on with a fresh one.

    Attributes:
        reason: One line that names the call and what happened.
        details: The sim's own traceback, or empty.
        output: The last lines the sim printed, or empty.
        is_hang: It ran past its deadline.
    """

    def __init__(self, reason: str, *, details: str = "", output: str = "", is_hang: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.details = details
        self.output = output
        self.is_hang = is_hang


class SimProcess:
    """A sim on the far side of a pipe; `send` and `receive` are apart so that many can step at once."""

    def __init__(self, spec: SimSpec, *, timeout_s: float) -> None:
        self._spec = spec
        self._timeout_s = timeout_s
        self._connection: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._call = ""
        self._sent_at = 0.0
        self._has_started = False

    def send(self, call: str, *args: Any) -> None:
        """Ask the sim to `reset(seed, options)` or `step(action)`; the process is started when there is none."""
        try:
            if self._connection is None:
                self._start()
            self._call, self._sent_at = call, time.monotonic()
            self._require().send((call, args))
        except (OSError, EOFError) as error:
            raise self._gone(error) from error

    def receive(self) -> Any:
        """The answer to the last `send`.

        Raises:
            SimFailure: The sim raised, ran past the deadline, or its process ended.
        """
        connection = self._require()
        left = self._timeout_s - (time.monotonic() - self._sent_at)
        try:
            if not connection.poll(max(left, 0.0)):
                output = self._output()
                self.close(kill=True)
                raise SimFailure(
                    f"{self._call}() did not return within {self._timeout_s:g} s (step_timeout_s)",
                    output=output,
                    is_hang=True,
                )
            kind, value = connection.recv()
        except (OSError, EOFError) as error:
            raise self._gone(error) from error
        if kind == "raised":
            raise SimFailure(value[0], details=value[1], output=self._output())
        return value

    def reset(self, seed: int | None, options: Mapping[str, Any] | None) -> Any:
        """What the sim's `reset` gives, whatever it is; raises as `receive` does."""
        self.send("reset", seed, options)
        return self.receive()

    def step(self, action: Any) -> Any:
        """What the sim's `step` gives, whatever it is; raises as `receive` does."""
        self.send("step", action)
        return self.receive()

    def close(self, *, kill: bool = False) -> None:
        """End the process: asked politely first, killed when it does not go (or at once with `kill`)."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if process is None or connection is None:
            return
        with contextlib.suppress(OSError):
            if not kill:
                connection.send(("close", ()))
            connection.close()
        if not kill:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=2.0)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._log.close()

    def _start(self) -> None:
        recipe = _pickled(self._spec)
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "platotk.sims.process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )
        self._connection = Connection(ours.detach())
        self._call, self._sent_at = "start", time.monotonic()
        self._connection.send_bytes(recipe)
        timeout, self._timeout_s = self._timeout_s, max(START_TIMEOUT_S, self._timeout_s)
        try:
            self.receive()
        except SimFailure as failure:
            if self._has_started:
                raise
            # A sim that cannot even be made is not worth a second try.
            raise SimError(
                f"the sim {self._spec.label} cannot be started: {failure.reason}"
                + "".join(f"\n{part.rstrip()}" for part in (failure.details, failure.output) if part),
                hint="Find the cause with: plato check",
            ) from failure
        finally:
            self._timeout_s = timeout
        self._has_started = True

    def _require(self) -> Connection:
        if self._connection is None:
            raise SimFailure("the sim's process is not running")
        return self._connection

    def _gone(self, error: BaseException) -> SimFailure:
        """The failure for a process that ended by itself: how it ended and what it last said."""
        process = self._process
        code: int | None = None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=5.0)
        output = self._output() if process is not None else ""
        self.close(kill=True)
        if code is None:
            how = f"lost its connection ({error!r})"
        elif code < 0:
            how = f"crashed with {signal.Signals(-code).name}"
        else:
            how = f"exited with code {code}"
        return SimFailure(f"the sim's process {how} in {self._call}()", output=output)

    def _output(self, num_lines: int = 20) -> str:
        with contextlib.suppress(OSError, ValueError):
            size = self._log.seek(0, os.SEEK_END)
            self._log.seek(max(0, size - 8192))
            return "\n".join(self._log.read().decode(errors="replace").splitlines()[-num_lines:])
        return ""


def _pickled(spec: SimSpec) -> bytes:
    """The recipe of a sim for a child of this process.

    Raises:
        SimError: It cannot be pickled.
    """
    # cloudpickle, because a sim given in Python may be a local class; it is the user's own object.
    import cloudpickle

    try:
        payload: bytes = cloudpickle.dumps(spec)
    except Exception as error:
        raise SimError(
            f"the sim {spec.label} cannot be sent to another process: {type(error).__name__}: {error}",
            hint='Name it, so that processes import it: sim="my_module:MySim"; open files, locks and connections in '
            "its __init__. See: plato check",
        ) from error
    return payload


def _serve(connection: Connection) -> None:
    """The far side: load the sim, then answer calls until told to close."""
    import pickle

    spec = pickle.loads(connection.recv_bytes())
    try:
        sim = spec.make()
    except BaseException as error:
        connection.send(("raised", _described("the constructor", error)))
        return
    connection.send(("done", None))
    while True:
        try:
            call, args = connection.recv()
        except EOFError:
            break
        if call == "close":
            break
        try:
            reply = ("done", _call(sim, call, args))
        except SystemExit as error:
            reply = ("raised", (f"{call}() called sys.exit({error.code!r})", traceback.format_exc()))
        except BaseException as error:  # KeyboardInterrupt too: Ctrl-C does not come here, only the sim raises it
            reply = ("raised", _described(f"{call}()", error))
        try:
            connection.send(reply)
        except (TypeError, AttributeError, ValueError) as error:  # what the sim returned does not pickle
            connection.send(("raised", _described(f"sending back what {call}() returned", error)))
        # A sim that prints without end must not fill the disk.
        if os.fstat(1).st_size > OUTPUT_LIMIT_BYTES:
            os.ftruncate(1, 0)
            os.lseek(1, 0, os.SEEK_SET)
    with contextlib.suppress(Exception):
        sim.close()


def _call(sim: Any, call: str, args: tuple[Any, ...]) -> Any:
    if call == "step":
        return sim.step(args[0])
    if call == "reset":
        return sim.reset(seed=args[0], options=args[1])
    from .probe import answer

    return answer(sim, call, args)


def _described(where: str, error: BaseException) -> tuple[str, str]:
    return f"{where} raised {named(error)}", traceback.format_exc()


def named(error: BaseException) -> str:
    """An exception in one line: `ValueError: too high`."""
    return str(error) if isinstance(error, SimError) else f"{type(error).__name__}: {error}".removesuffix(": ")


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
