"""`plato check` on sims that are wrong in one way each: it says what, where, and how to cure it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import adversarial
from platotk.project import Project
from platotk.sims.checks import CHECKS, Finding, check

TESTS = Path(__file__).parents[1]
Write = Callable[..., Path]
INFORMATION = {"speed", "mapping", "slow"}


def found(sim: Any, *, time_limit_s: float = 20.0, **fields: Any) -> dict[str, Finding]:
    """The findings about a sim, but for the measurements, by id; the first of each."""
    name = f"adversarial:{sim}" if isinstance(sim, str) and not sim.endswith("-v1") else sim
    project = Project(sim=name, _root=TESTS, **fields)
    findings = check(project, time_limit_s=time_limit_s, probe_steps=1050)
    by_id: dict[str, Finding] = {}
    for one in findings:
        assert one.id in CHECKS
        assert one.severity in ("error", "warning", "note")
        if one.id not in INFORMATION:
            by_id.setdefault(one.id, one)
    return by_id


def line_of(text: str) -> int:
    """The line of adversarial.py in which a text first stands."""
    lines = (TESTS / "adversarial.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


# --- sims with nothing wrong


@pytest.mark.parametrize("sim", ["Clean", "IntegerBox", "ScalarBox", "NestedTuple", "FrozenLake-v1", "Pendulum-v1"])
def test_nothing_is_found_where_nothing_is_wrong(sim: str) -> None:
    assert found(sim) == {}


def test_cartpole_takes_a_few_seconds_and_says_how_fast_it_is_and_what_is_learned() -> None:
    began = time.monotonic()
    findings = check(Project(sim="CartPole-v1", algorithm="PPO", training={"lr": 3e-4}))
    seconds = time.monotonic() - began
    assert {one.severity for one in findings} == {"note"}
    assert [one.id for one in findings] == ["speed", "mapping", "mapping"]
    assert "steps/s" in findings[0].message
    assert "4 numbers" in findings[1].message
    assert "2 choices" in findings[2].message
    # Alone on two cores it takes under 2 s; the tests may share them.
    assert seconds < 20.0


# --- one defect each: what is found, how grave, and where

ONE_DEFECT = [
    # observations
    ("ListObservation", "observation-type", "warning", "a list, the space has an array"),
    ("Float64Observation", "observation-dtype", "warning", "float64, the space says float32"),
    ("WrongShape", "observation-shape", "error", "shape (1, 2), the space says (2,)"),
    ("MissingKey", "observation-structure", "error", "the key 'side' is missing"),
    ("OutOfBounds", "observation-bounds", "warning", "the space says -1 to 1"),
    ("InPlaceObservation", "observation-reused", "warning", "the same object is returned again"),
    ("ConstantElement", "observation-constant", "warning", "observation.alarm was always 0.0"),
    ("NanAtStep500", "observation-not-finite", "error", "observation[0] is nan"),
    # the interface
    ("OldStep", "old-gym-step", "error", "four values"),
    ("OldReset", "old-gym-reset", "error", "the observation alone (ndarray)"),
    ("NotAnEnv", "not-gymnasium", "warning", "NotAnEnv is not derived from gymnasium.Env"),
    ("NoSpaces", "spaces-missing", "error", "observation_space is missing"),
    ("NanReward", "reward-not-finite", "error", "the reward is nan"),
    ("UnpicklableInfo", "info-unpicklable", "error", "info['lock'] cannot be pickled"),
    ("AllMasked", "mask-invalid", "error", "nothing is allowed"),
    # seeds
    ("Unseeded", "unseeded", "warning", "seed 11 twice, with the same actions: reset gave observation[0]"),
    ("GlobalRandom", "global-random", "warning", "the global generator"),
    ("StartRepeats", "start-repeats", "warning", "the same start three times"),
    # instances
    ("SharedState", "shared-state", "warning", "with a second sim stepping in between"),
    ("OnlyOne", "second-instance", "error", "the port is in use"),
    ("CloseFails", "close-fails", "warning", "close() raised OSError: already closed"),
    # episodes and rewards
    ("ConstantReward", "reward-constant", "warning", "every reward of 1,050 random steps was 1"),
    ("HugeReward", "reward-scale", "warning", "rewards lie between"),
    ("TimeLimitTerminated", "time-limit-terminated", "warning", "after exactly 50 steps"),
    ("NeverEnds", "never-ends", "warning", "within 1,000 random steps; training truncates it there"),
    ("EndsAtOnce", "ends-at-once", "warning", "episodes ended at their first step"),
    ("GoesOnAfterEnd", "step-after-end", "note", "goes on with terminated=False"),
    # costs
    ("Leaks", "leaks", "warning", "200 kB each"),
    ("PrintFlood", "prints", "warning", "bytes in 1,050 steps"),
    # failures
    ("RaisesAlways", "raises", "error", "step() raised SimBroke: the valve is stuck"),
    ("RaisesSometimes", "raises", "warning", "training survives this"),
    ("Exits", "exits", "error", "step() called sys.exit('license expired') (10 times, first at step 100)"),
    ("RaisesInterrupt", "raises", "warning", "step() raised KeyboardInterrupt"),
]


@pytest.mark.parametrize(("sim", "check_id", "severity", "message"), ONE_DEFECT, ids=[row[0] for row in ONE_DEFECT])
def test_one_defect_is_one_finding(sim: str, check_id: str, severity: str, message: str) -> None:
    findings = found(sim)
    assert list(findings) == [check_id]
    one = findings[check_id]
    assert one.severity == severity
    assert message in one.message
    if check_id != "prints":  # that has no one place
        assert one.where is not None
        assert one.where.startswith("adversarial.py:")
    assert one.cure or severity == "note"


def test_reset_without_seed_and_options_are_two_findings_with_the_cure_as_code() -> None:
    findings = found("BareReset")
    assert list(findings) == ["reset-seed", "reset-options"]
    one = findings["reset-seed"]
    assert one.where == f"adversarial.py:{line_of('def reset(self) -> Any:')}"
    assert "super().reset(seed=seed)" in str(one.cure)


def test_wrong_types_are_each_found() -> None:
    findings = found("WrongTypes")
    assert {name: one.severity for name, one in findings.items()} == {
        "info-type": "error",
        "reward-type": "warning",
        "flag-type": "warning",
    }


def test_a_changing_dtype_is_found_besides_the_wrong_one() -> None:
    findings = found("DtypeChanges")
    assert set(findings) == {"observation-dtype", "observation-dtype-changes"}
    assert "float32 from reset(), float64 from step()" in findings["observation-dtype-changes"].message


def test_all_findings_are_collected_not_only_the_first(project_folder: Write) -> None:
    text = """
