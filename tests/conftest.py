"""Shared by all tests: one Ray for the whole session, and projects in folders of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.uncovered import uncovered

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two torch threads beside other work wait for each other
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray's workers give way to everything else (niceness 15): beside other tests they would hardly move.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # most tests need no worker
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Processes with a home of their own share what was compiled and bundled once: it costs each some ten seconds otherwise.
os.environ.setdefault("XDG_CACHE_HOME", str(Path.home() / ".cache"))


LONG = ("test_docs.py", "test_readme.py", "test_cli.py", "test_tuning.py", "test_checks.py")
"""They take minutes, so they start first: at the end, the others would wait for them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One small Ray for every test that trains in this process."""
    import ray

    was_up = ray.is_initialized()
    if not was_up:
        with pytest.MonkeyPatch.context() as patch:
            for name in os.environ.keys() - uncovered().keys():  # Ray's processes keep the environment of their start
                patch.delenv(name)
            ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    if not was_up:
        ray.shutdown()


@pytest.fixture
def project_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a project into a folder of its own and makes it the current one."""

    def write(plato_yaml: str, **modules: str) -> Path:
        (tmp_path / "plato.yaml").write_text(plato_yaml, encoding="utf-8")
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return write


@pytest.fixture
def events() -> tuple[list[dict[str, Any]], Callable[[dict[str, Any]], None]]:
    """A list, and a function that collects events into it."""
    collected: list[dict[str, Any]] = []
    return collected, collected.append
