"""Guards of a project: from plato.yaml through training, assessment and export to the agent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from platotk.agents.agent import Agent
from platotk.agents.export import export
from platotk.agents.guarded import guard_policy
from platotk.assessment.assess import assess
from platotk.errors import ProjectError
from platotk.learning.policies import load_policy
from platotk.learning.training import train
from platotk.project import Project
from platotk.run import Run
from platotk.sims.checks import check

TANK = Path(__file__).resolve().parents[2] / "examples" / "tank-level"
TINY = [
    "training.train_batch_size_per_learner=256",
    "training.minibatch_size=64",
    "training.num_epochs=1",
    "rl_module.model_config.fcnet_hiddens=[16]",
    "stop.iterations=1",
    "tracking.mlflow=false",
    "sim_config.num_steps=50",
    # An untrained policy hardly moves the valve: a tight guard has something to do.
    "guard.slew.valve.per_step=0.001",
]


@pytest.fixture(scope="module")
def run(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(Project.load(TANK, overrides=TINY), runs_dir=tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def agent(run: Run) -> Agent:
    return Agent.load(export(run))


def test_they_travel_in_the_manifest(run: Run, agent: Agent) -> None:
    assert agent.manifest["schema"] == 2
    assert agent.manifest["guard"] == run.project.guard.to_data()
    assert agent.has_memory
    assert json.loads((agent.path / "openapi.json").read_text())["components"]["schemas"]["Observation"]["anyOf"]


def test_the_proof_is_of_the_policy_alone(agent: Agent) -> None:
    proof = agent.verify()
    assert proof.is_equal
    assert proof.num_rows >= 1000
    assert agent.guarded.report()["actions"] == 0


def test_a_run_and_its_agent_are_assessed_within_the_same_guards(run: Run, agent: Agent) -> None:
    by_run, by_agent = assess(run, episodes=6).summary(), assess(agent, episodes=6).summary()
    guards = by_run["guards"]
    assert guards["actions"] == 6 * 50
    assert 0 < guards["guarded"] <= guards["actions"]
    assert {one["guard"] for one in guards["did"]} >= {"slew"}
    assert sum(one["count"] for one in guards["did"]) >= guards["guarded"]
    assert by_agent["guards"] == guards
    assert by_agent["return_mean"] == pytest.approx(by_run["return_mean"], rel=1e-5)
    kept = sorted((run.path / "assessments").glob("*/summary.json"))
    assert json.loads(kept[-1].read_text())["guards"] == guards


def test_other_guards_can_be_tried_on_a_checkpoint(run: Run) -> None:
    looser = run.project.override(["guard.slew.valve.per_step=1"])
    assert assess(run, project=looser, episodes=3).summary()["guards"]["guarded"] == 0


def test_a_checkpoint_acts_as_the_agent_does(run: Run, agent: Agent) -> None:
    sessions = guard_policy(load_policy(run), run.project).session(), agent.session()
    dry = {"level": [0.5], "setpoint": [1.0], "valve": [0.5], "inflow": [0.005]}
    for observation in (dry, {**dry, "level": [1.99]}, {**dry, "level": None}, {**dry, "level": [2.5]}, dry):
        one, other = (float(session.act(observation)["valve"][0]) for session in sessions)
        assert one == pytest.approx(other, abs=1e-6)
        assert sessions[0].guarded == sessions[1].guarded


def test_without_guards_nothing_is_said_of_them(adder_run: Run) -> None:
    assert "guards" not in assess(adder_run, episodes=2).summary()


class Sensor(gym.Env):
    """A plant whose sensor fails after ten steps."""

    observation_space = gym.spaces.Dict(level=gym.spaces.Box(0, 1, (1,), np.float32))
    action_space = gym.spaces.Box(0, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return {"level": np.zeros(1, np.float32)}, {}

    def step(self, action):
        self.t += 1
        level = np.full(1, np.nan if self.t >= 10 else 0.5, np.float32)
        return {"level": level}, float(action[0]), False, self.t >= 15, {}


def test_a_failed_sensor_is_survived_in_assessment() -> None:
    from platotk.assessment.episodes import play, starts
    from platotk.sims.loading import sim_spec
    from platotk.sims.supervised import SupervisedSim
    from platotk.spaces import adapt

    class Half:
        """Always 0.5."""

        adapter = adapt(Sensor.observation_space, Sensor.action_space)
        observation_space, action_space = Sensor.observation_space, Sensor.action_space
        has_memory = False

        def sessions(self, num_rows: int) -> Any:
            return self

        def reset(self, row: int) -> None:
            """Nothing to forget."""

        def act(self, observations: Any, *, masks: Any = None) -> Any:
            for observation in observations.values():
                self.adapter.encode(observation)
            return {row: np.full(1, 0.5, np.float32) for row in observations}

    project = Project(sim=Sensor, guard={"on_missing": "hold", "max_holds": 2, "fallback": lambda observation: [0.125]})
    policy = guard_policy(Half(), project)
    sim = SupervisedSim(sim_spec(project), seeds=np.random.SeedSequence(0), max_episode_steps=None)
    episode = play(policy, [sim], starts(1, 0))[0]
    sim.close()
    assert (episode.length, episode.failure) == (15, None)
    assert episode.return_ == 12 * 0.5 + 3 * 0.125
    did = {(one["guard"], one["leaf"]): one["count"] for one in policy.report()["did"]}
    assert did == {
        ("missing", "level"): 5,
        ("hold", "action"): 2,
        ("max_holds", "observation"): 3,
        ("fallback", "action"): 3,
    }


def test_check_and_train_name_the_line_of_a_leaf_that_is_not_there(
    ray_session: None, project_folder: Callable[..., Path]
) -> None:
    folder = project_folder("sim: CartPole-v1\nguard:\n  clamp:\n    acton: {high: 0}\ntracking: {mlflow: false}\n")
    found = [one for one in check(Project.load(folder), probe_steps=20) if one.id == "project-setting"]
    assert [(one.where, one.severity) for one in found] == [("plato.yaml:4", "error")]
    assert found[0].message == "the action has no leaf 'acton'."
    assert found[0].cure == "Did you mean 'action'?"
    with pytest.raises(ProjectError, match=r"plato.yaml:4: the action has no leaf 'acton'"):
        train(Project.load(folder))
    (folder / "plato.yaml").write_text("sim: CartPole-v1\nguard: {on_missing: fallback, fallback: 'nowhere:safe'}\n")
    found = [one for one in check(Project.load(folder), probe_steps=20) if one.id == "project-setting"]
    assert "nowhere" in found[0].message
    assert found[0].where == "plato.yaml:2"
