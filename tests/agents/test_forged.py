"""Bundles whose hashes are right and whose content is not: refused with one sentence, and nothing else happens.

A forger writes a whole new agent, so that no hash tells. What is left is that every file is read as data
from anybody. Each bundle here is loaded, verified, served and asked once.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from gymnasium import spaces
from onnx import TensorProto, helper, numpy_helper
from tests.agents.served import request, with_guard, with_manifest, with_rows, write_agent

from platotk.agents.agent import Agent
from platotk.agents.application import Server
from platotk.agents.archive import write_archive
from platotk.errors import AgentError, PlatoError, SimError

TANK = spaces.Dict({"level": spaces.Box(0.0, 10.0, (1,), np.float32), "mode": spaces.Discrete(3)})
SEEN = {"level": 2.5, "mode": 1}
ROW = {"observation": {"level": [2.5], "mode": 1}, "action": [3.5], "is_first": True, "margin": None}
DEEP = b'{"rows": ' + b"[" * 5000 + b"]" * 5000 + b"}"


def use(folder: Path) -> None:
    """All that is done with a bundle."""
    agent = Agent.load(folder)
    agent.verify()
    server = Server(agent)
    status, answer = request(server, "/act", {"observation": SEEN})
    assert status == 200, answer


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = write_agent(tmp_path / "agent", TANK, has_memory=True, num_rows=20)
    use(folder)
    return folder


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"[]",
        b"",
        b"\xff\xfe",
        b'{"rows": null}',
        b'{"rows": {"0": 1}}',
        b'{"rows": [1]}',
        b'{"rows": [NaN]}',
        b'{"rows": ' + b"9" * 5000 + b"}",
        DEEP,
        *(
            json.dumps({"rows": [row]}).encode()
            for row in (
                {key: value for key, value in ROW.items() if key != "action"},
                {key: value for key, value in ROW.items() if key != "observation"},
                {**ROW, "margin": "x"},
                {**ROW, "margin": 10**400},
                {**ROW, "is_first": "yes"},
                {**ROW, "action": "much"},
                {**ROW, "action": [10**400]},
                {**ROW, "observation": None},
                {**ROW, "observation": {"level": [2.5], "mode": 10**30}},
                {**ROW, "mask": [1]},
            )
        ),
    ],
)
def test_a_recording_that_is_none(bundle: Path, content: bytes) -> None:
    (bundle / "parity.json").write_bytes(content)
    agent = Agent.load(with_manifest(bundle))
    for what in (agent.verify, lambda: Server(agent), agent.recorded):
        with pytest.raises(AgentError, match=r"parity\.json"):
            what()


def test_a_choice_that_there_is_not(bundle: Path) -> None:
    """Recorded, and refused by the adapter: an error of the bundle, not a crash."""
    rows = [{**ROW, "observation": {"level": [2.5], "mode": 7}}]
    (bundle / "parity.json").write_text(json.dumps({"rows": rows}))
    with pytest.raises(PlatoError, match="mode"):
        use(with_manifest(bundle))


def rename_input(model: Any) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "vectors"


def widen_input(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5


def fix_the_batch(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def take_whole_numbers(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64


def forget(model: Any) -> None:
    del model.graph.input[1]
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1), np.float32), "before"))


def tell_more(model: Any) -> None:
    model.graph.node.append(helper.make_node("Identity", ["sum"], ["more"]))
    model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["batch", 1]))


@pytest.mark.parametrize("change", [rename_input, widen_input, fix_the_batch, take_whole_numbers, forget, tell_more])
def test_a_model_of_other_inputs_and_outputs_is_not_loaded(bundle: Path, change: Callable[[Any], None]) -> None:
    with pytest.raises(AgentError, match=r"policy\.onnx (takes|gives|cannot be loaded)"):
        Agent.load(forged(bundle, change))


def reach_out_of_range(model: Any) -> None:
    """Fails while it runs: the hundredth of one number."""
    constant(model, "far", np.array(100, np.int64))
    instead(model, helper.make_node("Gather", ["sum", "far"], ["action"], axis=1))


def ask_for_everything(model: Any) -> None:
    """400 GB of zeros, asked for while it runs: their number depends on the input, so that nothing folds it before."""
    constant(model, "many", np.array([100_000_000_000], np.int64))
    constant(model, "none", np.array([0], np.float32))
    model.graph.node.append(helper.make_node("Shape", ["vector"], ["shape"], start=0, end=1))
    model.graph.node.append(helper.make_node("Mul", ["shape", "many"], ["size"]))
    instead(model, helper.make_node("ConstantOfShape", ["size"], ["action"]))


def answer_once(model: Any) -> None:
    """One action, for however many observations."""
    instead(model, helper.make_node("ReduceSum", ["sum"], ["action"], keepdims=0))


def remember_more(model: Any) -> None:
    for node in model.graph.node:
        if node.output[0] == "after":
            node.op_type = "Concat"
            node.input[:] = ["action", "action"]
            node.attribute.append(helper.make_attribute("axis", 1))


def say_nothing(model: Any) -> None:
    constant(model, "nan", np.array([[np.nan]], np.float32))
    instead(model, helper.make_node("Add", ["sum", "nan"], ["action"]))


@pytest.mark.parametrize("change", [reach_out_of_range, ask_for_everything, answer_once, remember_more, say_nothing])
def test_a_model_that_fails_when_it_runs_is_an_error_of_the_agent(bundle: Path, change: Callable[[Any], None]) -> None:
    agent = Agent.load(forged(bundle, change))
    for what in (agent.verify, lambda: Server(agent), lambda: agent.session().act(SEEN)):
        with pytest.raises((AgentError, SimError)):
            what()


def test_a_server_whose_agent_fails_says_no_more_than_that(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What passes with no rows to prove, and fails at the first request."""
    (bundle / "parity.json").write_text('{"rows": []}')
    status, answer = request(Server(Agent.load(forged(bundle, reach_out_of_range))), "/act", {"observation": SEEN})
    assert status == 500
    assert "Gather" not in answer["error"]
    assert "Gather" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("shape", [[10**11], [1 << 13, 1 << 13], [-1], "x", [1e300], [None]])
