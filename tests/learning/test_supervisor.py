"""A sim that never returns to the interpreter is killed with its process; the run goes on from its last checkpoint."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from platotk.run import Run

SIM = '''
import ctypes, os, time
from pathlib import Path
import gymnasium as gym
import numpy as np

MARK = Path(__file__).with_name("hung")


class Stuck(gym.Env):
    """Once, at step 3000 of its process, waits in C with the interpreter locked: no signal and no thread can help."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        Stuck.steps += 1
        if Stuck.steps == 3000 and not MARK.exists():
            MARK.touch()
            ctypes.PyDLL(None).sleep(3600)
        return np.zeros(2, np.float32), 1.0, False, self.t >= 50, {}
'''
PROJECT = """\
sim: sim:Stuck
sim_process: inline
step_timeout_s: 1
stop: {iterations: 6}
checkpoint: {every: 1}
training: {train_batch_size_per_learner: 1000, minibatch_size: 250, num_epochs: 1}
tracking: {mlflow: false}
"""


@pytest.mark.slow
def test_a_hang_in_c_is_survived(tmp_path: Path) -> None:
    (tmp_path / "sim.py").write_text(SIM)
    (tmp_path / "plato.yaml").write_text(PROJECT)
    done = subprocess.run(
        [sys.executable, "-m", "platotk", "train", "--run", "runs/one"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        # The silence that the supervisor bears, made short.
        env={**os.environ, "PLATOTK_SUPERVISOR_MARGIN_S": "6"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "hung").exists()
    assert "stopped responding" in done.stderr
    lines = Run(tmp_path / "runs" / "one").metrics()
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {line["attempt"] for line in lines} == {1, 2}


def test_asked_to_stop_before_training_began_is_75(tmp_path: Path) -> None:
    """A job that is preempted while it still imports must be queued again, not counted as failed."""
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "from platotk.learning.supervisor import supervise\n"
            "child = [sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)']\n"
            "sys.exit(supervise(child, resume_command=lambda run: child, tell=print, step_timeout_s=1.0))",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "1\n"
    parent.terminate()
    said, _ = parent.communicate(timeout=30)
    assert parent.returncode == 75
    assert "the same command starts it again" in said


def test_a_terminal_that_is_closed_stops_training_at_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "plato.yaml").write_text(
        "sim: CartPole-v1\nstop: {iterations: 10000}\ncheckpoint: {every: 10000}\ntracking: {mlflow: false}\n"
    )
    terminal, its_end = pty.openpty()
    training = subprocess.Popen(
        [sys.executable, "-m", "platotk", "train"],
        cwd=tmp_path,
        stdin=its_end,
        stdout=its_end,
        stderr=its_end,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(its_end)
    deadline, shown = time.monotonic() + 120, b""
    while b"steps/s" not in shown and time.monotonic() < deadline:
        if select.select([terminal], [], [], 1.0)[0]:
            shown += os.read(terminal, 65536)
    os.close(terminal)
    assert training.wait(timeout=60) == 75
    (folder,) = (tmp_path / "runs").iterdir()
    run = Run(folder)
    assert run.status == "stopped"
    iterations = [line["iteration"] for line in run.metrics()]
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == [f"{iterations[-1]:06d}"]
