"""The agent at the command line: export, verify, act, show, assess, and what each says and exits with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.agents.served import with_guard
from typer.testing import CliRunner, Result

from platotk.agents.folders import find_agent, newest_agent, run_of
from platotk.agents.manifest import write_manifest
from platotk.assessment.assess import assess
from platotk.cli import app
from platotk.errors import AgentError, RunNotFoundError
from platotk.run import Run

ADDER = Path(__file__).resolve().parents[2] / "examples" / "simple-adder"


def here(*words: str | Path, stdin: str | None = None) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(app, list(map(str, words)), prog_name="plato", input=stdin)


@pytest.fixture
def copy(adder_agent: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adder_agent, tmp_path / "agent"))


@pytest.fixture
def home(adder_run: Run, adder_agent: Path, tmp_path: Path) -> Path:
    """A folder whose runs/ holds a copy of the trained and exported run."""
    shutil.copytree(adder_run.path, tmp_path / "runs" / adder_run.name)
    return tmp_path


# --- export


def test_export_tells_people_where_the_agent_is_and_what_to_type_next(adder_run: Run) -> None:
    said = here("export", adder_run.path)
    assert said.exit_code == 0, said.stderr
    assert said.stdout == ""
    steps = [word for word in ("Recording", "Tracing", "Verifying", "Exported", "Next:") if word in said.stderr]
    assert len(steps) == 5
    assert "equal: 1,024 observations" in said.stderr
    assert " act " in said.stderr.splitlines()[-1]


def test_export_json_is_the_manifest_and_the_folder(adder_run: Run) -> None:
    said = here("export", adder_run.path, "--checkpoint", "1", "--json")
    told = json.loads(said.stdout)
    assert Path(told["agent"]).is_dir()
    assert told["provenance"]["checkpoint"] == "000001"
    assert told["parity"]["is_equal"] is True
    assert told["bytes"] > 1000


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(adder_run: Run) -> None:
    said = here("export", adder_run.path, "--checkpoint", "99")
    assert said.exit_code == 1
    assert "It has: 1" in said.stderr


def test_export_zip_is_the_same_agent_in_one_file(home: Path) -> None:
    said = here("export", "-C", home, "--zip", "--json")
    assert said.exit_code == 0, said.stderr
    told = json.loads(said.stdout)
    assert told["archive"] == f"{told['agent']}.zip"
    folder, archive = (json.loads(here("verify", told[key], "--json").stdout) for key in ("agent", "archive"))
    assert folder["num_rows"] == archive["num_rows"] >= 1000
    assert archive["is_equal"] is True
    one, other = (here("act", '{"value": 17}', "--from", told[key]).stdout for key in ("agent", "archive"))
    assert one == other


def test_the_assessment_of_an_agent_is_that_of_its_checkpoint(home: Path) -> None:
    (run,) = [Run(path) for path in (home / "runs").iterdir()]
    assert json.loads(here("export", run.path, "--json").stdout)["assessment"] is None
    assess(run, episodes=3)
    assess(run, episodes=4, project=run.project.override(["max_episode_steps=2"]))  # another sim
    elsewhere = run.path / "assessments" / "0099"
    shutil.copytree(run.path / "assessments" / "0001", elsewhere)
    summary = json.loads((elsewhere / "summary.json").read_text())
    (elsewhere / "summary.json").write_text(json.dumps({**summary, "checkpoint": "000099", "episodes": 5}))
    told = json.loads(here("export", run.path, "--json").stdout)
    assert (told["assessment"]["checkpoint"], told["assessment"]["episodes"]) == ("000001", 3)
    said = here("show", told["agent"])
    assert "over 3 episodes" in said.stderr


# --- verify


def test_verify_replays_the_recording(copy: Path) -> None:
    said = here("verify", copy)
    assert said.exit_code == 0
    assert "equal: 1,024 observations" in said.stderr
    proof = json.loads(here("verify", copy, "--json").stdout)
    assert proof["is_equal"] is True
    assert proof["num_rows"] >= 1000


def test_an_agent_that_acts_differently_is_exit_code_1(copy: Path) -> None:
    parity = json.loads((copy / "parity.json").read_text())
    for row in parity["rows"]:
        row["action"] = {"addend": [-row["action"]["addend"][0]]}
    (copy / "parity.json").write_text(json.dumps(parity))
    manifest = json.loads((copy / "manifest.json").read_text())
    write_manifest(copy, {k: v for k, v in manifest.items() if k not in ("files", "manifest_sha256")})
    said = here("verify", copy)
    assert said.exit_code == 1
    assert "NOT equal" in said.stderr


def test_a_changed_agent_is_exit_code_1(copy: Path) -> None:
    (copy / "policy.onnx").write_bytes((copy / "policy.onnx").read_bytes() + b"\0")
    for words in (["verify", copy], ["act", '{"value": 17}', "--from", copy], ["show", copy]):
        said = here(*words)
        assert said.exit_code == 1, words
        assert "hash does not match" in said.stderr


# --- act


def test_act_answers_with_an_agent_and_says_so_on_stderr(copy: Path) -> None:
    said = here("act", '{"value": 17}', "--from", copy)
    (addend,) = json.loads(said.stdout)["addend"]
    assert -10 <= addend <= 10
    assert said.stderr == f"answered by the agent {copy}\n"


def test_act_prefers_the_agent_of_a_run_and_a_checkpoint_answers_the_same(home: Path) -> None:
    by_agent = here("act", '{"value": 17}', "-C", home, "--json")
    by_checkpoint = here("act", '{"value": 17}', "-C", home, "--checkpoint", "best", "--json")
    assert "answered by the agent" in by_agent.stderr
    assert "answered by checkpoint 000001" in by_checkpoint.stderr
    assert json.loads(by_agent.stdout)["action"] == json.loads(by_checkpoint.stdout)["action"]
    assert json.loads(by_agent.stdout)["run"] == json.loads(by_checkpoint.stdout)["run"]


def test_act_without_an_agent_asks_the_checkpoint(home: Path) -> None:
    for agent in home.glob("runs/*/agent*"):
        shutil.rmtree(agent)
    said = here("act", '{"value": 17}', "-C", home)
    assert said.exit_code == 0, said.stderr
    assert "answered by checkpoint" in said.stderr
    assert " export" in said.stderr


def test_an_observation_that_does_not_fit_is_refused_by_name(copy: Path) -> None:
    said = here("act", '{"valeu": 17}', "--from", copy)
    assert said.exit_code == 1
    assert "value" in said.stderr
    assert said.stdout == ""


def test_an_agent_has_no_checkpoints(copy: Path) -> None:
    assert here("act", '{"value": 17}', "--from", copy, "--checkpoint", "last").exit_code == 2


def test_the_shell_needs_neither_ray_nor_torch_to_act(copy: Path) -> None:
    """In a process of its own: the answer alone on stdout, and nothing heavy loaded."""
    code = (
        "import sys\nfrom platotk.cli import app\n"
        f"words = ['act', '{{\"value\": 17}}', '--from', {str(copy)!r}]\n"
        "app(words, standalone_mode=False)\n"
        "print(sorted({'ray', 'torch', 'mlflow', 'pandas', 'rich'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert "addend" in json.loads(done.stdout)
    assert done.stderr.splitlines()[-1] == "[]"


# --- show


def test_show_tells_what_an_agent_says_of_itself(copy: Path) -> None:
    said = here("show", copy)
    assert said.exit_code == 0, said.stderr
    for word in ("simple-adder", "PPO", "000001", "observation.value", "equal: 1,024", "policy.onnx"):
        assert word in said.stderr
    told = json.loads(here("show", copy, "--json").stdout)
    assert told["name"] == "simple-adder"
    assert told["provenance"]["checkpoint"] == "000001"


def test_show_tells_the_guards_with_their_values(copy: Path) -> None:
    with_guard(
        copy,
        clamp={"addend": {"low": -8, "high": 8.5}},
        forbid=[{"when": {"value": {"above": 90}}, "then": "fallback", "name": "full"}],
        fallback={"addend": 0},
    )
    said = " ".join(here("show", copy).stderr.split())
    assert "clamp: {addend: {high: 8.5, low: -8}}" in said
    assert "forbid: [{name: full, then: fallback, when: {value: {above: 90}}}]" in said
    assert "fallback: {addend: 0}" in said


# --- assess


def test_assess_plays_the_sim_of_the_run_that_an_agent_lies_in(home: Path) -> None:
    agent = next(home.glob("runs/*/agent"))
    of_agent = json.loads(here("assess", agent, "-C", home, "--episodes", "20", "--json").stdout)
    of_run = json.loads(here("assess", "-C", home, "--episodes", "20", "--json").stdout)
    assert of_agent["return_mean"] == of_run["return_mean"]
    assert of_agent["agent"] == str(agent)


def test_an_agent_without_a_run_plays_the_sim_of_the_project(copy: Path) -> None:
    said = here("assess", copy, "-C", ADDER, "--episodes", "5", "--json")
    assert said.exit_code == 0, said.stderr
    assert json.loads(said.stdout)["episodes"] == 5


def test_a_controller_is_imported_for_an_assessment_when_that_is_said(copy: Path, tmp_path: Path) -> None:
    clamp = {"addend": {"low": 1, "high": 1}}
    with_guard(copy, on_missing="fallback", fallback="adder_control:safe", clamp=clamp)
    plant = tmp_path / "plant"
    shutil.copytree(ADDER, plant, ignore=shutil.ignore_patterns("runs"))
    (plant / "adder_control.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef safe(seen): return 1\n")
    words = ["assess", copy, "-C", plant, "--episodes", "2", "--json"]
    said = here(*words)
    assert said.exit_code == 1
    assert "add --controllers" in said.stdout + said.stderr
    assert not (tmp_path / "ran").exists()
    said = here(*words, "--controllers")
    assert said.exit_code == 0, said.stderr
    assert json.loads(said.stdout)["guards"]["guarded"] > 0
    assert (tmp_path / "ran").exists()
    said = here("assess", "--controllers", "-C", plant)
    assert said.exit_code == 2
    assert "for agents" in said.stderr


# --- which agent is meant


def test_the_newest_agent_is_meant(home: Path) -> None:
    (run,) = [Run(path) for path in (home / "runs").iterdir()]
    newest = newest_agent(run)
    assert newest is not None
    assert find_agent(runs_dir=home / "runs") == newest
    assert find_agent(run.name[:8], runs_dir=home / "runs") == newest
    assert find_agent(newest, runs_dir=home) == newest
    found = run_of(newest)
    assert found is not None
    assert found.name == run.name


def test_no_agent_says_what_to_type(tmp_path: Path, home: Path) -> None:
    with pytest.raises(AgentError, match="no run") as raised:
        find_agent(runs_dir=tmp_path / "nowhere")
    assert "plato export" in str(raised.value)
    with pytest.raises(RunNotFoundError):
        find_agent("nothing", runs_dir=home / "runs")
