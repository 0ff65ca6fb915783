"""The benchmark beside others: the script trains, both sides are asked for the same work, the table says who won."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import peers
from peers import BESIDE, PROGRAMS, report

WORK = {"sim": "CartPole-v1", "num_envs": 2, "batch": 64, "minibatch": 32, "epochs": 1, "lr": 1e-3, "hidden": [8]}


def test_the_script_trains() -> None:
    work = json.dumps({**WORK, "seconds": 0.1, "seed": 0})
    command = [sys.executable, str(PROGRAMS), "script", "ppo", work]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["steps"] == 64
    assert len(told["durations"]) >= 4
    assert min(told["durations"]) > 0


@pytest.mark.parametrize("name", BESIDE)
def test_a_peer_is_asked_for_the_same_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = BESIDE[name]
    asked = []

    def run(command: list[str]) -> dict[str, Any]:
        asked.append(json.loads(command[-1]))
        return {"steps": 10, "durations": [1.0] * 5, "ended_at": 0.0}

    monkeypatch.setattr(peers, "_run", run)
    peers.theirs(row, "python", 1.0, 3)
    (work,) = asked
    training = row.ours.work
    assert work["batch"] == training["train_batch_size_per_learner"]
    assert work["minibatch"] == training.get("minibatch_size", work["batch"])
    assert work["lr"] in (training["lr"], training.get("actor_lr"))
    assert (work["sim"], work["num_envs"]) == (row.ours.sim, row.ours.num_envs)
    assert work["hidden"] == ([64, 64] if row.what not in ("sac", "dqn") and name != "sbx-large" else [256, 256])


def test_the_median_of_the_ratios_decides() -> None:
    pairs = {
        "sb3": [{"platotk": 30_000.0, "peer": 5_000.0, "ratio": ratio} for ratio in (6.0, 4.0, 5.5)],
        "solve": [{"platotk": 20.0, "peer": 15.0, "ratio": 0.75}],
    }
    lines = report({name: {"about": ["today"], "pairs": runs} for name, runs in pairs.items()}).splitlines()
    assert lines.count("- measured: today") == 1
    assert any("5.50 (4.00 to 6.00) | 5 | reached |" in line for line in lines)
    assert any("0.75 (0.75 to 0.75) | 1 | not reached |" in line for line in lines)
