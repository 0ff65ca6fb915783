"""Losing the machine, on this machine: what a low-priority node does to a training, tried before it is paid for.

`simulate` trains a project as a job does: on a disk of its own, with an output folder beside it that outlives it. It
kills every process of the job a few times, at moments that hurt, deletes the disk, and starts the same command again,
as a cluster does with a job whose nodes vanished. It gives back what was done twice, and whether every env step was
counted once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from .. import journal
from ..errors import SubmitError
from ..project import Project
from ..run import Run, create_run
from .base import JOB_VARIABLE, PYTHON, RUN, STOPPED_EXIT_CODE
from .jobs import require_importable
from .storage import MANIFEST, Storage

SYNC_S = 0.1
"""How often the job copies what it has written to its output; a real one does every few seconds."""
GRACE_S = 30.0
LOOK_S = 0.002
"""How often a moment is looked for: a checkpoint is copied in a few hundredths of a second."""
PATIENCE = 2
"""Whole checkpoints after which a machine is taken at any moment, if its own one was not seen."""
MOMENTS = ("after a checkpoint", "while a checkpoint was written", "while a checkpoint was copied")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Eviction:
    """One machine that vanished.

    Attributes:
        when: One of `MOMENTS`.
        reached: The last iteration that this machine had finished.
        resumed_from: The newest whole checkpoint that outlived it; the next machine goes on from there.
        after_s: Seconds after this machine's start.
    """

    when: str
    reached: int
    resumed_from: int
    after_s: float

    @property
    def again(self) -> int:
        """Iterations that were done again."""
        return self.reached - self.resumed_from


@dataclass
class Simulation:
    """How a training went that lost its machine now and then.

    Attributes:
        run: The run, as it would have been fetched.
        asked: How often the machine was to vanish.
        exit_code: Of the last attempt: 0, 75 when it was asked to stop, else it failed.
        evictions: Each time that it did.
        problems: What is wrong with the journal: a gap, or env steps that were lost or counted twice. Empty: nothing.
    """

    run: Run
    asked: int
    exit_code: int = 0
    evictions: list[Eviction] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def again(self) -> int:
        """Iterations that were done again."""
        return sum(one.again for one in self.evictions)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "evicted": len(self.evictions),
            "iterations_again": self.again,
            "env_steps_exact": not self.problems,
            "problems": self.problems,
            "evictions": [{**asdict(one), "again": one.again} for one in self.evictions],
        }


def simulate(
    project: Project,
    *,
    times: int,
    run: Path | str | None = None,
    runs_dir: Path | str | None = None,
    environment: Callable[[Run], Mapping[str, str]] = lambda run: {},
    on_text: Tell = lambda text: None,
    on_note: Tell = lambda text: None,
) -> Simulation:
    """Train a project on a machine that vanishes a few times.

    SIGTERM and Ctrl-C stop it as they stop a training: the run can be resumed. Nothing is left but the run.

    Args:
        project: What to train; `checkpoint.every` is lowered where there would be too few checkpoints.
        times: How often the machine vanishes.
        run: The folder of the new run.
        runs_dir: Where new runs go; default: `runs/` beside plato.yaml.
        environment: More environment variables of the job, given its run.
        on_text: Called with what the job prints.
        on_note: Called with what happens to its machine.

    Raises:
        ProjectError: The sim or algorithm is an object and can't travel.
        SubmitError: The folder is a run already.
    """
    require_importable(project)
    if run is not None and (Path(run) / "run.json").is_file():
        raise SubmitError(f"{run} is a run already; evictions are tried with a new one.", hint="Leave --run out.")
    every = _often_enough(project, times)
    if every != project.checkpoint.every:
        on_note(f"checkpoint.every is {every} here, so that there are enough checkpoints")
        project = project.override([f"checkpoint.every={every}"])
    made = create_run(project, runs_dir=runs_dir, run=None if run is None else Path(run).absolute())
    done = Simulation(made, times)
    place = Path(tempfile.mkdtemp(prefix="platotk-"))
    output = Storage(str(place / "output"))
    output.put(made.path, {})
    try:
        with _interruptible():
            done.exit_code = _machines(done, project, place, {**environment(made)}, on_text, on_note)
    finally:
        try:
            output.get_run(made)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    done.problems = problems_of(made.metrics())
    return done


def problems_of(lines: list[dict[str, Any]]) -> list[str]:
    """What is wrong with a journal: an iteration missing or twice, env steps other than those that were sampled."""
    problems = []
    before: dict[str, Any] = {"iteration": 0, "env_steps": 0}
    for line in lines:
        at, new_steps = line["iteration"], line["env_steps"] - before["env_steps"]
        if at != before["iteration"] + 1:
            problems.append(f"iteration {at} follows {before['iteration']}")
        sampled = ((line.get("rllib") or {}).get("env_runners") or {}).get("num_env_steps_sampled")
        if sampled is not None and sampled != new_steps:
            problems.append(f"iteration {at} counts {new_steps} env steps, {sampled:g} were sampled")
        before = line
    return problems


def _machines(
    done: Simulation,
    project: Project,
    place: Path,
    environment: Mapping[str, str],
    on_text: Tell,
    on_note: Tell,
) -> int:
    """One machine after the other, until the job ends by itself; its exit code."""
    while True:
        number = len(done.evictions) + 1
        machine = _Machine(place, number, done.run, project.root, environment, on_text)
        try:
            moment = MOMENTS[(number - 1) % len(MOMENTS)] if number <= done.asked else None
            when = machine.wait(moment)
            if when is None:
                return machine.exit_code
            machine.kill()
            reached, whole = machine.reached(), machine.whole_checkpoints()
            done.evictions.append(Eviction(when, reached, max(whole, default=0), round(machine.age_s, 1)))
            on_note(
                f"eviction {number} of {done.asked}, {when}: the machine and its disk are gone at iteration {reached}; "
                f"the job is queued again, with checkpoint {max(whole, default=0)}"
            )
        except KeyboardInterrupt:
            return machine.stop()
        finally:
            machine.close()


class _Machine:
    """One machine of a job: its disk, and all its processes in a session of their own."""

    def __init__(
        self, place: Path, number: int, run: Run, root: Path, environment: Mapping[str, str], on_text: Tell
    ) -> None:
        self._disk = place / f"disk-{number}"
        self._disk.mkdir()
        # Ray's part of the disk: the names of its sockets must be short.
        self._ray = Path(tempfile.mkdtemp(prefix="ptk", dir="/tmp"))
        self._output, self._name = place / "output", run.name
        self._here = {rf"{re.escape(str(self._disk))}/[^/\s]+/{re.escape(run.name)}": str(run.path)}
        self._here[re.escape(str(self._disk))] = str(root)
        self._before = set(self.whole_checkpoints())
        carried = [sys.executable, "-m", "platotk.compute.carried", run.name, str(self._output)]
        carried += [f"{SYNC_S:g}", "0", f"{GRACE_S:g}"]
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            [*carried, "--", PYTHON, "-m", "platotk", "train", "--resume", RUN],
            cwd=root,
            env={
                **os.environ,
                **environment,
                # As Azure ML: a job that is queued again has the same name.
                JOB_VARIABLE: run.name,
                "TMPDIR": str(self._disk),
                "RAY_TMPDIR": str(self._ray),
                "PYTHONUNBUFFERED": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(on_text,), daemon=True)
        self._reader.start()

    @property
    def age_s(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self._began

    @property
    def exit_code(self) -> int:
        """Of the job, once it has ended."""
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def wait(self, moment: str | None) -> str | None:
        """Until the moment has come to take it away, or the job ends by itself: None."""
        while self._process.poll() is None:
            if moment is not None:
                # The manifest comes last; what else there is to it is looked at once the machine is gone.
                new = {at for at, path in _checkpoints(self._output) if (path / MANIFEST).exists()} - self._before
                if new and self._is_now(moment, max(new)):
                    return moment
                if len(new) >= PATIENCE:
                    return MOMENTS[0]
            time.sleep(LOOK_S)
        self._reader.join(5.0)
        return None

    def kill(self) -> None:
        """Every process at once, without a word, as a machine vanishes."""
        import psutil

        while there := [pid for pid in psutil.pids() if self._has(pid)]:
            for pid in there:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        self._process.wait()
        self._reader.join(5.0)

    def stop(self) -> int:
        """Ask the job to save itself and stop; a second Ctrl-C does not wait for it."""
        if self._process.poll() is not None:
            return STOPPED_EXIT_CODE  # between two machines
        with contextlib.suppress(KeyboardInterrupt):
            self._process.terminate()
            return self.exit_code
        return 128 + signal.SIGINT

    def close(self) -> None:
        """Nothing of it stays: neither a process nor the disk."""
        self.kill()
        for folder in (self._disk, self._ray):
            shutil.rmtree(folder, ignore_errors=True)

    def reached(self) -> int:
        """The last iteration in the journal on its own disk."""
        lines = [journal.last(path / "metrics.jsonl") for path in self._live()]
        return max((int(line["iteration"]) for line in lines if line is not None), default=0)

    def whole_checkpoints(self) -> list[int]:
        """Those in the output that would outlive it, by iteration."""
        return [at for at, path in _checkpoints(self._output) if _is_whole(path)]

    def _has(self, pid: int) -> bool:
        """Whether a process is one of the job's, in its session or, as sims, in one of their own."""
        import psutil

        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            # The number of a process that has been waited for may be another's by now.
            is_in_session = self._process.returncode is None and os.getsid(pid) == self._process.pid
            return is_in_session or process.environ().get("TMPDIR") == str(self._disk)
        except (psutil.Error, OSError):
            return False

    def _is_now(self, moment: str, newest: int) -> bool:
        if moment == MOMENTS[0]:
            return self.reached() > newest
        if moment == MOMENTS[1]:
            return any(one.name.startswith(".tmp-") for path in self._live() for one in _listed(path / "checkpoints"))
        return any(not (path / MANIFEST).exists() for _, path in _checkpoints(self._output))

    def _live(self) -> list[Path]:
        """The run's folder on its own disk, once it is there."""
        return [path / self._name for path in _listed(self._disk) if (path / self._name / "run.json").exists()]

    def _read(self, on_text: Tell) -> None:
        stream = self._process.stdout
        while stream is not None and (line := stream.readline()):
            text = line.decode("utf-8", errors="replace")
            for there, here in self._here.items():  # a path on its disk is told as it will be on this one
                text = re.sub(there, here.replace("\\", r"\\"), text)
            on_text(text)


def _often_enough(project: Project, times: int) -> int:
    """`checkpoint.every`, lowered where the iterations there will be at most have too few checkpoints."""
    iterations, every = project.stop.iterations, project.checkpoint.every
    return every if iterations is None else min(every, max(1, iterations // (2 * times + 2)))


def _checkpoints(run: Path) -> list[tuple[int, Path]]:
    return [(int(path.name), path) for path in _listed(run / "checkpoints") if path.name.isdigit()]


def _is_whole(checkpoint: Path) -> bool:
    """Whether everything that its manifest names is there in full; what is in it, training checks by its hash."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        return all((checkpoint / name).stat().st_size == about["size"] for name, about in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM is as good as Ctrl-C: both end the waiting, so that the job can be asked to stop."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
