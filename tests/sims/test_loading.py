"""`sim:` in a project becomes a running sim: by id, by name, by file, or from an object."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

import adversarial
from platotk.errors import ProjectError, SimError
from platotk.project import Project
from platotk.sims.loading import SimSpec, load_attribute, sim_spec

SIM = """
import gymnasium
import numpy as np
from gymnasium import spaces
import helper

class MySim(gymnasium.Env):
    def __init__(self, gain=1.0):
        self.gain = gain
        self.origin = helper.NAME
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        return np.zeros(1, dtype=np.float32), 0.0, True, False, {"origin": self.origin}

def make_sim(gain=2.0):
    return MySim(gain)

def nothing():
    pass

ready = MySim()
"""
Write = Callable[..., Path]


def folder(path: Path, name: str) -> Path:
    """A project directory with a sim.py, and a helper.py that knows the project's name."""
    path.mkdir()
    (path / "sim.py").write_text(SIM)
    (path / "helper.py").write_text(f"NAME = {name!r}\n")
    return path


def spec(target: Any, root: Path | None = None, **config: Any) -> SimSpec:
    return SimSpec(target, config, root=root)


# --- Gymnasium ids


def test_an_id_gives_the_registered_sim_with_its_time_limit_and_without_gymnasiums_own_checkers() -> None:
    sim = spec("CartPole-v1").make()
    assert isinstance(sim, TimeLimit)
    assert not isinstance(sim.env, (PassiveEnvChecker, OrderEnforcing))
    assert sim.env is sim.unwrapped
    # The registration itself stays as it was.
    assert gymnasium.spec("CartPole-v1").order_enforce


def test_sim_config_goes_to_the_sim() -> None:
    assert spec("Pendulum-v1", g=1.6).make().unwrapped.g == 1.6
    assert spec("FrozenLake-v1", map_name="8x8").make().observation_space.n == 64
    assert spec("Pendulum-v1", max_episode_steps=7).make()._max_episode_steps == 7


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("cartpole-v1", "CartPole-v1"),
        ("CartPole", "CartPole-v1"),
        ("CartPole-v99", "CartPole-v1"),
        ("CartPol-v1", "CartPole-v1"),
        ("Pendulum", "Pendulum-v1"),
    ],
)
def test_an_unknown_id_names_the_one_that_is_meant(wrong: str, meant: str) -> None:
    with pytest.raises(SimError, match="not a registered Gymnasium id") as caught:
        spec(wrong).make()
    assert caught.value.hint == f"Did you mean '{meant}'?"


def test_an_id_like_nothing_says_how_to_list_all() -> None:
    with pytest.raises(SimError) as caught:
        spec("qqq").make()
    assert "pprint_registry" in str(caught.value.hint)


# --- module:attribute next to plato.yaml