import numpy as np, gymnasium
from gymnasium import spaces
class Bad(gymnasium.Env):
    def __init__(self):
        self.observation_space = spaces.Dict({"a": spaces.Box(0, 1, (2,)), "b": spaces.Discrete(3)})
        self.action_space = spaces.Discrete(2)
    def reset(self, seed=None):
        self.value = np.random.rand(2)
        return {"a": self.value, "b": 7}
    def step(self, action):
        self.value += 1.0
        print("step", "." * 50)
        return {"a": self.value, "b": 7}, np.inf, False, {}
"""
    project_folder("sim: sim:Bad\n", sim=text)
    findings = check(Project.load("."), time_limit_s=20.0)
    assert {one.id for one in findings if one.severity != "note"} == {
        "old-gym-step",
        "old-gym-reset",
        "reset-options",
        "observation-dtype",
        "observation-bounds",
        "observation-reused",
        "observation-constant",
        "reward-not-finite",
        "unseeded",
        "global-random",
        "never-ends",
        "prints",
    }
    ranks = [("error", "warning", "note").index(one.severity) for one in findings]
    assert ranks == sorted(ranks)
    places = {one.id: one.where for one in findings}
    assert places["old-gym-step"] == "sim.py:14"
    assert places["old-gym-reset"] == "sim.py:10"
    assert places["observation-bounds"] == "sim.py:6"
    assert places["reset-options"] == "sim.py:8"


# --- sims that hang, crash or exit


def test_a_hanging_step_is_named_with_its_line_and_the_rest_is_still_checked() -> None:
    findings = found("HangsAtStep300", time_limit_s=12.0)
    assert set(findings) == {"hangs"}
    one = findings["hangs"]
    assert "step() did not return within 3" in one.message
    assert "at step 300" in one.message
    assert one.where == f"adversarial.py:{line_of('time.sleep(0.05)')}"


def test_what_was_seen_before_a_hang_is_told(project_folder: Write) -> None:
    text = """
import adversarial, time
class Both(adversarial.HangsAtStep300):
    def observe(self):
        return super().observe().astype(float)
