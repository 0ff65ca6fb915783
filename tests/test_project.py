"""The project file and `Project(...)`: what they take, what they refuse, and how they say so."""

from __future__ import annotations

import copy
import functools
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import yaml

from platotk.errors import ProjectError
from platotk.project import Project
from platotk.project_fields import seconds


class Room(gymnasium.Env[Any, Any]):
    """A class to name in tests; never made."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str, *overrides: str) -> Project:
    Path("plato.yaml").write_text(text, "utf-8")
    return Project.load("plato.yaml", overrides=overrides)


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(ProjectError) as caught:
        load(text, *overrides)
    return str(caught.value)


# --- a valid project


def test_a_sim_alone_is_a_project(here: Path) -> None:
    project = load("sim: CartPole-v1\n")
    assert project.sim == "CartPole-v1"
    assert project.algorithm is None
    assert project.stop.model_dump(exclude_none=True) == {"iterations": 100}
    assert (project.max_episode_steps, project.seed, project.sim_process) == (1000, 0, "auto")
    assert (project.checkpoint.every, project.checkpoint.keep, project.checkpoint.grace_s) == (5, 3, 20.0)
    assert (project.tracking.mlflow, project.tracking.tensorboard) == (True, False)
    assert project.root == here
    assert project.path == here / "plato.yaml"


def test_the_documented_example_loads(here: Path) -> None:
    project = load(
        """
name: simple-adder
sim: sim:SimpleAdder
sim_config: {}
algorithm: PPO
training:    {lr: 3e-4, gamma: 0.99}
env_runners: {num_env_runners: auto}
max_episode_steps: 1000
stop: {iterations: 30, return_mean: -31.5, time: 10m}
checkpoint: {every: 5, keep: 3}
seed: 7
backends:
  cluster: {type: ray, address: "http://127.0.0.1:8265"}
