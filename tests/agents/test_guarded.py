"""An agent with guards: they travel with it, stand around everything that acts, and are counted by the server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from gymnasium import spaces
from onnx import helper, numpy_helper
from tests.agents.served import ask, request, served, with_guard, with_manifest, write_agent

from platotk.agents.agent import Agent
from platotk.agents.application import Server
from platotk.agents.controllers import load_controller
from platotk.agents.policy import Policy
from platotk.agents.server import serve
from platotk.errors import AgentError, ProjectError, SimError

TANK = spaces.Dict(
    {"level": spaces.Box(0.0, 10.0, (1,), np.float32), 'odd "key"': spaces.Box(0.0, 10.0, (1,), np.float32)}
)
CONTROLLER = "def safe(observation):\n    return 7.0\n\n\ndef broken(observation):\n    raise OSError('no')\n"


def seen(level: float, other: float = 0.0) -> dict[str, Any]:
    return {"level": [level], 'odd "key"': [other]}


def guarded(folder: Path, *, has_memory: bool = False, **guard: Any) -> Path:
    """An agent that sends the sum of what it sees, within these guards."""
    write_agent(folder, TANK, has_memory=has_memory)
    (folder / "openapi.json").unlink()
    return with_guard(folder, **guard)


# Memoryless


def test_every_way_to_act_is_guarded(tmp_path: Path) -> None:
    agent = Agent.load(guarded(tmp_path / "agent", clamp={"action": {"high": 5}}))
    assert isinstance(agent, Policy)
    assert not agent.has_memory
    assert agent.act(seen(9)) == [5.0]
    assert [a.tolist() for a in agent.act_batch([seen(9), seen(4)])] == [[5.0], [4.0]]
    columns = {"level": np.array([[9.0], [4.0]], np.float32), 'odd "key"': np.zeros((2, 1), np.float32)}
    assert agent.act_columns(columns, 2).tolist() == [[5.0], [4.0]]
    session = agent.session()
    assert session.act(seen(9)) == [5.0]
    assert session.guarded == [{"guard": "clamp", "leaf": "action"}]
    assert agent.sessions(2).act({0: seen(9), 1: seen(4)})[0] == [5.0]
    assert agent.unguarded.act(seen(9)) == [9.0]


def test_old_readers_refuse_an_agent_whose_guards_they_would_not_see(tmp_path: Path) -> None:
    assert (
        json.loads((guarded(tmp_path / "a", clamp={"action": {"high": 5}}) / "manifest.json").read_text())["schema"]
        == 2
    )
    assert json.loads((write_agent(tmp_path / "b", TANK) / "manifest.json").read_text())["schema"] == 1


def test_guards_that_do_not_fit_the_agent_are_refused(tmp_path: Path) -> None:
    for number, guard in enumerate(({"clamp": {"valve": {"high": 5}}}, {"clamp": 3}, {"forbid": [{"then": {}}]})):
        with pytest.raises(AgentError, match="incomplete manifest"):
            Agent.load(guarded(tmp_path / str(number), **guard))


def test_without_guards_the_same_calls_work(tmp_path: Path) -> None:
    agent = Agent.load(write_agent(tmp_path / "agent", TANK))
    session = agent.session()
    assert session.act(seen(3), observed_at=1.0) == [3.0]
    assert agent.act(seen(3), observed_at=1.0) == [3.0]
    assert list(session.guarded) == []


# With memory


def test_slew_gives_an_agent_a_memory(tmp_path: Path) -> None:
    agent = Agent.load(guarded(tmp_path / "agent", slew={"action": {"per_step": 1}}))
    assert agent.has_memory
    for call in (lambda: agent.act(seen(1)), lambda: agent.act_batch([seen(1)])):
        with pytest.raises(AgentError, match="this agent has memory") as raised:
            call()
        assert "agent.session()" in str(raised.value)
    session = agent.session()
    assert [float(session.act(seen(level))[0]) for level in (0, 5, 5)] == [0, 1, 2]
    session.reset()
    assert session.act(seen(5)) == [5.0]


def test_rows_remember_each_for_itself(tmp_path: Path) -> None:
    sessions = Agent.load(guarded(tmp_path / "agent", slew={"action": {"per_step": 1}})).sessions(2)
    sessions.act({0: seen(0), 1: seen(9)})
    assert {row: float(a[0]) for row, a in sessions.act({0: seen(9), 1: seen(9)}).items()} == {0: 1.0, 1: 9.0}
    sessions.reset(0)
    assert float(sessions.act({0: seen(9)})[0][0]) == 9.0


def test_the_policys_own_memory_does_not_see_what_was_held(tmp_path: Path) -> None:
    session = Agent.load(guarded(tmp_path / "agent", has_memory=True, on_missing="hold", fallback=0.0)).session()
    assert [float(session.act(obs)[0]) for obs in (seen(1), seen(2), {"level": None}, seen(3))] == [1, 3, 3, 6]


def test_a_refused_observation_leaves_guards_as_they_were(tmp_path: Path) -> None:
    session = Agent.load(guarded(tmp_path / "agent", slew={"action": {"per_step": 1}})).session()
    session.act(seen(0))
    with pytest.raises(SimError, match=r"observation\.level"):
        session.act({"level": ["much"], 'odd "key"': [0]})
    assert session.act(seen(5)) == [1.0]


def test_counts_are_kept_over_all_sessions(tmp_path: Path) -> None:
    agent = Agent.load(guarded(tmp_path / "agent", clamp={"action": {"high": 5}}, on_missing="fallback", fallback=1.0))
    for obs in (seen(9), seen(1), {}):
        agent.act(obs)
    assert agent.guarded.report() == {
        "actions": 3,
        "guarded": 2,
        "did": [
            {"guard": "clamp", "leaf": "action", "count": 1},
            {"guard": "fallback", "leaf": "action", "count": 1},
            {"guard": "missing", "leaf": "level", "count": 1},
            {"guard": "missing", "leaf": 'odd "key"', "count": 1},
        ],
    }


# Fallback controllers: code that is named in data


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a controller of its own, which is not on Python's path."""
    (tmp_path / "plant").mkdir()
    (tmp_path / "plant" / "plant_code.py").write_text(CONTROLLER + f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path / "plant"
    sys.modules.pop("plant_code", None)


def with_controller(folder: Path, name: str = "plant_code:safe") -> Path:
    return guarded(folder, on_missing="fallback", fallback=name)


def test_a_controller_is_not_imported_unasked(tmp_path: Path, plant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(plant))
    agent = Agent.load(with_controller(tmp_path / "agent"))
    agent.unguarded.act(seen(1))
    for call in (agent.session, lambda: agent.act(seen(1)), lambda: agent.act_batch([seen(1)]), lambda: Server(agent)):
        with pytest.raises(AgentError, match="code of an agent is not run unasked") as raised:
            call()
        assert "controllers=True" in str(raised.value)
    with pytest.raises(AgentError, match="not run unasked"):
        serve(agent.path, port=0)
    assert not (tmp_path / "ran").exists()
    assert "plant_code" not in sys.modules


def test_with_leave_it_is_imported_from_pythons_path_or_a_folder(tmp_path: Path, plant: Path) -> None:
    folder = with_controller(tmp_path / "agent")
    with pytest.raises(AgentError, match="cannot be imported"):
        Agent.load(folder, controllers=True).session()
    session = Agent.load(folder, controllers=plant).session()
    assert session.act({}) == [7.0]
    assert session.guarded[-1] == {"guard": "fallback", "leaf": "action"}


def test_code_in_the_agents_own_folder_is_not_run_even_with_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_controller(tmp_path / "agent", "evil_code:safe")
    (folder / "evil_code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    for leave in (True, folder):
        with pytest.raises(AgentError, match="lies in the agent's own folder"):
            Agent.load(folder, controllers=leave).session()
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(AgentError, match="lies in the agent's own folder"):
        Agent.load(folder, controllers=tmp_path / "link").session()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", ["", *sys.path[1:]])
    with pytest.raises(AgentError, match="lies in the agent's own folder"):
        Agent.load(folder, controllers=True).session()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["os.system", "os:system('touch ran')", "../up:f", "a b:c", ":f", "m:", "m:f()"])
def test_a_controller_that_is_not_a_name_is_refused(tmp_path: Path, name: str) -> None:
    agent = Agent.load(with_controller(tmp_path / "agent", name), controllers=True)
    with pytest.raises(AgentError, match="is not module:function"):
        agent.session()


@pytest.mark.parametrize(("name", "said"), [("plant_code:unsafe", "cannot be imported"), ("math:pi", "not a function")])
def test_a_controller_that_is_not_there_is_said(tmp_path: Path, plant: Path, name: str, said: str) -> None:
    with pytest.raises(AgentError, match=said):
        load_controller(name, allowed=plant, folder=tmp_path / "agent")


# The server


def test_the_answer_says_what_the_guards_did(tmp_path: Path) -> None:
    app = Server(Agent.load(guarded(tmp_path / "agent", clamp={"action": {"high": 5}})))
    did = [{"guard": "clamp", "leaf": "action"}]
    assert request(app, "/act", {"observation": seen(9)}) == (200, {"action": [5.0], "guarded": did})
    assert request(app, "/act", {"observation": seen(4)}) == (200, {"action": [4.0]})
    assert request(app, "/act", {"observations": [seen(4), seen(9)]}) == (
        200,
        {"actions": [[4.0], [5.0]], "guarded": [[], did]},
    )
    assert request(app, "/v1/prediction", seen(9)) == (200, 5.0)
    assert 'plato_guard_actions_total{guard="clamp",leaf="action"} 3' in request(app, "/metrics")[1]


def test_a_stale_observation_is_held(tmp_path: Path) -> None:
    app = Server(Agent.load(guarded(tmp_path / "agent", stale_s=30, on_stale="hold", fallback=1.0)))
    now = time.time()
    assert request(app, "/act", {"observation": seen(9), "observed_at": now}) == (200, {"action": [9.0]})
    status, answer = request(app, "/act", {"observation": seen(4), "observed_at": now - 60})
    assert (status, answer["action"]) == (200, [9.0])
    assert [one["guard"] for one in answer["guarded"]] == ["stale", "hold"]
    assert request(app, "/act", {"observation": seen(4), "observed_at": now - 60, "client": "other"})[1]["action"] == [
        1.0
    ]
    assert request(app, "/act", {"observation": seen(4)}) == (200, {"action": [4.0]})


def test_what_a_guard_deals_with_is_no_422(tmp_path: Path) -> None:
    guard = {"on_missing": "fallback", "on_out_of_range": "clip", "fallback": 1.0}
    app = Server(Agent.load(guarded(tmp_path / "agent", **guard)))
    assert request(app, "/act", {"observation": {"level": [1]}})[1]["guarded"][0] == {
        "guard": "missing",
        "leaf": 'odd "key"',
    }
    assert request(app, "/act", {"observation": seen(None)})[1]["action"] == [1.0]
    assert request(app, "/act", {"observation": None})[1]["action"] == [1.0]
    assert request(app, "/act", {"observation": seen(11)})[1]["action"] == [10.0]
    for wrong in (seen("much"), {**seen(1), "lvel": 1}, 3, seen([1, 2])):
        status, answer = request(app, "/act", {"observation": wrong})
        assert (status, answer["field"].split(".")[0]) == (422, "observation")
    text = request(app, "/metrics")[1]
    assert 'plato_guard_actions_total{guard="missing",leaf="odd \\"key\\""} 2' in text


WIDE = spaces.Dict(
    level=spaces.Box(0.0, 10.0, (1,), np.float32),
    drift=spaces.Box(-np.inf, np.inf, (1,), np.float32),
    steps=spaces.Box(-9, 9, (2,), np.int16),
    mode=spaces.Discrete(3, start=1),
    on=spaces.MultiBinary(2),
)
SOUND = {"level": [1.0], "drift": [0.0], "steps": [1, 1], "mode": 1, "on": [0, 1]}


@pytest.mark.parametrize(
    ("leaf", "given", "taken"),
    [
        ("level", [1e300], [10.0]),
        ("level", -1e300, [0.0]),
        ("level", [10**400], [10.0]),
        ("drift", [1e300], [float(np.finfo(np.float32).max)]),
        ("steps", [1e300, -(10**20)], [9, -9]),
        ("steps", [3, 32768], [3, 9]),
        ("mode", 10**30, 3),
        ("mode", -1e300, 1),
        ("on", [2, 0], [1, 0]),
    ],
)
def test_a_faulty_sensor_is_clipped_alike_over_http_and_in_process(
    tmp_path: Path, leaf: str, given: Any, taken: Any
) -> None:
    write_agent(tmp_path / "agent", WIDE)
    agent = Agent.load(with_guard(tmp_path / "agent", on_out_of_range="clip"))
    expected = agent.unguarded.act({**SOUND, leaf: taken})
    status, answer = request(Server(agent), "/act", {"observation": {**SOUND, leaf: given}})
    assert (status, answer["action"]) == (200, expected.tolist())
    assert answer["guarded"] == [{"guard": "out_of_range", "leaf": leaf}]
    whole = given if leaf == "mode" else np.atleast_1d(np.asarray(given, object)).tolist()
    assert agent.act({**SOUND, leaf: whole}) == expected


@pytest.mark.parametrize("given", ["much", [1.5, 0], [[1], [2]], [True, 3], [1e300]])
def test_what_is_no_number_of_the_leaf_is_no_faulty_sensor(tmp_path: Path, given: Any) -> None:
    write_agent(tmp_path / "agent", WIDE)
    app = Server(Agent.load(with_guard(tmp_path / "agent", on_out_of_range="clip")))
    status, answer = request(app, "/act", {"observation": {**SOUND, "steps": given}})
    assert (status, answer["field"].partition("[")[0]) == (422, "observation.steps")


def test_infinity_is_no_measurement_over_http_and_in_process(tmp_path: Path) -> None:
    """JSON has no infinity, and a number that is too large for any float is one: missing, as NaN is."""
    agent = Agent.load(guarded(tmp_path / "agent", on_out_of_range="clip", on_missing="fallback", fallback=3.0))
    for value in (np.inf, -np.inf, np.nan):
        assert agent.act(seen(value)) == [3.0]
    status, answer = request(Server(agent), "/act", b'{"observation": {"level": [1e999], "odd \\"key\\"": [0]}}')
    assert (status, answer["action"]) == (200, [3.0])
    assert answer["guarded"][0] == {"guard": "missing", "leaf": "level"}
    agent = Agent.load(guarded(tmp_path / "strict", on_out_of_range="clip"))
    with pytest.raises(SimError, match=r"observation\.level"):
        agent.act(seen(np.inf))
    body = b'{"observation": {"level": [1e999], "odd \\"key\\"": [0]}}'
    assert request(Server(agent), "/act", body)[1]["field"] == "observation.level"


def say_nan_above_five(folder: Path) -> Path:
    """The agent, whose answer to a total above 5 is NaN from now on."""
    model = onnx.load(folder / "policy.onnx")
    for node in model.graph.node:
        node.output[:] = ["total" if name == "action" else name for name in node.output]
        node.input[:] = ["total" if name == "action" else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.array(5, np.float32), "five"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(np.nan, np.float32), "nan"))
    model.graph.node.append(helper.make_node("Greater", ["total", "five"], ["is_high"]))
    model.graph.node.append(helper.make_node("Where", ["is_high", "nan", "total"], ["action"]))
    (folder / "policy.onnx").write_bytes(model.SerializeToString())
    return with_manifest(folder)