def test_a_memory_without_end_is_not_made(bundle: Path, shape: Any) -> None:
    state = [{"input": "before", "output": "after", "shape": shape}]
    refused_at_once(lambda: with_manifest(bundle, model={"outputs": ["action"], "state": state}))


@pytest.mark.parametrize(
    "change",
    [
        {"frame_stack": 10**9},
        {"frame_stack": 1e300},
        {"observation_space": {"type": "box", "low": 0, "high": 1, "shape": [10**11], "dtype": "float32"}},
        {"observation_space": {"type": "multi_binary", "n": 10**11}},
        {"action_space": {"type": "multi_binary", "n": 10**11}},
        {"action_space": {"type": "box", "low": None, "high": None, "shape": [1 << 20, 1 << 20], "dtype": "int64"}},
        {
            "observation_space": {
                "type": "tuple",
                "spaces": [{"type": "box", "low": 0, "high": 1, "shape": [1 << 23], "dtype": "uint8"}] * 1000,
            }
        },
    ],
)
def test_spaces_without_end_are_not_made(bundle: Path, change: dict[str, Any]) -> None:
    adapter = json.loads((bundle / "manifest.json").read_text())["adapter"]
    refused_at_once(lambda: with_manifest(bundle, adapter={**adapter, **change}))


@pytest.mark.parametrize(
    "guard",
    [
        {"stale_s": "x", "on_stale": "hold", "fallback": [0]},
        {"stale_s": 30},
        {"on_missing": "dance"},
        {"on_missing": "hold"},
        {"on_missing": ["hold"], "fallback": [0]},
        {"on_out_of_range": "fallback"},
        {"on_stale": "clip", "stale_s": 1},
        {"max_holds": "x", "on_missing": "hold", "fallback": [0]},
        {"max_holds": 2, "clamp": {"action": {"high": 1}}},
        {"clamp": {"action": {"high": "x"}}},
        {"clamp": {"action": {"high": 1, "low": 2}}},
        {"clamp": {"action": {}}},
        {"clamp": {"action": {"higher": 1}}},
        {"clamp": [1]},
        {"slew": {"action": {"per_step": 0}}},
        {"slew": {"action": {"per_step": True}}},
        {"slew": {"action": {"per_second": 1}}},
        {"slew": {"action": {"per_second": 1}}, "step_s": -1},
        {"forbid": {"when": 1}},
        {"forbid": [{"when": {"level": {"above": "x"}}, "then": "hold"}], "fallback": [0]},
        {"forbid": [{"when": {"level": {"above": 1}}, "then": "dance"}], "fallback": [0]},
        {"forbid": [{"when": {"level": {"above": 1}}, "then": "hold"}]},
        {"forbid": [{"when": {"level": {"near": 1}}, "then": "hold"}], "fallback": [0]},
        {"forbid": [{"when": {}, "then": "hold"}], "fallback": [0]},
        {"fallback": {"valve": 1}},
        {"watch": 1},
    ],
)
def test_guards_that_no_project_could_have_are_not_loaded(bundle: Path, guard: dict[str, Any]) -> None:
    with pytest.raises(AgentError, match="guard"):
        Agent.load(with_manifest(bundle, guard=guard))


def forged(folder: Path, change: Callable[[Any], None]) -> Path:
    """The bundle with another model, and right hashes."""
    model = onnx.load(folder / "policy.onnx")
    change(model)
    (folder / "policy.onnx").write_bytes(model.SerializeToString())
    return with_manifest(folder)


