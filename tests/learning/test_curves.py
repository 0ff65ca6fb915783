"""The learning-curve page in a real browser without a network, and the figures that stand on it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from platotk import MissingExtraError, PlatoError, Project
from platotk.journal import Journal
from platotk.learning.curve_rows import curve_rows, evaluation_rows
from platotk.learning.curves import compare, summary, write_curves
from platotk.run import Run, create_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MARKS = "#{id} svg .mark-{kind}.role-mark path"


def line(iteration: int, **more: Any) -> dict[str, Any]:
    return {
        "iteration": iteration,
        "env_steps": iteration * 1000,
        "time_s": iteration * 2.0,
        "env_steps_per_s": 500.0,
        "episodes": iteration * 10,
        "return_mean": 100.0 * (1 - 0.9**iteration),
        "return_min": 50.0 * (1 - 0.9**iteration),
        "return_max": 120.0 * (1 - 0.9**iteration),
        "episode_length_mean": 20.0,
        "sim_failures": 0,
        "attempt": 1,
        **more,
    }


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """A run in tmp_path/runs with these journal lines."""

    def make(name: str, lines: list[dict[str, Any]], *overrides: str) -> Run:
        (tmp_path / "plato.yaml").write_text("name: tank\nsim: CartPole-v1\nalgorithm: PPO\n")
        project = Project.load(tmp_path, overrides=overrides)
        run = create_run(project, run=tmp_path / "runs" / name, command=["plato", "train"])
        if lines:
            Journal(run.metrics_path).append(lines[0])  # the others faster
            with run.metrics_path.open("a") as stream:
                stream.writelines(json.dumps(more) + "\n" for more in lines[1:])
        run.update(status="finished", attempt=1, algorithm="PPO", reason="iterations reached 30")
        return run

    return make


@pytest.fixture
def run(make_run: Callable[..., Run]) -> Run:
    """30 iterations, evaluated at every fifth, iteration 25 the best."""
    run = make_run("night", [line(n) for n in range(1, 31)])
    for iteration in range(5, 31, 5):
        run.add_evaluation(
            iteration,
            env_steps=iteration * 1000,
            return_mean=90.0 + (iteration == 25) * 5 - 30 / iteration,
            episodes=20,
        )
    judged_best(run, 25, 93.8)
    return run


def judged_best(run: Run, iteration: int, return_mean: float, by: str = "evaluation") -> None:
    best = {
        "checkpoint": f"checkpoints/{iteration:06d}",
        "return_mean": return_mean,
        "by": by,
        "episodes": 20,
    }
    (run.path / "best.json").write_text(json.dumps(best))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.fail("no Chromium: sudo apt-get update && sudo apt-get install -y chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page offline and draws it; any request, console message or error fails the test."""
    wrong: list[str] = []
    contexts = []

    def opened(path: Path, *, scheme: str = "light", width: int = 1200, has_charts: bool = True) -> Page:
        context = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": width, "height": 900})  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on(
            "request",
            lambda request: None if request.url == path.as_uri() else wrong.append(request.url[:200]),
        )
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-drawn]", timeout=60_000)
        if has_charts:
            page.wait_for_selector("#rates svg")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def count(page: Page, chart: str, kind: str) -> int:
    """Marks of a kind that are really drawn: with a shape, and not transparent."""
    return int(
        page.evaluate(
            "query => [...document.querySelectorAll(query)].filter(mark => "
            "(mark.getAttribute('d') || '').length > 2 && mark.getAttribute('opacity') !== '0').length",
            MARKS.format(id=chart, kind=kind),
        )
    )


# --- the page


