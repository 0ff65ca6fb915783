"""Microsoft's inference server, as an image of Azure has it: in a Python of its own, beside platotk with `serve`."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.one_at_a_time import one_at_a_time

from platotk.own_package import own_package

CACHE = Path(__file__).resolve().parents[2] / ".cache"
SERVER = "azureml-inference-server-http==1.5.1"
OUTSIDE = dict(os.environ)
"""The way to the package index, whatever a test makes of this process's environment later."""


def inference_python() -> Path:
    """The Python of that environment; made once for these sources, which takes pip half a minute."""
    with one_at_a_time(CACHE / "inference-server.lock"):
        wheel = own_package(CACHE)
        made_of = SERVER.encode() + wheel.read_bytes()
        home = CACHE / f"inference-server-{hashlib.sha256(made_of).hexdigest()[:16]}"
        python = home / "bin/python"
        if not (home / "complete").exists():
            for old in CACHE.glob("inference-server-*"):
                shutil.rmtree(old)
            subprocess.run([sys.executable, "-m", "venv", home], check=True)
            install = [python, "-m", "pip", "install", "--quiet", SERVER, f"{wheel}[serve]"]
            subprocess.run(install, check=True, timeout=280, env=OUTSIDE)
            (home / "complete").touch()
    return python
