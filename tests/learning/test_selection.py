"""Which checkpoint is the best: like compared with like, and what playing may cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from platotk import Project
from platotk.learning import checkpoints
from platotk.learning.selection import Allowance, Judged, Selection
from platotk.run import Run, create_run


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_playing_takes_a_tenth_of_the_run_and_is_tried_again_when_there_is_time() -> None:
    clock = Clock()
    allowance = Allowance(clock)
    assert allowance.seconds(is_last=False) == 2.0
    allowance.spend(2.0, 0.25)  # a quarter of the episodes: they need 8 s
    assert allowance.seconds(is_last=False) is None
    clock.now = 90.0
    assert allowance.seconds(is_last=False) is None  # 9 s less the 2 s that are gone
    assert allowance.seconds(is_last=True) == pytest.approx(9.0)
    clock.now = 100.0
    assert allowance.seconds(is_last=False) == pytest.approx(8.0)
    allowance.spend(5.0, 1.0)
    assert allowance.seconds(is_last=False) is None  # 3 s left, and it takes 5
    clock.now = 120.0
    assert allowance.seconds(is_last=False) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("new", "old", "is_better"),
    [
        (Judged(10.0, 50.0), Judged(40.0, 60.0), False),
        (Judged(10.0, 60.0), Judged(40.0, 60.0), True),  # between equals the newer one
        (Judged(45.0, None), Judged(40.0, 60.0), True),  # both have a training return
        (Judged(35.0, None), Judged(40.0, 60.0), False),
        (Judged(None, 60.0), Judged(40.0, None), True),  # nothing in common
        (Judged(None, None), Judged(40.0, None), False),
    ],
)
def test_checkpoints_are_compared_by_what_both_have(new: Judged, old: Judged, is_better: bool) -> None:
    assert new.beats(old) is is_better


def test_best_json_says_by_what_it_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations by hand: 50, none for want of time, none, 70."""
    run: Run = create_run(Project(sim="CartPole-v1"), run=tmp_path / "run")
    played = iter([50.0, None, None, 70.0])
    monkeypatch.setattr(Selection, "_play", lambda self, path, seconds: next(played))
    selection = Selection(run, None, lambda event: None)  # type: ignore[arg-type]
    expected: list[Any] = [
        (1, "evaluation", 50.0),
        (1, "evaluation", 50.0),
        (3, "training", 45.0),
        (4, "evaluation", 70.0),
    ]
    from platotk.journal import add_line

    for iteration, trained in enumerate([40.0, 39.0, 45.0, 46.0], start=1):
        line = {"iteration": iteration, "env_steps": iteration, "return_mean": trained}
        add_line(run.metrics_path, line)
        (run.path / "checkpoints" / f"{iteration:06d}").mkdir(parents=True)
        selection.consider(None, iteration, line, is_last=False)
        best = checkpoints.best(run.path)
        assert best is not None
        chosen = (int(Path(best["checkpoint"]).name), best["by"], best["return_mean"])
        assert chosen == expected[iteration - 1]