"""
    project_folder("sim: sim:Both\n", sim=text)
    findings = check(Project.load("."), time_limit_s=12.0)
    assert {"hangs", "observation-dtype", "speed"} <= {one.id for one in findings}


@pytest.mark.parametrize(
    ("sim", "call", "line"),
    [
        ("HangsInReset", "reset()", "            pass"),
        ("HangsInConstructor", "the constructor", "threading.Event().wait()"),
    ],
)
def test_a_hang_elsewhere_is_named_too(sim: str, call: str, line: str) -> None:
    findings = found(sim, time_limit_s=6.0)
    assert set(findings) == {"hangs", "not-finished"}
    assert findings["hangs"].message.startswith(f"{call} did not return")
    assert findings["hangs"].where in (
        f"adversarial.py:{line_of(line)}",
        f"adversarial.py:{line_of(line) - 1}",
    )


def test_an_abort_is_a_finding_with_the_line_it_came_from() -> None:
    findings = found("Aborts")
    assert "SIGABRT" in findings["crashes"].message
    assert "at step 100" in findings["crashes"].message
    assert findings["crashes"].where == f"adversarial.py:{line_of('os.abort()')}"


def test_a_hard_exit_is_a_finding() -> None:
    findings = found("ExitsHard")
    assert "exit code 3 at step 100" in findings["exits"].message


def test_a_slow_sim_is_measured_within_the_time_limit() -> None:
    began = time.monotonic()
    project = Project(sim="adversarial:Slow", _root=TESTS, sim_config={"step_s": 0.5})
    findings = {one.id: one for one in check(project, time_limit_s=8.0)}
    assert time.monotonic() - began < 20.0
    assert {one.severity for one in findings.values()} == {"note"}
    hours = float(findings["slow"].message.split("take ")[1].split(" hours")[0])
    assert hours >= 13.9  # 100,000 half seconds; a busy machine takes longer
    assert "num_env_runners: auto" in str(findings["slow"].cure)


def test_check_leaves_no_process_behind() -> None:
    before = _children()
    found("HangsInReset", time_limit_s=4.0)
    assert _children() == before


def _children() -> set[str]:
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return set(path.read_text().split()) if path.exists() else set()


# --- sims given as objects


def test_what_cannot_be_sent_to_other_processes_is_found_and_checked_all_the_same() -> None:
    findings = check(Project(sim=adversarial.unpicklable()), time_limit_s=20.0)
    by_id = {one.id: one for one in findings}
    assert "cannot pickle '_thread.lock' object" in by_id["unpicklable"].message
    assert {"speed", "mapping"} <= set(by_id)


def test_the_part_of_sim_config_that_cannot_be_sent_is_named() -> None:
    import threading

    findings = check(Project(sim=lambda lock: adversarial.Clean(), sim_config={"lock": threading.Lock()}))
    assert "sim_config['lock'] cannot be pickled" in findings[0].message


def test_a_class_of_this_very_test_is_checked() -> None:
    class Local(adversarial.Float64Observation):
        pass

    assert set(found(Local)) == {"observation-dtype"}


# --- what keeps a sim from being made


def test_a_sim_that_is_not_there() -> None:
    one = found("CartPol-v1")["not-found"]
    assert one.cure == "Did you mean 'CartPole-v1'?"


def test_a_wrong_key_in_sim_config_is_placed_in_the_file(project_folder: Write) -> None:
    project_folder("sim: Pendulum-v1\nsim_config:\n  gg: 1\n")
    one = check(Project.load("."))[0]
    assert (one.id, one.where) == ("not-found", "plato.yaml:3")
    assert one.message == "sim_config: Pendulum-v1 takes no 'gg'"


@pytest.mark.parametrize(
    ("text", "check_id", "where", "cure"),
    [
        ("import no_such_package\n", "import-fails", "sim.py:1", "pip install no_such_package"),
        ("x = 1\nclass Sim(:\n", "import-fails", "sim.py:2", "python -c 'import sim'"),
        ("import sys\nsys.exit(4)\n", "exits", "sim.py:2", "raise RuntimeError"),
        (
            "class Sim:\n    def __init__(self):\n        1 / 0\n",
            "constructor-fails",
            "sim.py:3",
            "python -c",
        ),
        ("class Sim:\n    pass\n", "method-missing", "sim.py:1", "def step"),
    ],
)
def test_a_module_or_class_that_fails_is_placed(
    project_folder: Write, text: str, check_id: str, where: str, cure: str
) -> None:
    project_folder("sim: sim:Sim\n", sim=text)
    by_id = {one.id: one for one in check(Project.load("."))}
    assert by_id[check_id].where == where
    assert cure in str(by_id[check_id].cure)


def test_a_file_that_hides_a_module_is_found(project_folder: Write) -> None:
    project_folder("sim: sim:Clean\n", sim="from adversarial import Clean\n", torch="x = 1\n")
    one = check(Project.load("."))[0]
    assert (one.id, one.where) == ("hides-module", "torch.py:1")


# --- what can be learned from


def test_an_algorithm_that_does_not_fit_names_those_that_do() -> None:
    one = found("Pendulum-v1", algorithm="DQN")["algorithm-misfit"]
    assert one.severity == "error"
    assert str(one.cure).startswith("algorithm: PPO   # or ")


@pytest.mark.parametrize(
    ("sim", "algorithm", "training", "cure"),
    [
        ("Pendulum-v1", "SAC", {}, "algorithm: PPO"),
        ("CartPole-v1", "DQN", {"replay_buffer_config": {"type": "PrioritizedEpisodeReplayBuffer"}}, "EpisodeReplay"),
    ],
)
def test_a_memory_that_rllib_cannot_train_is_refused(
    sim: str, algorithm: str, training: dict[str, Any], cure: str
) -> None:
    memory = {"model_config": {"use_lstm": True}}
    one = found(sim, algorithm=algorithm, training=training, rl_module=memory)["rllib-value"]
    assert one.severity == "error"
    assert cure in str(one.cure)


def test_spaces_that_nothing_can_learn_from_come_with_a_recipe(project_folder: Write) -> None:
    text = """