def test_a_class_and_a_function_next_to_plato_yaml(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", "a")
    assert spec("sim:MySim", root, gain=3.0).make().gain == 3.0
    assert spec("sim:make_sim", root).make().gain == 2.0


def test_two_projects_with_the_same_file_names_do_not_collide(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", "a"), folder(tmp_path / "b", "b")
    first, second = spec("sim:MySim", a), spec("sim:MySim", b)
    made = [first.make(), second.make(), first.make(), second.make()]
    assert [sim.origin for sim in made] == ["a", "b", "a", "b"]
    # A project's module is imported once, not again at each change of project.
    assert type(made[0]) is type(made[2])
    assert type(made[1]) is type(made[3])


def test_a_module_of_the_project_wins_over_one_of_that_name_from_elsewhere(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "sim.py").write_text("WHO = 'elsewhere'\n")
    assert load_attribute("sim:WHO", elsewhere) == "elsewhere"
    assert spec("sim:MySim", folder(tmp_path / "a", "a")).make().origin == "a"
    assert load_attribute("sim:WHO", elsewhere) == "elsewhere"


def test_packages_and_nested_attributes(tmp_path: Path) -> None:
    package = tmp_path / "plant" / "tanks"
    package.mkdir(parents=True)
    (tmp_path / "plant" / "__init__.py").write_text("")
    (package / "__init__.py").write_text(
        "from ..base import Base\nclass Outer:\n    class Inner(Base):\n        pass\n"
    )
    (tmp_path / "plant" / "base.py").write_text("from adversarial import Clean as Base\n")
    assert type(spec("plant.tanks:Outer.Inner", tmp_path).make()).__name__ == "Inner"


def test_an_installed_module_and_an_id_that_a_module_registers(tmp_path: Path) -> None:
    assert spec("gymnasium.envs.classic_control:CartPoleEnv", tmp_path).make().action_space.n == 2
    (tmp_path / "registers.py").write_text(
        "from gymnasium import register\nregister('Mine-v3', entry_point='adversarial:Clean', max_episode_steps=5)\n"
    )
    assert spec("registers:Mine-v3", tmp_path).make()._max_episode_steps == 5


def test_a_missing_module_names_the_file_that_was_searched(tmp_path: Path) -> None:
    (tmp_path / "tank_sim.py").write_text("")
    with pytest.raises(SimError) as caught:
        spec("tank_sm:Tank", tmp_path).make()
    assert str(tmp_path / "tank_sm.py") in caught.value.message
    assert caught.value.hint == "Did you mean 'tank_sim:...'?"


def test_a_missing_attribute_names_the_one_that_is_meant(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", "a")
    with pytest.raises(SimError, match="has no 'MySym'") as caught:
        spec("sim:MySym", root).make()
    assert caught.value.hint == "Did you mean 'MySim'?"
    with pytest.raises(SimError) as caught:
        spec("sim:Tank", root).make()
    assert caught.value.hint == "Did you mean 'MySim'?"  # the only environment there is


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("sim.py:MySim", "Write: sim:MySim"),
        ("sim.py", "write: sim: sim:ClassName"),
        ("sim", "write: sim: sim:ClassName"),
        ("sim.MySim", "Did you mean 'sim:MySim'?"),
        ("sim:", "For example: sim:MySim"),
        ("sim:ready", "Name the class"),
        ("sim:nothing", "Add: return env"),
    ],
)
def test_near_misses_say_what_to_write(tmp_path: Path, target: str, hint: str) -> None:
    with pytest.raises(SimError) as caught:
        spec(target, folder(tmp_path / "a", "a")).make()
    assert hint in str(caught.value.hint)


def test_a_file_that_hides_a_module_of_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("class Sim: pass\n")
    with pytest.raises(SimError, match="hides Python's own module 'random'"):
        spec("random:Sim", tmp_path).make()


# --- sim_config


def test_a_wrong_key_of_sim_config_names_its_line(project_folder: Write) -> None:
    root = project_folder("sim: sim:MySim\nsim_config:\n  gian: 2\n", sim=SIM, helper="NAME = 'a'\n")
    with pytest.raises(SimError) as caught:
        sim_spec(Project.load(root)).make()
    assert caught.value.message == "plato.yaml:3: sim_config: sim:MySim takes no 'gian'"
    assert caught.value.hint == "Did you mean 'gain'?"


def test_a_registered_sims_keys_are_checked_too() -> None:
    with pytest.raises(SimError, match="takes no 'gravity'"):
        spec("Pendulum-v1", gravity=2.0).make()


def test_a_missing_argument_says_how_to_give_it(tmp_path: Path) -> None:
    (tmp_path / "needy.py").write_text("class Sim:\n    def __init__(self, env_config): pass\n")
    with pytest.raises(SimError, match="needs env_config") as caught:
        spec("needy:Sim", tmp_path).make()
    assert caught.value.hint == "Give it: sim_config: {env_config: ...}"


def test_the_sims_own_exceptions_pass_through_whole(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        spec("broken:Sim", tmp_path).make()
    (tmp_path / "angry.py").write_text("class Sim:\n    def __init__(self, a=1):\n        len(5)\n")
    with pytest.raises(TypeError, match=r"object of type 'int' has no len\(\)"):
        spec("angry:Sim", tmp_path).make()


def test_every_sim_gets_its_own_copy_of_sim_config() -> None:
    given = {"values": [1]}
    one = SimSpec(_Keeps, given)
    one.make().values.append(2)
    assert one.make().values == [1]


class _Keeps(adversarial.Clean):
    def __init__(self, values: list[int]) -> None:
        super().__init__()
        self.values = values


# --- objects, and travelling


def test_classes_lambdas_and_functions_make_sims() -> None:
    for target in (adversarial.Clean, lambda: adversarial.Clean()):
        obs, _ = SimSpec(target).make().reset(seed=1)
        assert obs.shape == (2,)
    assert SimSpec(adversarial.Clean).label == "Clean"
    assert SimSpec("CartPole-v1").label == "CartPole-v1"


def test_a_spec_travels_to_a_process_that_cannot_see_the_project(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", "a")

    class Local(adversarial.Clean):
        offset = 3

    specs = [spec("sim:MySim", root), SimSpec(Local), SimSpec(adversarial.Clean), spec("CartPole-v1")]
    code = "import pickle, sys\nprint([type(spec.make().unwrapped).__name__ for spec in pickle.load(sys.stdin.buffer)])"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(specs),
        capture_output=True,
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        check=False,
    )
    assert process.stdout.decode().strip() == str(["MySim", "Local", "Clean", "CartPoleEnv"]), process.stderr


def test_ray_workers_make_the_same_sim(tmp_path: Path) -> None:
    roots = [str(folder(tmp_path / name, name)) for name in ("a", "b")]
    code = """
import sys
from pathlib import Path
import ray
from platotk.sims.loading import SimSpec

ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)

@ray.remote
def origins(specs):
    return [one.make().step(0)[4]["origin"] for one in specs]

specs = [SimSpec("sim:MySim", root=Path(root)) for root in sys.argv[1:]]
print(ray.get(origins.remote([*specs, *specs]), timeout=60))
"""
    # A Ray of its own: in a process that has forked many checks, a plain task may never leave the driver.
    done = subprocess.run(
        [sys.executable, "-c", code, *roots], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == str(["a", "b", "a", "b"]), done.stderr


def test_where_the_project_is_not_the_working_directory_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path / "a", "a")
    monkeypatch.chdir(root)
    assert spec("sim:MySim", Path("/nowhere/at/all")).make().origin == "a"


def test_a_project_made_in_python_takes_the_class_itself() -> None:
    made = sim_spec(Project(sim=adversarial.Clean)).make()
    obs, _ = made.reset(seed=3)
    assert made.observation_space.contains(obs)
    assert np.array_equal(obs, sim_spec(Project(sim="adversarial:Clean")).make().reset(seed=3)[0])
    with pytest.raises(ProjectError):
        Project(sim=5)
