"""Torch encoders for observations that are a Dict of a vector and images, which RLlib's own catalog refuses.

Given such a space and RLlib's model config, an encoder turns each image into features with a CNN that fits
any height and width, puts them beside the vector, and runs the whole through the MLP (and LSTM) that RLlib
itself would build. What comes back is RLlib's `ENCODER_OUT`, so that RLlib's own heads, modules and learners
follow unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT, Encoder
from ray.rllib.core.models.configs import ModelConfig, RecurrentEncoderConfig
from ray.rllib.core.models.torch.base import TorchModel
from ray.rllib.core.models.torch.encoder import TorchLSTMEncoder
from ray.rllib.core.models.torch.primitives import TorchCNN, TorchMLP
from ray.rllib.models.utils import get_activation_fn
from torch import Tensor, nn

VECTOR = "vector"
MASK = "action_mask"
IMAGE_FEATURES = 256
SMALL_ENOUGH = 8
BIG = 64


@dataclass
class DictEncoderConfig(ModelConfig):  # type: ignore[misc]
    """What `DictEncoder` is built from.

    Attributes:
        observation_space: Dict of "vector" (n,) and "image_*" (channels, height, width); other keys are not
            looked at.
        model: RLlib's model config, complete (`fcnet_*`, `conv_*`).
    """

    observation_space: gym.spaces.Dict = field(default_factory=gym.spaces.Dict)
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> dict[str, gym.spaces.Box]:
        """The image spaces by key, in the order in which they are concatenated."""
        spaces = self.observation_space.spaces
        return {key: spaces[key] for key in sorted(spaces) if key not in (VECTOR, MASK)}  # type: ignore[misc]

    @property
    def num_features(self) -> int:
        """Width of the vector and all image features side by side."""
        vector = self.observation_space.spaces.get(VECTOR)
        return (int(vector.shape[0]) if vector is not None and vector.shape else 0) + IMAGE_FEATURES * len(self.images)

    @property
    def output_dims(self) -> tuple[int]:
        """The last of `fcnet_hiddens`, as in RLlib's own encoders."""
        hiddens = self.model["fcnet_hiddens"]
        return (int(hiddens[-1]) if hiddens else self.num_features,)

    def build(self, framework: str = "torch") -> DictEncoder:
        """The encoder."""
        return DictEncoder(self)


class DictEncoder(TorchModel, Encoder):  # type: ignore[misc]
    """Vector and images to one latent; any leading dimensions (batch, or batch and time) are kept."""

    def __init__(self, config: DictEncoderConfig) -> None:
        TorchModel.__init__(self, config)
        Encoder.__init__(self, config)
        spaces = config.observation_space.spaces
        self.has_vector = VECTOR in spaces
        self.images = nn.ModuleDict({key: ImageEncoder(space, config.model) for key, space in config.images.items()})
        self.fusion = _mlp(config.num_features, config.model)

    def _forward(self, inputs: Mapping[str, Any], **_: Any) -> dict[str, Tensor]:
        obs = inputs[Columns.OBS]
        parts = [obs[VECTOR].float()] if self.has_vector else []
        parts += [encoder(obs[key]) for key, encoder in self.images.items()]
        return {ENCODER_OUT: self.fusion(torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0])}


@dataclass
class ObservationActionEncoderConfig(ModelConfig):  # type: ignore[misc]
    """What `ObservationActionEncoder` is built from.

    Attributes:
        num_inputs: Width of observation and action side by side.
        model: RLlib's model config, complete (`fcnet_*`).
    """

    num_inputs: int = 0
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def output_dims(self) -> tuple[int]:
        """The last of `fcnet_hiddens`, as in RLlib's own encoders."""
        hiddens = self.model["fcnet_hiddens"]
        return (int(hiddens[-1]) if hiddens else self.num_inputs,)

    def build(self, framework: str = "torch") -> ObservationActionEncoder:
        """The encoder."""
        return ObservationActionEncoder(self)


class ObservationActionEncoder(TorchModel, Encoder):  # type: ignore[misc]
    """A vector and an action, side by side, through one MLP."""

    def __init__(self, config: ObservationActionEncoderConfig) -> None:
        TorchModel.__init__(self, config)
        Encoder.__init__(self, config)
        self.fusion = _mlp(config.num_inputs, config.model)

    def _forward(self, inputs: Mapping[str, Any], **_: Any) -> dict[str, Tensor]:
        return {ENCODER_OUT: self.fusion(torch.cat([inputs[Columns.OBS], inputs[Columns.ACTIONS]], dim=-1))}


