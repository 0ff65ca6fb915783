"""Numbers, times, paths and commands as people read and type them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from platotk import formats


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (3, "3"), (1_234_567, "1,234,567"), (0.123456, "0.1235"), (-98765.4, "-98,765")],
)
def test_numbers(value: float | None, shown: str) -> None:
    assert formats.number(value) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0 s"), (59, "59 s"), (80, "1:20"), (7500, "2:05:00")])
def test_durations(seconds: float, shown: str) -> None:
    assert formats.duration(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(5, "just now"), (61, "1 minute ago"), (7300, "2 hours ago"), (200_000, "2 days ago")],
)
def test_times_ago(seconds: int, shown: str) -> None:
    assert formats.ago((datetime.now(timezone.utc) - timedelta(seconds=seconds)).isoformat()) == shown


def test_a_sparkline_rises_with_its_values_and_keeps_its_width() -> None:
    assert formats.sparkline([1, 2, 3]) == "▁▅█"
    assert len(formats.sparkline(list(range(1000)))) <= 24
    assert formats.sparkline([2.0, 2.0]) == "▄▄"
    assert formats.sparkline([]) == ""


def test_the_command_is_plato_when_that_is_this_installations(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", folder + os.pathsep + os.environ["PATH"])
    assert formats.plato_command() == "plato"
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    command = shlex.split(formats.plato_command())
    assert subprocess.run([*command, "--version"], capture_output=True, check=True).stdout


def test_commands_in_messages_are_what_has_to_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    said = formats.typable("There is no run. Make one with: plato train --seed 1")
    assert said == f"There is no run. Make one with: {formats.plato_command()} train --seed 1"
    assert said != "There is no run. Make one with: plato train --seed 1"
    for text in ("plato trains", "~/.venv/bin/plato train", "plato.yaml", "my-plato check"):
        assert formats.typable(text) == text


def test_another_installations_plato_on_path_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "plato"
    other.write_text("#!/bin/sh\nexit 3\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert formats.plato_command() != "plato"


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("created", "2026-11-23T02:43:47.433246+00:00", "2026-11-23 02:43:47 UTC"),
        ("seed", 1_000_003, "1000003"),
        ("env_steps", 1_000_003, "1,000,003"),
        ("return_mean", None, "-"),
        ("is_whole", True, "True"),
        ("jobs", [1, float("nan")], "[1, null]"),
    ],
)
def test_figures_are_shown_as_their_key_asks(key: str, value: object, shown: str) -> None:
    assert formats.figure(key, value) == shown


def test_json_can_say_everything_finite() -> None:
    import numpy as np

    value = {"a": float("inf"), 2: np.float32(1.5), "c": (np.arange(2), Path("x")), "d": None}
    assert formats.finite(value) == {"a": None, "2": 1.5, "c": [[0, 1], "x"], "d": None}


def test_a_path_is_as_short_as_it_can_be_typed_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert formats.shown(tmp_path / "runs/one") == "runs/one"
    assert formats.shown(tmp_path.parent) == str(tmp_path.parent)
