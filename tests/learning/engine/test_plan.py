"""When the engine trains, and what a run says when it does not."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.examples.rl_modules.classes.lstm_containing_rlm import LSTMContainingRLModule

from platotk.errors import ProjectError
from platotk.learning.algorithm import build_config
from platotk.learning.engine.learner import EngineLearner
from platotk.learning.engine.plan import chosen_for
from platotk.learning.engine.runner import EngineRunner
from platotk.learning.results import num_skipped_updates
from platotk.project import Project
from platotk.sims.loading import sim_spec
from platotk.spaces import adapt

BOX, TWO = gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(2)


def config_of(**fields: Any) -> Any:
    project = Project(**{"sim": "CartPole-v1", **fields})
    return build_config(project, adapt(BOX, TWO), sim_spec(project))


class OwnRunner(SingleAgentEnvRunner):
    pass


class OwnLearner(PPOTorchLearner):
    pass


class LooksAtSamples(RLlibCallback):
    def on_sample_end(self, *, samples: Any, **_: Any) -> None:
        pass


class LooksAtEpisodes(RLlibCallback):
    def on_episode_end(self, *, episode: Any, **_: Any) -> None:
        pass


class OwnModule(TorchRLModule, ValueFunctionAPI):
    pass


def own(**sections: Any) -> Any:
    """A config of the user's own, with some of RLlib's methods called on it."""
    config = PPOConfig()
    for name, values in sections.items():
        getattr(config, name)(**values)
    return config


COVERED: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no filter": {"normalize_observations": False},
    "runners and learners": {"env_runners": {"num_env_runners": 2}, "learners": {"num_learners": 2}},
    "shared network": {"rl_module": {"model_config": {"vf_share_layers": True}}},
    "whole episodes": {"env_runners": {"batch_mode": "complete_episodes"}},
    "a config of one's own": {"algorithm": own(training={"lr": 1e-3})},
    "own network": {"rl_module": {"rl_module_spec": RLModuleSpec(module_class=OwnModule)}},
    "lstm": {"rl_module": {"model_config": {"use_lstm": True}}},
    "own network with memory": {
        "rl_module": {
            "rl_module_spec": RLModuleSpec(module_class=LSTMContainingRLModule, model_config={"max_seq_len": 8})
        }
    },
    "episode callbacks": {"algorithm": own(callbacks={"callbacks_class": LooksAtEpisodes})},
}
TORCH = ("own network", "lstm", "own network with memory")
"""What the compiled kernel cannot run."""


@pytest.mark.parametrize("name", COVERED)
def test_the_engine_trains(name: str) -> None:
    config = config_of(**COVERED[name])
    assert chosen_for(config)["path"] == ("torch" if name in TORCH else "kernel")
    assert chosen_for(config)["note"] is None
    assert config.env_runner_cls is EngineRunner
    assert config.learner_class is EngineLearner


def connector(*_: Any, **__: Any) -> Any:
    return MeanStdFilter()


LEFT_TO_RLLIB: dict[str, tuple[dict[str, Any], str]] = {
    "another algorithm": ({"algorithm": "IMPALA"}, "trains PPO, SAC and DQN, and this is IMPALA"),
    "another config": ({"algorithm": IMPALAConfig()}, "trains PPO, SAC and DQN, and this is IMPALA"),
    "lstm of DQN": ({"algorithm": "DQN", "rl_module": {"model_config": {"use_lstm": True}}}, "the network has memory"),
    "sequences of no length": (
        {"rl_module": {"rl_module_spec": RLModuleSpec(module_class=LSTMContainingRLModule)}},
        "the network has memory, and no max_seq_len in its model_config",
    ),
    "own runner": ({"env_runners": {"env_runner_cls": OwnRunner}}, "OwnRunner"),
    "own learner": ({"learners": {"learner_class": OwnLearner}}, "OwnLearner"),
    "own connector": ({"env_runners": {"env_to_module_connector": connector}}, "env_to_module_connector of its own"),
    "own action connector": ({"env_runners": {"module_to_env_connector": connector}}, "module_to_env_connector"),
    "own learner connector": ({"learners": {"learner_connector": connector}}, "learner_connector of its own"),
    "sampled episodes": ({"algorithm": own(callbacks={"on_sample_end": lambda **_: None})}, "on_sample_end"),
    "sampled episodes, class": ({"algorithm": own(callbacks={"callbacks_class": LooksAtSamples})}, "on_sample_end"),
    "recorded": (
        {"algorithm": own(offline_data={"output": "/tmp/there"}, env_runners={"batch_mode": "complete_episodes"})},
        "recorded",
    ),
    "no critic": ({"training": {"use_critic": False}}, "use_critic"),
    "compiled": ({"algorithm": own(framework={"torch_compile_learner": True})}, "torch_compile_learner"),
    "evaluation": ({"evaluation": {"custom_evaluation_function": lambda *_: None}}, "custom_evaluation_function"),
}


@pytest.mark.parametrize("name", LEFT_TO_RLLIB)
def test_what_it_does_not_cover_is_left_to_rllib_with_the_reason(name: str) -> None:
    fields, reason = LEFT_TO_RLLIB[name]
    config = config_of(**fields)
    chosen = chosen_for(config)
    assert chosen["path"] is None
    assert reason in chosen["note"]
    assert "\n" not in chosen["note"]
    assert config.env_runner_cls is not EngineRunner
    assert config.learner_class is not EngineLearner


def test_the_project_can_ask_for_rllib_and_is_told_nothing() -> None:
    config = config_of(engine="rllib")
    assert chosen_for(config) == {"path": None, "note": None, "reason": None}
    assert config.env_runner_cls is None
    with pytest.raises(ProjectError, match="engine"):
        config_of(engine="fast")


def test_a_run_says_how_many_minibatches_were_left_out() -> None:
    learners = {"default_policy": {"num_nonfinite_updates": 3.0, "vf_loss": 1.0}, "__all_modules__": {}}
    assert num_skipped_updates({"learners": learners}) == 3
    assert num_skipped_updates({}) == 0
