"""What people see: plain lines in a file, a live bar on a terminal, and the same lines in the run's log."""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from platotk import Finding, PlatoError, Project, ProjectError, Run, console
from platotk.console.people import people
from platotk.run import create_run


def iteration(number: int, return_mean: float | None = None, **more: Any) -> dict[str, Any]:
    """The event of an iteration, as training sends it."""
    return {
        "event": "iteration",
        "iteration": number,
        "env_steps": 4000 * number,
        "time_s": 2.0 * number,
        "env_steps_per_s": 2000.0,
        "episodes": 20 * number,
        "return_mean": return_mean,
        "progress": {"rule": "iterations", "fraction": number / 100, "eta_s": 200.0 - 2 * number},
        **more,
    }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "plato.yaml").write_text("sim: CartPole-v1\n")
    return create_run(Project.load(tmp_path))


# --- training


def test_without_a_terminal_an_iteration_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with console.TrainingView() as view:
        view({"event": "starting", "project": "adder", "resuming": None})
        view(iteration(1, -31.25))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "Training adder",
        "iteration 1  return -31.25  4,000 steps  2,000 steps/s  20 episodes  1% of iterations  3:18 left",
    ]


def test_fast_iterations_do_not_flood_and_the_last_one_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with console.TrainingView() as view:
        for number in range(1, 101):
            now += 0.1
            view(iteration(number, float(number)))
    told = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert 9 <= len(told) <= 11
    assert told[-1] == "100"


def test_everything_said_goes_to_the_log_of_the_run_from_the_first_word_on(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.TrainingView() as view:
        view({"event": "starting", "project": "adder", "resuming": None})
        view({"event": "note", "text": "PPO fits these spaces"})
        view({"event": "run", "run": run.name, "path": str(run.path), "attempt": 1})
        view(iteration(1))
        view({"event": "warning", "text": "the sim is slow"})
        run.update(status="finished", reason="iterations reached 1")
        view.ended(run, run.path / "curves.html")
    assert (run.path / "log.txt").read_text("utf-8") == capsys.readouterr().err
    log = (run.path / "log.txt").read_text("utf-8").splitlines()
    assert log[:2] == ["Training adder", "note: PPO fits these spaces"]
    assert "Finished: iterations reached 1" in log
    assert log[-1].endswith(f"assess -C {shlex.quote(str(run.path.parent.parent))}")


def test_a_resumed_run_appends_to_its_log(run: Run) -> None:
    for _ in range(2):
        with console.TrainingView(run.path / "log.txt") as view:
            view({"event": "note", "text": "hello"})
    assert (run.path / "log.txt").read_text("utf-8") == "note: hello\n" * 2


def test_an_error_ends_up_in_the_log_too(run: Run) -> None:
    with pytest.raises(ProjectError), console.TrainingView(run.path / "log.txt"):
        raise ProjectError("too many CPUs", hint="num_env_runners: auto")
    assert (run.path / "log.txt").read_text("utf-8") == "ProjectError: too many CPUs\nnum_env_runners: auto\n"


def test_a_stopped_run_says_how_to_go_on(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.update(status="stopped", reason="SIGINT")
    with console.TrainingView() as view:
        view.ended(run, None)
    assert f"train --resume {run.name} -C " in capsys.readouterr().err


def test_events_that_are_not_known_are_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    with console.TrainingView() as view:
        view({"event": "something-new"})
    assert capsys.readouterr().err == ""


def test_a_log_that_asks_for_colour_gets_lines_all_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with console.TrainingView() as view, console.waiting("Checking"), console.counting("Playing") as count:
        view(iteration(1, 2.5))
        count(1, 2)
    assert capsys.readouterr().err.startswith("iteration 1  return 2.5  4,000 steps")


def test_the_picture_shows_the_way_to_the_nearest_stop_rule(capsys: pytest.CaptureFixture[str]) -> None:
    view = console.TrainingView()
    people().print(view._picture())
    view({"event": "evaluation", "iteration": 1, "return_mean": 30.5, "episodes": 20})
    view(iteration(1, 20.0))
    view(iteration(2, 25.0))
    people().print(view._picture())
    view(iteration(3, None, progress={"rule": "return_mean", "fraction": None, "eta_s": None}))
    view({"event": "stopping", "signal": "SIGINT"})
    people().print(view._picture())
    said = capsys.readouterr().err
    assert "Starting ... 0 s" in said
    assert "return 25  8,000 steps" in said
    assert "▁█  return" in said
    assert "2% of iterations" in said
    assert "checkpoint 1 evaluates to 30.5" in said
    assert "until return_mean" in said
    assert "Stopping ..." in said


# --- on a terminal

SCENE = textwrap.dedent(
    """
    import time
    from platotk import console
    with console.TrainingView() as view:
        view({"event": "starting", "project": "adder", "resuming": None})
        time.sleep(0.4)
        view({"event": "note", "text": "PPO fits these spaces"})
        for n in range(1, 9):
            view({"event": "iteration", "iteration": n, "env_steps": 4000 * n, "time_s": 2.0 * n,
                  "env_steps_per_s": 2000.0, "episodes": 20 * n, "return_mean": float(n),
                  "progress": {"rule": "iterations", "fraction": n / 8, "eta_s": 16.0 - 2 * n}})
            time.sleep(0.1)
        view({"event": "evaluation", "iteration": 8, "return_mean": 7.5, "episodes": 20})
        time.sleep(0.4)
    """
)


def on_a_terminal(code: str, *, columns: int = 100, **env: str) -> str:
    """What a program writes when stderr is a terminal."""
    import fcntl
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    clean = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "TERM", "CI")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**clean, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **env},
    )
    os.close(theirs)
    return b"".join(_read(ours, process)).decode("utf-8", "replace")


