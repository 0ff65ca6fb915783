"""README.md and the Makefile: one screen, two commands, and a demo that leads on to one's own project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs_blocks import ROOT, blocks, follow
from tests.uncovered import uncovered

README = ROOT / "README.md"


def test_it_fits_on_one_screen() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 60


@pytest.mark.slow  # the demo and the quickstart type the same
@pytest.mark.timeout(600)
def test_every_block_runs(tmp_path: Path) -> None:
    assert follow(README, tmp_path) >= 3


def test_the_two_commands_are_make_targets_and_ci_runs_the_second() -> None:
    first = blocks(README.read_text("utf-8"))[0].text
    commands = [line.split("#")[0].strip() for line in first.splitlines()]
    assert commands == ["make demo", "make test"]
    assert re.search(r"(?m)^make test$", (ROOT / ".ci/run").read_text("utf-8"))
    assert os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.parametrize("target", ["install", "demo", "test", "test-all", "fmt", "check", "bench", "docs"])
def test_make_knows_the_target(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_picture_is_there() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README.read_text("utf-8"))
    assert pictures
    assert [name for name in pictures if (ROOT / name).stat().st_size < 5_000] == []


def test_the_lock_names_no_place_to_download_from() -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    assert re.findall(r"https?://|file:|--(?:extra-)?index-url|--find-links|\+cpu", lock) == []
    pinned = set(re.findall(r"(?m)^([a-z0-9-]+)==", lock))
    assert {"ray", "torch", "gymnasium", "numpy", "mlflow-skinny", "pytest", "mkdocs"} <= pinned


@pytest.mark.timeout(600)
def test_the_demo_leads_a_new_shell_to_a_project_of_its_own(tmp_path: Path) -> None:
    """The demo on a copy of the sample, cut to two iterations; then its last lines in a bare shell."""
    example = tmp_path / "simple-adder"
    shutil.copytree(ROOT / "examples/simple-adder", example, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    demo = subprocess.run(
        ["make", "demo", f"DEMO={example}", "DEMO_TRAIN=--set stop.iterations=2", "-o.venv/.installed"],
        cwd=ROOT,
        env=uncovered(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    printed = demo.stdout.partition("Next, in a new shell, a project of your own:")[2]
    typed = [line.strip() for line in printed.splitlines() if line.startswith("  ")]
    assert typed[0].startswith(". ")
    assert typed[-1] == "plato train"
    home = tmp_path / "a home with spaces"
    home.mkdir()
    bare = {"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
    bare["XDG_CACHE_HOME"] = os.environ["XDG_CACHE_HOME"]
    script = "\n".join([*typed[:-1], "plato train --set stop.iterations=2"])
    shell = subprocess.run(["bash", "-euc", script], cwd=home, env=bare, capture_output=True, text=True, check=False)
    assert shell.returncode == 0, shell.stdout + shell.stderr
    runs = list(home.glob("first-agent/runs/*/metrics.jsonl"))
    assert len(runs) == 1
    assert len(runs[0].read_text("utf-8").splitlines()) == 2


def test_the_base_needs_neither_ray_nor_torch() -> None:
    """What importing the package and asking for help really loads, in a fresh interpreter."""
    heavy = {"ray", "torch", "mlflow", "pandas"}
    code = f"import sys, platotk, platotk.cli; print(*sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == ""
