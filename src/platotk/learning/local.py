"""RLlib without Ray's processes, where a config has nothing for them to do.

A config without remote env runners and learners trains in this process alone; all that RLlib's `EnvRunnerGroup` wants
of Ray there is to put the config and the weights into an object store that nobody reads. `build_algo` is given such a
config and builds its algorithm, RLlib's own class, around a group that leaves this out: no process is started.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from types import FunctionType
from typing import TYPE_CHECKING, Any

from .uncompiled import leave_out_compiler

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    from ..project import Project

ALGORITHMS = ("PPO", "SAC", "DQN")
"""IMPALA and APPO hand episodes to their learner through the object store; BC and its kin read with Ray Data."""

_PUTTING = ("__init__", "sync_weights", "sync_env_runner_states")
"""The methods of RLlib's `EnvRunnerGroup` that call `ray.put`."""
_building = threading.Lock()


def is_local(config: AlgorithmConfig) -> bool:
    """Whether a config trains and evaluates without any of Ray's processes."""
    name = getattr(config.algo_class, "__name__", config.algo_class)
    remote = (
        config.num_env_runners,
        config.num_learners,
        config.evaluation_num_env_runners,
        getattr(config, "num_aggregator_actors_per_learner", 0),
    )
    return (
        name in ALGORITHMS
        and not any(remote)
        and not config.is_multi_agent
        and config.input_ == "sampler"
        and config.output is None
        and config.enable_env_runner_and_connector_v2
        and config.custom_evaluation_function is None
    )


def may_be_local(project: Project) -> bool | None:
    """What `is_local` will say of a project's config, without importing RLlib; None when only the config tells.

    A guess is enough: it decides whether Ray's processes are started beside the imports or, where need be, after them.
    """
    if project.algorithm is not None and (not isinstance(project.algorithm, str) or ":" in project.algorithm):
        return None
    numbers = [
        (project.env_runners or {}).get("num_env_runners", 0),
        (project.learners or {}).get("num_learners", 0),
        (getattr(project, "evaluation", None) or {}).get("evaluation_num_env_runners", 0),
    ]
    has_recording = "output" in (project.offline_data or {}) or "input_" in (project.offline_data or {})
    return (project.algorithm or "PPO").upper() in ALGORITHMS and not any(numbers) and not has_recording


def build_algo(config: AlgorithmConfig) -> Algorithm:
    """`config.build_algo()`, around a group of env runners that does without Ray where the config does."""
    leave_out_compiler(config)
    if not is_local(config):
        return config.build_algo()
    import ray.rllib.algorithms.algorithm as module

    # RLlib has no field for the class of the group: `Algorithm.setup` finds it under this name.
    with _building:
        stock = module.EnvRunnerGroup
        module.EnvRunnerGroup = local_group_class()
        try:
            return config.build_algo()
        finally:
            module.EnvRunnerGroup = stock


def resources() -> Mapping[str, float]:
    """What this machine has, in the words of `ray.cluster_resources()`."""
    import torch

    return {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}


def local_group_class() -> Any:
    """RLlib's `EnvRunnerGroup` for the local env runner alone: what it puts into the object store stays where it is."""
    import ray
    from ray.rllib.env.env_runner_group import EnvRunnerGroup

    global _group_class
    if _group_class is None:

        class LocalEnvRunnerGroup(EnvRunnerGroup):  # type: ignore[misc]
            """`EnvRunnerGroup` that never asks Ray for anything."""

        for name in _PUTTING:
            setattr(LocalEnvRunnerGroup, name, _with_ray(getattr(EnvRunnerGroup, name), _WithoutStore(ray)))
        _group_class = LocalEnvRunnerGroup
    return _group_class


_group_class: Any = None


class _WithoutStore:
    """The `ray` module as a group without remote env runners needs it: nothing is ever fetched that was put."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ray, name)

    @staticmethod
    def put(value: Any) -> Any:
        """The value itself."""
        return value


def _with_ray(method: Any, ray: Any) -> Any:
    """RLlib's own method, to which the name `ray` means something else."""
    known = {**method.__globals__, "ray": ray}
    rebound = FunctionType(method.__code__, known, method.__name__, method.__defaults__, method.__closure__)
    rebound.__kwdefaults__ = method.__kwdefaults__
    rebound.__doc__ = method.__doc__
    return rebound
