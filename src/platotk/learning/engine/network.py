"""A PPO network as a table of numbers: where a kernel that knows no shapes at compile time finds everything.

Given RLlib's `DefaultPPOTorchRLModule`, `read_network` gives back a `Network`: its layers in the order of the forward
pass, the parts of its action distribution, and where each torch parameter lives in one flat buffer; or it raises
`NotCovered` with the reason in one line.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


class NotCovered(Exception):
    """The kernel does not apply; the message says why in one line."""


class Layer(enum.IntEnum):
    """Columns of the table of layers; offsets are into the arena, in floats.

    The weights of a layer are stored [inputs + 1, outputs], the last row being the bias: activations carry a column of
    ones, so that the bias has no code of its own. BACK is the transpose, which the backward pass needs.
    """

    INPUTS = 0
    OUTPUTS = 1
    WIDTH = 2  # outputs, rounded up to whole vectors
    WEIGHTS = 3
    STRIDE = 4
    BACK = 5  # -1: the input needs no gradient
    BACK_STRIDE = 6
    ACTIVATION = 7
    SOURCE = 8
    SOURCE_STRIDE = 9
    SOURCE_GRADIENT = 10
    SOURCE_GRADIENT_STRIDE = 11
    RESULT = 12
    RESULT_STRIDE = 13
    RESULT_GRADIENT = 14
    RESULT_GRADIENT_STRIDE = 15
    IS_ADDED = 16  # 1: another layer's gradient is in SOURCE_GRADIENT already
    WEIGHT_ROWS = 17  # inputs + 1, rounded up to whole tiles
    SLOPE = 18  # where the activation's derivative is kept; -1: it follows from the result
    NUM_FREE = 19  # trailing outputs that are parameters of their own (free log standard deviations)


class Part(enum.IntEnum):
    """Columns of the table of the action distribution's parts."""

    KIND = 0  # GAUSSIAN or CATEGORICAL
    INPUT = 1  # first distribution input
    SIZE = 2  # numbers, or categories
    ACTION = 3  # first column of the action
    MASK = 4  # first column of the mask


GAUSSIAN, CATEGORICAL = 0, 1
LINEAR, TANH, RELU, ELU, SILU = 0, 1, 2, 3, 4
ACTIVATIONS = {"Tanh": TANH, "ReLU": RELU, "ELU": ELU, "SiLU": SILU, "Identity": LINEAR}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where one torch parameter lives: rows x columns of a layer's weights, from `row` and `column` on."""

    parameter: torch.nn.Parameter
    layer: int
    row: int
    column: int


@dataclasses.dataclass
class Network:
    """What the kernel is told.

    Attributes:
        layers: int64 (L, 20), see `Layer`; offsets of activations are filled in by `place`.
        parts: int64 (P, 5), see `Part`.
        tensors: Every torch parameter's place.
        num_actor_layers: The layers that an action needs come first.
        num_observations: Width of the observation vector.
        num_inputs: Inputs of the action distribution.
        num_actions: Columns of an action.
        num_logits: Columns of a mask; 0 without masks.
        log_std_clip: Bound of log standard deviations, either side.
        num_parameters: Length of the flat buffer, paddings included.
        has_critic: False for the modules of env runners.
    """

    layers: NDArray[np.int64]
    parts: NDArray[np.int64]
    tensors: list[Tensor]
    num_actor_layers: int
    num_observations: int
    num_inputs: int
    num_actions: int
    num_logits: int
    log_std_clip: float
    num_parameters: int
    has_critic: bool
    action_space: gym.Space[Any]