def test_a_run_is_drawn_offline_with_its_band_line_evaluations_and_best(
    run: Run, tmp_path: Path, open_page: Callable[..., Page]
) -> None:
    page = open_page(write_curves([run], tmp_path / "curves.html"))
    assert page.title() == "night"
    assert count(page, "returns", "area") == 1
    assert count(page, "returns", "line") == 1
    assert count(page, "returns", "symbol") == 30 + 6 + 1  # iterations, evaluations, a ring round the best
    assert page.locator("#returns svg .mark-text.role-mark text").all_text_contents() == ["best"]
    assert count(page, "lengths", "line") == count(page, "rates", "line") == 1
    box = page.locator("#returns svg").bounding_box()
    assert box is not None
    assert box["width"] > 900
    assert box["height"] > 300
    screenshot = tmp_path / "curves.png"
    page.screenshot(path=screenshot, full_page=True)
    assert screenshot.stat().st_size > 20_000


def test_the_header_says_what_it_is_and_how_it_went(run: Run, tmp_path: Path, open_page: Callable[..., Page]) -> None:
    page = open_page(write_curves([run], tmp_path / "curves.html"))
    head = page.locator("header").inner_text()
    assert [word for word in ("night", "finished", "PPO", "seed 0", "iterations reached 30") if word not in head] == []
    tiles = dict(
        zip(
            page.locator(".tile span").all_inner_texts(),
            page.locator(".tile b").all_inner_texts(),
            strict=True,
        )
    )
    assert tiles == {
        "best return, evaluated": "93.8",
        "last return": "95.76",
        "env steps": "30,000",
        "training time": "1:00",
        "env steps/s": "500",
        "episodes": "300",
    }
    page.locator("details summary").click()
    about = page.locator("details").inner_text()
    assert f"ray {run.info['versions']['ray']}" in about
    assert "sim: CartPole-v1" in about


@pytest.mark.parametrize(("axis", "title"), [("time", "training time, seconds"), ("iteration", "iterations")])
def test_the_horizontal_axis_can_be_time_or_iterations(
    run: Run, tmp_path: Path, open_page: Callable[..., Page], axis: str, title: str
) -> None:
    page = open_page(write_curves([run], tmp_path / "curves.html"))
    assert "env steps" in (page.locator("#returns svg").text_content() or "")
    page.click(f"button[data-axis={axis}]")
    page.wait_for_selector(f"body[data-drawn={axis}]")
    assert title in (page.locator("#returns svg").text_content() or "")
    assert page.locator("button[aria-pressed=true]").all_inner_texts() == ["Time" if axis == "time" else "Iterations"]
    assert count(page, "returns", "line") == 1


def test_pointing_at_the_curve_shows_its_figures(run: Run, tmp_path: Path, open_page: Callable[..., Page]) -> None:
    page = open_page(write_curves([run], tmp_path / "curves.html"))
    box = page.locator("#returns svg").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.6)
    page.mouse.move(box["x"] + box["width"] * 0.4 + 3, box["y"] + box["height"] * 0.6)
    page.wait_for_selector("#vg-tooltip-element.visible")
    told = page.locator("#vg-tooltip-element").inner_text()
    assert "undefined" not in told
    assert re.search(r"run\s+night", told)
    assert re.search(r"lowest\s+\d", told)


def test_dark_and_light_have_colours_of_their_own(run: Run, tmp_path: Path, open_page: Callable[..., Page]) -> None:
    path = write_curves([run], tmp_path / "curves.html")
    seen = set()
    for scheme in ("light", "dark"):
        page = open_page(path, scheme=scheme)
        stroke = page.locator("#returns svg .mark-line.role-mark path").first.get_attribute("stroke")
        seen.add((page.evaluate("getComputedStyle(document.body).backgroundColor"), stroke))
    assert len({background for background, _ in seen}) == len({stroke for _, stroke in seen}) == 2


def test_a_narrow_window_holds_it_without_scrolling_sideways(
    run: Run, tmp_path: Path, open_page: Callable[..., Page]
) -> None:
    page = open_page(write_curves([run], tmp_path / "curves.html"), width=420)
    assert page.evaluate("document.documentElement.scrollWidth") <= 420


