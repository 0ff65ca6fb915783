"""The action distributions of RLlib as plain arithmetic on rows of logits: sampling in numpy, learning in torch.

Given a module's distribution class and action space, `heads_of` gives a `Heads` that samples actions and knows
log-probabilities, entropies, KL divergences and their gradients in closed form; or None for a class it does not know,
or whose numbers differ from RLlib's on random rows. Then RLlib's own class does the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core.distribution.torch.torch_distribution import (
    TorchCategorical,
    TorchDiagGaussian,
    TorchMultiCategorical,
    TorchMultiDistribution,
)
from torch import Tensor

from .columns import Columns

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Categories:
    """One or several categorical choices.

    Attributes:
        sizes: How many values each has; its logits follow one another.
        is_single: A Discrete: actions are (B,), not (B, choices).
    """

    sizes: tuple[int, ...]
    is_single: bool

    @property
    def num_inputs(self) -> int:
        """How many numbers of a row of the distribution's inputs are this head's."""
        return sum(self.sizes)

    def sample(self, inputs: NDArray[np.float32], explore: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        """Actions, the likeliest ones without exploration, and their log-probabilities (B,)."""
        actions, logp, start = [], 0.0, 0
        index = np.arange(len(inputs))
        for size in self.sizes:
            logits = inputs[:, start : start + size].astype(np.float64)
            start += size
            logits -= logits.max(axis=1, keepdims=True)
            cumulated = np.exp(logits).cumsum(axis=1)
            total = cumulated[:, -1]
            if explore:
                drawn = np.random.random_sample(len(inputs)) * total
                action = np.minimum((cumulated <= drawn[:, None]).sum(axis=1), size - 1)
            else:
                action = logits.argmax(axis=1)
            actions.append(action)
            logp = logp + (logits[index, action] - np.log(total))
        return (actions[0] if self.is_single else np.stack(actions, axis=1)), np.asarray(logp)

    def constants(self, old_inputs: Tensor, actions: Tensor) -> list[Tensor]:
        """What stays the same through all epochs: by choice the action, one-hot, old probabilities, logs."""
        columns = actions.long().reshape(len(actions), len(self.sizes))
        kept: list[Tensor] = []
        for index, part in enumerate(torch.split(old_inputs, list(self.sizes), dim=-1)):
            column = columns[:, index : index + 1]
            log_probs = torch.log_softmax(part, dim=-1)
            chosen = torch.zeros_like(part).scatter_(1, column, 1.0)
            kept += [column, chosen, log_probs.exp(), log_probs]
        return kept

    def terms(self, inputs: Tensor, constants: list[Tensor], is_kl: bool, is_entropy: bool) -> Terms:
        """Log-probability, entropy and KL divergence of rows, and their gradients by `inputs`."""
        terms = Terms()
        parts = (inputs,) if self.is_single else torch.split(inputs, list(self.sizes), dim=-1)
        for index, part in enumerate(parts):
            column, chosen, old_probs, old_log_probs = constants[4 * index : 4 * index + 4]
            log_probs = torch.log_softmax(part, dim=-1)
            probs = log_probs.exp()
            terms.add("logp", log_probs.gather(1, column).squeeze(1), chosen - probs)
            if is_entropy:
                plogp = probs * log_probs
                entropy = -plogp.sum(dim=1)
                terms.add("entropy", entropy, -(plogp + probs * entropy[:, None]))
            if is_kl:
                kl = (old_probs * (old_log_probs - log_probs)).sum(dim=1)
                terms.add("kl", kl, probs - old_probs)
        return terms


@dataclass(frozen=True)
class Numbers:
    """Independent normal distributions: means first, then logarithms of deviations.

    Attributes:
        size: How many numbers an action has.
        shape: The action's own shape.
    """

    size: int
    shape: tuple[int, ...]

    @property
    def num_inputs(self) -> int:
        """How many numbers of a row of the distribution's inputs are this head's."""
        return 2 * self.size

    def sample(self, inputs: NDArray[np.float32], explore: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        """Actions, the means without exploration, and their log-probabilities (B,)."""
        means, log_stds = inputs[:, : self.size], inputs[:, self.size :]
        if not explore:
            return means.copy(), np.zeros(len(inputs))
        noise = np.random.standard_normal(means.shape).astype(np.float32)
        logp = -0.5 * np.square(noise).sum(axis=1) - log_stds.sum(axis=1) - self.size * HALF_LOG_2PI
        return means + np.exp(log_stds) * noise, logp

    def constants(self, old_inputs: Tensor, actions: Tensor) -> list[Tensor]:
        """What stays the same through all epochs, rows first: the actions, and the old means and log-deviations."""
        return [actions.reshape(len(actions), self.size).float(), old_inputs]

    def terms(self, inputs: Tensor, constants: list[Tensor], is_kl: bool, is_entropy: bool) -> Terms:
        """Log-probability, entropy and KL divergence of rows, and their gradients by `inputs`."""
        actions, old = constants
        terms = Terms()
        means, log_stds = inputs[:, : self.size], inputs[:, self.size :]
        inverse = torch.exp(-log_stds)
        z = (actions - means) * inverse
        z_squared = z * z
        logp = -(0.5 * z_squared + log_stds).sum(dim=1) - self.size * HALF_LOG_2PI
        terms.add("logp", logp, torch.cat((z * inverse, z_squared - 1.0), dim=1))
        if is_entropy:
            slope = torch.ones_like(inputs)
            slope[:, : self.size] = 0.0
            terms.add("entropy", (log_stds + (0.5 + HALF_LOG_2PI)).sum(dim=1), slope)
        if is_kl:
            old_means, old_log_stds = old[:, : self.size], old[:, self.size :]
            variance_ratio = torch.exp(2.0 * (old_log_stds - log_stds))
            distance = (means - old_means) * inverse
            distance_squared = distance * distance
            kl = 0.5 * (variance_ratio + distance_squared - 1.0) - (old_log_stds - log_stds)
            slope = torch.cat((distance * inverse, 1.0 - variance_ratio - distance_squared), dim=1)
            terms.add("kl", kl.sum(dim=1), slope)
        return terms


class Terms:
    """Log-probability, entropy and KL divergence (B,), and the gradient of each by the inputs (B, k)."""

    def __init__(self) -> None:
        self._values: dict[str, Tensor] = {}
        self._slopes: dict[str, list[Tensor]] = {}

    def add(self, name: str, value: Tensor, slope: Tensor) -> None:
        """The next part of the action, independent of the others: values add up, `slope` is by the next inputs."""
        self._values[name] = self._values[name] + value if name in self._values else value
        self._slopes.setdefault(name, []).append(slope)

    def value(self, name: str) -> Tensor | None:
        """(B,), or None when it was not asked for."""
        return self._values.get(name)

    def slope(self, name: str) -> Tensor:
        """(B, k)."""
        slopes = self._slopes[name]
        return slopes[0] if len(slopes) == 1 else torch.cat(slopes, dim=1)

    def merge(self, other: Terms) -> None:
        """Take in the terms of the next head."""
        for name, value in other._values.items():
            self.add(name, value, other.slope(name))


class Heads:
    """All heads of an action, in the order of their inputs.

    Args:
        parts: Each head, and the key of its part of the action (None: the action is not a Dict).
    """

    def __init__(self, parts: list[tuple[str | None, Categories | Numbers]]) -> None:
        self.parts = parts
        self._sizes = [head.num_inputs for _, head in parts]

    @property
    def num_inputs(self) -> int:
        """The width of a row of the distribution's inputs."""
        return sum(self._sizes)

    def sample(self, inputs: NDArray[np.float32], explore: bool = True) -> tuple[Columns, NDArray[np.float32]]:
        """Actions of rows of inputs (B, k), and their log-probabilities (B,); zeros without exploration.

        Draws from numpy's global generator, whose state belongs to RLlib's seed and to our checkpoints.
        """
        actions: dict[str | None, NDArray[Any]] = {}
        total, start = np.zeros(len(inputs)), 0
        for key, head in self.parts:
            actions[key], logp = head.sample(inputs[:, start : start + head.num_inputs], explore)
            total += logp
            start += head.num_inputs
        if not explore:
            total[:] = 0.0
        return actions.get(None, actions), total.astype(np.float32)

    def constants(self, old_inputs: Tensor, actions: Any) -> list[list[Tensor]]:
        """What stays the same through all epochs, by head."""
        parts = torch.split(old_inputs, self._sizes, dim=-1)
        return [
            head.constants(part, actions if key is None else actions[key])
            for (key, head), part in zip(self.parts, parts, strict=True)
        ]

    def terms(self, inputs: Tensor, constants: list[list[Tensor]], *, is_kl: bool, is_entropy: bool) -> Terms:
        """Log-probability, entropy and KL divergence of rows of inputs (B, k), and their gradients.

        Args:
            inputs: The new distributions' inputs, without a graph.
            constants: Of the same rows.
            is_kl: Whether the KL divergence from the old distributions is wanted.
            is_entropy: Whether the entropy is wanted.
        """
        if len(self.parts) == 1:
            return self.parts[0][1].terms(inputs, constants[0], is_kl, is_entropy)
        terms = Terms()
        split = torch.split(inputs, self._sizes, dim=-1)
        for (_, head), part, fixed in zip(self.parts, split, constants, strict=True):
            terms.merge(head.terms(part, fixed, is_kl, is_entropy))
        return terms


