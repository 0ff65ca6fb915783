"""A run says what learns: the compiled kernel, torch or RLlib, and why it is not the kernel."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from platotk.learning import curves
from platotk.learning.cluster import quiet_rllib
from platotk.learning.engine import compilation, compiled
from platotk.learning.training import train
from platotk.project import Project

TINY = {"train_batch_size_per_learner": 200, "minibatch_size": 100, "num_epochs": 1}


def test_a_run_says_what_learns(tmp_path: Path) -> None:
    compilation.kernel()
    compiled._compilation.cache_clear()
    expected = {
        "kernel": ({}, None),
        "rllib": ({"engine": "rllib"}, None),
        "torch": ({"rl_module": {"model_config": {"use_lstm": True}}}, "has memory"),
    }
    for engine, (fields, reason) in expected.items():
        told: list[Any] = []
        project = Project(sim="CartPole-v1", training=TINY, stop={"iterations": 1}, **fields)
        run = train(project, run=tmp_path / engine, on_event=told.append)
        assert run.info["engine"] == engine
        assert run.info["engine_reason"] is reason is None or reason in run.info["engine_reason"]
        notes = [event["text"] for event in told if event["event"] == "note" and "kernel" in event["text"]]
        assert len(notes) == (engine == "torch"), notes


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty cache, and a numba that the compiling process cannot import; this one knows of no kernel yet."""
    (tmp_path / "broken" / "numba").mkdir(parents=True)
    (tmp_path / "broken" / "numba" / "__init__.py").write_text("raise ImportError('LLVM is not for this machine')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compilation, "_ready", threading.Event())
    compiled._compilation.cache_clear()
    compiled._said.cache_clear()
    yield
    compiled._compilation.cache_clear()


def test_a_compiler_that_fails_is_said_once_and_torch_goes_on(
    no_compiler: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quiet_rllib()
    compiled._compilation().wait(60.0)
    project = Project(sim="CartPole-v1", training=TINY, stop={"iterations": 2})
    told: list[Any] = []
    run = train(project, run=tmp_path / "run", on_event=told.append)
    reason = "it cannot be compiled: ImportError: LLVM is not for this machine"
    assert (run.info["engine"], run.info["engine_reason"]) == ("torch", reason)
    assert curves.summary(run)["engine_reason"] == reason
    text = f"torch learns, not the compiled kernel: {reason}"
    assert [event["text"] for event in told if event["event"] == "note"].count(text) == 1
    said = [record for record in caplog.records if record.name == "platotk" and reason in record.message]
    assert len(said) == 1