def test_a_policy_that_fails_gets_the_fallback(tmp_path: Path) -> None:
    folder = guarded(tmp_path / "agent", clamp={"action": {"high": 100}}, fallback=3.0)
    agent = Agent.load(say_nan_above_five(folder))
    assert [a.tolist() for a in agent.act_batch([seen(4), seen(6), seen(5)])] == [[4.0], [3.0], [5.0]]
    status, answer = request(Server(agent), "/act", {"observation": seen(6)})
    assert (status, answer["action"]) == (200, [3.0])
    assert [one["guard"] for one in answer["guarded"]] == ["policy_failed", "fallback"]
    assert agent.guarded.counts["policy_failed", "action"] == 2
    with pytest.raises(SimError, match=r"observation\.level"):  # it is the observation that is wrong
        agent.act({**seen(1), "level": ["much"]})


def test_a_failing_policy_remembers_nothing_of_it(tmp_path: Path) -> None:
    folder = guarded(tmp_path / "agent", has_memory=True, clamp={"action": {"high": 100}}, fallback=3.0)
    session = Agent.load(say_nan_above_five(folder)).session()
    assert [float(session.act(seen(level))[0]) for level in (2, 4, 3)] == [2.0, 3.0, 5.0]


def test_without_a_fallback_its_failure_is_said(tmp_path: Path) -> None:
    agent = Agent.load(say_nan_above_five(guarded(tmp_path / "agent", clamp={"action": {"high": 100}})))
    with pytest.raises(SimError, match="NaN"):
        agent.act(seen(6))


