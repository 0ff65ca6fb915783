"""An exported agent acts as the trained policy did, alone, and refuses what it should."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from platotk.agents.agent import Agent
from platotk.agents.manifest import write_manifest
from platotk.agents.policy import Policy
from platotk.errors import AgentError, SimError
from platotk.learning.policies import load_policy


@pytest.fixture
def copy(adder_agent: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adder_agent, tmp_path / "agent"))


def test_it_acts_in_the_sims_own_space(adder_agent):
    agent = Agent.load(adder_agent)
    action = agent.act({"value": np.array([17.0], np.float32)})
    assert agent.action_space.contains(action)
    assert action["addend"].dtype == np.int32
    assert isinstance(agent, Policy)


def test_it_acts_as_the_policy_it_was_exported_from(adder_agent, adder_run):
    agent, policy = Agent.load(adder_agent), load_policy(adder_run)
    observations = [{"value": [float(value)]} for value in range(-50, 151)]
    assert agent.act_batch(observations) == policy.act_batch(observations)


def test_one_at_a_time_is_the_same_as_a_batch(adder_agent):
    agent = Agent.load(adder_agent)
    observations = [{"value": [float(value)]} for value in range(0, 100, 7)]
    session = agent.session()
    assert agent.act_batch(observations) == [agent.act(obs) for obs in observations]
    assert agent.act_batch(observations) == [session.act(obs) for obs in observations]


def test_verify_replays_at_least_a_thousand_recorded_steps(adder_agent):
    proof = Agent.load(adder_agent).verify()
    assert proof.is_equal
    assert proof.num_rows >= 1000
    assert proof.num_mismatches == 0


def test_a_bad_observation_names_its_field(adder_agent):
    agent = Agent.load(adder_agent)
    with pytest.raises(SimError, match=r"observation\.value"):
        agent.act({"value": [float("nan")]})
    with pytest.raises(SimError, match=r"observation\.value: missing"):
        agent.act({})


def test_acting_needs_neither_ray_nor_torch_nor_mlflow(adder_agent):
    script = (
        "import sys\n"
        "from platotk.agents.agent import Agent\n"
        f"agent = Agent.load({str(adder_agent)!r})\n"
        "agent.act({'value': [17.0]})\n"
        "agent.verify()\n"
        "print([name for name in ('ray', 'torch', 'mlflow', 'pandas') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_onnxruntime_reports_to_nobody(adder_agent):
    script = (
        "import os, sys\n"
        "from platotk.agents.agent import Agent\n"
        f"Agent.load({str(adder_agent)!r})\n"
        "print(os.environ['ORT_DISABLE_TELEMETRY'])\n"
    )
    clean = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=clean)
    assert done.stdout.strip() == "1"


def test_a_run_is_not_an_agent_and_the_error_says_what_to_type(adder_run):
    with pytest.raises(AgentError, match="is a run, not an agent") as raised:
        Agent.load(adder_run.path)
    assert "plato export" in str(raised.value)


@pytest.mark.parametrize("name", ["policy.onnx", "parity.json", "openapi.json", "manifest.json"])
def test_one_changed_byte_is_refused(copy, name):
    path = copy / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(AgentError):
        Agent.load(copy)


def test_a_missing_file_is_refused(copy):
    (copy / "parity.json").unlink()
    with pytest.raises(AgentError, match="missing"):
        Agent.load(copy)


def test_a_link_is_refused(copy, tmp_path):
    (copy / "policy.onnx").rename(tmp_path / "elsewhere.onnx")
    (copy / "policy.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(AgentError, match="link"):
        Agent.load(copy)


def doctor(folder: Path, **changes: object) -> None:
    """Rewrite the manifest with right hashes: what somebody with bad intent would do."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for key in ("schema", "kind", "files", "manifest_sha256"):
        manifest.pop(key)
    write_manifest(folder, {**manifest, **changes})


