"""The start-up benchmark: its table is honest about its bounds, and its section is replaced, not edited."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/startup.py"


@pytest.fixture(scope="module")
def startup() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT), run_name="startup"))


def test_a_bound_that_is_not_kept_is_said(startup: SimpleNamespace) -> None:
    slow = startup.Comparison("`plato --help`", "`python -c pass`", [0.5, 0.4, 0.6], [0.1, 0.1, 0.1], bound_s=0.3)
    assert "NOT kept" in slow.row()
    assert "0.50 (0.40 to 0.60, n=3)" in slow.row()
    quick = startup.Comparison("train", "bare", [1.2], [1.0], bound_ratio=1.3)
    assert "<= 1.3x: kept" in quick.row()


def test_the_two_sides_take_turns_and_the_first_pair_is_not_counted(startup: SimpleNamespace) -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    ours, others = startup._take_turns(2, lambda: side("ours"), lambda: side("other"))
    assert order == ["ours", "other"] * 3
    assert (ours, others) == ([3.0, 5.0], [4.0, 6.0])


def test_only_its_own_section_is_written_anew(startup: SimpleNamespace, tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    startup.write_section(page, "startup", "old")
    startup.write_section(page, "learning", "another")
    startup.write_section(page, "startup", "new")
    text = page.read_text("utf-8")
    assert "old" not in text
    assert text.index("new") < text.index("another")
    assert text.count("end of startup") == 1


def test_it_says_where_it_ran(startup: SimpleNamespace) -> None:
    assert "cores" in startup.machine()
    assert "ray 2." in startup.versions()


def test_figures_of_a_busy_machine_say_so(startup: SimpleNamespace) -> None:
    one = startup.Comparison("train", "bare", [1.2], [1.0])
    assert "busy with other work" in startup.report([one], 100.0)
    assert "busy with other work" not in startup.report([one], 0.0)