def test_without_such_a_guard_it_still_is(tmp_path: Path) -> None:
    app = Server(Agent.load(guarded(tmp_path / "agent", clamp={"action": {"high": 5}})))
    assert request(app, "/act", {"observation": {"level": [1]}})[0] == 422
    assert request(app, "/act", {"observation": seen(11)})[0] == 422


PER_SECOND: dict[str, Any] = {"slew": {"action": {"per_second": 1.0}}, "step_s": 1000.0}
STALE: dict[str, Any] = {"stale_s": 30.0, "on_stale": "hold", "fallback": 9.0}
T = 1_800_000_000.0


class Clock:
    """The own clock of an agent's guards, set by hand."""

    def __init__(self, agent: Agent) -> None:
        self.now = T
        agent.guarded._clock = lambda: self.now


def test_a_late_observation_does_not_end_the_speed_limit(tmp_path: Path) -> None:
    agent = Agent.load(guarded(tmp_path / "agent", **PER_SECOND, **STALE))
    clock, session, sent = Clock(agent), agent.session(), []
    for after_s, stamped, level in [(0, 0, 0), (1, 1, 9), (1.5, -3600, 9), (2, 2, 9), (3, 3, 9)]:
        clock.now = T + after_s
        sent.append(
            (float(session.act(seen(level), observed_at=T + stamped)[0]), [d["guard"] for d in session.guarded])
        )
    assert sent == [(0, []), (1, ["slew"]), (1, ["stale", "hold"]), (1.5, ["slew"]), (2.5, ["slew"])]