def test_runs_are_compared_in_colours_and_can_be_switched_off(
    make_run: Callable[..., Run], tmp_path: Path, open_page: Callable[..., Page]
) -> None:
    fast = make_run("fast", [line(n) for n in range(1, 31)], "training.lr=1e-3", "seed=1")
    slow = make_run("slow", [line(n, return_mean=float(n)) for n in range(1, 21)], "training.lr=1e-4", "seed=2")
    page = open_page(write_curves([fast, slow], tmp_path / "curves.html"))
    assert count(page, "returns", "line") == count(page, "returns", "area") == 2
    strokes = [path.get_attribute("stroke") for path in page.locator("#returns svg .mark-line.role-mark path").all()]
    assert len(set(strokes)) == 2
    headings = page.locator("thead th").all_inner_texts()
    assert headings[-2:] == ["seed", "training.lr"]
    assert [row.locator("td").last.inner_text() for row in page.locator("tbody tr:has(.swatch)").all()] == [
        "0.001",
        "0.0001",
    ]
    page.click("button[data-run=slow]")
    page.wait_for_function("document.querySelectorAll('#returns svg .mark-line.role-mark path').length == 1")
    assert page.locator("button[data-run=slow]").get_attribute("aria-pressed") == "false"


@pytest.mark.parametrize("lines", [[], [line(1, return_mean=None, return_min=None, return_max=None)]])
def test_no_iteration_and_no_return_yet_are_said_in_words(
    make_run: Callable[..., Run], tmp_path: Path, open_page: Callable[..., Page], lines: list[dict[str, Any]]
) -> None:
    run = make_run("early", lines)
    page = open_page(write_curves([run], tmp_path / "curves.html"), has_charts=bool(lines))
    said = page.locator(".empty").inner_text()
    assert said == (
        "No episode has ended yet, so there is no return to draw." if lines else "No iteration has been journalled yet."
    )


def test_one_iteration_is_a_point(make_run: Callable[..., Run], tmp_path: Path, open_page: Callable[..., Page]) -> None:
    page = open_page(write_curves([make_run("one", [line(1)])], tmp_path / "curves.html"))
    assert count(page, "returns", "symbol") == 1


def test_ten_thousand_iterations_are_thinned_out_and_the_file_stays_small(
    make_run: Callable[..., Run], tmp_path: Path, open_page: Callable[..., Page]
) -> None:
    lines = [
        line(n, return_mean=None if n % 7 == 0 else float(n), return_max=n + (n == 5005) * 1e6)
        for n in range(1, 10_001)
    ]
    run = make_run("long", lines)
    path = write_curves([run], tmp_path / "curves.html")
    assert path.stat().st_size < 2_000_000
    rows = curve_rows("long", run, 1000)
    assert len(rows) == 1000
    assert rows[-1]["env_steps"] == 10_000_000
    assert max(row["max"] for row in rows) == 5005 + 1e6  # no peak is lost
    page = open_page(path)
    assert count(page, "returns", "line") == 1


def test_nothing_in_a_run_can_become_part_of_the_page(
    make_run: Callable[..., Run], tmp_path: Path, open_page: Callable[..., Page]
) -> None:
    evil = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    run = make_run("evil <b>'\"&", [line(1)])
    run.update(status="failed", reason=evil, error=evil, command=[evil], mapping=[evil], algorithm=evil)
    page = open_page(write_curves([run, make_run("two", [line(1)])], tmp_path / "curves.html"))
    assert page.title() == "2 runs"
    page = open_page(write_curves([run], tmp_path / "curves.html"))
    assert page.title() == "evil <b>'\"&"
    assert evil in page.locator(".error").inner_text()


def test_the_page_names_no_address_to_load_from(run: Run, tmp_path: Path) -> None:
    text = write_curves([run], tmp_path / "curves.html").read_text("utf-8")
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"(?:src|href|url|import)\s*[=(]", own)
    assert "default-src 'none'" in text
    assert "connect-src" not in text


