"""One step down the gradient: clip it as configured, leave out what is not finite, let Adam step.

`descent_for` is given RLlib's optimiser and config, and gives back a `Descent`. Where it can, all parameters are views
of one flat tensor, and so are gradients and moments: then clipping and Adam are three operations however many layers
there are. The optimiser's state is the same either way, before and after an update.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def descent_for(optimizer: Any, config: Any) -> Descent:
    """How an optimiser's parameters are stepped.

    Args:
        optimizer: The learner's torch Adam.
        config: The PPOConfig: `grad_clip`, `grad_clip_by`.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    is_flat = (
        config.num_learners < 2  # otherwise torch's DDP holds on to the gradients
        and config.grad_clip_by == "global_norm"
        and type(optimizer) is torch.optim.Adam
        and len(optimizer.param_groups) == 1
        and all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in parameters)
        and len({parameter.device for parameter in parameters}) == 1
        and len({id(parameter) for parameter in parameters}) == len(parameters)
    )
    return (FlatDescent if is_flat else Descent)(optimizer, parameters, config.grad_clip, config.grad_clip_by)


class Descent:
    """Tensor by tensor.

    Args:
        optimizer: The learner's optimiser.
        parameters: All that it trains.
        limit: RLlib's `grad_clip`; None or 0 for none.
        clip_by: RLlib's `grad_clip_by`.
    """

    def __init__(self, optimizer: Any, parameters: list[Tensor], limit: float | None, clip_by: str) -> None:
        self._optimizer = optimizer
        self._parameters = parameters
        self._limit = limit
        self._clip_by = clip_by

    def begin(self) -> None:
        """To be called before an update: weights and moments may have been restored since the last one."""

    def zero(self) -> None:
        """Forget the gradients of the last step."""
        self._optimizer.zero_grad(set_to_none=True)

    def step(self) -> float | None:
        """Step; the norm of the gradient before clipping, or None when it was not finite and nothing was done."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if not gradients:
            return 0.0
        norms = torch._foreach_norm(gradients)
        norm = float(torch.linalg.vector_norm(torch.stack(norms)))
        if not math.isfinite(norm):
            return None
        self._clip(gradients, norm, norms)
        self._optimizer.step()
        return norm

    def finish(self) -> None:
        """To be called after an update: the optimiser's state is complete again."""

    def _clip(self, gradients: list[Tensor], norm: float, norms: Any) -> None:
        """RLlib's three ways: by the norm of all, by the norm of each tensor, by value."""
        limit = self._limit
        if not limit:
            return
        if self._clip_by == "global_norm":
            if norm + 1e-6 > limit:
                torch._foreach_mul_(gradients, limit / (norm + 1e-6))
        elif self._clip_by == "norm":
            for gradient, its_norm in zip(gradients, norms, strict=True):
                if its_norm > limit:
                    gradient.mul_(limit / its_norm)
        else:
            torch._foreach_clamp_min_(gradients, -limit)
            torch._foreach_clamp_max_(gradients, limit)


class FlatDescent(Descent):
    """All tensors at once: they become views of a flat one, which one operation trains (torch's own fused Adam)."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._settings: dict[str, Any] = {}
        self._steps_done: Any = None
        self._flat: dict[str, Tensor] = {}
        self._views: dict[str, list[Tensor]] = {}
        self._num_steps = 0

    def begin(self) -> None:
        """Take over what is not a view of the flat tensors any more, and the optimiser's settings."""
        if not self._is_attached():
            self._attach()
        group = self._optimizer.param_groups[0]
        self._settings = {name: float(group[name]) for name in ("lr", "eps", "weight_decay")}
        self._settings["beta1"], self._settings["beta2"] = group["betas"]
        self._num_steps = 0

    def zero(self) -> None:
        """Forget the gradients of the last step."""
        self._flat["grad"].zero_()

    def step(self) -> float | None:
        """Step; the norm of the gradient before clipping, or None when it was not finite and nothing was done."""
        gradient = self._flat["grad"]
        norm = float(torch.linalg.vector_norm(gradient))
        if not math.isfinite(norm):
            return None
        if self._limit and norm + 1e-6 > self._limit:
            gradient.mul_(self._limit / (norm + 1e-6))
        flat, self._num_steps = self._flat, self._num_steps + 1
        # What `torch.optim.Adam.step` comes down to; its hooks and context managers take as long as the operation.
        self._steps_done.add_(1)
        torch._fused_adam_(
            [flat["data"]],
            [gradient],
            [flat["exp_avg"]],
            [flat["exp_avg_sq"]],
            [],
            [self._steps_done],
            amsgrad=False,
            maximize=False,
            **self._settings,
        )
        return norm

    def finish(self) -> None:
        """Tell the optimiser of its moments (views) and count of steps."""
        state = self._optimizer.state
        if not self._num_steps and not state:
            return
        for parameter, mean, square in zip(
            self._parameters, self._views["exp_avg"], self._views["exp_avg_sq"], strict=True
        ):
            step = self._steps_done.clone()
            state[parameter] = {"step": step, "exp_avg": mean, "exp_avg_sq": square}

    def _is_attached(self) -> bool:
        if self._steps_done is None:
            return False
        state = self._optimizer.state
        for index, parameter in enumerate(self._parameters):
            views = {name: self._views[name][index].data_ptr() for name in self._views}
            moments = state.get(parameter, {})
            if parameter.data_ptr() != views["data"] or parameter.grad is None:
                return False
            if parameter.grad.data_ptr() != views["grad"]:
                return False
            if not moments or moments["exp_avg"].data_ptr() != views["exp_avg"]:
                return False
        return True

    def _attach(self) -> None:
        sizes = [parameter.numel() for parameter in self._parameters]
        first = self._parameters[0]
        for name in ("data", "grad", "exp_avg", "exp_avg_sq"):
            flat = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
            parts = torch.split(flat, sizes)
            self._flat[name] = flat
            self._views[name] = [part.view_as(one) for part, one in zip(parts, self._parameters, strict=True)]
        num_steps = 0.0
        for index, parameter in enumerate(self._parameters):
            moments = self._optimizer.state.get(parameter, {})
            with torch.no_grad():
                self._views["data"][index].copy_(parameter)
                for name in ("exp_avg", "exp_avg_sq"):
                    if moments:
                        self._views[name][index].copy_(moments[name])
            parameter.data = self._views["data"][index]
            parameter.grad = self._views["grad"][index]
            num_steps = float(moments["step"]) if moments else num_steps
        self._steps_done = torch.tensor(num_steps, dtype=torch.float32, device=first.device)
