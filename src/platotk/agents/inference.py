"""Runs the model of an agent, and nothing but what the manifest says it is.

Given the bytes of `policy.onnx`, the adapter and the memory of the manifest, `open_model` gives a function from named
inputs to outputs. A model whose inputs and outputs are not those of the agent's own spaces is refused when it is
loaded; whatever onnxruntime says later is an `AgentError`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from ..errors import AgentError, missing_extra
from ..spaces import Adapter
from ..spaces.leaves import dtype_of

MAX_STATE = 1 << 24
"""Numbers that an agent may remember; as many as an observation may have."""
_KINDS = {"tensor(float)": np.dtype(np.float32), "tensor(uint8)": np.dtype(np.uint8)}

Run = Callable[[dict[str, Any]], list[Any]]


@dataclass(frozen=True)
class StateEntry:
    """One tensor of a policy's memory: its input and output in the model, and its shape without the batch."""

    input: str
    output: str
    shape: tuple[int, ...]


def read_state(data: Any) -> list[StateEntry]:
    """The memory that a manifest describes.

    Raises:
        ValueError, TypeError, KeyError: It describes none, or more than an agent may remember.
    """
    entries = [StateEntry(str(one["input"]), str(one["output"]), tuple(map(int, one["shape"]))) for one in data]
    sizes = [math.prod(entry.shape) for entry in entries]
    if any(side < 0 for entry in entries for side in entry.shape) or sum(sizes) > MAX_STATE:
        raise ValueError(f"a memory of {sum(sizes):,} numbers; the most is {MAX_STATE:,}")
    return entries


def open_model(model: bytes, adapter: Adapter, outputs: Sequence[str], state: Sequence[StateEntry]) -> Run:
    """A function from named inputs to the outputs, the memory last, on one thread: a policy is too small to share out.

    Raises:
        AgentError: It is no model, or not one of these inputs and outputs.
        MissingExtraError: onnxruntime is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from 1.32 on it reports to Microsoft on Linux as well
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("onnxruntime", "serve") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised, and said once
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        inputs, known = session.get_inputs(), {output.name for output in session.get_outputs()}
    except Exception as error:  # onnxruntime has no common base class for its errors
        raise AgentError(f"policy.onnx cannot be loaded: {error}", hint="Export the agent again.") from error
    _require_inputs(inputs, adapter, state)
    _require_outputs(known, adapter, outputs, state)
    names = [*outputs, *(entry.output for entry in state)]
    run, first, num_outputs = session.run, inputs[0].name, len(outputs)

    def call(feeds: dict[str, Any]) -> list[Any]:
        try:
            values: list[Any] = run(names, feeds)
            num_rows = len(feeds[first])
            for value in values if not state else values[:num_outputs]:
                if len(value) != num_rows:
                    raise ValueError(f"{len(value)} actions for {num_rows} observations")
            for entry, value in zip(state, values[num_outputs:], strict=True) if state else ():
                if value.shape != (num_rows, *entry.shape):
                    raise ValueError(f"it gives {entry.output} of shape {value.shape}, not {(num_rows, *entry.shape)}")
        except Exception as error:  # onnxruntime's own, too, and those of outputs that are no arrays
            raise AgentError(f"policy.onnx fails: {_first_line(error)}", hint="Export the agent again.") from error
        return values

    return call


def _require_inputs(inputs: Sequence[Any], adapter: Adapter, state: Sequence[StateEntry]) -> None:
    frame = adapter.frame_space
    boxes = dict(frame.spaces) if isinstance(frame, spaces.Dict) else {"vector": frame}
    expected = {name: (dtype_of(box), tuple(box.shape or ())) for name, box in boxes.items()}
    expected.update({entry.input: (np.dtype(np.float32), entry.shape) for entry in state})
    given = {one.name: one for one in inputs}
    if given.keys() != expected.keys() or len(expected) < len(boxes) + len(state):
        raise _unlike(f"takes {_names(given)}, and its manifest says {_names(expected)}")
    for name, (dtype, shape) in expected.items():
        sides = list(given[name].shape)
        fits = len(sides) == 1 + len(shape) and not isinstance(sides[0], int)
        fits = fits and all(side == want for side, want in zip(sides[1:], shape, strict=True) if isinstance(side, int))
        if not fits or _KINDS.get(given[name].type) != dtype:
            raise _unlike(f"takes {name} as {given[name].type} {sides}, and its spaces give {dtype} {shape}")


def _require_outputs(known: set[str], adapter: Adapter, outputs: Sequence[str], state: Sequence[StateEntry]) -> None:
    is_mixed = isinstance(adapter.encoded_action_space, spaces.Dict)
    if set(outputs) != {"continuous", "discrete"} if is_mixed else len(outputs) != 1:
        raise _unlike(f"gives the action as {_names(outputs)}, which is not one for its spaces")
    wanted = [*outputs, *(entry.output for entry in state)]
    if known != set(wanted) or len(known) < len(wanted):
        raise _unlike(f"gives {_names(known)}, and its manifest says {_names(wanted)}")


def _names(names: Any) -> str:
    text = ", ".join(sorted(map(str, names)))
    return text if len(text) <= 200 else text[:197] + "..."


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]


def _unlike(what: str) -> AgentError:
    return AgentError(f"policy.onnx {what}.", hint="Export the agent again, or do not trust where it came from.")
