"""What training survives of a sim, and what it does not: hangs, Ctrl-C from within, masks, what it printed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests import adversarial

from platotk import Project, SimError
from platotk.sims.inline import InlineSim, printed
from platotk.sims.loading import sim_spec
from platotk.sims.process import SimFailure, SimProcess
from platotk.sims.supervised import FailureBudget, SupervisedSim
from platotk.sims.vector import SimVector
from platotk.sims.workers import SimWorkers
from platotk.spaces import adapt


def spec_of(sim: Any) -> Any:
    return sim_spec(Project(sim=sim))


class Talks(adversarial.Clean):
    """Says who it is, and raises when it is told to."""

    name = "?"

    def advance(self, action: Any) -> None:
        super().advance(action)
        print(f"{self.name} at step {self.num_steps}")
        if np.asarray(action).reshape(-1)[0] < 0:
            raise adversarial.SimBroke("told to")


class One(Talks):
    name = "one"


class Other(Talks):
    name = "other"


def test_the_last_lines_are_those_of_the_sim_that_failed_since_it_was_made() -> None:
    one, other = (InlineSim(spec_of(sim), timeout_s=10.0) for sim in (One, Other))

    with printed.capture():
        for sim in (one, other):
            sim.reset(1, None)
            sim.step(np.ones(1))
        with pytest.raises(SimFailure) as failed:
            one.step(-np.ones(1))
        assert failed.value.output == "one at step 1\none at step 2"
        one.close(kill=True)
        one.reset(1, None)
        with pytest.raises(SimFailure) as failed:
            one.step(-np.ones(1))
        assert failed.value.output == "one at step 1"


def test_three_hangs_in_a_row_are_enough_and_a_good_step_between_them_is_not_in_a_row() -> None:
    hang = SimFailure("reset() did not return within 60 s (step_timeout_s)", is_hang=True)
    budget = FailureBudget("sim")
    for number in range(1, 7):
        budget.spend(hang, number)
        if number % 2 == 0:
            budget.refund()
    budget.spend(SimFailure("step() raised ValueError"), 7)
    budget.spend(hang, 8)
    budget.spend(hang, 9)
    with pytest.raises(SimError, match=r"failed 10 times, the last time: reset\(\) did not .*\n.*step_timeout_s"):
        budget.spend(hang, 10)


def test_a_sim_that_always_hangs_in_reset_ends_after_three_deadlines() -> None:
    sim = SupervisedSim(spec_of("tests.adversarial:HangsInReset"), seeds=np.random.SeedSequence(1), step_timeout_s=0.6)
    with pytest.raises(SimError, match="failed 3 times, the last time: reset"):
        sim.reset()
    assert sim.num_failures == 3


def test_an_interrupt_from_within_a_sim_is_its_failure_with_a_traceback() -> None:
    host = SimProcess(spec_of("tests.adversarial:RaisesInterrupt"), timeout_s=60.0)
    try:
        host.send("reset", 1, None)
        host.receive()
        for _ in range(99):
            host.send("step", np.zeros(1, np.float32))
            host.receive()
        host.send("step", np.zeros(1, np.float32))
        with pytest.raises(SimFailure) as failed:
            host.receive()
        assert failed.value.reason == "step() raised KeyboardInterrupt"
        assert "adversarial.py" in failed.value.details
    finally:
        host.close(kill=True)


def test_what_cannot_be_pickled_is_named_with_its_cure() -> None:
    host = SimProcess(spec_of(adversarial.unpicklable()), timeout_s=10.0)
    with pytest.raises(SimError, match=r"cannot be sent to another process: TypeError.*lock") as raised:
        host.send("spaces")
    assert 'sim="my_module:MySim"' in str(raised.value.hint)


@pytest.mark.parametrize("kind", [SimVector, SimWorkers])
def test_a_mask_that_allows_nothing_ends_training_with_its_step(kind: Any) -> None:
    sims = vector(kind, "tests.adversarial:AllMasked")
    try:
        sims.reset()
        with pytest.raises(SimError, match=r"action mask: nothing is allowed for .* after step 10 of the episode"):
            steps(sims, 10)
    finally:
        sims.close()


@pytest.mark.parametrize("kind", [SimVector, SimWorkers])
def test_where_an_episode_ends_a_mask_may_allow_nothing(kind: Any) -> None:
    sims = vector(kind, "tests.adversarial:MaskedAtEnd")
    try:
        sims.reset()
        observations, _, terminated, truncated, _ = steps(sims, 10)
        assert terminated.all()
        assert not truncated.any()
        assert np.all(observations["action_mask"] == 1)
        steps(sims, 5)
        assert sims.new_failures() == []
    finally:
        sims.close()


def test_each_failure_is_told_once_with_the_reason_of_its_own_sim() -> None:
    sims = vector(SimVector, One, num_envs=3)
    sims.reset()
    sims.step(np.array([[1.0], [-1.0], [1.0]], np.float32))
    assert sims.new_failures() == ["step() raised SimBroke: told to"]
    sims.step(np.ones((3, 1), np.float32))
    assert sims.new_failures() == []
    sims.step(-np.ones((3, 1), np.float32))
    assert len(sims.new_failures()) == 3
    sims.close()


def vector(kind: Any, sim: Any, num_envs: int = 2) -> Any:
    spec = spec_of(sim)
    made = spec.make()
    is_masked = isinstance(made, adversarial.AllMasked)
    adapter = adapt(made.observation_space, made.action_space, action_mask="info" if is_masked else None)
    return kind(spec, adapter, num_envs=num_envs, step_timeout_s=60.0)


def steps(sims: Any, number: int) -> Any:
    for _ in range(number):
        result = sims.step(np.zeros(sims.num_envs, np.int64))
    return result
