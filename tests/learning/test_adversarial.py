"""Sims that misbehave, each trained for two iterations: they learn all the same, or end with a clear message.

`tests/adversarial.py` has them. Those that each try another way through the house run by default, the rest with
`make test-all`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests import adversarial

from platotk import Project, Run, SimError, train


class Case(NamedTuple):
    """How a training with a sim ends."""

    sim: str
    num_failures: range = range(1)
    """Of the sims, when it finishes."""
    error: str | None = None
    """Of the SimError, when it does not."""
    told: str = ""
    """A part of a warning."""
    batch: int = 512
    config: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple's default


SOME = range(1, 200)
BY_DEFAULT = [
    Case("unpicklable", error="cannot be sent to another process"),
    Case("AllMasked", error="action mask: nothing is allowed for .* after step 10 of the episode"),
    Case("NanAtStep500", SOME, told="a sim failed: observation"),
]
REST = [
    Case("OldStep", error=r"step\(\) returned 4 values; it must return"),
    Case("Float64Observation"),
    Case("IntegerBox"),
    Case("ScalarBox"),
    Case("NestedTuple"),
    Case("ListObservation"),
    Case("DtypeChanges"),
    Case("InPlaceObservation"),
    Case("ConstantReward"),
    Case("Unseeded"),
    Case("Leaks"),
    Case("PrintFlood"),
    Case("WrongTypes"),
    Case("Slow", batch=8, config={"step_s": 1.0}),
    Case("UnpicklableInfo"),
    Case("MaskedAtEnd"),
    Case("RaisesSometimes", SOME, told="step() raised SimBroke: the valve is stuck"),
    Case("RaisesInterrupt", SOME, told="step() raised KeyboardInterrupt"),
    Case("HangsAtStep300", SOME, told="step() did not return within 2 s"),
    Case("Exits", SOME, told="step() called sys.exit('license expired')"),
    Case("ExitsHard", SOME, told="exited with code 3 in step()"),
    Case("Aborts", SOME, told="crashed with SIGABRT in step()"),
    Case("OldReset", error=r"reset\(\) returned ndarray; it must return \(observation, info\)"),
    Case("BareReset", error=r"reset\(\) raised TypeError.*unexpected keyword argument 'seed'"),
    Case("RaisesAlways", error="the valve is stuck"),
    Case("HangsInReset", error=r"failed 3 times, the last time: reset\(\) did not return within 2 s"),
    Case("WrongShape", error="observation: "),
    Case("NanReward", error=r"failed \d+ times, the last time: step\(\) returned the reward nan"),
]


@pytest.mark.parametrize(
    "case",
    [*BY_DEFAULT, *(pytest.param(case, marks=pytest.mark.slow) for case in REST)],
    ids=lambda case: case.sim,
)
def test_it_trains_or_says_why_not(tmp_path: Path, capfd: pytest.CaptureFixture[str], case: Case) -> None:
    warnings: list[str] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "warning":
            warnings.append(event["text"])

    project = Project(
        sim=adversarial.unpicklable() if case.sim == "unpicklable" else f"tests.adversarial:{case.sim}",
        sim_config=case.config,
        name="test",
        stop={"iterations": 2},
        step_timeout_s=2.0,
        training={"train_batch_size_per_learner": case.batch, "minibatch_size": case.batch, "num_epochs": 1},
        env_runners={"num_env_runners": 0, "num_envs_per_env_runner": 2},
        tracking={"mlflow": False},
    )
    if case.error is not None:
        with pytest.raises(SimError, match=case.error) as raised:
            train(project, run=tmp_path / "run", on_event=on_event)
        assert raised.value.hint, "every message says how to go on"
        if (tmp_path / "run").exists():
            assert Run(tmp_path / "run").status == "failed"
    else:
        run = train(project, run=tmp_path / "run", on_event=on_event)
        assert run.status == "finished"
        lines = run.metrics()
        assert [line["iteration"] for line in lines] == [1, 2]
        assert lines[-1]["env_steps"] >= 2 * case.batch
        assert lines[-1]["sim_failures"] in case.num_failures, run.info.get("last_sim_failure")
        assert any(case.told in text for text in [*warnings, ""]), warnings
        assert run.latest is not None
    assert capfd.readouterr().out == "", "stdout is for answers"
