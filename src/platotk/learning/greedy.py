"""A checkpoint that acts fast: the graph that an export traces, run by torch as it is.

`RLlibPolicy` acts through RLlib's own pipelines, some milliseconds for each step of some episodes, whatever the network
is; exports are proven against it. Whoever plays many episodes asks `greedy`, which gives the same actions for a
fraction of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import Space

from ..agents.acting import AgentSession, AgentSessions, Network
from ..agents.inference import StateEntry
from ..errors import AgentError
from .policies import RLlibPolicy
from .tracing import PolicyNetwork

KNOWN = ("ray.rllib.", "platotk.")
"""Whose RLModules act by their distribution's inputs alone; one of the user's own may do anything in its inference."""


def greedy(policy: RLlibPolicy) -> RLlibPolicy | GreedyPolicy:
    """The same policy, acting as fast as it can."""
    if not type(policy.module).__module__.startswith(KNOWN):
        return policy
    try:
        return GreedyPolicy(policy)
    except AgentError:  # connectors of the user's own
        return policy


class GreedyPolicy:
    """A restored policy as one graph.

    Args:
        policy: The policy as RLlib restores it.

    Raises:
        AgentError: What surrounds the module cannot be folded into a graph.
    """

    def __init__(self, policy: RLlibPolicy) -> None:
        graph = PolicyNetwork(policy).eval()
        names = graph.input_names

        def run(feeds: dict[str, Any]) -> list[Any]:
            with torch.inference_mode():
                return [output.numpy() for output in graph(*(torch.from_numpy(feeds[name]) for name in names))]

        self.adapter = policy.adapter
        self._policy = policy
        self._network = Network(policy.adapter, run, graph.actions, [StateEntry(*entry) for entry in graph.state])

    @property
    def observation_space(self) -> Space[Any]:
        """The sim's own observation space."""
        return self.adapter.observation_space

    @property
    def action_space(self) -> Space[Any]:
        """The sim's own action space."""
        return self.adapter.action_space

    @property
    def has_memory(self) -> bool:
        """Whether an action depends on more than the last observation."""
        return self._policy.has_memory

    def act(self, obs: Any, *, mask: Any = None) -> Any:
        """The best action for one observation; raises as `RLlibPolicy.act` does."""
        self._policy.needs_no_memory("act")
        return self._network.act(obs, mask)

    def act_batch(self, observations: Sequence[Any], *, masks: Sequence[Any] | None = None) -> list[Any]:
        """The best action for each of several independent observations."""
        self._policy.needs_no_memory("act_batch")
        return self._network.act_batch(observations, masks)

    def session(self) -> AgentSession:
        """A conversation with one sim, with its own memory."""
        return AgentSession(self._network)

    def sessions(self, num_rows: int) -> AgentSessions:
        """Several conversations, one forward pass for all."""
        return AgentSessions(self._network, num_rows)