@pytest.mark.parametrize("name", ["../policy.onnx", "/etc/passwd", "a/b", "..", "a\\b"])
def test_a_manifest_that_leads_out_of_the_folder_is_refused(copy, name):
    from platotk.agents import manifest

    content = json.loads((copy / "manifest.json").read_text())
    content["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    content.pop("manifest_sha256")
    content["manifest_sha256"] = manifest._sha256(manifest._canonical(content))
    (copy / "manifest.json").write_bytes(manifest._canonical(content))
    with pytest.raises(AgentError, match="leads out"):
        Agent.load(copy)


def test_an_unknown_schema_is_refused(copy):
    from platotk.agents import manifest

    content = json.loads((copy / "manifest.json").read_text())
    content["schema"] = 99
    content.pop("manifest_sha256")
    content["manifest_sha256"] = manifest._sha256(manifest._canonical(content))
    (copy / "manifest.json").write_bytes(manifest._canonical(content))
    with pytest.raises(AgentError, match="schema 99"):
        Agent.load(copy)


def test_a_model_with_external_data_is_refused_even_with_right_hashes(copy):
    import onnx

    model = onnx.load(copy / "policy.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../secrets.bin"
    (copy / "policy.onnx").write_bytes(model.SerializeToString())
    doctor(copy)
    with pytest.raises(AgentError, match="in another file"):
        Agent.load(copy)


def test_a_model_with_operators_of_its_own_is_refused(copy):
    import onnx

    model = onnx.load(copy / "policy.onnx")
    model.graph.node[0].domain = "evil.ops"
    (copy / "policy.onnx").write_bytes(model.SerializeToString())
    doctor(copy)
    with pytest.raises(AgentError, match=r"evil\.ops"):
        Agent.load(copy)


def _in_a_branch(model: Any, tensor: Any) -> None:
    from onnx import TensorProto, helper

    branch = helper.make_graph([], "branch", [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])], [tensor])
    model.graph.node.append(helper.make_node("If", ["condition"], ["x"], then_branch=branch, else_branch=branch))


def _in_an_attribute(model: Any, tensor: Any) -> None:
    from onnx import helper

    model.graph.node.append(helper.make_node("Constant", [], ["x"], value=tensor))


def _in_a_sparse_tensor(model: Any, tensor: Any) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(tensor)


def _in_a_function(model: Any, tensor: Any) -> None:
    from onnx import helper

    node = helper.make_node("Constant", [], ["x"], value=tensor)
    model.functions.append(helper.make_function("", "Own", [], ["x"], [node], []))


@pytest.mark.parametrize("hide", [_in_a_branch, _in_an_attribute, _in_a_sparse_tensor, _in_a_function])
def test_external_data_is_found_wherever_it_hides(copy, hide):
    import onnx

    tensor = onnx.TensorProto(name="x", data_type=onnx.TensorProto.FLOAT, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    model = onnx.load(copy / "policy.onnx")
    hide(model, tensor)
    (copy / "policy.onnx").write_bytes(model.SerializeToString())
    doctor(copy)
    with pytest.raises(AgentError, match="in another file"):
        Agent.load(copy)


def test_a_function_of_a_domain_of_its_own_is_refused(copy):
    """onnxruntime would inline it in place of the operator that it calls itself."""
    import onnx
    from onnx import helper

    model = onnx.load(copy / "policy.onnx")
    model.functions.append(helper.make_function("evil.functions", "Clip", ["x"], ["x"], [], []))
    (copy / "policy.onnx").write_bytes(model.SerializeToString())
    doctor(copy)
    with pytest.raises(AgentError, match=r"evil\.functions"):
        Agent.load(copy)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"kind": ' + b"1" * 5000 + b"}",
        b'{"kind": "platotk-agent", "schema": NaN}',
        b"\x80\x04\x95",
        b"",
    ],
    ids=["nested", "a huge number", "NaN", "pickle", "empty"],
)
def test_a_manifest_that_is_no_manifest_is_refused(copy, text):
    (copy / "manifest.json").write_bytes(text)
    with pytest.raises(AgentError):
        Agent.load(copy)


def test_rubbish_instead_of_a_model_is_refused(copy):
    (copy / "policy.onnx").write_bytes(b"\x80\x04\x95cposix\nsystem\n")
    doctor(copy)
    with pytest.raises(AgentError):
        Agent.load(copy)


def test_a_second_export_goes_beside_the_first(adder_run, adder_agent):
    from platotk.agents.export import export

    again = export(adder_run)
    assert adder_agent.name == "agent"
    assert again.name.startswith("agent-000001")
    assert Agent.load(again).verify().is_equal


def test_a_mask_for_an_agent_that_takes_none_is_refused_everywhere(adder_agent):
    agent, seen = Agent.load(adder_agent), {"value": [17.0]}
    for act in (agent.act, agent.session().act):
        with pytest.raises(SimError, match="An action mask was given"):
            act(seen, mask=[1, 0])
    with pytest.raises(SimError, match="An action mask was given"):
        agent.act_batch([seen], masks=[[1, 0]])
    assert agent.session().act(seen) == agent.sessions(2).act({1: seen}, masks={1: None})[1]
