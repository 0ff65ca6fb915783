"""A Python beside this one, for tests: it has all that this one has, and a package more or in another version."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.agents.inference_server import CACHE, OUTSIDE
from tests.one_at_a_time import one_at_a_time

ROOT = Path(__file__).resolve().parents[2]
INSIDE = "PLATOTK_TESTS_BESIDE"
"""Set for the tests that `run_tests` starts."""


def python_with(*words: str) -> Path:
    """A virtual environment over this one, and in it what pip is told to install; made once, which takes seconds."""
    here = sysconfig.get_path("purelib")
    key = hashlib.sha256("\n".join([*words, here, sys.version]).encode()).hexdigest()[:16]
    with one_at_a_time(CACHE / f"beside-{key}.lock"):
        home = CACHE / f"beside-{key}"
        python = home / "bin/python"
        if not (home / "complete").exists():
            shutil.rmtree(home, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
            (site,) = home.glob("lib/python*/site-packages")
            # Its own packages come first; those of this environment with its .pth files, platotk's for one.
            (site / "over.pth").write_text(f"import site; site.addsitedir({here!r})\n")
            install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *words]
            subprocess.run(install, cwd=ROOT, check=True, timeout=240, env=OUTSIDE)
            (home / "complete").touch()
    return python


def run_tests(python: Path, *words: str, timeout_s: float = 280) -> None:
    """Run tests of this project with such a Python: they and all that they start find its packages.

    Args:
        python: Of `python_with`.
        words: What pytest is told: files, ids, options.
        timeout_s: How long all of them may take.
    """
    # Neither the emulator nor the coverage of this process.
    environ = {name: value for name, value in OUTSIDE.items() if not name.startswith(("COVERAGE_", "PYTEST_"))}
    assert INSIDE not in environ, f"{python} lacks what it was made for"  # else without end
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**environ, INSIDE: "yes"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-20_000:]}{done.stderr[-2_000:]}"
    assert " passed" in done.stdout, done.stdout  # not all were skipped