from gymnasium import spaces
from adversarial import Clean
class Listing(Clean):
    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Sequence(spaces.Box(0, 1))
"""
    project_folder("sim: sim:Listing\n", sim=text)
    one = next(one for one in check(Project.load("."), time_limit_s=20.0) if one.id == "spaces-not-learnable")
    assert one.where == "sim.py:7"
    assert "Pad it" in str(one.cure)


def test_an_action_without_bounds_is_noted_and_one_with_huge_bounds_warned_of(project_folder: Write) -> None:
    text = """
from gymnasium import spaces
from adversarial import Clean
import numpy as np
class Wide(Clean):
    def __init__(self):
        super().__init__()
        free, wide = spaces.Box(-np.inf, np.inf, (1,)), spaces.Box(-1e9, 1e9, (1,))
        self.action_space = spaces.Dict({"a": free, "b": wide})
    def advance(self, action):
        super().advance(np.clip(action["a"], -1.0, 1.0))
"""
    project_folder("sim: sim:Wide\n", sim=text)
    by_id = {one.id: one for one in check(Project.load("."), time_limit_s=20.0)}
    assert (by_id["action-unbounded"].severity, by_id["action-unbounded"].where) == ("note", "sim.py:9")
    assert "action.b: bounded by -1e+09 and 1e+09" in by_id["action-range"].message


def test_a_setting_that_does_not_fit_the_spaces_is_found() -> None:
    assert "masks nothing" in found("Clean", action_mask="info")["project-setting"].message


# --- fit: RLlib and this machine


def test_keys_that_rllib_does_not_take_are_found_with_their_line(project_folder: Write) -> None:
    project_folder(
        "sim: CartPole-v1\n"
        "algorithm: PPO\n"
        "training: {lr: 3e-4, gama: 0.9}\n"
        "rl_module:\n"
        "  model_config: {fcnet_hidden: [32]}\n"
    )
    wrong = [one for one in check(Project.load(".")) if one.id == "rllib-key"]
    assert [(one.where, one.cure) for one in wrong] == [
        ("plato.yaml:3", "training: {gamma: 0.9}"),
        ("plato.yaml:5", "model_config: {fcnet_hiddens: [32]}"),
    ]


def test_an_unknown_algorithm_is_found() -> None:
    one = found("CartPole-v1", algorithm="PPPO")["rllib-algorithm"]
    assert one.cure == "algorithm: PPO"


def test_more_cpus_than_there_are_is_an_error_and_a_warning_where_training_may_run_elsewhere() -> None:
    one = found("CartPole-v1", env_runners={"num_env_runners": 1000})["resources"]
    assert one.severity == "error"
    assert "need 1000 CPUs" in one.message
    elsewhere = {"cluster": {"type": "ray", "address": "http://127.0.0.1:8265"}}
    one = found("CartPole-v1", env_runners={"num_env_runners": 1000}, backends=elsewhere)["resources"]
    assert one.severity == "warning"


def test_gpus_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    one = found("CartPole-v1", learners={"num_gpus_per_learner": 1})["resources"]
    assert one.message == "the project asks for 1 GPUs; this machine has 0"
    assert one.cure == "learners: {num_gpus_per_learner: 0}"


# --- the findings themselves


def test_a_finding_is_plain_data() -> None:
    one = found("Float64Observation")["observation-dtype"]
    assert one.to_dict() == {
        "id": "observation-dtype",
        "severity": "warning",
        "message": one.message,
        "where": one.where,
        "cure": "obs = np.array(obs, dtype=np.float32)",
    }


def test_there_are_enough_checks_and_the_manual_lists_them_all() -> None:
    assert len(CHECKS) >= 25
    assert all(one.cure for one in CHECKS.values() if one.severity != "note")
    manual = (TESTS.parent / "docs" / "learn" / "check.md").read_text(encoding="utf-8")
    from platotk.sims.checks.catalogue import table

    assert table() in manual, "paste catalogue.table() into docs/learn/check.md"


def test_units_are_told_with_the_mapping_and_a_leaf_that_is_not_there_is_found(project_folder: Write) -> None:
    folder = project_folder("sim: CartPole-v1\nunits:\n  observation: {'[0]': m}\n")
    told = [one.message for one in check(Project.load(folder), time_limit_s=20.0) if one.id == "mapping"]
    assert told[-1] == "observation[0]: in m"
    folder = project_folder("sim: CartPole-v1\nunits:\n  observation: {postion: m}\n")
    findings = {one.id: one for one in check(Project.load(folder), time_limit_s=20.0)}
    wrong = findings["project-setting"]
    assert wrong.where is not None
    assert wrong.where.endswith("plato.yaml:3")
    assert "no leaf 'postion'" in wrong.message


def test_replay_that_the_memory_cannot_hold_is_found_before_training() -> None:
    replay = {"replay_buffer_config": {"capacity": 10**12}}
    one = found("Pendulum-v1", algorithm="SAC", training=replay)["resources"]
    assert one.severity == "error"
    assert one.message.startswith("a replay buffer of 1,000,000,000,000 steps of 31 bytes takes 28,")
    assert one.where == "Project(training.replay_buffer_config.capacity)"
    assert one.cure is not None
    assert one.cure.startswith("replay_buffer_config: {capacity: ")


def sees(space: Any, value: Any) -> type:
    class Sees(gymnasium.Env):  # type: ignore[type-arg]
        observation_space = space
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.num_steps = 0
            return value(self.np_random), {}

        def step(self, action: Any) -> Any:
            self.num_steps += 1
            return value(self.np_random), self.np_random.random(), self.num_steps >= 20, False, {}

    return Sees


def test_what_is_too_large_for_float32_is_to_be_scaled() -> None:
    space = gymnasium.spaces.Box(-1e300, 1e300, (2,), np.float64)
    one = found(sees(space, lambda rng: rng.uniform(-1e300, 1e300, 2)))["observation-refused"]
    assert "is too large for float32, in which networks learn" in one.message
    assert one.cure is not None
    assert one.cure.startswith("Scale it")


@pytest.mark.parametrize(
    ("space", "value"),
    [
        (gymnasium.spaces.Dict({}), {}),
        (gymnasium.spaces.Box(0, 1, (0,)), np.zeros(0, np.float32)),
    ],
)
def test_an_observation_of_nothing_is_a_warning(space: Any, value: Any) -> None:
    one = found(sees(space, lambda rng: value))["observation-empty"]
    assert (one.severity, "holds no number" in one.message) == ("warning", True)


@pytest.mark.parametrize("shape", [(20, 20, 17), (84, 84, 4, 1), (4, 84, 3)])
def test_a_picture_that_is_flattened_is_told(shape: tuple[int, ...]) -> None:
    space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
    one = found(sees(space, lambda rng: rng.integers(0, 256, shape, np.uint8)))["picture-flattened"]
    assert (one.severity, f"shape {shape} uint8, learned as" in one.message) == ("note", True)
