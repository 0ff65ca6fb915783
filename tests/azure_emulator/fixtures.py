"""The emulator as tests use it: running, in this process's environment, and held to having known every request."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .azurite import azurite
from .emulator import Emulator


@contextlib.contextmanager
def running(folder: Path, *, needs_blobs: bool = True, **options: Any) -> Iterator[Emulator]:
    """An emulator that this process and its children find instead of Azure; for fixtures of any scope."""
    if needs_blobs:
        azurite()
    with Emulator(folder, **options) as emulator, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.lower() in ("https_proxy", "http_proxy", "no_proxy")]:
            patch.delenv(name)
        for name, value in emulator.environ.items():
            patch.setenv(name, value)
        yield emulator
        told = "\n".join(emulator.unrouted)
        assert not emulator.unrouted, f"requests that the emulator does not know, or failed at:\n{told}"
        told = "\n".join(emulator.invalid)
        assert not emulator.invalid, f"bodies that the SDK's models do not allow:\n{told}"


@pytest.fixture
def azure(tmp_path: Path) -> Iterator[Emulator]:
    """An emulator for one test."""
    with running(tmp_path / "azure") as emulator:
        yield emulator
