"""The neural networks: RLlib's own where its catalog knows the observation, ours for images and masks.

Given the adapter's encoded spaces and the name of an algorithm, `rl_module_spec` gives back None (RLlib's
default network is right) or an RLModuleSpec whose catalog builds the Dict encoder and whose module masks
actions; heads, distributions, target networks and learners stay RLlib's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import gymnasium as gym
from ray.rllib.algorithms.appo.torch.default_appo_torch_rl_module import DefaultAPPOTorchRLModule
from ray.rllib.algorithms.bc.bc_catalog import BCCatalog
from ray.rllib.algorithms.bc.torch.default_bc_torch_rl_module import DefaultBCTorchRLModule
from ray.rllib.algorithms.dqn.dqn_catalog import DQNCatalog
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.algorithms.sac.sac_catalog import SACCatalog
from ray.rllib.algorithms.sac.torch.default_sac_torch_rl_module import DefaultSACTorchRLModule
from ray.rllib.core.models.catalog import Catalog
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule

from ..errors import ProjectError
from .encoders import (
    MASK,
    DictEncoderConfig,
    ObservationActionEncoder,
    ObservationActionEncoderConfig,
    encoder_config,
)
from .masking import MaskedOldPolicy, MaskedPolicy, MaskedQ, MaskedSoftQ, num_categorical_logits

RECURRENT = ("PPO", "APPO", "IMPALA", "MARWIL", "BC", "DQN")


class EncodedSpaces(Protocol):
    """The part of an adapter that a network depends on."""

    @property
    def encoded_observation_space(self) -> gym.Space[Any]:
        """Box (n,), or Dict of "vector", "image_*" and "action_mask"."""

    @property
    def encoded_action_space(self) -> gym.Space[Any]:
        """What the module's actions look like."""


def rl_module_spec(
    adapter: EncodedSpaces, algorithm: str, model_config: Mapping[str, Any] | DefaultModelConfig | None = None
) -> RLModuleSpec | None:
    """The module for these spaces, or None when RLlib's default is right.

    Args:
        adapter: The encoded spaces.
        algorithm: RLlib's name: "PPO", "SAC" ...
        model_config: RLlib's model config; keys that it leaves out have RLlib's defaults.

    Raises:
        ProjectError: The algorithm does not take images, masks or an LSTM, or the mask does not fit the
            action.
    """
    model = _complete(model_config)
    observation_space = adapter.encoded_observation_space
    if model["use_lstm"] and algorithm == "SAC":
        raise ProjectError(
            "SAC cannot learn with use_lstm: RLlib 2.60 keeps no memory for it.",
            hint=f"Remove rl_module.model_config.use_lstm, or use one of: {', '.join(RECURRENT)}",
        )
    if not isinstance(observation_space, gym.spaces.Dict):
        if algorithm == "SAC" and isinstance(adapter.encoded_action_space, gym.spaces.Box):
            return RLModuleSpec(
                module_class=DefaultSACTorchRLModule, catalog_class=SACVectorCatalog, model_config=model
            )
        # RLlib's default network; with a memory in a module that mends what RLlib gets wrong there.
        if algorithm not in RECURRENT or not model["use_lstm"]:
            return None
        return RLModuleSpec(module_class=MODULES[algorithm][0], model_config=model)
    if algorithm not in MODULES:
        raise ProjectError(
            f"{algorithm} cannot learn from images or action masks.",
            hint=f"Use one of: {', '.join(MODULES)}; or pass a network of your own as rl_module_spec.",
        )
    _check(observation_space, adapter.encoded_action_space, algorithm)
    module_class, catalog_class = MODULES[algorithm]
    return RLModuleSpec(module_class=module_class, catalog_class=catalog_class, model_config=model)


class _DictCatalog(Catalog):  # type: ignore[misc]
    """Builds our encoder for a Dict observation and leaves every other decision to RLlib's catalog."""

    @classmethod
    def _get_encoder_config(
        cls, observation_space: gym.Space[Any], model_config_dict: dict[str, Any], action_space: Any = None
    ) -> Any:
        if isinstance(observation_space, gym.spaces.Dict):
            return encoder_config(observation_space, model_config_dict)
        return super()._get_encoder_config(
            observation_space=observation_space,
            model_config_dict=model_config_dict,
            action_space=action_space,
        )


