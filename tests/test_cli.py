"""The command line from the first word to the last: what is said where, and with which exit code."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.uncovered import uncovered
from typer.testing import CliRunner, Result

from platotk import Project, SimError, __version__
from platotk.cli import app

COMMANDS = [
    *("init", "check", "train", "tune", "assess", "export", "verify", "act", "serve", "deploy"),
    *("runs", "show", "compare", "logs", "stop", "fetch", "node", "azure", "schema"),
]
AZURE = [f"azure {name}" for name in ("up", "status", "down", "doctor", "yaml", "environment")]
TINY = """\
name: tiny
sim: CartPole-v1
algorithm: PPO
training: {train_batch_size_per_learner: 400, minibatch_size: 200, num_epochs: 1}
stop: {iterations: 2}
tracking: {mlflow: false}
"""


def plato(*words: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, as at a shell."""
    return subprocess.run(
        [sys.executable, "-m", "platotk", *map(str, words)],
        cwd=cwd,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def here(*words: str | Path) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(app, list(map(str, words)), prog_name="plato")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "plato.yaml").write_text(TINY)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two short runs."""
    folder = tmp_path_factory.mktemp("a project")
    (folder / "plato.yaml").write_text(TINY)
    for name, seed in (("one", "1"), ("two", "2")):
        done = plato("train", "--run", f"runs/{name}", "--seed", seed, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


# --- help


def test_help_names_the_commands_in_the_order_of_use() -> None:
    said = here("--help")
    assert said.exit_code == 0
    listed = said.stdout.partition("Commands:")[2].partition("Examples:")[0]
    assert [line.split()[0] for line in listed.splitlines() if line.strip()] == COMMANDS
    assert "..." not in listed  # each help fits on its line


@pytest.mark.parametrize("command", [*(name for name in COMMANDS if name != "azure"), *AZURE])
def test_every_command_has_help_and_an_example(command: str) -> None:
    said = here(*command.split(), "--help")
    assert said.exit_code == 0
    example = said.stdout.partition("Examples:")[2].strip().splitlines()[0]
    assert shlex.split(example)[: len(command.split()) + 1] == ["plato", *command.split()]
    assert "--json" in said.stdout


def test_no_words_at_all_is_help_and_wrong_usage() -> None:
    said = here()
    assert said.exit_code == 2
    assert "Usage: plato" in said.output


def test_the_version_is_printed() -> None:
    assert here("--version").stdout.split() == ["plato", __version__]


def test_python_m_platotk_is_the_same_command(tmp_path: Path) -> None:
    assert plato("--version", cwd=tmp_path).stdout.split() == ["plato", __version__]


# --- wrong usage and errors


@pytest.mark.parametrize("words", [["chekc"], ["check", "--nonsense"], ["assess", "--episodes", "0"], ["act"]])
def test_wrong_usage_is_exit_code_2(words: list[str]) -> None:
    said = here(*words)
    assert said.exit_code == 2
    assert said.stdout == ""


def test_no_project_is_two_lines_and_exit_code_2(tmp_path: Path) -> None:
    done = plato("train", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: no plato.yaml in ")
    assert len(done.stderr.splitlines()) == 2


def test_a_misspelt_key_is_refused_with_its_line(project: Path) -> None:
    (project / "plato.yaml").write_text("sim: CartPole-v1\ntrainning: {}\n")
    said = here("check", "-C", project)
    assert said.exit_code == 2
    assert "plato.yaml:2" in said.stderr
    assert "training" in said.stderr


def test_a_misspelt_override_is_refused_before_anything_starts(project: Path) -> None:
    said = here("train", "-C", project, "--set", "trainning.lr=1e-3")
    assert said.exit_code == 2
    assert not (project / "runs").exists()


@pytest.mark.parametrize("words", [["--debug", "check"], ["check", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(words: list[str], tmp_path: Path) -> None:
    said = here(*words, "-C", tmp_path)
    assert said.exit_code == 2
    assert "Traceback" in said.stderr
    assert "ProjectError" in said.stderr


def test_run_and_resume_exclude_each_other(project: Path) -> None:
    said = here("train", "-C", project, "--run", "runs/a", "--resume", "b")
    assert said.exit_code == 2
    assert "exclude each other" in said.stderr


def test_an_unknown_run_is_exit_code_2(project: Path) -> None:
    for words in (["show", "nothing"], ["assess", "nothing"], ["train", "--resume", "nothing"]):
        assert here(*words, "-C", project).exit_code == 2, words


def test_an_error_is_json_too(project: Path) -> None:
    said = here("show", "nothing", "-C", project, "--json")
    told = json.loads(said.stdout)
    assert "nothing" in told["error"]
    assert told["exit_code"] == said.exit_code == 2


def test_a_training_that_fails_says_as_json_which_run_and_why(project: Path) -> None:
    (project / "plant.py").write_text(
        "import gymnasium\nclass Plant(gymnasium.Wrapper):\n"
        "    def __init__(self):\n        super().__init__(gymnasium.make('CartPole-v1'))\n"
        "    def reset(self, **options):\n        raise ValueError('no water')\n"
    )
    done = plato("train", "--set", "sim=plant:Plant", "--json", cwd=project)
    told = json.loads(done.stdout)
    assert (done.returncode, told["exit_code"], told["status"]) == (1, 1, "failed")
    assert "no water" in told["error"]
    assert (project / "runs" / told["run"] / "run.json").is_file()


def test_a_run_cannot_be_compared_with_nothing(project: Path) -> None:
    said = here("compare", "one", "-C", project)
    assert said.exit_code == 2
    assert "two runs or more" in said.stderr


def test_what_the_users_own_code_raises_passes_through_whole(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sim = project / "plant.py"
    sim.write_text("def level():\n    raise ZeroDivisionError('the tank has no floor')\n")

    def check(loaded: Project, **_: Any) -> None:
        names: dict[str, Any] = {}
        exec(compile(sim.read_text(), str(sim), "exec"), names)
        names["level"]()

    monkeypatch.setattr("platotk.sims.checks.check", check)
    said = here("check", "-C", project)
    assert said.exit_code == 1
    assert said.stderr.splitlines()[-1] == "ZeroDivisionError: the tank has no floor"
    assert f'File "{sim}", line 2, in level' in said.stderr
    assert "platotk/cli/" not in said.stderr


# --- init and schema


def test_init_writes_a_project_and_says_how_to_go_on(tmp_path: Path) -> None:
    said = here("init", tmp_path / "adder", "--from", "simple-adder")
    assert said.exit_code == 0, said.stderr
    assert (tmp_path / "adder/plato.yaml").is_file()
    assert (tmp_path / "adder/sim.py").is_file()
    assert said.stdout == ""
    assert f" check -C {tmp_path / 'adder'}" in said.stderr


def test_init_lists_its_files_as_json(tmp_path: Path) -> None:
    said = here("init", "-C", tmp_path, "--from", "CartPole-v1", "--json")
    assert [Path(name).name for name in json.loads(said.stdout)] == ["plato.yaml"]


def test_the_schema_is_json() -> None:
    assert json.loads(here("schema").stdout)["title"] == "plato.yaml"


# --- check


def test_check_lists_findings_as_json_and_warnings_alone_are_good(project: Path) -> None:
    said = here("check", "-C", project, "--json")
    found = json.loads(said.stdout)
    assert said.exit_code == 0, found
    assert all(set(finding) == {"id", "severity", "message", "where", "cure"} for finding in found)


def test_check_says_to_people_how_to_go_on(project: Path) -> None:
    said = here("check", "-C", project)
    assert said.stdout == ""
    assert f" train -C {project}" in said.stderr


def test_a_finding_that_is_an_error_is_exit_code_1(project: Path) -> None:
    said = here("check", "-C", project, "--set", "sim=CartPole-v99", "--json")
    assert said.exit_code == 1
    assert "error" in {finding["severity"] for finding in json.loads(said.stdout)}


def test_the_nearest_project_upward_is_meant(project: Path) -> None:
    below = project / "a/b"
    below.mkdir(parents=True)
    assert "no plato.yaml" not in plato("runs", cwd=below).stderr
    assert str(project / "runs") in plato("runs", cwd=below).stderr


# --- train


def test_train_leaves_a_run_and_its_record(trained: Path) -> None:
    run = trained / "runs/one"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert Project.load(run).seed == 1
    log = (run / "log.txt").read_text("utf-8")
    assert "iteration 2 " in log
    assert "Finished: iterations reached 2" in log
    assert (run / "curves.html").is_file()


def test_train_says_where_everything_is_and_what_to_type_next(project: Path) -> None:
    done = plato("train", "--set", "stop.iterations=1", cwd=project)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    said = done.stderr.splitlines()
    (run,) = (project / "runs").iterdir()
    assert f"  run    {run.relative_to(project)}" in said
    assert said[-2] == "Next:"
    typed = subprocess.run(
        [*shlex.split(said[-1]), "--episodes", "1"],
        cwd=project,
        env=uncovered(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert typed.returncode == 0, typed.stderr


def test_train_json_is_one_object_on_stdout(project: Path) -> None:
    done = plato("train", "--set", "stop.iterations=1", "--json", cwd=project)
    said = json.loads(done.stdout)
    assert {"run", "status", "env_steps", "return_mean"} <= set(said)
    assert said["status"] == "finished"
    assert said["env_steps"] >= 400
    assert "iteration 1 " in done.stderr


@pytest.mark.slow
def test_repeating_the_command_continues_the_same_folder(trained: Path) -> None:
    done = plato("train", "--run", "runs/one", "--seed", "1", "--set", "stop.iterations=3", cwd=trained)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (trained / "runs/one/metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 3]


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)], ids=lambda number: number.name
)
def test_a_stopped_training_exits_with_75_and_a_bare_resume_goes_on(project: Path, number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "platotk", "train", "--set", "stop.iterations=100000"],
        cwd=project,
        env=uncovered(),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        journal = _wait_for(project / "runs", "*/metrics.jsonl", process)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does: to the whole group
        else:
            process.send_signal(number)
        assert process.wait(90) == 75
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    reached = len(journal.read_text().splitlines())
    assert reached >= 1
    done = plato("train", "--resume", "--set", f"stop.iterations={reached + 1}", "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == journal.parent.name
    assert json.loads(done.stdout)["iteration"] == reached + 1


def _wait_for(folder: Path, pattern: str, process: subprocess.Popen[bytes]) -> Path:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        found = [path for path in folder.glob(pattern) if path.stat().st_size > 0]
        if found:
            return found[0]
        time.sleep(0.2)
    raise AssertionError(f"no {pattern}; exit code {process.poll()}")


# --- runs, show, compare


def test_runs_are_listed_newest_first(trained: Path) -> None:
    rows = json.loads(here("runs", "-C", trained, "--json").stdout)
    assert [row["run"] for row in rows] == ["two", "one"]
    said = here("runs", "-C", trained)
    assert said.stdout == ""
    assert said.stderr.index("two") < said.stderr.index("one")
    assert "just now" in said.stderr or "ago" in said.stderr


def test_show_takes_the_newest_a_prefix_or_a_path(trained: Path) -> None:
    assert json.loads(here("show", "-C", trained, "--json").stdout)["run"] == "two"
    assert json.loads(here("show", "on", "-C", trained, "--json").stdout)["run"] == "one"
    shown = json.loads(here("show", trained / "runs/one", "-C", trained, "--json").stdout)
    assert shown["run"] == "one"
    assert Path(shown["page"]).read_text("utf-8").lower().startswith("<!doctype html>")


def test_show_tells_people_figures_and_places(trained: Path) -> None:
    said = here("show", "one", "-C", trained).stderr
    assert "finished" in said
    assert str(trained / "runs/one/curves.html") in said


def test_compare_puts_runs_side_by_side_on_one_page(trained: Path) -> None:
    said = json.loads(here("compare", "one", "two", "-C", trained, "--json").stdout)
    assert [row["run"] for row in said["runs"]] == ["one", "two"]
    assert Path(said["page"]).is_file()
    told = here("compare", "one", "two", "-C", trained).stderr
    assert "one" in told
    assert "two" in told


# --- assess and act


def test_assess_json_is_the_summary_with_its_rows(trained: Path) -> None:
    said = here("assess", "one", "-C", trained, "--episodes", "3", "--seed", "5", "--json")
    summary = json.loads(said.stdout)
    assert summary["episodes"] == len(summary["rows"]) == 3
    assert {"return_mean", "return_std", "episode_length_mean", "terminated_rate", "truncated_rate"} <= set(summary)
    again = here("assess", "one", "-C", trained, "--episodes", "3", "--seed", "5", "--json")
    assert json.loads(again.stdout)["return_mean"] == summary["return_mean"]


def test_assess_takes_a_changed_sim(trained: Path) -> None:
    said = here("assess", "one", "-C", trained, "--episodes", "2", "--set", "max_episode_steps=3", "--json")
    assert json.loads(said.stdout)["episode_length_mean"] == 3


def test_assess_tells_people(trained: Path) -> None:
    said = here("assess", "one", "-C", trained, "--episodes", "2")
    assert said.stdout == ""
    assert "return mean" in said.stderr


def test_act_answers_on_stdout_in_the_sims_own_space(trained: Path) -> None:
    for words in (["act", "[0.01, 0, 0, 0]"], ["act", "[0.01, 0, 0, 0]", "--from", "one"]):
        said = here(*words, "-C", trained)
        assert json.loads(said.stdout) in (0, 1)
    assert json.loads(here("act", "[0.01, 0, 0, 0]", "-C", trained, "--json").stdout)["action"] in (0, 1)


def test_act_reads_a_long_observation_from_stdin(trained: Path) -> None:
    said = CliRunner().invoke(app, ["act", "-", "-C", str(trained)], input="[0.01, 0, 0, 0]\n")
    assert json.loads(said.stdout) in (0, 1)


def test_act_refuses_what_is_not_json_and_what_is_not_an_observation(trained: Path) -> None:
    said = here("act", "{value: 17}", "-C", trained)
    assert said.exit_code == 2
    assert "is not JSON" in said.stderr
    said = here("act", "[0.01, 0, 0]", "-C", trained)
    assert said.exit_code == SimError.exit_code
    assert said.stdout == ""
    assert "4" in said.stderr