def test_nor_does_the_fallback_that_is_sent_for_it(tmp_path: Path) -> None:
    """An hour blind: the fallback was sent a second ago, not an hour ago."""
    agent = Agent.load(guarded(tmp_path / "agent", **PER_SECOND, **{**STALE, "on_stale": "fallback"}))
    clock, session = Clock(agent), agent.session()
    session.act(seen(0), observed_at=T)
    clock.now = T + 3600
    assert session.act(seen(0), observed_at=T) == [9.0]
    clock.now = T + 3601
    assert session.act(seen(0), observed_at=T + 3601) == [8.0]


@pytest.mark.parametrize("guard", [PER_SECOND, {**PER_SECOND, **STALE}], ids=["not judged", "judged stale"])
def test_an_observation_from_the_future_neither_frees_nor_freezes(tmp_path: Path, guard: dict[str, Any]) -> None:
    agent = Agent.load(guarded(tmp_path / "agent", **guard))
    clock, session, sent = Clock(agent), agent.session(), []
    for after_s, stamped in [(0, 0), (1, 1), (2, 1e9), (3, 3), (4, 4)]:
        clock.now = T + after_s
        sent.append(float(session.act(seen(9 if after_s else 0), observed_at=T + stamped)[0]))
    assert sent == ([0, 1, 1, 2, 3] if "stale_s" in guard else [0, 1, 2, 3, 4])


