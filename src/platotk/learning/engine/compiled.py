"""Where the engine uses the compiled kernel in place of torch: whether to, whether it is there yet, and how it acts.

The first run on a machine does not wait for the compiler: torch does the work until the kernel is in its cache, from
then on the kernel does, at the next sample and the next update. Where it cannot be compiled at all, torch goes on, and
says so.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.rllib.core.columns import Columns as Names

from ..encoders import MASK, VECTOR
from .columns import Columns
from .plan import chosen_for

if TYPE_CHECKING:
    from .native import Native

logger = logging.getLogger("platotk")

WORK_OF_A_THREAD = 2.5e7
"""Floating-point operations of a minibatch that one more thread pays for: about a millisecond of one core."""


class CompiledActor:
    """The kernel acting for many sims at once; the same calls as `Actor`.

    Args:
        native: The kernel on the module that acts.
        explore: Draw actions from the distribution, or take the likeliest.
    """

    def __init__(self, native: Native, *, explore: bool) -> None:
        self._native = native
        self._explore = explore

    def begin(self) -> None:
        """Take over the module's weights; to be called before each sample."""
        self._native.refresh()

    def act(self, observations: Columns, num_steps: int) -> dict[str, Columns]:
        """Columns by RLlib's names: `actions`, `action_logp`, `action_dist_inputs`."""
        is_dict = isinstance(observations, dict)
        rows = observations[VECTOR] if is_dict else observations
        noise = self._native.noise(len(rows)) if self._explore else None
        acted = self._native.act(rows, noise, observations[MASK] if is_dict else None)
        logp = acted.log_probs if self._explore else np.zeros(len(rows), np.float32)
        return {
            Names.ACTIONS: acted.actions,
            Names.ACTION_LOGP: logp,
            Names.ACTION_DIST_INPUTS: acted.dist_inputs,
        }


class KernelChoice:
    """Asks once whether the kernel covers a network, as soon as it is compiled.

    Args:
        config: The algorithm's config, with the plan that was applied to it.
        against: What stands against the kernel for the one who asks, whatever the network; None for nothing.
    """

    def __init__(self, config: Any, against: str | None = None) -> None:
        chosen = chosen_for(config)
        self.is_open = bool(chosen["path"] == "kernel") and against is None
        """Whether an answer is still to come."""
        self.native: Native | None = None
        self.reason: str | None = against or chosen["reason"]
        """Why it is torch and stays so, in one line."""

    def ask(self, make: Callable[[], tuple[Any, ...]]) -> Native | None:
        """The kernel, or None: not yet, or not for this network.

        Args:
            make: Gives the arguments of `Native`: the module; to train, config and optimiser too.
        """
        if self.is_open:
            compilation = _compilation()
            if compilation.is_ready:
                self.is_open = False
                self.native, self.reason = _native(*make())
            elif compilation.failure is not None:
                self.is_open = False
                self.reason = _said(f"it cannot be compiled: {compilation.failure}")
        return self.native


def _native(*args: Any) -> tuple[Native | None, str | None]:
    """The kernel, or why not."""
    from .native import Native, refusal

    try:
        reason = refusal(*args)
        return (Native(*args, num_threads=_num_threads(*args)), None) if reason is None else (None, reason)
    except Exception as error:
        # No compiler for this machine or Python: slower, but nothing else changes.
        return None, _said(f"it cannot be used: {type(error).__name__}: {error}".splitlines()[0])


@functools.cache
def _said(reason: str) -> str:
    """Logged once per process: also by env runners, of which the run knows nothing."""
    logger.warning(f"torch is used, not the compiled kernel: {reason}")
    return reason


def _num_threads(module: Any, config: Any = None, *_: Any) -> int:
    """The threads that torch may use (OMP_NUM_THREADS), as far as a minibatch has work for them."""
    if config is None:
        return 1
    import torch

    rows = config.minibatch_size or config.train_batch_size_per_learner
    # Forward, and back to inputs and weights: three products of a multiplication and an addition each.
    work = 6.0 * rows * sum(parameter.numel() for parameter in module.parameters())
    return max(1, min(torch.get_num_threads(), int(work / WORK_OF_A_THREAD)))


@functools.cache
def _compilation() -> Any:
    """Has the kernel compiled, once per process, in case it is not in the cache."""
    from .compilation import compile_ahead

    return compile_ahead()