def heads_of(dist_class: type, action_space: gym.Space[Any]) -> Heads | None:
    """The heads of a distribution class, or None when only RLlib's own class will do."""
    parts = _parts(dist_class, action_space)
    if parts is None:
        return None
    heads = Heads(parts)
    return heads if _agrees(heads, dist_class, action_space) else None


def _parts(dist_class: type, space: gym.Space[Any]) -> list[tuple[str | None, Categories | Numbers]] | None:
    if isinstance(space, gym.spaces.Dict):
        if not issubclass(dist_class, TorchMultiDistribution):
            return None
        heads = {key: _head(part) for key, part in sorted(space.spaces.items())}
        if any(head is None for head in heads.values()):
            return None
        return [(key, head) for key, head in heads.items() if head is not None]
    known: Mapping[type, type] = {
        gym.spaces.Discrete: TorchCategorical,
        gym.spaces.MultiDiscrete: TorchMultiCategorical,
        gym.spaces.Box: TorchDiagGaussian,
    }
    base = known.get(type(space))
    head = _head(space)
    return [(None, head)] if base is not None and head is not None and issubclass(dist_class, base) else None


def _head(space: gym.Space[Any]) -> Categories | Numbers | None:
    if isinstance(space, gym.spaces.Discrete):
        return Categories((int(space.n),), is_single=True)
    if isinstance(space, gym.spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return Categories(tuple(int(n) for n in space.nvec), is_single=False)
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return Numbers(int(space.shape[0]), space.shape)
    return None


def _agrees(heads: Heads, dist_class: Any, action_space: gym.Space[Any]) -> bool:
    """Whether random rows have the log-probability, entropy and KL divergence that RLlib's class gives them."""
    generator = torch.Generator().manual_seed(0)
    new, old = (torch.randn(5, heads.num_inputs, generator=generator) for _ in range(2))
    state = np.random.get_state()
    try:
        np.random.seed(0)
        sampled, _ = heads.sample(old.numpy())
    finally:
        np.random.set_state(state)
    actions = _tensors(sampled)
    terms = heads.terms(new, heads.constants(old, actions), is_kl=True, is_entropy=True)
    try:
        dist, old_dist = dist_class.from_logits(new), dist_class.from_logits(old)
        theirs: dict[str, Callable[[], Any]] = {
            "logp": lambda: dist.logp(actions),
            "entropy": dist.entropy,
            "kl": lambda: old_dist.kl(dist),
        }
        return all(
            torch.allclose(terms.value(name), given(), rtol=TOLERANCE, atol=TOLERANCE)  # type: ignore[arg-type]
            for name, given in theirs.items()
        )
    except Exception:  # a class of the user's own: whatever it does, it does not do the same
        return False


def _tensors(columns: Columns) -> Any:
    if isinstance(columns, dict):
        return {key: torch.from_numpy(value) for key, value in columns.items()}
    return torch.from_numpy(columns)