@pytest.mark.parametrize(
    ("stamps", "actions"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3]),
        ([0, 50, 100, 150], [0, 1, 2, 3]),  # more time is said to pass than does
        ([0, 0.5, 1, 1.5], [0, 0.5, 1, 1.5]),  # less
        ([0, 1e9, 2, 3], [0, 1, 2, 3]),  # one from the future
        ([0, -1e9, 2, 3], [0, 1, 2, 3]),  # one from the past
        ([0, 40, 2, 3], [0, 1, 2, 3]),
        ([20, 21, 22, 23], [0, 1, 2, 3]),  # a clock that is 20 s fast
        ([None, None, None, None], [0, 1, 2, 3]),
    ],
)
def test_in_the_server_no_time_that_is_said_makes_it_faster(
    tmp_path: Path, stamps: list[float | None], actions: list[float]
) -> None:
    agent = Agent.load(guarded(tmp_path / "agent", **PER_SECOND))
    app, clock, sent = Server(agent), Clock(agent), []
    for after_s, stamp in enumerate(stamps):
        clock.now = T + after_s
        body = {"observation": seen(9 if after_s else 0), "observed_at": None if stamp is None else T + stamp}
        sent.append(request(app, "/act", body)[1]["action"][0])
    assert sent == pytest.approx(actions, abs=1e-6)