def constant(model: Any, name: str, value: Any) -> None:
    model.graph.initializer.append(numpy_helper.from_array(value, name))


def instead(model: Any, node: Any) -> None:
    """The action comes from this node, and what is remembered still from the sum."""
    for old in model.graph.node:
        if old.output[0] == "after":
            old.input[0] = "sum"
    kept = [old for old in model.graph.node if old.output[0] != "action"]
    del model.graph.node[:]
    model.graph.node.extend([*kept, node])


def refused_at_once(forge: Callable[[], Path]) -> None:
    """Without so much as 300 MB more than before, ever."""
    folder = forge()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(AgentError):
        Agent.load(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


# Honest bundles with large arrays, which are recorded packed


CAMERA = spaces.Dict(
    {"camera": spaces.Box(0, 255, (12, 16, 3), np.uint8), "speed": spaces.Box(-1, 1, (1,), np.float32)}
)


@pytest.mark.parametrize("space", [CAMERA, spaces.Box(-1.0, 1.0, (300,), np.float64)], ids=["camera", "300 numbers"])
def test_an_agent_with_a_packed_recording_is_served(tmp_path: Path, space: spaces.Space[Any]) -> None:
    folder = write_agent(tmp_path / "agent", space, num_rows=20)
    rows = json.loads((folder / "parity.json").read_text())["rows"]
    packed = rows[0]["observation"]
    assert isinstance(packed["camera"] if isinstance(packed, dict) else packed, str)
    agent = Agent.load(folder)
    assert agent.verify().is_equal
    server = Server(agent)
    assert request(server, "/readyz") == (200, {"status": "ready"})
    shown = request(server, "/form.json")[1]["observation"]
    assert request(server, "/act", {"observation": shown}) == (200, {"action": rows[0]["action"]})


def test_rows_are_written_as_an_export_writes_them(tmp_path: Path) -> None:
    masked = write_agent(tmp_path / "agent", TANK, num_choices=4, num_rows=10)
    assert [row.mask is not None for row in Agent.load(masked).recorded()] == [True] * 10
    assert len(Agent.load(with_rows(masked, 7)).recorded(limit=3)) == 3


# `plato serve` of a bundle that would like to run something


class _Touch:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def pickle_for(name: str) -> Callable[[Path, Path], Path]:
    def forge(folder: Path, canary: Path) -> Path:
        (folder / name).write_bytes(pickle.dumps(_Touch(canary)))
        return folder if name == "manifest.json" else with_manifest(folder)

    return forge


def name_its_own_controller(folder: Path, canary: Path) -> Path:
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n\ndef run(observation):\n    return [0.0]\n")
    return with_guard(folder, on_missing="fallback", fallback="evil:run")


def name_a_function_of_the_system(folder: Path, canary: Path) -> Path:
    return with_guard(folder, on_missing="fallback", fallback="os:system")


def name_an_operator(folder: Path, canary: Path) -> Path:
    model = onnx.load(folder / "policy.onnx")
    model.graph.node[0].domain = "ai.onnx.contrib"
    model.graph.node[0].op_type = "PyOp"
    (folder / "policy.onnx").write_bytes(model.SerializeToString())
    return with_manifest(folder)


def read_another_file(folder: Path, canary: Path) -> Path:
    model = onnx.load(folder / "policy.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    (folder / "policy.onnx").write_bytes(model.SerializeToString())
    return with_manifest(folder)


def name_a_class(folder: Path, canary: Path) -> Path:
    adapter = json.loads((folder / "manifest.json").read_text())["adapter"]
    space = {"type": "os.system", "args": [f"touch {canary}"], "__reduce__": "os.system"}
    return with_manifest(folder, adapter={**adapter, "observation_space": space})


def bring_more_in_an_archive(folder: Path, canary: Path) -> Path:
    archive = write_archive(folder)
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr("__main__.py", f"open({str(canary)!r}, 'w')")
        more.writestr("../sitecustomize.py", f"open({str(canary)!r}, 'w')")
    return archive


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(pickle_for("policy.onnx"), id="a pickle for a model"),
        pytest.param(pickle_for("parity.json"), id="a pickle for a recording"),
        pytest.param(pickle_for("manifest.json"), id="a pickle for a manifest"),
        name_its_own_controller,
        name_a_function_of_the_system,
        name_an_operator,
        read_another_file,
        name_a_class,
        bring_more_in_an_archive,
    ],
)
def test_plato_serve_refuses_a_doctored_bundle_and_runs_nothing(
    bundle: Path, tmp_path: Path, forge: Callable[[Path, Path], Path]
) -> None:
    canary = tmp_path / "ran"
    doctored = forge(bundle, canary)
    command = [str(Path(sys.executable).with_name("plato")), "serve", str(doctored), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=bundle)
    assert done.returncode == 1, done.stderr
    assert "answers at" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not canary.exists()
