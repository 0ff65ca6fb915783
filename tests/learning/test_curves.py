"""The learning-curve page opens offline in a real browser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from platotk.journal import Journal
from platotk.learning.curves import compare, summary, write_curves
from platotk.project import Project
from platotk.run import Run, create_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def make_run(folder: Path, num_lines: int, *, lr: float = 1e-3) -> Run:
    run = create_run(Project(sim="CartPole-v1", name="curve", training={"lr": lr}), runs_dir=folder)
    with run.metrics_path.open("w", encoding="utf-8") as stream:
        for i in range(1, num_lines + 1):
            line = {
                "iteration": i,
                "env_steps": 4000 * i,
                "time_s": 1.5 * i,
                "env_steps_per_s": 2500.0 + i % 7,
                "episodes": 10 * i,
                "return_mean": None if i == 1 else 500 * (1 - 0.9**i),
                "return_min": None if i == 1 else 300 * (1 - 0.9**i),
                "return_max": None if i == 1 else 500.0,
                "episode_length_mean": 20.0 + i,
                "attempt": 1,
                "sim_failures": 0,
            }
            stream.write(json.dumps(line) + "\n")
    (run.path / "checkpoints" / "000020").mkdir(parents=True)
    (run.path / "best.json").write_text(
        json.dumps({"checkpoint": "000020", "return_mean": 440.0, "by": "evaluation", "episodes": 20})
    )
    return run


def test_the_page_opens_offline_and_draws_its_curves(tmp_path):
    assert CHROMIUM, "Chromium is not installed; install it with: apt-get install -y chromium"
    from playwright.sync_api import sync_playwright

    page_path = write_curves([make_run(tmp_path, 40)], tmp_path / "curves.html")
    assert page_path is not None
    assert page_path.stat().st_size < 2_000_000
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        context = browser.new_context(viewport={"width": 1100, "height": 1000}, offline=True)
        asked: list[str] = []
        context.route("http://**", lambda route: (asked.append(route.request.url), route.abort()))
        context.route("https://**", lambda route: (asked.append(route.request.url), route.abort()))
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(page_path.as_uri())
        page.wait_for_selector("#curves svg", timeout=20_000)
        lines = page.locator("#curves svg g.mark-line path").count()
        points = page.locator("#curves svg g.mark-symbol path").count()
        text = page.inner_text("body")
        page.screenshot(path=str(tmp_path / "curves.png"))
        browser.close()
    assert errors == []
    assert asked == []
    assert lines >= 3
    assert points > 30
    assert "environment steps" in text
    assert "440" in text


def test_a_run_without_iterations_has_no_page(tmp_path):
    run = create_run(Project(sim="CartPole-v1", name="empty"), runs_dir=tmp_path)
    assert write_curves([run], tmp_path / "curves.html") is None


def test_long_journals_are_thinned(tmp_path):
    page = write_curves([make_run(tmp_path, 10_000)], tmp_path / "curves.html")
    assert page is not None
    assert page.stat().st_size < 2_000_000


def test_the_summary_tells_the_last_line_and_the_best(tmp_path):
    figures = summary(make_run(tmp_path, 40))
    assert figures["iteration"] == 40
    assert figures["env_steps"] == 160_000
    assert figures["best_return_mean"] == 440.0


def test_compare_shows_only_the_settings_that_differ(tmp_path):
    rows = compare([make_run(tmp_path, 5, lr=1e-3), make_run(tmp_path, 5, lr=1e-4)])
    assert [row["training.lr"] for row in rows] == [1e-3, 1e-4]
    assert "seed" in rows[0]
    assert "max_episode_steps" not in rows[0]


def test_a_broken_folder_says_so(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")
    assert summary(Run(tmp_path / "bad"))["status"] == "broken"


@pytest.mark.parametrize("num_runs", [2])
def test_several_runs_share_one_page(tmp_path, num_runs):
    runs = [make_run(tmp_path / str(i), 20) for i in range(num_runs)]
    page = write_curves(runs, tmp_path / "curves.html")
    assert page is not None
    assert all(run.name in page.read_text(encoding="utf-8") for run in runs)


def test_the_journal_the_page_reads_is_the_one_training_writes(tmp_path):
    run = create_run(Project(sim="CartPole-v1", name="journal"), runs_dir=tmp_path)
    Journal(run.metrics_path).append({"iteration": 1, "env_steps": 100, "time_s": 1.0, "return_mean": float("nan")})
    assert run.metrics()[0]["return_mean"] is None
    assert write_curves([run], tmp_path / "curves.html") is not None
