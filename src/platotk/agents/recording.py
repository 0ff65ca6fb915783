"""What a trained policy does on observations of its sim: the record that an agent has to match.

Given a run and its policy, `record` plays the sim and gives back observations, masks and the policy's answers, ready
for parity.json, with what the network saw beside them. Nothing in here imports ray or torch; the policy does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import AgentError, SimError
from ..run import Run
from ..spaces import to_json
from .recorded import pack

NUM_SIMS = 4
"""Played side by side, with one forward pass for all."""


def record(run: Run, policy: Any, num_rows: int) -> dict[str, Any]:
    """How the policy acts on observations of its sim, through RLlib's connectors and module.

    Every second episode takes random actions, so that the recording sees more than the trained path.

    Args:
        run: For its sim.
        policy: The restored policy, an `RLlibPolicy`.
        num_rows: A multiple of NUM_SIMS; each sim plays as many steps, and its rows follow one another.

    Returns:
        `rows` (observation, mask, action, is_first) and `encoded` (what the network saw, in order).

    Raises:
        AgentError: The sim gives observations outside its space.
    """
    from ..assessment.assess import make_sims

    sims = make_sims(run, NUM_SIMS)
    lanes = [_Lane(sim, index) for index, sim in enumerate(sims)]
    sessions, adapter = policy.sessions(NUM_SIMS), policy.adapter
    has_masks = adapter.mask_source == "info"
    try:
        for lane in lanes:
            lane.reset()
        for _ in range(num_rows // NUM_SIMS):
            masks = {lane.index: lane.info.get("action_mask") if has_masks else None for lane in lanes}
            observations = {lane.index: lane.observation for lane in lanes}
            for lane in lanes:
                lane.observe(adapter, masks[lane.index])
                if lane.is_first:
                    sessions.reset(lane.index)
            actions = sessions.act(observations, masks=masks)
            for lane in lanes:
                lane.act(adapter, actions[lane.index])
    finally:
        for sim in sims:
            sim.close()
    return {
        "rows": [row for lane in lanes for row in lane.rows],
        "encoded": [seen for lane in lanes for seen in lane.encoded],
    }


class _Lane:
    """One sim, and what was seen and done in it."""

    def __init__(self, sim: Any, index: int) -> None:
        self.sim, self.index = sim, index
        self.rng = np.random.default_rng(index)
        self.rows: list[dict[str, Any]] = []
        self.encoded: list[Any] = []
        self.episode = -1

    def reset(self) -> None:
        """Begin the next episode."""
        self.episode += 1
        self.observation, self.info = self.sim.reset(seed=self.episode * NUM_SIMS + self.index)
        self.is_first = True

    def observe(self, adapter: Any, mask: Any) -> None:
        """Write down what the sim shows."""
        try:
            self.encoded.append(adapter.encode(self.observation, mask))
            row: dict[str, Any] = {"observation": pack(adapter.observation_space, self.observation)}
        except SimError as error:
            raise AgentError(
                f"the sim gives observations outside its space: {error.message}",
                hint="Find the cause with: plato check",
            ) from error
        if mask is not None:
            row["mask"] = _plain(mask)
        self.rows.append({**row, "is_first": self.is_first})

    def act(self, adapter: Any, action: Any) -> None:
        """Write down what the policy answered, and go on with that, or at random."""
        self.rows[-1]["action"] = to_json(adapter.action_space, action)
        if (self.episode + self.index) % 2:
            action = random_action(adapter, self.encoded[-1], self.rng)
        self.observation, _, terminated, truncated, self.info = self.sim.step(action)
        self.is_first = False
        if terminated or truncated:
            self.reset()


def random_action(adapter: Any, encoded: Any, rng: np.random.Generator) -> Any:
    """Any action that the encoded observation's mask allows."""
    mask = encoded["action_mask"] if isinstance(encoded, dict) and "action_mask" in encoded else None
    choices, at = [], 0
    for size in adapter.nvec:
        allowed = np.flatnonzero(mask[at : at + size] > 0) if mask is not None else np.arange(size)
        choices.append(int(rng.choice(allowed)))
        at += size
    numbers = rng.uniform(-1.0, 1.0, adapter.num_continuous).astype(np.float32)
    if choices and adapter.num_continuous:
        return adapter.decode({"continuous": numbers, "discrete": np.array(choices)})
    if choices:
        return adapter.decode(choices[0] if len(choices) == 1 else np.array(choices))
    return adapter.decode(numbers)


def _plain(mask: Any) -> Any:
    """A mask in the form that the sim gives it, as JSON."""
    if isinstance(mask, Mapping):
        return {key: _plain(part) for key, part in mask.items()}
    if isinstance(mask, (list, tuple)):
        return [_plain(part) for part in mask]
    return mask.tolist() if isinstance(mask, (np.ndarray, np.generic)) else mask
