"""PPO's objective (Schulman et al. 2017, arXiv 1707.06347) with its gradient in closed form.

Given what a module made of a minibatch, `Objective` gives the gradients by the distribution's inputs and by the values,
from which torch goes on backwards through the network. The terms are RLlib's: clipped surrogate, clipped value loss,
entropy, and the KL divergence from the old policy with its own coefficient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from ray.rllib.core.columns import Columns as Names
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.torch_utils import explained_variance
from torch import Tensor

from .heads import Heads, Terms

CONSTANTS = "_constants"


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        heads: The action distribution.
        clip: How far the probability ratio may move.
        value_clip: Bound of a row's squared value error.
        value_coeff: Weight of the value loss.
        entropy_coeff: Weight of the entropy.
        kl_coeff: Weight of the KL divergence from the old policy; None for none.
    """

    heads: Heads
    clip: float
    value_clip: float
    value_coeff: float
    entropy_coeff: float
    kl_coeff: float | None

    def constants(self, columns: dict[str, Any]) -> dict[str, Any]:
        """What is computed once for all epochs, as more columns of the batch."""
        fixed = self.heads.constants(columns[Names.ACTION_DIST_INPUTS], columns[Names.ACTIONS])
        return {f"{head}": dict(enumerate(parts)) for head, parts in enumerate(fixed)}

    def gradients(self, inputs: Tensor, values: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The gradients by `inputs` (B, k) and `values` (B,), of the mean over the rows."""
        terms = self._terms(inputs, batch, is_entropy=self.entropy_coeff != 0.0)
        advantages, ratio = batch[Postprocessing.ADVANTAGES], self._ratio(terms, batch)
        surrogate = advantages * ratio
        # Where the clipped surrogate is the smaller one, it does not depend on the policy.
        is_open = surrogate <= advantages * ratio.clamp(1.0 - self.clip, 1.0 + self.clip)
        share = 1.0 / len(inputs)
        by_inputs = ((surrogate * is_open).mul_(-share)).unsqueeze(1) * terms.slope("logp")
        if self.entropy_coeff:
            by_inputs.add_(terms.slope("entropy"), alpha=-self.entropy_coeff * share)
        if self.kl_coeff is not None:
            by_inputs.add_(terms.slope("kl"), alpha=self.kl_coeff * share)
        error = values - batch[Postprocessing.VALUE_TARGETS]
        by_values = error * (2.0 * self.value_coeff * share)
        if self.value_clip != float("inf"):
            by_values *= error.square() <= self.value_clip
        return by_inputs, by_values

    def statistics(self, inputs: Tensor, values: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        """RLlib's statistics of a minibatch, by RLlib's names."""
        terms = self._terms(inputs, batch, is_entropy=True)
        advantages, ratio = batch[Postprocessing.ADVANTAGES], self._ratio(terms, batch)
        targets = batch[Postprocessing.VALUE_TARGETS]
        clipped = advantages * ratio.clamp(1.0 - self.clip, 1.0 + self.clip)
        policy_loss = -torch.min(advantages * ratio, clipped).mean()
        squared = (values - targets).square()
        vf_loss = squared.clamp(0.0, self.value_clip).mean()
        entropy, kl = terms.value("entropy"), terms.value("kl")
        mean_entropy = torch.zeros(()) if entropy is None else entropy.mean()
        mean_kl = torch.zeros(()) if kl is None else kl.mean()
        total = policy_loss + self.value_coeff * vf_loss - self.entropy_coeff * mean_entropy
        return {
            "policy_loss": policy_loss,
            "vf_loss": vf_loss,
            "vf_loss_unclipped": squared.mean(),
            "vf_explained_var": explained_variance(targets, values),
            "entropy": mean_entropy,
            "mean_kl_loss": mean_kl,
            "total_loss": total + (self.kl_coeff or 0.0) * mean_kl,
        }

    def _terms(self, inputs: Tensor, batch: dict[str, Any], *, is_entropy: bool) -> Terms:
        constants = [list(parts.values()) for parts in batch[CONSTANTS].values()]
        return self.heads.terms(inputs, constants, is_kl=self.kl_coeff is not None, is_entropy=is_entropy)

    def _ratio(self, terms: Terms, batch: dict[str, Any]) -> Tensor:
        logp = terms.value("logp")
        if logp is None:
            raise RuntimeError("an action of no parts has no probability")
        return torch.exp(logp - batch[Names.ACTION_LOGP])
