"""How many steps of a sim a replay buffer holds: as many as the config says, where the memory is there for them.

RLlib's SAC keeps a million steps, whatever an observation takes: of a colour picture of 210 x 160 that would be 94 GiB.
`fit` cuts a capacity that nobody asked for down to a share of the memory, and refuses one that was asked for and is
larger than all of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..container import usable_memory
from ..errors import ProjectError

if TYPE_CHECKING:
    from ..project import Project

SHARE_OF_MEMORY = 0.25
"""What a buffer takes at most when the project does not say how much."""
STEP_BYTES = 15
"""Beside observation and action: reward, flags, and where the next step is."""
KEY = "training.replay_buffer_config.capacity"


def step_bytes(observation_space: Any, action_space: Any) -> int:
    """Bytes of one step in the buffer, by the encoded spaces."""
    return STEP_BYTES + _bytes(observation_space) + _bytes(action_space)


def asked_for(training: Mapping[str, Any]) -> int | None:
    """The capacity that a project's section `training` asks for, or None."""
    buffer = training.get("replay_buffer_config")
    capacity = buffer.get("capacity") if isinstance(buffer, Mapping) else None
    is_number = isinstance(capacity, (int, float)) and not isinstance(capacity, bool) and math.isfinite(capacity)
    return int(capacity) if is_number and capacity is not None else None


def too_large(capacity: int, each: int, memory: int) -> str | None:
    """What is wrong with a capacity when steps take `each` bytes, or None when it fits."""
    if capacity * each <= memory:
        return None
    return (
        f"a replay buffer of {capacity:,} steps of {each:,} bytes takes {_shown(capacity * each)}; "
        f"this machine has {_shown(memory)}"
    )


def fitting_capacity(each: int, memory: int) -> int:
    """How many steps of `each` bytes a buffer holds that takes its share of the memory."""
    return max(1, int(SHARE_OF_MEMORY * memory) // each)


def fit(project: Project, config: Any, observation_space: Any, action_space: Any) -> str | None:
    """Hold the replay buffer of a config to the memory of this machine.

    Args:
        project: The project; a capacity in its `training` is what the user asked for.
        config: RLlib's config of SAC or DQN, with the project's sections; its capacity is changed.
        observation_space: As encoded.
        action_space: As encoded.

    Returns:
        What to tell when the capacity was cut down, or None.

    Raises:
        ProjectError: More was asked for than this machine has.
    """
    buffer = config.replay_buffer_config
    capacity = int(buffer.get("capacity") or 0)
    each, memory = step_bytes(observation_space, action_space), usable_memory()
    asked = asked_for(project.training)
    is_default = asked is None and capacity == type(config)().replay_buffer_config.get("capacity")
    fits = fitting_capacity(each, memory)
    if not is_default:
        if wrong := too_large(capacity, each, memory):
            raise ProjectError(
                f"{project.where(KEY if asked is not None else 'algorithm')}: {wrong}.",
                hint=f"Say replay_buffer_config: {{capacity: {fits:_}}}, or leave it out.",
            )
        return None
    if capacity <= fits:
        return None
    config.training(replay_buffer_config={**buffer, "capacity": fits})
    return (
        f"the replay buffer keeps {fits:,} steps, not {capacity:,}: one takes {each:,} bytes, and more would take over "
        f"{SHARE_OF_MEMORY:.0%} of the {_shown(memory)} of this machine ({KEY})"
    )


def _bytes(space: Any) -> int:
    parts = getattr(space, "spaces", None)
    if parts is not None:
        return sum(_bytes(part) for part in parts.values())
    return int(math.prod(space.shape)) * int(space.dtype.itemsize)


def _shown(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB"