class ImageEncoder(nn.Module):
    """One image (..., channels, height, width) to IMAGE_FEATURES numbers.

    Whole numbers 0..255 are divided by 255 here, whatever dtype they arrive in (RLlib casts them on some of
    its ways to the learner); a space of floats is taken as it is.
    """

    def __init__(self, space: gym.spaces.Box, model: Mapping[str, Any]) -> None:
        super().__init__()
        channels, height, width = space.shape
        self.scale = 1.0 / 255.0 if np.issubdtype(space.dtype, np.integer) else 1.0
        stack = TorchCNN(
            input_dims=[height, width, channels],
            cnn_filter_specifiers=model.get("conv_filters") or filters_for(height, width),
            cnn_activation=model["conv_activation"],
            cnn_kernel_initializer=model["conv_kernel_initializer"],
            cnn_kernel_initializer_config=model["conv_kernel_initializer_kwargs"],
            cnn_bias_initializer=model["conv_bias_initializer"],
            cnn_bias_initializer_config=model["conv_bias_initializer_kwargs"],
        )
        # TorchCNN itself takes channels last; its stack of layers takes them first, as the space has them.
        self.cnn = stack.cnn
        with torch.no_grad():
            num_flat = self.cnn(torch.zeros(1, channels, height, width)).numel()
        activation = get_activation_fn(model["conv_activation"], framework="torch") or nn.Identity
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(num_flat, IMAGE_FEATURES), activation())

    def forward(self, image: Tensor) -> Tensor:
        """(..., channels, height, width) to (..., IMAGE_FEATURES)."""
        pixels = image.reshape(-1, *image.shape[-3:]).float() * self.scale
        features: Tensor = self.features(self.cnn(pixels))
        return features.reshape(*image.shape[:-3], IMAGE_FEATURES)


def filters_for(height: int, width: int) -> list[list[Any]]:
    """A convolution stack in RLlib's words, `[filters, kernel, stride]`, that ends at 8 x 8 or smaller.

    Each layer halves every side that is still larger than 8 (the first one quarters sides of 64 and more, as
    in the Atari networks), so that no height or width needs a stack of its own.
    """
    stack: list[list[Any]] = []
    size = [height, width]
    while not stack or max(size) > SMALL_ENOUGH:
        quarter = BIG if not stack else max(size) + 1
        stride = [4 if side >= quarter else 2 if side > SMALL_ENOUGH else 1 for side in size]
        stack.append([64 if stack else 32, [2 * step if step > 1 else 3 for step in stride], stride])
        size = [-(-side // step) for side, step in zip(size, stride, strict=True)]
    return stack


@dataclass
class DictLSTMConfig(RecurrentEncoderConfig):  # type: ignore[misc]
    """RLlib's LSTM with a `DictEncoder` in front; RLlib tells stateful modules by the parent class.

    Attributes:
        features: The encoder in front.
    """

    features: DictEncoderConfig = field(default_factory=DictEncoderConfig)

    def build(self, framework: str = "torch") -> DictLSTMEncoder:
        """The encoder."""
        return DictLSTMEncoder(self)


class DictLSTMEncoder(TorchLSTMEncoder):  # type: ignore[misc]
    """(batch, time, ...) vector and images, and a state, to (batch, time, cell) and the next state.

    RLlib's own tokenizer takes one tensor only, so the Dict is encoded here and the LSTM is given the
    latents.
    """

    def __init__(self, config: DictLSTMConfig) -> None:
        super().__init__(config)
        self.features = config.features.build()

    def _forward(self, inputs: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        latents = self.features(inputs)[ENCODER_OUT]
        outputs: dict[str, Any] = super()._forward({**inputs, Columns.OBS: latents}, **kwargs)
        return outputs


def encoder_config(space: gym.spaces.Dict, model: dict[str, Any]) -> DictEncoderConfig | DictLSTMConfig:
    """The config of the encoder for a Dict observation, with an LSTM when `use_lstm` is set."""
    features = DictEncoderConfig(observation_space=space, model=model)
    if not model["use_lstm"]:
        return features
    return DictLSTMConfig(
        features=features,
        input_dims=features.output_dims,
        recurrent_layer_type="lstm",
        hidden_dim=model["lstm_cell_size"],
        hidden_weights_initializer=model["lstm_kernel_initializer"],
        hidden_weights_initializer_config=model["lstm_kernel_initializer_kwargs"],
        hidden_bias_initializer=model["lstm_bias_initializer"],
        hidden_bias_initializer_config=model["lstm_bias_initializer_kwargs"],
        batch_major=True,
        num_layers=1,
    )


def _mlp(num_inputs: int, model: Mapping[str, Any]) -> nn.Module:
    """The MLP that RLlib would build for a vector of this width: `fcnet_hiddens`, all of them activated."""
    hiddens = list(model["fcnet_hiddens"])
    if not hiddens:
        return nn.Identity()
    weights = (model["fcnet_kernel_initializer"], model["fcnet_kernel_initializer_kwargs"])
    bias = (model["fcnet_bias_initializer"], model["fcnet_bias_initializer_kwargs"])
    mlp: nn.Module = TorchMLP(
        input_dim=num_inputs,
        hidden_layer_dims=hiddens[:-1],
        hidden_layer_activation=model["fcnet_activation"],
        hidden_layer_use_layernorm=model["fcnet_use_layernorm"],
        hidden_layer_weights_initializer=weights[0],
        hidden_layer_weights_initializer_config=weights[1],
        hidden_layer_bias_initializer=bias[0],
        hidden_layer_bias_initializer_config=bias[1],
        output_dim=hiddens[-1],
        output_activation=model["fcnet_activation"],
        output_layer_use_layernorm=model["fcnet_use_layernorm"],
        output_weights_initializer=weights[0],
        output_weights_initializer_config=weights[1],
        output_bias_initializer=bias[0],
        output_bias_initializer_config=bias[1],
    )
    return mlp