def read_network(module: Any) -> Network:
    """The table of a module.

    Raises:
        NotCovered: The kernel does not apply, and why.
    """
    from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule

    from ..modules import PPOModule

    if type(module) not in (DefaultPPOTorchRLModule, PPOModule):
        raise NotCovered(f"the RLModule is a {type(module).__name__} of its own")
    if module.is_stateful():
        raise NotCovered("the network has memory")
    device = next(module.parameters()).device
    if device.type != "cpu":
        raise NotCovered(f"the network is on {device}")
    num_observations, num_logits = _observations(module.observation_space)
    parts, num_inputs, num_actions = action_parts(module.action_space)
    builder = _Builder(num_observations)
    encoder = module.encoder
    has_critic = hasattr(module, "vf")
    trunk = builder.stack(0, encoder.encoder if encoder.config.shared else encoder.actor_encoder)
    clip = builder.head(trunk, module.pi)
    num_actor_layers = len(builder.rows)
    if has_critic:
        builder.stack(builder.stack(0, encoder.critic_encoder) if not encoder.config.shared else trunk, module.vf)
    known = {id(tensor.parameter) for tensor in builder.tensors}
    if {id(parameter) for parameter in module.parameters()} != known:
        raise NotCovered("the network has parameters beside its layers")
    if int(builder.rows[num_actor_layers - 1][Layer.OUTPUTS]) != num_inputs:
        raise NotCovered("the policy's outputs are not those of its action space")
    return Network(
        layers=np.array(builder.rows, np.int64),
        parts=np.array(parts, np.int64).reshape(-1, len(Part)),
        tensors=builder.tensors,
        num_actor_layers=num_actor_layers,
        num_observations=num_observations,
        num_inputs=num_inputs,
        num_actions=num_actions,
        num_logits=num_logits,
        log_std_clip=clip,
        num_parameters=builder.num_parameters,
        has_critic=has_critic,
        action_space=module.action_space,
    )


def smallest_network() -> Network:
    """A network of one hidden unit and a choice of two, without torch: enough to compile by."""
    builder = _Builder(1)
    for source, outputs, activation in ((0, 1, TANH), (1, 2, LINEAR), (1, 1, LINEAR)):
        builder.add(source, np.zeros((outputs, 1), np.float32), np.zeros(outputs, np.float32), activation)
    parts = np.array([[CATEGORICAL, 0, 2, 0, 0]])
    return Network(
        layers=np.array(builder.rows, np.int64),
        parts=parts,
        tensors=builder.tensors,
        num_actor_layers=2,
        num_observations=1,
        num_inputs=2,
        num_actions=1,
        num_logits=0,
        log_std_clip=float("inf"),
        num_parameters=builder.num_parameters,
        has_critic=True,
        action_space=gym.spaces.Discrete(2),
    )


def _observations(space: gym.Space[Any]) -> tuple[int, int]:
    """Width of the observation vector, and of the mask."""
    from ..encoders import MASK, VECTOR

    num_logits = 0
    if isinstance(space, gym.spaces.Dict):
        if set(space.spaces) != {VECTOR, MASK}:
            raise NotCovered("observations hold images")
        num_logits = int(np.prod(space[MASK].shape or (0,)))
        space = space[VECTOR]
    if not isinstance(space, gym.spaces.Box) or space.dtype != np.float32 or len(space.shape) != 1:
        raise NotCovered(f"observations are not one float32 vector but {space}")
    return int(space.shape[0]), num_logits


def action_parts(space: gym.Space[Any]) -> tuple[list[list[int]], int, int]:
    """Rows of `Part`, in RLlib's order: a Dict's keys sorted; how many inputs, how many action columns."""
    leaves = [space[key] for key in sorted(space.spaces)] if isinstance(space, gym.spaces.Dict) else [space]
    parts: list[list[int]] = []
    num_inputs = num_actions = num_logits = 0
    for leaf in leaves:
        if isinstance(leaf, gym.spaces.Box) and len(leaf.shape) == 1 and np.issubdtype(leaf.dtype, np.floating):
            size = int(leaf.shape[0])
            parts.append([GAUSSIAN, num_inputs, size, num_actions, 0])
            num_inputs, num_actions = num_inputs + 2 * size, num_actions + size
            continue
        if isinstance(leaf, gym.spaces.Discrete):
            sizes = [int(leaf.n)]
        elif isinstance(leaf, gym.spaces.MultiDiscrete) and leaf.nvec.ndim == 1:
            sizes = [int(size) for size in leaf.nvec]
        else:
            raise NotCovered(f"actions are {leaf}")
        if np.any(leaf.start):
            raise NotCovered("actions do not start at 0")
        for size in sizes:
            parts.append([CATEGORICAL, num_inputs, size, num_actions, num_logits])
            num_inputs, num_actions, num_logits = num_inputs + size, num_actions + 1, num_logits + size
    return parts, num_inputs, num_actions


