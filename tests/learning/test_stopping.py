"""When training stops by a rule, and when it gives up on env runners that bring nothing."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from platotk.learning.patience import Patience, patience_s
from platotk.learning.stopping import Interrupts, StopRequested, StopRules


def line(iteration: int, *, time_s: float = 0.0, return_mean: float | None = None) -> dict[str, Any]:
    return {"iteration": iteration, "env_steps": 100 * iteration, "time_s": time_s, "return_mean": return_mean}


def stopped_at(rules: StopRules, lines: list[dict[str, Any]]) -> tuple[int, str] | None:
    for one in lines:
        if reason := rules.add(one):
            return one["iteration"], reason
    return None


# --- rules


def test_time_is_met_at_the_first_line_that_is_late_enough() -> None:
    lines = [line(number, time_s=4.0 * number) for number in range(1, 10)]
    assert stopped_at(StopRules(time_s=20.0), lines) == (5, "time reached 20 s")
    assert StopRules(time_s=20.0).progress(lines[0]) == {"rule": "time", "fraction": 0.2, "eta_s": pytest.approx(16.0)}


def test_return_mean_is_met_when_it_is_reached_and_not_before_an_episode_has_ended() -> None:
    returns = [None, -50.0, -31.6, -31.5, -40.0]
    lines = [line(number, return_mean=value) for number, value in enumerate(returns, 1)]
    assert stopped_at(StopRules(return_mean=-31.5), lines) == (4, "return_mean reached -31.5")
    assert StopRules(return_mean=-31.5).progress(lines[0]) == {"rule": "return_mean", "fraction": None, "eta_s": None}


def test_a_plateau_is_met_after_so_many_iterations_without_a_better_return() -> None:
    returns = [None, None, None, None, 1.0, 3.0, 2.0, 3.0, 2.9, 5.0]
    lines = [line(number, return_mean=value) for number, value in enumerate(returns, 1)]
    reason = "plateau: no better return_mean than 3 in 3 iterations"
    assert stopped_at(StopRules(plateau=3), lines) == (9, reason), "an equal return is no better one; None never counts"
    assert stopped_at(StopRules(plateau=4), lines) is None, "a better one in time begins the count anew"


def test_the_first_rule_that_is_met_stops_and_the_nearest_one_is_shown() -> None:
    rules = StopRules(iterations=10, env_steps=400, time_s=100.0, return_mean=9.0, plateau=50)
    lines = [line(number, time_s=float(number), return_mean=float(number)) for number in range(1, 12)]
    assert rules.progress(lines[1]) == {"rule": "env_steps", "fraction": 0.5, "eta_s": pytest.approx(2.0)}
    assert stopped_at(rules, lines) == (4, "env_steps reached 400")


# --- patience


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_empty_iterations_of_healthy_runners_are_borne_for_the_time_they_have() -> None:
    clock = Clock()
    patience = Patience(100.0, clock)
    for _ in range(9):
        clock.now += 10.0
        assert patience.starved(0, 0) is None
    patience.fed(0)
    clock.now += 99.0
    assert patience.starved(0, 0) is None
    clock.now += 1.0
    assert patience.starved(0, 0) == "no env runner delivered a single step in 100 s"


def test_runners_that_end_again_and_again_are_given_up_soon() -> None:
    patience = Patience(1e9)
    assert patience.starved(0, 1) is None
    assert patience.starved(1, 0) is None, "restarted meanwhile: lost all the same"
    reason = patience.starved(1, 1)
    assert reason is not None
    assert "in 3 iterations" in reason


def test_runners_that_were_lost_and_came_back_are_forgiven() -> None:
    patience = Patience(1e9)
    for number in range(1, 10):
        assert patience.starved(number, 0) is None
        assert patience.starved(number, 0) is None, "nothing new was lost"
        patience.fed(number)


def test_slow_sims_get_ten_times_what_a_batch_takes() -> None:
    config = SimpleNamespace(total_train_batch_size=500, num_env_runners=2, sample_timeout_s=60.0)
    assert patience_s(config, 1.0) == 2500.0
    assert patience_s(config, 0.0) == 60.0
    config.sample_timeout_s = 600.0
    assert patience_s(config, 0.001) == 600.0


def test_a_signal_that_comes_while_ray_waits_is_a_request_to_stop_all_the_same() -> None:
    def wait() -> None:
        """As Ray's own code: what a handler raises inside it comes out as the cause of something else."""
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except StopRequested as raised:
            raise SystemError("returned a result with an exception set") from raised

    with Interrupts(grace_s=5.0) as interrupts, pytest.raises(StopRequested), interrupts.sampling():
        wait()
    assert interrupts.signal_name == "SIGTERM"
    with Interrupts(grace_s=5.0) as interrupts, pytest.raises(SystemError), interrupts.sampling():
        raise SystemError("Ray's own")
