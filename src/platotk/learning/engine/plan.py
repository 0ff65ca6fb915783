"""Whether the engine can train a config, and if not, why not.

`plan` is given a project and the config that RLlib would train, and gives back an `EnginePlan`; `apply` plugs it in
through RLlib's own fields. What it does not cover is trained by RLlib's own runner and learner, and the run says why in
one line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ...project import Project
from ...spaces import Adapter

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

SETTINGS = "platotk_engine"
"""Where the plan is kept in RLlib's `learner_config_dict`."""


@dataclass(frozen=True)
class EnginePlan:
    """Who trains.

    Attributes:
        path: "kernel" for the engine with the compiled kernel where it covers the network, "torch" for the engine
            without it, None for RLlib's own runner and learner.
        reason: Why RLlib trains, or torch without asking the kernel, in one line; None for the kernel, and where the
            project asked for RLlib.
    """

    path: str | None
    reason: str | None = None

    @property
    def note(self) -> str | None:
        """What the run says about it."""
        if self.path is not None or self.reason is None:
            return None
        return f"RLlib's own sampling and learning, not the fast engine: {self.reason}"


def plan(project: Project, adapter: Adapter, config: AlgorithmConfig) -> EnginePlan:
    """Who trains this config.

    Args:
        project: The project; `engine: rllib` turns the engine off.
        adapter: The encoded spaces.
        config: All but finished: with the project's sections, the sims and the observation filter.
    """
    if project.engine == "rllib":
        return EnginePlan(None)
    reason = next(_reasons(config), None)
    if reason is not None:
        return EnginePlan(None, reason)
    reason = next(_reasons_for_torch(config), None)
    return EnginePlan("kernel" if reason is None else "torch", reason)


def apply(chosen: EnginePlan, config: AlgorithmConfig) -> None:
    """Plug the engine into a config, through fields that RLlib has for that; or note why not."""
    config.learners(learner_config_dict={SETTINGS: {"path": chosen.path, "note": chosen.note, "reason": chosen.reason}})
    if chosen.path is None:
        return
    from .runner import EngineRunner

    config.env_runners(env_runner_cls=EngineRunner)
    name = config.algo_class.__name__
    if name == "PPO":
        from ..algorithm import as_list
        from .learner import EngineLearner, overlap

        config.learners(learner_class=EngineLearner)
        config.callbacks(on_algorithm_init=[*as_list(config.callbacks_on_algorithm_init), overlap])
        return
    from . import off_policy, off_policy_learner

    config.algo_class = getattr(off_policy, name)
    config.learners(learner_class=getattr(off_policy_learner, f"Engine{name}Learner"))


def chosen_for(config: AlgorithmConfig) -> dict[str, Any]:
    """`path`, `note` and `reason` of the plan that was applied to a config."""
    none = {"path": None, "note": None, "reason": None}
    settings: dict[str, Any] = config.learner_config_dict.get(SETTINGS) or none
    return settings


def _reasons_for_torch(config: Any) -> Iterator[str]:
    """Runner and learner ask the kernel itself about the network; here are reasons not even to compile it."""
    spec = config._rl_module_spec
    kind = None if spec is None else spec.module_class
    if config.algo_class.__name__ != "PPO":
        yield "the kernel learns by PPO only"
    if _has_memory(config):
        yield "the network has memory"
    if kind is not None and not kind.__module__.startswith(("ray.rllib.algorithms.ppo.", "platotk.")):
        yield f"the RLModule is a {kind.__name__} of its own"
    if config.num_gpus_per_learner and config.num_gpus_per_env_runner:
        yield "learners and env runners have GPUs"


def _reasons(config: Any) -> Iterator[str]:
    """What stands against the engine, most general first."""
    from ray.rllib.algorithms.dqn import DQN
    from ray.rllib.algorithms.ppo import PPO
    from ray.rllib.algorithms.sac import SAC

    if config.algo_class not in (PPO, SAC, DQN):
        name = getattr(config.algo_class, "__name__", config.algo_class)
        yield f"it trains PPO, SAC and DQN, and this is {name}"
        return
    if not (config.enable_rl_module_and_learner and config.enable_env_runner_and_connector_v2):
        yield "the config asks for RLlib's old API stack"
    if config.is_multi_agent:
        yield "there are several agents"
    yield from _own_parts(config)
    yield from _own_data(config)
    yield from _own_learning(config)
    if config.algo_class is not PPO:
        yield from _replay(config)
    yield from _module(config)


