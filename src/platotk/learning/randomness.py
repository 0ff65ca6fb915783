"""The state of a process's random generators, and back.

RLlib seeds them once and never saves them. Given nothing, this gives back the state of Python's, numpy's and
torch's generators as plain data, for this process or a remote learner's; and sets them again.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np


def random_state() -> dict[str, Any]:
    """The random generators of this process: Python's, numpy's and torch's (CUDA's too)."""
    import torch

    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state().numpy(),
        "cuda": [state.numpy() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put `random_state` back; CUDA's only on a machine with as many devices."""
    import torch

    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(torch.from_numpy(state["torch"]))
    if state["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([torch.from_numpy(device) for device in state["cuda"]])


def learner_random_state(learner: Any) -> dict[str, Any]:
    """`random_state` of a learner's process, by the learner's number."""
    return {"index": learner._learner_index, **random_state()}


class SetLearnerRandomState:
    """`set_random_state` for the learner of the same number; a learner that was not there keeps its own."""

    def __init__(self, states: list[dict[str, Any]]) -> None:
        self.states = {state["index"]: state for state in states}

    def __call__(self, learner: Any) -> None:
        """To be called in the learner's process."""
        if learner._learner_index in self.states:
            set_random_state(self.states[learner._learner_index])