def test_the_drawing_library_is_bundled_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = write_curves([run], tmp_path / "a.html").read_text("utf-8")
    (kept,) = (tmp_path / "cache/platotk").iterdir()
    assert kept.read_text("utf-8") in first
    kept.write_text("/* kept */")
    assert "<script>/* kept */</script>" in write_curves([run], tmp_path / "b.html").read_text("utf-8")
    (tmp_path / "no-folder").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no-folder"))
    assert len(write_curves([run], tmp_path / "c.html").read_text("utf-8")) == len(first)


def test_without_altair_it_says_what_to_install(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(MissingExtraError, match="altair is not installed"):
        write_curves([run], tmp_path / "curves.html")
    with pytest.raises(PlatoError, match="no run to draw"):
        write_curves([], tmp_path / "curves.html")


# --- the figures


def test_the_summary_is_what_the_journal_and_best_json_say(run: Run) -> None:
    said = summary(run)
    assert (said["run"], said["status"], said["algorithm"], said["iteration"]) == (
        "night",
        "finished",
        "PPO",
        30,
    )
    assert (said["env_steps"], said["time_s"], said["env_steps_per_s"]) == (30_000, 60.0, 500.0)
    assert (said["best_return"], said["best_checkpoint"], said["best_by"]) == (
        93.8,
        "checkpoints/000025",
        "evaluation",
    )
    json.dumps(said, allow_nan=False)


def test_a_run_that_has_only_begun_has_a_summary_too(make_run: Callable[..., Run]) -> None:
    said = summary(make_run("begun", []))
    assert (said["iteration"], said["env_steps"], said["return_mean"], said["best_return"]) == (
        0,
        0,
        None,
        None,
    )


def test_the_best_of_a_run_without_checkpoints_is_its_best_training_return(
    make_run: Callable[..., Run],
) -> None:
    said = summary(make_run("early", [line(1, return_mean=5.0), line(2, return_mean=None), line(3, return_mean=4.0)]))
    assert (said["best_return"], said["best_by"], said["best_checkpoint"]) == (5.0, "training", None)


def test_a_broken_run_says_what_is_wrong_with_it(run: Run, tmp_path: Path, open_page: Callable[..., Page]) -> None:
    (run.path / "run.json").write_text("{")
    said = summary(run)
    assert (said["run"], said["status"]) == ("night", "broken")
    assert "cannot be read" in said["problem"]
    page = open_page(write_curves([run], tmp_path / "curves.html"))
    assert "cannot be read" in page.locator(".error").inner_text()


def test_compare_shows_by_dotted_key_what_differs_and_nothing_else(make_run: Callable[..., Run]) -> None:
    one = make_run("one", [line(1)], "training.lr=1e-3", "stop.iterations=10")
    two = make_run("two", [line(1)], "training.lr=1e-4", "stop.iterations=10", "training.gamma=0.9")
    rows = compare([one, two])
    assert [row["run"] for row in rows] == ["one", "two"]
    assert [(row["training.lr"], row["training.gamma"]) for row in rows] == [(1e-3, None), (1e-4, 0.9)]
    assert not [key for key in rows[0] if key.startswith(("stop.", "versions.", "sim_config"))]
    assert "training.lr" not in compare([one, one])[0]


def test_rllibs_evaluations_are_drawn_and_ours_count_more(make_run: Callable[..., Run]) -> None:
    theirs = {"evaluation": {"env_runners": {"episode_return_mean": 7.0, "num_episodes": 3}}}
    run = make_run("both", [line(1, rllib=theirs), line(2, rllib=theirs), line(3)])
    run.add_evaluation(2, env_steps=2000, return_mean=8.0, episodes=20)
    judged_best(run, 3, 9.0, by="training")
    assert [(row["iteration"], row["mean"], row["is_best"], row["by"]) for row in evaluation_rows("both", run)] == [
        (1, 7.0, False, "evaluation"),
        (2, 8.0, False, "evaluation"),
        (3, 9.0, True, "training"),
    ]


def test_figures_need_no_altair() -> None:
    heavy = "{'altair', 'vl_convert', 'ray', 'torch', 'mlflow'}"
    code = f"import sys, platotk.learning.curves; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