class PPODictCatalog(_DictCatalog, PPOCatalog):  # type: ignore[misc]
    """Networks of PPO, APPO, IMPALA and MARWIL."""


class BCDictCatalog(_DictCatalog, BCCatalog):  # type: ignore[misc]
    """Networks of BC."""


class SACDictCatalog(_DictCatalog, SACCatalog):  # type: ignore[misc]
    """Networks of SAC."""


class SACVectorCatalog(SACCatalog):  # type: ignore[misc]
    """SAC's networks as in its paper (arXiv 1812.05905, table 1): a critic is one MLP of observation and action.

    RLlib's critic has an MLP for each of the two and a dense fusion of both: ten times the weights, and five times the
    arithmetic of an update.
    """

    def _build_qf_encoder_continuous(self, framework: str) -> Any:
        return ObservationActionEncoder(
            ObservationActionEncoderConfig(
                num_inputs=self.observation_space.shape[0] + self.action_space.shape[0], model=self._model_config_dict
            )
        )


class DQNDictCatalog(_DictCatalog, DQNCatalog):  # type: ignore[misc]
    """Networks of DQN."""


class _WholeCritic(TorchRLModule):  # type: ignore[misc]
    """Sends the critic's encoder to the env runners too when it has memory.

    An env runner computes the critic's state for the learner; RLlib 2.60 leaves the critic's weights out of
    what it sends, so that with `vf_share_layers: False` the states would come from a network that never
    learns.
    """

    def get_non_inference_attributes(self) -> list[str]:
        attributes: list[str] = super().get_non_inference_attributes()
        if not self.model_config.get("use_lstm"):
            return attributes
        return [name for name in attributes if name != "encoder.critic_encoder"]


class PPOModule(_WholeCritic, MaskedPolicy, DefaultPPOTorchRLModule):  # type: ignore[misc]
    """PPO, IMPALA and MARWIL."""


class APPOModule(_WholeCritic, MaskedOldPolicy, DefaultAPPOTorchRLModule):  # type: ignore[misc]
    """APPO: PPO with target networks."""


class BCModule(MaskedPolicy, DefaultBCTorchRLModule):  # type: ignore[misc]
    """BC: a policy without a critic."""


class SACModule(MaskedSoftQ, DefaultSACTorchRLModule):  # type: ignore[misc]
    """SAC, continuous and discrete."""


class DQNModule(MaskedQ, DefaultDQNTorchRLModule):  # type: ignore[misc]
    """DQN and its Rainbow options."""


MODULES: dict[str, tuple[type, type]] = {
    "PPO": (PPOModule, PPODictCatalog),
    "APPO": (APPOModule, PPODictCatalog),
    "IMPALA": (PPOModule, PPODictCatalog),
    "MARWIL": (PPOModule, PPODictCatalog),
    "BC": (BCModule, BCDictCatalog),
    "SAC": (SACModule, SACDictCatalog),
    "DQN": (DQNModule, DQNDictCatalog),
}
"""Module and catalog by algorithm, for Dict observations."""


def _complete(model_config: Mapping[str, Any] | DefaultModelConfig | None) -> dict[str, Any]:
    """The model config with RLlib's default for every key that is left out."""
    if isinstance(model_config, DefaultModelConfig):
        return dataclasses.asdict(model_config)
    return {**dataclasses.asdict(DefaultModelConfig()), **(model_config or {})}


def _check(observation_space: gym.spaces.Dict, action_space: gym.Space[Any], algorithm: str) -> None:
    if DictEncoderConfig(observation_space=observation_space).num_features == 0:
        raise ProjectError(
            "the observation is empty: there is nothing to learn from.",
            hint="Give the observation space a leaf that is not the action mask.",
        )
    mask = observation_space.spaces.get(MASK)
    expected = num_categorical_logits(action_space)
    if mask is not None and mask.shape != (expected,):
        raise ProjectError(
            f"the action mask has shape {mask.shape}, but {algorithm} chooses among {expected} categories.",
            hint=f"A mask has one entry per value of each discrete action: shape ({expected},).",
        )