"""
    )
    assert project.training == {"lr": 0.0003, "gamma": 0.99}
    assert project.env_runners == {"num_env_runners": "auto"}
    assert project.stop.time_s == 600.0
    assert project.backends["cluster"]["type"] == "ray"


def test_python_takes_the_same_fields() -> None:
    project = Project(sim=Room, stop={"iterations": 2, "time": "90s"}, training={"lr": 1e-3}, seed=3)
    assert project.sim is Room
    assert (project.stop.iterations, project.stop.time_s) == (2, 90.0)
    assert project.root == Path.cwd()
    assert project.path is None


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("10m", 600),
        ("90s", 90),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("2d", 172800),
        ("1h 5s", 3605),
        (45, 45),
        (0.5, 0.5),
    ],
)
def test_durations(written: Any, meant: float) -> None:
    assert seconds(written) == meant


@pytest.mark.parametrize("written", ["", "10", "m", "10 minutes", "5m1h", "1.2.3s", True, None, [1]])
def test_what_is_not_a_duration(written: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        seconds(written)


def test_a_section_with_every_line_commented_out_is_empty(here: Path) -> None:
    project = load("sim: CartPole-v1\ntraining:\n#  lr: 1\nstop:\n#  time: 1m\n")
    assert project.training == {}
    assert project.stop.iterations == 100


def test_a_count_may_be_written_as_1e6(here: Path) -> None:
    project = load("sim: CartPole-v1\nstop: {env_steps: 1e6}\n")
    assert project.stop.env_steps == 1_000_000
    assert isinstance(project.stop.env_steps, int)


def test_numpy_numbers_count_as_numbers() -> None:
    project = Project(
        sim="CartPole-v1", seed=np.int64(3), action_scale=np.float32(2.0), stop={"return_mean": np.float64(1)}
    )
    assert (project.seed, project.stop.return_mean) == (3, 1.0)
    json.dumps(project.to_dict())


# --- names


def test_the_name_is_the_directorys(here: Path) -> None:
    folder = here / "My first Tank!"
    folder.mkdir()
    (folder / "plato.yaml").write_text("sim: CartPole-v1\n")
    assert Project.load(folder).name == "my-first-tank"


@pytest.mark.parametrize(
    ("sim", "name"),
    [
        ("CartPole-v1", "cartpole-v1"),
        ("ALE/Pong-v5", "ale-pong-v5"),
        ("sim:SimpleAdder", "simple-adder"),
        (Room, "room"),
        (lambda: None, "lambda"),
        (functools.partial(Room), "project"),
    ],
)
def test_in_python_the_name_is_the_sims(sim: Any, name: str) -> None:
    assert Project(sim=sim).name == name


@pytest.mark.parametrize(
    "name", ["a/b", "..", ".hidden", "a b", "", "x" * 65, "con", "NUL.txt", "a.", "é", "-x", "a\n"]
)
def test_a_name_that_cannot_name_a_folder_is_refused(name: str) -> None:
    with pytest.raises(ProjectError, match="name"):
        Project(sim="CartPole-v1", name=name)


# --- refusals


def test_an_unknown_key_suggests_the_nearest_one(here: Path) -> None:
    text = "# a tank\n\nsim: CartPole-v1\n\n\ntrainning: {lr: 1}\n"
    assert refused(text) == "plato.yaml:6: unknown key 'trainning'. Did you mean 'training'?"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("stop: {iteratons: 3}", "unknown key 'iteratons' in stop. Did you mean 'iterations'?"),
        ("checkpoint: {evry: 3}", "unknown key 'evry' in checkpoint. Did you mean 'every'?"),
        ("tracking: {tensorbord: true}", "unknown key 'tensorbord' in tracking. Did you mean 'tensorboard'?"),
        ("iterations: 3", "unknown key 'iterations'. Did you mean 'stop.iterations'?"),
        ("lr: 3e-4", "unknown key 'lr'. Did you mean 'training.lr'?"),
        ("environment: x", "unknown key 'environment'. Did you mean 'sim'?"),
        ("zzz: 1", "unknown key 'zzz'.\nAllowed: name, sim, "),
        ("_root: /", "unknown key '_root'."),
        ("7: 1", "unknown key '7'."),
    ],
)
def test_unknown_keys_elsewhere(here: Path, line: str, told: str) -> None:
    assert refused(f"sim: CartPole-v1\n{line}\n").startswith(f"plato.yaml:2: {told}")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("seed: yes", "seed is 'yes'; expected a whole number"),
        ("seed: 1.5", "seed is 1.5; expected a whole number"),
        ("seed: true", "seed is true; expected a whole number"),
        ("seed: -1", "seed is -1; expected at least 0"),
        ("name: 5", "name is 5; expected text: put quotes around it"),
        ("stop: {time: ten}", "stop.time is 'ten'; expected a duration such as 10m"),
        ("stop: {iterations: 0}", "stop.iterations is 0; expected at least 1"),
        ("stop: {return_mean: .nan}", "stop.return_mean is nan; expected a finite number"),
        ("stop: {iterations: null}", "stop: no rule is set, so training would never end"),
        ("stop: 5", "stop is 5; expected a section of `key: value` lines"),
        ("checkpoint: {keep: 0}", "checkpoint.keep is 0; expected at least 1"),
        ("tracking: {tensorboard: on}", "tracking.tensorboard is 'on'; expected true or false"),
        ("tracking: {mlflow: yes}", "tracking.mlflow is 'yes'; expected true, false or a tracking URI"),
        ("normalize_observations: no", "normalize_observations is 'no'; expected true or false"),
        ("max_episode_steps: 0", "max_episode_steps is 0; expected at least 1"),
        ("action_scale: 0", "action_scale is 0; expected a number above 0"),
        ("action_scale: {flow: -1}", "expected a number above 0"),
        ("step_timeout_s: .inf", "step_timeout_s is inf; expected a finite number"),
        ("sim_process: thread", "sim_process is 'thread'; expected 'auto', 'own' or 'inline'"),
        ("training: 5", "training is 5; expected a section"),
        ("training: {1: 2}", "training: the key 1 is not a word"),
        ("env_runners: {num_env_runners: many}", "num_env_runners is 'many'; expected auto or 0, 1, 2"),
        ("backends: {a: {address: x}}", "backends: backend 'a' has no type"),
        ("algorithm: 5", "algorithm is 5; expected the name of an RLlib algorithm"),
    ],
)
def test_a_wrong_value_tells_the_line_the_value_and_what_is_allowed(here: Path, line: str, told: str) -> None:
    message = refused(f"sim: CartPole-v1\n{line}\n")
    assert message.startswith("plato.yaml:2: ")
    assert told in message


def test_all_that_is_wrong_is_told_at_once_in_the_order_of_the_file(here: Path) -> None:
    message = refused("sim: CartPole-v1\nseed: x\ntrainning: {}\nstop: {iterations: 0}\n")
    assert [line.partition(": ")[0] for line in message.splitlines()] == [
        "plato.yaml:2",
        "plato.yaml:3",
        "plato.yaml:4",
    ]


def test_a_project_needs_a_sim(here: Path) -> None:
    assert "sim is missing" in refused("seed: 1\n")
    assert "the project file is empty" in refused("# nothing yet\n")
    assert "`key: value` lines" in refused("- a\n")


def test_python_raises_project_errors_too() -> None:
    with pytest.raises(ProjectError, match=r"Project\(trainning\): unknown key 'trainning'. Did you mean 'training'\?"):
        Project(sim="CartPole-v1", trainning={})
    with pytest.raises(ProjectError, match=r"Project\(stop\.iterations\): stop\.iterations is 'x'; expected a whole"):
        Project(sim="CartPole-v1", stop={"iterations": "x"})
    with pytest.raises(ProjectError, match="a class or function"):
        Project(sim=Room())


def test_a_project_does_not_change() -> None:
    project = Project(sim="CartPole-v1")
    with pytest.raises(Exception, match="frozen"):
        project.seed = 5  # type: ignore[misc]


# --- finding and loading


def test_the_nearest_project_upward_is_found(here: Path) -> None:
    (here / "plato.yaml").write_text("sim: CartPole-v1\n")
    inner = here / "a" / "b"
    inner.mkdir(parents=True)
    assert Project.find(inner) == here / "plato.yaml"
    (here / "a" / "plato.yaml").write_text("sim: Acrobot-v1\n")
    assert Project.find(inner) == here / "a" / "plato.yaml"
    assert Project.load().sim == "CartPole-v1"


def test_no_project_says_how_to_start_one(here: Path) -> None:
    with pytest.raises(ProjectError, match=r"no plato\.yaml in .*\nStart a project with: plato init"):
        Project.find(here)
    with pytest.raises(ProjectError, match="plato init"):
        Project.load(here)


def test_a_file_of_the_other_ending_is_pointed_out(here: Path) -> None:
    (here / "plato.yml").write_text("sim: CartPole-v1\n")
    with pytest.raises(ProjectError, match=r"mv plato\.yml plato\.yaml"):
        Project.find(here)


def test_a_file_from_elsewhere_is_named_in_full(here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("else where")
    (folder / "plato.yaml").write_text("sm: x\n")
    with pytest.raises(ProjectError) as caught:
        Project.load(folder)
    assert str(caught.value).startswith(f"{folder / 'plato.yaml'}:1: unknown key 'sm'. Did you mean 'sim'?")


def test_modules_can_lie_elsewhere_than_the_file(here: Path) -> None:
    (here / "runs").mkdir()
    (here / "runs" / "plato.yaml").write_text("sim: sim:Room\n")
    assert Project.load(here / "runs", root=here).root == here


# --- overrides


def test_overrides_are_read_as_in_the_file(here: Path) -> None:
    project = load(
        "sim: CartPole-v1\ntraining: {lr: 1, gamma: 0.9}\nstop: {iterations: 9}\n",
        "training.lr=1e-3",
        "stop={time: 5m}",
        "env_runners.num_env_runners=auto",
        "sim_config.name=a=b",
        "sim_config.list=[1, 2e0, no]",
        "max_episode_steps=null",
        "training.lr=2e-3",
    )
    assert project.training == {"lr": 0.002, "gamma": 0.9}
    assert (project.stop.iterations, project.stop.time_s) == (None, 300.0)
    assert project.env_runners == {"num_env_runners": "auto"}
    assert project.sim_config == {"name": "a=b", "list": [1, 2.0, "no"]}
    assert project.max_episode_steps is None


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trainning.lr=1", "--set trainning.lr: unknown key 'trainning'. Did you mean 'training'?"),
        ("lr=1", "--set lr: unknown key 'lr'. Did you mean 'training.lr'?"),
        (
            "stop.iteratons=1",
            "--set stop.iteratons: unknown key 'iteratons' in stop. Did you mean 'iterations'?",
        ),
        ("seed=x", "--set seed: seed is 'x'; expected a whole number"),
        ("seed.x=1", "--set seed.x: seed is 3, which has nothing inside"),
        ("seed", "--set seed: expected key=value\nFor example: --set training.lr=1e-3"),
        ("=5", "--set =5: expected key=value"),
        ("training..lr=5", "expected key=value"),
        ("stop=[", "--set stop:1: "),
        ("training.lr=!!python/name:os.system", "is not allowed"),
    ],
)
def test_a_wrong_override_says_which(here: Path, override: str, told: str) -> None:
    assert told in refused("sim: CartPole-v1\nseed: 3\n", override)


def test_an_override_does_not_change_the_original() -> None:
    project = Project(sim=Room, stop={"iterations": 3}, training={"lr": 1.0})
    other = project.override(["stop.iterations=4", "training.lr=2.0"])
    assert (other.stop.iterations, other.training, other.sim) == (4, {"lr": 2.0}, Room)
    assert (project.stop.iterations, project.training) == (3, {"lr": 1.0})
    assert Project(sim=Room).override(["stop.time=1m"]).stop.iterations is None


# --- where


def test_where_tells_the_line_of_a_key_or_of_its_section(here: Path) -> None:
    project = load("sim: CartPole-v1\ntraining:\n  gamma: 0.9\n  lrr: 1e-3\n", "seed=3", "training.gamma=0.8")
    assert project.where("training.lrr") == "plato.yaml:4"
    assert project.where("training.lr") == "plato.yaml:2"
    assert project.where("training.gamma") == "--set training.gamma"
    assert project.where("seed") == "--set seed"
    assert project.where("algorithm") == "plato.yaml"
    assert Project(sim="CartPole-v1").where("training.lr") == "Project(training.lr)"


# --- writing


def test_the_resolved_project_reads_back_the_same(here: Path) -> None:
    project = load(
        "sim: sim:Room\nsim_config: {a: '3e-4', b: [1, 2.5, .inf], c: {d: yes}, e: 'true'}\n"
        "training: {lr: [[0, 1e-3], [1e6, 1e-5]]}\nstop: {time: 1h}\naction_scale: {a.b: 2}\n"
    )
    text = project.to_yaml()
    Path("resolved.yaml").write_text(text, "utf-8")
    again = Project.load("resolved.yaml")
    assert again.to_dict() == project.to_dict()
    assert again.to_yaml() == text
    assert list(yaml.safe_load(text)) == list(Project.model_fields)


def test_the_defaults_read_back_the_same(here: Path) -> None:
    Path("resolved.yaml").write_text(Project(sim="CartPole-v1").to_yaml(), "utf-8")
    assert Project.load("resolved.yaml").to_dict() == Project(sim="CartPole-v1").to_dict()


def test_code_is_written_as_module_and_name(here: Path) -> None:
    project = Project(
        sim=Room, algorithm=gymnasium.make, training={"learner_class": Room, "at": here, "n": np.float32(0.5)}
    )
    data = project.to_dict()
    assert data["sim"] == f"{Room.__module__}:Room"
    assert data["algorithm"] == "gymnasium.envs.registration:make"
    assert data["training"] == {"learner_class": f"{Room.__module__}:Room", "at": str(here), "n": 0.5}
    assert not project.to_yaml().startswith("#")


def test_code_that_cannot_be_imported_again_is_noted(here: Path) -> None:
    class Local(Room):
        pass

    text = Project(sim=Local, algorithm=functools.partial(print)).to_yaml()
    assert text.count("it was given as an object.\n") == 2
    assert text.startswith("# sim: ")
    Path("resolved.yaml").write_text(text, "utf-8")
    assert "Local" in Project.load("resolved.yaml").sim


def test_a_class_of_a_script_is_written_as_of_its_file(here: Path) -> None:
    Path("mine.py").write_text(
        "import gymnasium\n"
        "class Tank(gymnasium.Env): pass\n"
        "if __name__ == '__main__':\n"
        "    from platotk.project import Project\n"
        "    print(Project(sim=Tank).to_dict()['sim'])\n"
    )
    done = subprocess.run([sys.executable, "mine.py"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["mine:Tank"]


def test_a_project_travels(here: Path) -> None:
    project = load("sim: sim:Room\ntraining: {lr: 1}\n")
    for copied in (pickle.loads(pickle.dumps(project)), copy.deepcopy(project)):
        assert copied.to_dict() == project.to_dict()
        assert (copied.root, copied.where("training.lr")) == (project.root, "plato.yaml:2")


# --- schema


def test_the_schema_documents_every_key() -> None:
    schema = Project.json_schema()
    assert list(schema["properties"]) == list(Project.model_fields)
    assert schema["required"] == ["sim"]
    assert schema["additionalProperties"] is False
    sections = [schema, *schema["$defs"].values()]
    about = {key: about for section in sections for key, about in section["properties"].items()}
    undocumented = {key for key, details in about.items() if "description" not in details and "$ref" not in details}
    assert undocumented == set()
    assert all("description" in section for section in sections)
    json.dumps(schema)


def test_reading_a_project_loads_neither_ray_nor_torch(here: Path) -> None:
    Path("plato.yaml").write_text("sim: CartPole-v1\n")
    code = (
        "import sys; from platotk.project import Project; Project.load('.');"
        "print({'ray', 'torch', 'mlflow', 'gymnasium'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