def _own_parts(config: Any) -> Iterator[str]:
    """Parts of the user's own that stand where the engine's would."""
    if config.env_runner_cls is not None:
        yield f"the config has an env runner of its own, {config.env_runner_cls.__name__}"
    if config._learner_class is not None:
        yield f"the config has a learner of its own, {config._learner_class.__name__}"
    if config._env_to_module_connector is not None and not _is_our_filter(config._env_to_module_connector):
        yield "the config has an env_to_module_connector of its own"
    for name in ("module_to_env", "learner"):
        if getattr(config, f"_{name}_connector") is not None:
            yield f"the config has a {name}_connector of its own"
    for name in ("env_to_module", "module_to_env", "learner"):
        if not getattr(config, f"add_default_connectors_to_{name}_pipeline"):
            yield f"add_default_connectors_to_{name}_pipeline is off"


def _own_data(config: Any) -> Iterator[str]:
    """Those who look at what was sampled expect RLlib's episodes."""
    if config.input_ != "sampler":
        yield "it learns from recorded data"
    if config.output is not None:
        yield "episodes are recorded (output)"
    if _samples_are_looked_at(config):
        yield "an on_sample_end callback looks at RLlib's episodes"
    if config.custom_evaluation_function is not None:
        yield "there is a custom_evaluation_function"


def _own_learning(config: Any) -> Iterator[str]:
    """Ways of learning that the engine's learner has not."""
    if config.framework_str != "torch":
        yield f"the framework is {config.framework_str}"
    if not getattr(config, "use_critic", True):
        yield "use_critic is off"
    for name in ("torch_compile_learner", "torch_compile_worker"):
        if getattr(config, name):
            yield f"{name} is on"
    if config._torch_grad_scaler_class is not None:
        yield "gradients are scaled (_torch_grad_scaler_class)"
    if config._torch_lr_scheduler_classes:
        yield "torch's learning-rate schedulers are used (_torch_lr_scheduler_classes)"
    if config.policies_to_train is not None:
        yield "policies_to_train is set"


def _replay(config: Any) -> Iterator[str]:
    """Replay that the engine's buffer does not do."""
    from ray.rllib.utils.replay_buffers import EpisodeReplayBuffer, PrioritizedEpisodeReplayBuffer

    given = config.replay_buffer_config.get("type")
    known = (EpisodeReplayBuffer, PrioritizedEpisodeReplayBuffer)
    if given not in known and str(given).rpartition(".")[2] not in [kind.__name__ for kind in known]:
        yield f"the replay buffer is {getattr(given, '__name__', given)}"
    if config.num_learners:
        yield "learners of their own processes draw from RLlib's replay buffer"
    if config.count_steps_by != "env_steps":
        yield f"steps are counted by {config.count_steps_by}"


def _module(config: Any) -> Iterator[str]:
    """Networks that the engine cannot run."""
    from ray.rllib.algorithms.ppo import PPO
    from ray.rllib.core.rl_module.apis import SelfSupervisedLossAPI, ValueFunctionAPI
    from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec

    if isinstance(config._rl_module_spec, MultiRLModuleSpec):
        yield "the network is a MultiRLModule"
        return
    kind, model = _network(config)
    if _has_memory(config):
        if config.algo_class is not PPO:
            yield "the network has memory"
        elif not model.get("max_seq_len"):
            yield "the network has memory, and no max_seq_len in its model_config"
    if issubclass(kind, SelfSupervisedLossAPI):
        yield f"{kind.__name__} has a loss of its own"
    if config.algo_class is PPO and not issubclass(kind, ValueFunctionAPI):
        yield f"{kind.__name__} gives no values (ValueFunctionAPI)"


def _has_memory(config: Any) -> bool:
    """Whether a network says so without being built."""
    from ray.rllib.core.rl_module.rl_module import RLModule

    kind, model = _network(config)
    default = config.get_default_rl_module_spec().module_class
    has_state = kind.get_initial_state not in (RLModule.get_initial_state, default.get_initial_state)
    return bool(model.get("use_lstm")) or has_state


def _network(config: Any) -> tuple[Any, dict[str, Any]]:
    """The RLModule's class and its model config."""
    spec = config._rl_module_spec
    kind = None if spec is None else spec.module_class
    model = config.model_config if spec is None or spec.model_config is None else spec.model_config
    kind = config.get_default_rl_module_spec().module_class if kind is None else kind
    return kind, model if isinstance(model, dict) else dataclasses.asdict(model)


def _is_our_filter(connector: Any) -> bool:
    from ..filters import NumericFilter

    return isinstance(connector, partial) and NumericFilter in connector.args


def _samples_are_looked_at(config: Any) -> bool:
    """Whether anybody but platotk, which only counts failures of sims there, has an `on_sample_end`."""
    from ..algorithm import count_failures
    from .episodes import overrides

    given = config.callbacks_on_sample_end
    given = list(given) if isinstance(given, (list, tuple)) else [given]
    return any(callback not in (None, count_failures) for callback in given) or overrides(config, "on_sample_end")
