"""`plato init`: what it writes works as it stands, and nothing is ever overwritten or left half-written."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

from platotk import starters
from platotk.errors import ProjectError
from platotk.project import Project
from platotk.project_fields import Checkpoint, Stop, Tracking
from platotk.sims import sim_spec

ROOT = Path(__file__).resolve().parents[1]


def test_without_a_source_there_is_a_project_file_and_a_sim_to_fill_in(tmp_path: Path) -> None:
    assert [file.name for file in starters.init(tmp_path)] == ["plato.yaml", "sim.py"]
    project = Project.load(tmp_path)
    assert (project.sim, project.stop.iterations) == ("sim:Sim", 30)
    sim = sim_spec(project).make()
    check_env(sim, skip_render_check=True)
    assert sim.reset(seed=3)[0] == sim.reset(seed=3)[0]
    assert [f"STEP {number}" in (tmp_path / "sim.py").read_text("utf-8") for number in (1, 2, 3)] == [True] * 3


def test_the_sim_to_fill_in_stays_within_its_bounds(tmp_path: Path) -> None:
    starters.init(tmp_path)
    sim = sim_spec(Project.load(tmp_path)).make()
    for power in (0.0, 3.0):
        for seed in range(20):
            sim.reset(seed=seed)
            is_over, num_steps = False, 0
            while not is_over:
                action = {"heating": sim.action_space["heating"].high * 0 + power}
                observation, reward, terminated, truncated, _ = sim.step(action)
                assert sim.observation_space.contains(observation)
                assert -3.0 < reward <= 1.0
                is_over, num_steps = terminated or truncated, num_steps + 1
            assert num_steps == 120


def test_a_gymnasium_id_needs_no_code(tmp_path: Path) -> None:
    assert [file.name for file in starters.init(tmp_path, source="CartPole-v1")] == ["plato.yaml"]
    project = Project.load(tmp_path)
    assert project.sim == "CartPole-v1"
    assert isinstance(sim_spec(project).make(), gymnasium.Env)


def test_the_project_file_explains_every_key(tmp_path: Path) -> None:
    starters.init(tmp_path)
    text = (tmp_path / "plato.yaml").read_text("utf-8")
    missing = [name for name in Project.model_fields if not re.search(rf"(?m)^#?{name}:", text)]
    missing += [
        name
        for section in (Stop, Checkpoint, Tracking)
        for name in section.model_fields
        if not re.search(rf"\b{name}:", text)
    ]
    assert missing == []


def test_every_commented_key_comes_alive_without_its_mark(tmp_path: Path) -> None:
    starters.init(tmp_path)
    text = (tmp_path / "plato.yaml").read_text("utf-8")
    alive = re.sub(r"(?m)^( *)#(?=[a-z_]+:)", r"\1", text)
    (tmp_path / "plato.yaml").write_text(alive, "utf-8")
    project = Project.load(tmp_path)
    assert project.model_fields_set == set(Project.model_fields)
    assert None not in project.stop.model_dump().values()


def test_the_commented_defaults_are_the_defaults(tmp_path: Path) -> None:
    starters.init(tmp_path)
    lines = (tmp_path / "plato.yaml").read_text("utf-8").split("\n")
    shown = []
    for above, line in itertools.pairwise(lines):
        name = line.removeprefix("#").partition(":")[0]
        if line.startswith("#") and name in Project.model_fields and name not in ("name", "algorithm"):
            (tmp_path / "other.yaml").write_text(f"sim: CartPole-v1\n{line[1:]}\n", "utf-8")
            given, default = Project.load(tmp_path / "other.yaml"), Project(sim="CartPole-v1")
            paragraph = "\n".join(lines[: lines.index(line)]).rpartition("\n\n")[2].replace("\n# ", " ")
            shown.append(name)
            assert (getattr(given, name) == getattr(default, name)) != ("(an example)" in paragraph), name
            assert above.startswith("#"), name
    assert len(shown) > 15


@pytest.mark.parametrize("name", ["simple-adder", "cartpole", "tank-level", "python-config"])
def test_an_example_is_copied_as_it_is(name: str, tmp_path: Path) -> None:
    files = starters.init(tmp_path / "new" / "place", source=name)
    assert files[0].name == "plato.yaml"
    for file in files:
        assert file.read_bytes() == (ROOT / "examples" / name / file.name).read_bytes()
    assert Project.load(tmp_path / "new" / "place").name == name


def test_every_example_is_shipped_in_the_wheel() -> None:
    listed = set(re.findall(r'"(examples/\S+)" = "platotk/\1"', (ROOT / "pyproject.toml").read_text("utf-8")))
    shipped = {
        f"examples/{name}/{file.name}"
        for name, folder in starters.examples().items()
        for file in folder.iterdir()
        if file.suffix in (".yaml", ".py", ".md")
    }
    assert listed == shipped


def test_runs_and_caches_are_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = tmp_path / "examples" / "used"
    (used / "runs" / "20260101").mkdir(parents=True)
    (used / "__pycache__").mkdir()
    (used / "plato.yaml").write_text("sim: CartPole-v1\n", "utf-8")
    monkeypatch.setattr(starters, "examples", lambda: {"used": used})
    assert [file.name for file in starters.init(tmp_path / "new", source="used")] == ["plato.yaml"]


@pytest.mark.parametrize("source", [None, "CartPole-v1", "simple-adder"])
def test_a_file_that_is_there_is_never_overwritten(source: str | None, tmp_path: Path) -> None:
    (tmp_path / "plato.yaml").write_text("mine", "utf-8")
    with pytest.raises(ProjectError, match=r"plato\.yaml: there already, and never overwritten"):
        starters.init(tmp_path, source=source)
    assert [file.name for file in tmp_path.iterdir()] == ["plato.yaml"]
    assert (tmp_path / "plato.yaml").read_text("utf-8") == "mine"


def test_a_link_that_leads_nowhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "sim.py").symlink_to(tmp_path / "elsewhere.py")
    with pytest.raises(ProjectError, match=r"sim\.py: there already"):
        starters.init(tmp_path)
    assert not (tmp_path / "plato.yaml").exists()


def test_a_file_is_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(ProjectError, match="is a file, not a directory"):
        starters.init(tmp_path / "file")


def test_nothing_is_left_behind_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file name longer than any file system takes, after one that works.
    monkeypatch.setattr(starters, "_files", lambda source: {"plato.yaml": "sim: x", "x" * 300: "x"})
    with pytest.raises(ProjectError, match="nothing was written"):
        starters.init(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ("cartpol", "cartpole"),
        ("CartPole-v9", "CartPole-v1"),
        ("simple_adder", "simple-adder"),
        ("Pendulum", "Pendulum-v1"),
    ],
)
def test_an_unknown_source_suggests_the_nearest(source: str, meant: str, tmp_path: Path) -> None:
    with pytest.raises(ProjectError) as caught:
        starters.init(tmp_path / "new", source=source)
    assert f"Did you mean {meant!r}?" in str(caught.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("source", ["../simple-adder", "", "a b", "sim: x", "no_such_module:Thing-v0", "x\ny: 1"])
def test_what_cannot_be_a_source_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="neither an example nor a Gymnasium id"):
        starters.init(tmp_path, source=source)
    assert list(tmp_path.iterdir()) == []
