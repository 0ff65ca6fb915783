"""Whether a module's forward can become a graph: a dry run on tensors that have shapes but no values.

A tracer follows one example and would freeze every branch on a value, and every number that left torch, as it was for
that example. `require_traceable` makes both fail instead; `not_traceable` turns whatever failed into a message that
names the module, the user's own line, and what to write in its place.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from .. import errors
from ..errors import AgentError

_NOT_THE_USERS = tuple(
    f"{Path(file or '').resolve().parent}/" for file in (ray.__file__, torch.__file__, errors.__file__)
)


def require_traceable(network: Any, inputs: Sequence[Tensor]) -> None:
    """Run the forward without values.

    Args:
        network: A `PolicyNetwork`.
        inputs: As it is traced with.

    Raises:
        Exception: Whatever torch says to a branch on a value, or to a tensor that becomes a number or an array.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.no_grad():
        try:
            network.scores(*(mode.from_tensor(value) for value in inputs))
        except DynamicOutputShapeException:
            return  # x[mask]: without values its shape is not known, but ONNX has an operator for it


def not_traceable(module: Any, error: Exception) -> AgentError:
    """The refusal: which module, which line of it, what to do."""
    name = type(module).__name__
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*_NOT_THE_USERS, "<"))
    ]
    said = " ".join(str(error).split()) or "it gave no reason"
    if not frames:
        return AgentError(f"{name} cannot be traced to ONNX: {type(error).__name__}: {said[:300]}", hint=_HINT)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
    return AgentError(
        f"{name} cannot be exported: at {where}, `{frames[-1].line}` depends on the values of a tensor, or leaves "
        f"torch ({type(error).__name__}: {said[:160]}).",
        hint=_HINT,
    )


_HINT = (
    "Write _forward_inference in torch operations alone: torch.where for `if`, torch functions for numpy's. "
    "As long as its parameters stay, no new training is needed: plato export again."
)
