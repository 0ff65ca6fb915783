"""What it is to act: the methods of everything that can, wherever it came from.

`Policy` is a protocol. An exported agent has these methods, and so has a policy restored from a checkpoint; assessment
and serving ask for nothing more. Observations and actions are values of the sim's own spaces, never encoded ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from gymnasium import Space


@runtime_checkable
class Policy(Protocol):
    """Something that acts greedily in the sim's own spaces."""

    @property
    def observation_space(self) -> Space[Any]:
        """The sim's own observation space."""
        ...

    @property
    def action_space(self) -> Space[Any]:
        """The sim's own action space."""
        ...

    def act(self, obs: Any, *, mask: Any = None) -> Any:
        """The best action for one observation; refused by policies that have memory (use `session`)."""
        ...

    def act_batch(self, observations: Sequence[Any], *, masks: Sequence[Any] | None = None) -> list[Any]:
        """The best action for each of several independent observations."""
        ...

    def session(self) -> Session:
        """A conversation with one sim or plant, with its own memory."""
        ...

    def sessions(self, num_rows: int) -> BatchSession:
        """Several conversations that act together, one forward pass for all."""
        ...


class Session(Protocol):
    """Acts step by step in one episode and remembers what it must."""

    def act(self, obs: Any, *, mask: Any = None) -> Any:
        """The best action for the next observation of this episode."""
        ...

    def reset(self) -> None:
        """Forget everything: the next observation begins an episode."""
        ...


class BatchSession(Protocol):
    """Several sessions side by side, numbered from 0."""

    def act(self, observations: Mapping[int, Any], *, masks: Mapping[int, Any] | None = None) -> dict[int, Any]:
        """The best action for each row that has an observation."""
        ...

    def reset(self, row: int) -> None:
        """The row's next observation begins an episode."""
        ...
