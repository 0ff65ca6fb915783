"""What an algorithm is trained with in fact, for the run to say: the compiled kernel, torch, or RLlib's own loops."""

from __future__ import annotations

from typing import Any, NamedTuple

from .plan import chosen_for


class EngineUsed(NamedTuple):
    """What learns, and what stands against something faster.

    Attributes:
        engine: "kernel" or "torch", both of the engine, or "rllib".
        reason: Why it is not the kernel, in one line; None for the kernel, and where the project asked for RLlib.
        is_settled: Whether it stays so.
    """

    engine: str
    reason: str | None
    is_settled: bool = True

    @property
    def note(self) -> str | None:
        """What the run says about it; what RLlib trains is said before it begins."""
        if self.engine != "torch" or not self.is_settled:
            return None
        return f"torch learns, not the compiled kernel: {self.reason}"


def engine_used(algo: Any) -> EngineUsed:
    """Ask an algorithm that has trained for an iteration or more.

    Args:
        algo: RLlib's Algorithm.
    """
    chosen = chosen_for(algo.config)
    if chosen["path"] != "kernel":
        return EngineUsed(chosen["path"] or "rllib", chosen["reason"])
    answers = [result.get() for result in algo.learner_group.foreach_learner(_kernel_of) if result.ok]
    if any(is_open for is_open, _, _ in answers) or not answers:
        return EngineUsed("torch", "the kernel is being compiled, once per machine", is_settled=False)
    reason = next((reason for _, is_used, reason in answers if not is_used), None)
    return EngineUsed("kernel" if reason is None else "torch", reason)


def _kernel_of(learner: Any) -> tuple[bool, bool, str | None]:
    choice = learner._kernel
    return choice.is_open, choice.native is not None, choice.reason