class _Builder:
    """Adds layers one by one. Buffers are numbered here; `place` turns numbers into offsets."""

    def __init__(self, num_observations: int) -> None:
        self.rows: list[list[int]] = []
        self.tensors: list[Tensor] = []
        self.widths = [num_observations]
        self.num_parameters = 0

    def stack(self, source: int, model: Any) -> int:
        """An encoder or head; gives back the number of its result's buffer."""
        for weight, bias, activation in linears(model):
            source = self.add(source, weight, bias, activation)
        return source

    def head(self, source: int, model: Any) -> float:
        """The policy's head; gives back the bound of log standard deviations."""
        from ray.rllib.core.models.torch.heads import TorchFreeLogStdMLPHead

        found = linears(model)
        free = model.log_std if isinstance(model, TorchFreeLogStdMLPHead) else None
        for index, (weight, bias, activation) in enumerate(found):
            is_last = index == len(found) - 1
            num_free = len(free) if is_last and free is not None else 0
            source = self.add(source, weight, bias, activation, num_free)
            if num_free and free is not None:
                layer = len(self.rows) - 1
                self.tensors.append(Tensor(free, layer, self.rows[layer][Layer.INPUTS], weight.shape[0]))
        return float(model.log_std_clip_param[0]) if model.clip_log_std else float("inf")

    def add(self, source: int, weight: Any, bias: Any, activation: int, num_free: int = 0) -> int:
        """One layer behind buffer `source`; gives back the number of its result's buffer."""
        from .vectors import LANES, TILE_ROWS

        inputs, outputs = int(weight.shape[1]), int(weight.shape[0]) + num_free
        if inputs != self.widths[source]:
            raise NotCovered("the layers do not follow each other")
        width = round_up(outputs, LANES)
        stride = spread(width)
        weight_rows = round_up(inputs + 1, TILE_ROWS)
        row = [0] * len(Layer)
        for column, value in {
            Layer.INPUTS: inputs,
            Layer.OUTPUTS: outputs,
            Layer.WIDTH: width,
            Layer.WEIGHTS: self.num_parameters,
            Layer.STRIDE: stride,
            Layer.BACK: -1 if source == 0 else 0,
            Layer.BACK_STRIDE: spread(round_up(inputs, LANES)),
            Layer.ACTIVATION: activation,
            Layer.SOURCE: source,
            Layer.RESULT: len(self.widths),
            Layer.IS_ADDED: 0,
            Layer.WEIGHT_ROWS: weight_rows,
            Layer.NUM_FREE: num_free,
        }.items():
            row[column] = value
        index = len(self.rows)
        self.rows.append(row)
        self.tensors += [Tensor(weight, index, 0, 0), Tensor(bias, index, inputs, 0)]
        self.num_parameters += weight_rows * stride
        self.widths.append(outputs)
        return len(self.widths) - 1


def linears(model: Any) -> list[tuple[Any, Any, int]]:
    """Weight, bias and activation of each linear layer of an encoder or head."""
    from torch import nn

    from ..encoders import DictEncoder

    if isinstance(model, DictEncoder):
        net = model.fusion
    elif hasattr(model, "net"):
        net = model.net
    else:
        raise NotCovered(f"the network has a {type(model).__name__}")
    found: list[tuple[Any, Any, int]] = []
    for piece in getattr(net, "mlp", [net]):
        name = type(piece).__name__
        if isinstance(piece, nn.Linear):
            if piece.bias is None:
                raise NotCovered("a layer has no bias")
            found.append((piece.weight, piece.bias, LINEAR))
        elif name in ACTIVATIONS and found:
            if name == "ELU" and piece.alpha != 1.0:
                raise NotCovered("ELU with an alpha of its own")
            if name != "Identity":
                found[-1] = (*found[-1][:2], ACTIVATIONS[name])
        elif name != "Identity":
            raise NotCovered(f"the network has a layer of {name}")
    if any(parameter.dtype.itemsize != 4 or not parameter.requires_grad for pair in found for parameter in pair[:2]):
        raise NotCovered("parameters are frozen, or not float32")
    return found


def spread(width: int) -> int:
    """Distance between the rows of a matrix: whole cache lines, and an odd number of them where rows are long.

    Rows a power of two apart fall onto few sets of the cache; a few lines lie side by side and cannot.
    """
    lines = -(-width // 16)
    return 16 * (lines if lines <= 4 else lines | 1)


def round_up(number: int, multiple: int) -> int:
    """The next whole multiple."""
    return -(-number // multiple) * multiple