def test_in_the_server_stale_ones_do_not_either(tmp_path: Path) -> None:
    agent = Agent.load(guarded(tmp_path / "agent", **PER_SECOND, **STALE))
    app, clock, sent = Server(agent), Clock(agent), []
    for after_s, stamp in [(0, 0), (1, 1), (1.5, -3600), (2, 2), (2.5, 3600), (3, 3)]:
        clock.now = T + after_s
        body = {"observation": seen(9 if after_s else 0), "observed_at": T + stamp}
        sent.append(request(app, "/act", body)[1]["action"][0])
    assert sent == pytest.approx([0, 1, 1, 1.5, 1.5, 2.0], abs=1e-6)


def test_the_contract_says_so(tmp_path: Path) -> None:
    app = Server(Agent.load(guarded(tmp_path / "agent", clamp={"action": {"high": 5}})))
    document = request(app, "/openapi.json")[1]
    answers = document["paths"]["/act"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]["oneOf"]
    assert all("guarded" in answer["properties"] and "guarded" not in answer["required"] for answer in answers)


def test_several_workers_import_the_controller_too(tmp_path: Path, plant: Path) -> None:
    with served(with_controller(tmp_path / "agent"), workers=2, controllers=str(plant)) as url:
        assert ask(f"{url}/act", {"observation": {}})[1]["action"] == [7.0]


def test_agents_with_guards_that_remember_have_one_worker(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="would each have a memory of their own"):
        serve(guarded(tmp_path / "agent", slew={"action": {"per_step": 1}}), workers=2, port=0)


def test_guards_need_neither_ray_nor_torch_nor_pydantic(tmp_path: Path) -> None:
    folder = guarded(tmp_path / "agent", clamp={"action": {"high": 5}}, on_missing="fallback", fallback=0)
    script = (
        "import sys\nfrom platotk.agents.agent import Agent\n"
        f"Agent.load({str(folder)!r}).act({{}})\n"
        "print([name for name in ('ray', 'torch', 'mlflow', 'pydantic', 'yaml') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
