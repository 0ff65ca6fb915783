"""torch without its compiler, for processes that compile nothing.

The first seed and the first optimiser of a process import torch's compiler (`torch._inductor`, `torch._dynamo`: about
2 s and 100 MB), only to tell it what to leave alone. `leave_out_compiler` notes that beforehand where torch would.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig


def leave_out_compiler(config: AlgorithmConfig) -> None:
    """Have this process do without torch's compiler, unless the config compiles. Who compiles later still can."""
    if config.torch_compile_learner or config.torch_compile_worker or "torch._dynamo" in sys.modules:
        return
    import torch

    for method in vars(torch.optim.Optimizer).values():
        hidden: Callable[..., Any] | None = getattr(method, "__wrapped__", None)
        # As `torch._compile._disable_dynamo` does at the first call, with nobody here to hide it from.
        if hidden is not None and getattr(method, "__globals__", None) is vars(torch._compile):
            hidden.__dynamo_disable = hidden  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms = use_deterministic_algorithms


def use_deterministic_algorithms(mode: bool, *, warn_only: bool = False) -> None:
    """`torch.use_deterministic_algorithms`, which tells the compiler too, here only when there is one to tell."""
    import torch

    if "torch._inductor" in sys.modules:
        import torch._inductor.config as inductor

        inductor.deterministic = mode
    torch._C._set_deterministic_algorithms(mode, warn_only=warn_only)
