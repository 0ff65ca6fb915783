"""Training that is killed at random moments loses nothing valid beyond one checkpoint interval."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from platotk.journal import read
from platotk.learning.checkpoints import newest_valid
from platotk.run import Run

PROJECT = """\
sim: CartPole-v1
stop: {iterations: 1000000}
checkpoint: {every: 2, keep: 3}
training: {train_batch_size_per_learner: 256, minibatch_size: 128, num_epochs: 1}
tracking: {mlflow: false}
"""


def start(folder: Path, *changes: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "platotk", "train", "--run", "runs/one", *changes]
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(words, cwd=folder, stdout=output, stderr=output, start_new_session=True)


def kill_everything(child: subprocess.Popen[bytes]) -> None:
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def require_whole(run: Run) -> None:
    """Iterations without gap or repetition, steps strictly rising, attempts in order; the newest checkpoint opens."""
    lines = run.metrics()
    assert [line["iteration"] for line in lines] == list(range(1, len(lines) + 1))
    steps = [line["env_steps"] for line in lines]
    assert steps == sorted(set(steps))
    attempts = [line["attempt"] for line in lines]
    assert attempts == sorted(attempts)
    newest, damaged = newest_valid(run.path)
    assert damaged == []
    if newest is not None:
        assert len(lines) - int(newest.name) <= 2 + 1  # one interval, and the line written just before its save


def play(folder: Path, num_kills: int, seed: int) -> None:
    (folder / "plato.yaml").write_text(PROJECT)
    rng = random.Random(seed)
    run = Run(folder / "runs" / "one")
    reached = 0
    for _ in range(num_kills):
        child = start(folder)
        goal = reached + rng.randint(1, 6)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and len(read(run.metrics_path)) < goal and child.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 0.6))  # anywhere: inside sampling, learning, or a save
        assert child.poll() is None, (folder / "output.txt").read_text()[-3000:]
        kill_everything(child)
        require_whole(run)
        newest, _ = newest_valid(run.path)
        kept = 0 if newest is None else int(newest.name)
        assert kept >= reached - 1
        reached = kept
    last = len(run.metrics())
    final = start(folder, "--set", f"stop.iterations={last + 2}")
    assert final.wait(timeout=180) == 0, (folder / "output.txt").read_text()[-3000:]
    require_whole(run)
    assert run.status == "finished"
    discarded = read(run.path / "metrics.discarded.jsonl")
    assert len({json.dumps(line, sort_keys=True) for line in discarded}) == len(discarded)


@pytest.mark.slow
def test_three_kills(tmp_path: Path) -> None:
    play(tmp_path, 3, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills(tmp_path: Path) -> None:
    play(tmp_path, 50, seed=1)
