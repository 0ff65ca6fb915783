"""`export`: from a run's checkpoint to an agent, proven equal to the trained policy.

Given a run, it restores the policy, records how it acts through RLlib's own inference path, traces everything into one
ONNX file, and writes the agent's folder, manifest last. The agent is then loaded as anybody would load it and replays
the recording; when it acts differently, nothing is written and `AgentError` says where. This is the only module in here
that imports ray and torch.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import AgentError
from ..run import Run
from ..trials import trained_run
from .agent import Agent
from .guarded import guards_of
from .manifest import write_manifest
from .openapi import openapi
from .parity import MAX_UNDECIDED_SHARE, Verification
from .recording import record
from .units import units_of

if TYPE_CHECKING:
    from ..learning.policies import RLlibPolicy

NUM_ROWS = 1024
"""Recorded observations that the agent must answer as the trained policy did."""
OPSET = 18


def export(
    run: Run,
    *,
    checkpoint: str | int = "best",
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Write the agent of a run's checkpoint.

    Args:
        run: A run with at least one checkpoint; of a tuning its best trial.
        checkpoint: "best", "last" or an iteration.
        on_event: Called with `{"event": "export", "step": ...}`.

    Returns:
        The agent's folder: `agent/` in the run, or `agent-<iteration>/` when there is one already.

    Raises:
        AgentError: The policy cannot be traced, or the agent does not act as it does.
        CheckpointError: There is no such checkpoint.
    """
    from ..learning.policies import find_checkpoint, load_policy

    tell = on_event or (lambda event: None)
    run = trained_run(run)
    path = find_checkpoint(run, checkpoint)
    policy = load_policy(run, path)
    guards, units = guards_of(run.project, policy.adapter), units_of(run.project, policy.adapter)
    with _one_thread():
        tell({"event": "export", "step": "recording", "rows": NUM_ROWS})
        recording = record(run, policy, NUM_ROWS)
        tell({"event": "export", "step": "tracing"})
        model, entries = trace(policy, recording)
    target = _target(run, path)
    draft = target.with_name(f".{target.name}-{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        (draft / "policy.onnx").write_bytes(model)
        _write_json(draft / "parity.json", {"rows": recording["rows"]})
        contract = openapi(
            policy.adapter, name=run.project.name, has_memory=policy.has_memory, guards=guards, units=units
        )
        _write_json(draft / "openapi.json", contract)
        content = {**_about(run, path), "adapter": policy.adapter.to_json(), "model": entries}
        if guards is not None:
            content["guard"] = guards.data
        if any(units.values()):
            content["units"] = units
        write_manifest(draft, {**content, "parity": None})
        tell({"event": "export", "step": "verifying"})
        proof = Agent.load(draft).verify()
        _require_equal(proof, policy)
        write_manifest(draft, {**content, "parity": proof.to_dict()})
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def trace(policy: RLlibPolicy, recording: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """The policy as one ONNX file, and what the manifest says of its inputs and outputs.

    The recording's rows get their `margin`: how decided the policy was.

    Raises:
        AgentError: The module's forward cannot be traced.
    """
    import torch

    from ..learning.traceable import not_traceable, require_traceable
    from ..learning.tracing import PolicyNetwork

    network = PolicyNetwork(policy).eval()
    inputs = [*_parts(network, recording["encoded"][:2]), *_zeros(network.state, 2)]
    names = [*network.input_names, *network.output_names]
    buffer = io.BytesIO()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            require_traceable(network, inputs)
            # The exporter warns of Python branches on shapes and of its own age; parity is checked on the result.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                tuple(inputs),
                buffer,  # type: ignore[arg-type] # the tracing exporter takes a stream, its signature forgot
                input_names=network.input_names,
                output_names=network.output_names,
                dynamic_axes={name: {0: "batch"} for name in names},
                opset_version=OPSET,
                # Traced, not by dynamo: one file without external data, in a tenth of the time.
                dynamo=False,
            )
    except AgentError:
        raise
    except Exception as error:
        raise not_traceable(policy.module, error) from error
    add_margins(policy, network, recording)
    state = [{"input": a, "output": b, "shape": list(shape)} for a, b, shape in network.state]
    entries = {"inputs": network.input_names, "outputs": network.actions, "state": state, "opset": OPSET}
    return buffer.getvalue(), entries


def add_margins(policy: RLlibPolicy, network: Any, recording: dict[str, Any]) -> None:
    """Per row: the gap between the two best choices, or the distance of a rounded number to the rounding edge."""
    import torch

    with torch.inference_mode():
        _add_margins(policy, network, recording)


def _add_margins(policy: RLlibPolicy, network: Any, recording: dict[str, Any]) -> None:
    rounding = policy.adapter.rounding_margins
    if network.state:
        state = _zeros(network.state, 1)
        for row, encoded in zip(recording["rows"], recording["encoded"], strict=True):
            state = _zeros(network.state, 1) if row["is_first"] else state
            scores, state = network.scores(*_parts(network, [encoded]), *state)
            row["margin"] = _finite(min(network.margins(scores)[0], rounding(_continuous(network, scores))[0]))
        return
    scores, _ = network.scores(*_parts(network, recording["encoded"]))
    edges = rounding(_continuous(network, scores))
    for row, gap, edge in zip(recording["rows"], network.margins(scores), edges, strict=True):
        row["margin"] = _finite(min(gap, edge))


def _continuous(network: Any, scores: Any) -> Any:
    """The encoded continuous numbers (B, k), k = 0 without any."""
    if "continuous" not in network.actions:
        return np.zeros((len(scores), 0))
    return network._greedy(scores)[0].double().numpy()


def _parts(network: Any, encoded: list[Any]) -> list[Any]:
    """Encoded observations as the network's inputs, stacked."""
    import torch

    if isinstance(encoded[0], dict):
        return [torch.as_tensor(np.stack([row[name] for row in encoded])) for name in network.parts]
    return [torch.as_tensor(np.stack(encoded))]


def _zeros(state: list[Any], batch: int) -> list[Any]:
    import torch

    return [torch.zeros((batch, *shape)) for _, _, shape in state]


@contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread within: a few observations at a time are too little to share out, images too.

    Measured: beside other work on two cores, an export of images took 67 s with two threads, 3 s with one.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _require_equal(proof: Verification, policy: RLlibPolicy) -> None:
    if proof.is_equal:
        return
    raise AgentError(
        f"the exported agent does not act as {type(policy.module).__name__} does: of {proof.num_rows} observations "
        f"{proof.num_mismatches} chose differently, {proof.num_undecided} where it was undecided "
        f"(at most {MAX_UNDECIDED_SHARE:.0%} may), the largest error is {proof.max_error:.2g} of the range.",
        hint="Nothing was written. A forward that is random, or branches on values, cannot be exported.",
    )


def _target(run: Run, checkpoint: Path) -> Path:
    target = run.path / "agent"
    if not target.exists():
        return target
    target = run.path / f"agent-{checkpoint.name}"
    number = 2
    while target.exists():
        target = run.path / f"agent-{checkpoint.name}-{number}"
        number += 1
    return target


def _about(run: Run, checkpoint: Path) -> dict[str, Any]:
    """Where the agent comes from; paths of this machine and secrets stay out of it."""
    info = run.info
    line: dict[str, Any] = next(
        (line for line in reversed(run.metrics()) if line["iteration"] == int(checkpoint.name)), {}
    )
    keys = ("env_steps", "return_mean", "return_min", "return_max", "episode_length_mean")
    return {
        "name": run.project.name,
        "algorithm": info.get("algorithm"),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "mapping": info.get("mapping"),
        "provenance": {
            "run": run.name,
            "checkpoint": checkpoint.name,
            "git": info.get("git"),
            "versions": info.get("versions"),
            "seed": info.get("seed"),
        },
        "metrics": {key: line.get(key) for key in keys},
        "assessment": _assessment(run, checkpoint),
    }


def _assessment(run: Run, checkpoint: Path) -> dict[str, Any] | None:
    """The last one of this very checkpoint, in the sim that it was trained for."""
    for path in sorted((run.path / "assessments").glob("[0-9]*/summary.json"), reverse=True):
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if summary.get("checkpoint") == checkpoint.name and "sim" not in summary:
            return summary
    return None


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, allow_nan=False) + "\n", encoding="utf-8")