def _read(descriptor: int, process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([descriptor], [], [], 0.2)[0]:
            if process.poll() is not None:
                break
            continue
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:
            break
        if not chunk:
            break
        yield chunk
    process.wait(10)
    os.close(descriptor)


def test_a_terminal_gets_a_bar_a_sparkline_and_the_notes() -> None:
    seen = on_a_terminal(SCENE)
    assert "Starting ..." in seen
    assert "note: PPO fits these spaces" in seen
    assert "━" in seen
    assert "▁" in seen
    assert "100% of iterations" in seen
    assert "checkpoint 8 evaluates to 7.5" in seen
    assert "\x1b[?25h" in seen.partition("\x1b[?25l")[2]  # the cursor is given back


def test_no_color_is_respected() -> None:
    assert "\x1b[36m" in on_a_terminal(SCENE)
    assert "\x1b[36m" not in on_a_terminal(SCENE, NO_COLOR="1")


def test_an_ascii_terminal_gets_ascii() -> None:
    seen = on_a_terminal(SCENE, PYTHONIOENCODING="ascii:strict", PYTHONUTF8="0", LC_ALL="C")
    assert "100% of iterations" in seen
    assert seen.isascii()


@pytest.mark.parametrize("columns", [20, 40])
def test_narrow_terminals_are_fine(columns: int) -> None:
    assert "iterations" in on_a_terminal(SCENE, columns=columns)


def test_a_dumb_terminal_gets_plain_lines() -> None:
    seen = on_a_terminal(SCENE, TERM="dumb")
    assert "iteration 8  return 8" in seen
    assert "\x1b[?25l" not in seen


# --- findings


def test_findings_are_told_errors_first_with_place_and_cure(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        Finding("speed", "note", "2,000 steps/s", None, None),
        Finding("bounds", "error", "low is above high", "sim.py:12", "low=0,\nhigh=1,"),
    ]
    console.findings(found, run.project)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[:4] == [
        "error  bounds  sim.py:12",
        "  low is above high",
        "    low=0,",
        "    high=1,",
    ]
    assert "1 error, 1 note." in err
    assert " check" in err.splitlines()[-1]


def test_a_sound_sim_is_sent_on_to_training(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    console.findings([], run.project)
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("nothing found.")
    assert " train" in said[-1]


# --- tables


def test_runs_are_a_table_wide_enough_for_their_names(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "run": "x" * 90,
        "status": "finished",
        "algorithm": "PPO",
        "env_steps": 120_000,
        "return_mean": 1.23456,
    }
    console.runs([row], run.path.parent)
    said = capsys.readouterr().err
    assert "x" * 90 in said
    assert "120,000" in said
    assert "1.235" in said


def test_no_runs_yet_says_how_to_get_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console.runs([], tmp_path / "runs")
    assert " train" in capsys.readouterr().err


# --- errors


def test_an_error_is_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console.error(PlatoError("plato.yaml:6: unknown key 'trainning'", hint="Did you mean 'training'?"))
    assert capsys.readouterr().err.splitlines() == [
        "Error: plato.yaml:6: unknown key 'trainning'",
        "  Did you mean 'training'?",
    ]


def test_square_brackets_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console.error(PlatoError("got [bold]5[/bold] :smile:"))
    assert "got [bold]5[/bold] :smile:" in capsys.readouterr().err


def test_the_users_own_traceback_begins_with_their_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sim = tmp_path / "sim.py"
    sim.write_text("def step():\n    return [][3]\n")
    names: dict[str, Any] = {}
    exec(compile(sim.read_text(), str(sim), "exec"), names)
    try:
        list(map(json.JSONDecoder(object_hook=lambda _: names["step"]()).decode, ["{}"]))
    except IndexError as problem:
        console.traceback(problem.with_traceback(_after_this_file(problem)), skip_own_frames=True)
    said = capsys.readouterr().err
    assert "json/decoder.py" not in said
    assert str(sim) in said
    assert said.splitlines()[-1] == "IndexError: list index out of range"


def _after_this_file(problem: BaseException) -> Any:
    trace = problem.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


# --- small things


def test_json_is_for_stdout_and_knows_numpy_and_paths(capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    console.json({"a": np.float32(1.5), "b": np.arange(2), "c": Path("x")})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"a": 1.5, "b": [0, 1], "c": "x"}
    assert err == ""


def test_the_project_is_named_only_when_it_is_not_the_nearest(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console.findings([], run.project)
    assert f" -C {run.project.root}" in capsys.readouterr().err
    monkeypatch.chdir(run.project.root)
    console.findings([], run.project)
    assert " -C " not in capsys.readouterr().err


def unread(code: str, stream: str) -> subprocess.CompletedProcess[str]:
    """Run Python whose stdout or stderr nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writing}
    try:
        return subprocess.run([sys.executable, "-c", code], text=True, check=False, **streams)
    finally:
        os.close(writing)


def test_an_answer_that_nobody_reads_ends_the_command_without_a_word() -> None:
    done = unread("from platotk import console; console.json({'a': 1}); print('not reached')", "stdout")
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_work_goes_on_when_nobody_reads_what_is_said_about_it() -> None:
    code = (
        "from platotk import console\n"
        "for number in range(3):\n"
        "    console.note(f'at {number}')\n"
        "    console.output_to_people('a line of a job')\n"
        "console.traceback(ValueError('wrong'))\n"
        "console.text('done')\n"
    )
    done = unread(code, "stderr")
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_an_answer_that_cannot_be_written_is_an_error() -> None:
    code = (
        "from platotk import console, PlatoError\n"
        "try:\n    console.text('answer')\nexcept PlatoError as error:\n    console.error(error)\n"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr.startswith("Error: the answer cannot be written to stdout: No space left on device.")
    assert done.returncode == 0
