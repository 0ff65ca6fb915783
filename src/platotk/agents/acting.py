"""Acting through a network that sees encoded observations: one forward pass for many rows, each with its own memory.

`Network` says what a network takes and gives, wherever it runs: in onnxruntime for an exported agent, in torch for a
checkpoint. `AgentSessions` and `AgentSession` speak the sim's own spaces in front of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..spaces import Adapter
from .inference import Run, StateEntry


@dataclass(frozen=True)
class Network:
    """A greedy policy between encoded spaces.

    Attributes:
        adapter: Encodes observations and decodes actions.
        run: From named inputs (B, ...), observation parts and memory, to the outputs: action parts, then the memory.
        outputs: The names of the action's parts: one, or "continuous" and "discrete".
        state: The memory.
    """

    adapter: Adapter
    run: Run
    outputs: Sequence[str]
    state: Sequence[StateEntry]

    def act(self, obs: Any, mask: Any = None) -> Any:
        """The action for one observation, by a policy without memory."""
        encoded = self.adapter.encode(obs, mask)
        feeds = (
            {"vector": encoded[None]} if isinstance(encoded, np.ndarray) else {k: v[None] for k, v in encoded.items()}
        )
        outputs = self.run(feeds)
        if len(self.outputs) > 1:
            return self.adapter.decode({name: value[0] for name, value in zip(self.outputs, outputs, strict=True)})
        return self.adapter.decode(outputs[0][0])

    def act_batch(self, observations: Sequence[Any], masks: Sequence[Any] | None = None) -> list[Any]:
        """The actions for independent observations, by a policy without memory."""
        if not len(observations):
            return []
        outputs = self.run(as_feeds(self.adapter.encode_batch(observations, masks)))
        return self.adapter.decode_batch(self.action_of(outputs))

    def action_of(self, outputs: Sequence[Any]) -> Any:
        """Of all outputs, those of the action, as the adapter decodes them: an array, or a dict of two."""
        return dict(zip(self.outputs, outputs, strict=False)) if len(self.outputs) > 1 else outputs[0]


class AgentSession:
    """One episode at a time."""

    guarded: Sequence[dict[str, str]] = ()
    """What guards did to the last action: without guards nothing."""

    def __init__(self, network: Network) -> None:
        self._rows = AgentSessions(network, 1)

    def act(self, obs: Any, *, mask: Any = None, observed_at: float | None = None) -> Any:
        """The best action for the next observation; when it was observed matters to guards alone."""
        return self._rows.act({0: obs}, masks={0: mask})[0]

    def reset(self) -> None:
        """Begin a new episode."""
        self._rows.reset(0)


class AgentSessions:
    """Rows that act together, each with its own memory."""

    def __init__(self, network: Network, num_rows: int) -> None:
        self._network = network
        self._memory = [np.zeros((num_rows, *entry.shape), dtype=np.float32) for entry in network.state]

    def reset(self, row: int) -> None:
        """The row's next observation begins an episode."""
        for memory in self._memory:
            memory[row] = 0.0

    def act(self, observations: Mapping[int, Any], *, masks: Mapping[int, Any] | None = None) -> dict[int, Any]:
        """The best action for each row that has an observation."""
        network, rows = self._network, list(observations)
        if not rows:
            return {}
        adapter = network.adapter
        given = [masks.get(row) for row in rows] if masks else None
        if given is not None and adapter.mask_source != "info" and not any(one is not None for one in given):
            given = None  # nothing to refuse, and the faster way
        feeds = as_feeds(adapter.encode_batch([observations[row] for row in rows], given))
        for entry, memory in zip(network.state, self._memory, strict=True):
            feeds[entry.input] = memory[rows]
        outputs = network.run(feeds)
        # First: what gives no action is not remembered.
        actions = adapter.decode_batch(network.action_of(outputs))
        for memory, after in zip(self._memory, outputs[len(network.outputs) :], strict=True):
            memory[rows] = after
        return dict(zip(rows, actions, strict=True))


def as_feeds(encoded: Any) -> dict[str, Any]:
    """An encoded batch under the names of a network's inputs."""
    return dict(encoded) if isinstance(encoded, dict) else {"vector": encoded}
