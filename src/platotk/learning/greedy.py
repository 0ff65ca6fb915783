"""A checkpoint that acts fast: the graph that an export traces, run by torch as it is.

`RLlibPolicy` acts through RLlib's own pipelines, and exports are proven against it; most of its time goes into episode
objects and connectors. Whoever plays many episodes asks `greedy`, which gives the same actions without them.
"""

from __future__ import annotations

from typing import Any

import torch

from ..agents.acting import AgentSessions, Network
from ..agents.inference import StateEntry
from ..errors import AgentError
from .policies import RLlibPolicy
from .tracing import PolicyNetwork

KNOWN = ("ray.rllib.", "platotk.")
"""Whose RLModules act by their distribution's inputs alone; one of the user's own may do anything in its inference."""


def greedy(policy: RLlibPolicy) -> RLlibPolicy:
    """The same policy, acting as fast as it can."""
    if not type(policy.module).__module__.startswith(KNOWN):
        return policy
    try:
        return GreedyPolicy(policy)
    except AgentError:  # connectors of the user's own
        return policy


class GreedyPolicy(RLlibPolicy):
    """A restored policy as one graph.

    Args:
        policy: The policy as RLlib restores it.

    Raises:
        AgentError: What surrounds the module cannot be folded into a graph.
    """

    def __init__(self, policy: RLlibPolicy) -> None:
        super().__init__(policy.adapter, policy.module, policy.env_to_module, policy.module_to_env)
        graph = PolicyNetwork(policy).eval()
        names = graph.input_names

        def run(feeds: dict[str, Any]) -> list[Any]:
            with torch.inference_mode():
                return [output.numpy() for output in graph(*(torch.from_numpy(feeds[name]) for name in names))]

        self._network = Network(policy.adapter, run, graph.actions, [StateEntry(*entry) for entry in graph.state])

    def sessions(self, num_rows: int) -> AgentSessions:
        """Several conversations, one forward pass for all."""
        return AgentSessions(self._network, num_rows)
