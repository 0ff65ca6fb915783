"""The one place that builds an RLlib `AlgorithmConfig`.

Given a project, the adapter of its spaces and a way to make sims, it gives back the config that trains them: good
defaults first, the project's own sections word for word on top, then what only platotk can know (the sims, the
network for images and masks, the observation filter, fault tolerance).
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import ProjectError
from ..project import Project
from ..project_fields import SECTIONS
from ..sims.loading import SimSpec, load_attribute
from ..spaces import Adapter
from . import replay_size, section_values
from .cluster import has_images, quiet_rllib
from .defaults import MODEL_DEFAULTS, OFF_POLICY_MODEL, TRAINING_DEFAULTS
from .engine import plan as engine
from .failures import keep_reason
from .section_values import OFFLINE

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

NUM_ENVS = 8
MIN_FILTERED_STEPS = 1000


@dataclasses.dataclass(frozen=True)
class SimSettings:
    """How the sims of one attempt are run.

    Attributes:
        own_process: Each sim in a process of its own.
        attempt: 1 for the first start of a run, one more for each resume; seeds depend on it.
        step_s: Measured seconds per step, or None; bounds how long RLlib waits for a fragment.
    """

    own_process: bool = False
    attempt: int = 1
    step_s: float | None = None

    def num_sims(self, num_cpus: float) -> int:
        """How many sims keep a policy busy that chooses for each in about 0.15 ms: 8 to 64, at most 16 per CPU.

        More sims than CPUs are worth their memory because a slow sim mostly waits: for a solver, a device, a server.
        """
        if not self.own_process or self.step_s is None:
            return NUM_ENVS
        return int(max(NUM_ENVS, min(64, 16 * num_cpus, self.step_s / 150e-6)))


def choose_algorithm(project: Project) -> tuple[str, str | None]:
    """The name of the algorithm, and why when the project leaves it open (`algorithm:` absent)."""
    if project.algorithm is None:
        return "PPO", "algorithm: PPO (none was named; PPO learns from every space that platotk can encode)"
    if isinstance(project.algorithm, str) and ":" not in project.algorithm:
        return _known(project, project.algorithm), None
    return algorithm_name(_user_config(project)), None


def algorithm_name(config: AlgorithmConfig) -> str:
    """RLlib's name of the algorithm that a config builds: "PPO", "SAC" ..."""
    algo_class: Any = config.algo_class
    return str(getattr(algo_class, "__name__", algo_class))


def build_config(
    project: Project,
    adapter: Adapter,
    spec: SimSpec,
    settings: SimSettings | None = None,
    *,
    num_cpus: float | None = None,
) -> AlgorithmConfig:
    """The config that trains `project`; `config.build_algo()` is all that is left to do.

    Args:
        project: The project; its sections are passed through word for word.
        adapter: The encoded spaces.
        spec: How to make a sim.
        settings: How the sims are run.
        num_cpus: CPUs of the Ray cluster, for `num_env_runners: auto`.

    Raises:
        ProjectError: An unknown algorithm or key, with file:line and the nearest known one; a value that cannot be.
    """
    config = sectioned_config(project, adapter, spec, settings or SimSettings(), num_cpus)
    name = algorithm_name(config)
    if name in OFFLINE and config.input_ == "sampler":
        what = section_values.NO_DATA.format(name=name)
        raise ProjectError(f"{project.where('algorithm')}: {what}.", hint=section_values.DATA_CURE)
    if wrong := section_values.refused(config, _sections(project)):
        raise ProjectError(f"{project.where(wrong[0])}: {wrong[1]}", hint="Correct it, and try: plato check")
    replay_note = None
    if name in ("SAC", "DQN"):
        spaces = adapter.encoded_observation_space, adapter.encoded_action_space
        replay_note = replay_size.fit(project, config, *spaces)
    engine.apply(engine.plan(project, adapter, config), config)
    if replay_note is not None:
        said = engine.chosen_for(config)
        said["note"] = "; ".join(filter(None, [said["note"], replay_note]))
    return config


def sectioned_config(
    project: Project, adapter: Adapter, spec: SimSpec, settings: SimSettings, num_cpus: float | None = None
) -> AlgorithmConfig:
    """The config with the project's sections and the sims, before RLlib and the engine have looked at it.

    Raises:
        ProjectError: As `build_config`, but for what RLlib says of the whole.
    """
    for key, message in section_values.out_of_range(_sections(project)):
        raise ProjectError(f"{project.where(key)}: {message}.", hint="See all findings with: plato check")
    own_config = project.algorithm is not None and not _is_name(project.algorithm)
    config = _user_config(project) if own_config else _default_config(project, adapter)
    name = algorithm_name(config)
    for section in SECTIONS:
        values = dict(getattr(project, section, None) or {})
        if section == "env_runners":
            values = _env_runners(project, config, values, num_cpus, settings)
        if section == "rl_module":
            values = _rl_module(project, config, values, adapter, name, own_config)
        _apply(project, config, section, values)
    _add_sims(project, config, adapter, spec, settings, name)
    _bound_waiting(config, settings)
    return config


def _sections(project: Project) -> dict[str, dict[str, Any]]:
    return {section: dict(getattr(project, section, None) or {}) for section in SECTIONS}


def section_keys(config: AlgorithmConfig, section: str) -> set[str]:
    """The keyword arguments that `config.<section>(...)` takes, through all parent classes."""
    keys: set[str] = set()
    for parent in type(config).__mro__:
        method = vars(parent).get(section)
        if callable(method):
            keys |= {
                parameter.name
                for parameter in inspect.signature(method).parameters.values()
                if parameter.kind is inspect.Parameter.KEYWORD_ONLY
            }
    return keys


def default_config(name: str) -> AlgorithmConfig:
    """RLlib's own config of an algorithm by name, with nothing changed."""
    from ray.rllib.algorithms.registry import _get_algorithm_class

    config: AlgorithmConfig = _get_algorithm_class(name).get_default_config()
    return config


def _is_name(algorithm: Any) -> bool:
    return isinstance(algorithm, str) and ":" not in algorithm


def _known(project: Project, name: str) -> str:
    from ray.rllib.algorithms.registry import ALGORITHMS

    by_lower: dict[str, str] = {known.lower(): known for known in ALGORITHMS}
    if name.lower() in by_lower:
        return by_lower[name.lower()]
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    raise ProjectError(
        f"{project.where('algorithm')}: unknown algorithm {name!r}."
        + (f" Did you mean {by_lower[near[0]]!r}?" if near else ""),
        hint=f"RLlib has: {', '.join(sorted(ALGORITHMS))}. Or name a function: algorithm: train:config",
    )


def _user_config(project: Project) -> AlgorithmConfig:
    """What the user's own function returned (`algorithm: module:function`, or the function itself)."""
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    target = project.algorithm
    function = load_attribute(target, project.root) if isinstance(target, str) else target
    made = function() if callable(function) else function
    if not isinstance(made, AlgorithmConfig):
        raise ProjectError(
            f"{project.where('algorithm')}: {target!r} gave {type(made).__name__}, not an AlgorithmConfig.",
            hint="Return one, e.g.: def config(): return PPOConfig().training(lr=3e-4)",
        )
    return made.copy(copy_frozen=False)


def _default_config(project: Project, adapter: Adapter) -> AlgorithmConfig:
    name, _ = choose_algorithm(project)
    if name in section_values.UNFIT:
        raise ProjectError(f"{project.where('algorithm')}: {section_values.UNFIT[name]}.", hint="Say algorithm: PPO")
    config = default_config(name)
    if name in OFFLINE and not (project.learners or {}).get("num_learners"):
        # RLlib has none for a learner in this process, and then refuses to begin.
        config.offline_data(dataset_num_iters_per_learner=section_values.CQL_UPDATES if name == "CQL" else 1)
    config.training(**TRAINING_DEFAULTS.get(name, {}))
    model = (project.rl_module or {}).get("model_config")
    if name == "DQN" and isinstance(model, dict) and model.get("use_lstm"):
        # RLlib's prioritized buffer fails at its first update with sequences (2.60, update_priorities).
        config.training(replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": 50_000})
    if name == "SAC" and adapter.nvec:
        # RLlib's "auto" is -1 for a Discrete action, an entropy that no policy can have; half of the largest possible.
        config.training(target_entropy=0.5 * math.log(adapter.nvec[0]))
    if name in ("SAC", "DQN"):
        config.reporting(min_sample_timesteps_per_iteration=1000, min_time_s_per_iteration=None)
    return config


def _env_runners(
    project: Project,
    config: AlgorithmConfig,
    values: dict[str, Any],
    num_cpus: float | None,
    settings: SimSettings,
) -> dict[str, Any]:
    if values.get("num_env_runners") == "auto":
        per_runner = float(values.get("num_cpus_per_env_runner", config.num_cpus_per_env_runner)) or 1.0
        learners = float((project.learners or {}).get("num_learners", config.num_learners) or 0)
        values["num_env_runners"] = max(0, int(((num_cpus or 1.0) - 1.0 - learners) // per_runner))
    elif "num_env_runners" not in values and config.num_env_runners == default_num_env_runners(config):
        # In this process: no copies between processes, and the only way to reproduce a run exactly.
        asynchronous = algorithm_name(config) in ("IMPALA", "APPO")
        values["num_env_runners"] = 1 if asynchronous and (num_cpus or 0) >= 2 else 0
    if "num_envs_per_env_runner" not in values and config.num_envs_per_env_runner == 1:
        runners = values.get("num_env_runners", config.num_env_runners) or 1
        num_sims = settings.num_sims((num_cpus or 1.0) / runners)
        values["num_envs_per_env_runner"] = 1 if algorithm_name(config) in ("SAC", "DQN") else num_sims
    return values


def default_num_env_runners(config: AlgorithmConfig) -> int:
    """RLlib's own number of env runners for this algorithm, to tell a user's choice from a default."""
    return int(type(config)().num_env_runners)


def _rl_module(
    project: Project,
    config: AlgorithmConfig,
    values: dict[str, Any],
    adapter: Adapter,
    name: str,
    own_config: bool,
) -> dict[str, Any]:
    """The network: RLlib's own, or ours where images or masks are seen; a user's own RLModule is left alone."""
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    from .modules import rl_module_spec

    if "rl_module_spec" in values or (own_config and config._rl_module_spec is not None):
        return values
    given = values.pop("model_config", None)
    if own_config and given is None and config._model_config:
        model: Any = config._model_config
    else:
        defaults = dict(OFF_POLICY_MODEL if name in ("SAC", "DQN") else MODEL_DEFAULTS)
        if has_images(adapter.encoded_observation_space):
            defaults["vf_share_layers"] = True  # two CNNs would double the work
        fields = {field.name for field in dataclasses.fields(DefaultModelConfig)}
        for key in given or {}:
            if key not in fields:
                raise _unknown_key(project, f"rl_module.model_config.{key}", key, fields)
        model = DefaultModelConfig(**{**defaults, **(given or {})})
    values["model_config"] = model
    module_spec = rl_module_spec(adapter, name, model)
    if module_spec is not None:
        values["rl_module_spec"] = module_spec
    return values


def _apply(project: Project, config: AlgorithmConfig, section: str, values: Mapping[str, Any]) -> None:
    if not values:
        return
    keys = section_keys(config, section)
    for key in values:
        if key not in keys:
            raise _unknown_key(project, f"{section}.{key}", key, keys)
    # 1e4 is a float, as in Python; where RLlib counts it wants an int.
    values = {
        key: int(value) if isinstance(value, float) and value.is_integer() and _counts(config, key) else value
        for key, value in values.items()
    }
    try:
        getattr(config, section)(**values)
    except (TypeError, ValueError) as error:
        raise ProjectError(
            f"{project.where(section)}: RLlib refuses {section}: {error}",
            hint=f"See AlgorithmConfig.{section}() in RLlib's documentation.",
        ) from error


def _counts(config: AlgorithmConfig, key: str) -> bool:
    default = getattr(config, key, None)
    return isinstance(default, int) and not isinstance(default, bool)


def _unknown_key(project: Project, dotted: str, key: str, known: set[str]) -> ProjectError:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    section = dotted.rsplit(".", 1)[0]
    return ProjectError(
        f"{project.where(dotted)}: unknown key {key!r} in {section}." + (f" Did you mean {near[0]!r}?" if near else ""),
        hint=f"{section} takes: {', '.join(sorted(known))}",
    )


def _add_sims(
    project: Project,
    config: AlgorithmConfig,
    adapter: Adapter,
    spec: SimSpec,
    settings: SimSettings,
    name: str,
) -> None:
    from ..sims.vector import TrainingSims
    from ..sims.vectorised import VectorisedSims
    from ..sims.workers import TrainingWorkers

    one_by_one = TrainingWorkers if settings.own_process else TrainingSims
    config.environment(
        env=VectorisedSims if _is_vectorised(project, config, spec) else one_by_one,
        env_config={
            "spec": spec,
            "adapter": adapter,
            "seed": (project.seed, settings.attempt),
            "max_episode_steps": project.max_episode_steps,
            "step_timeout_s": project.step_timeout_s,
            "own_process": settings.own_process,
        },
        disable_env_checking=True,
    )
    if name in OFFLINE:
        config.environment(
            observation_space=adapter.encoded_observation_space, action_space=adapter.encoded_action_space
        )
    config.env_runners(gym_env_vectorize_mode="vector_entry_point")
    # A resumed run must not draw the same exploration noise again.
    config.debugging(seed=_mixed(project.seed, settings.attempt), log_level="ERROR")
    config.callbacks(
        on_environment_created=[*as_list(config.callbacks_on_environment_created), assign_seeds],
        on_sample_end=[*as_list(config.callbacks_on_sample_end), count_failures],
    )
    config.fault_tolerance(
        restart_failed_env_runners=True,
        delay_between_env_runner_restarts_s=1.0,
        env_runner_restore_timeout_s=60.0,
        # Sims are restarted one by one by SupervisedSim; RLlib would recreate all of a runner's.
        restart_failed_sub_environments=False,
        **(project.fault_tolerance or {}),
    )
    # Recorded episodes do not pass the env runner's connectors, so offline algorithms learn from them as they are.
    is_filtered = project.normalize_observations and adapter.numeric.any() and name not in OFFLINE
    if is_filtered and config._env_to_module_connector is None:
        from .filters import NumericFilter, share_filters

        made = partial(_make_filter, NumericFilter, adapter.numeric, _filtered_steps(config, name))
        config.env_runners(env_to_module_connector=made)
        config.callbacks(on_evaluate_start=[*as_list(config.callbacks_on_evaluate_start), share_filters])


def _is_vectorised(project: Project, config: AlgorithmConfig, spec: SimSpec) -> bool:
    """Whether the sims step in one call: RLlib's `gym_env_vectorize_mode`, in any letters, as RLlib reads it.

    Raises:
        ProjectError: A mode that there is not, or one of processes, which `sim_process` is for.
        SimError: The sim has no vectorised form.
    """
    from ..sims.vectorised import MODE, Vectorised

    mode: str = getattr(config.gym_env_vectorize_mode, "value", config.gym_env_vectorize_mode).lower()
    if mode not in ("sync", MODE) or (mode == MODE and project.sim_process == "own"):
        raise ProjectError(
            f"{project.where('env_runners.gym_env_vectorize_mode')}: gym_env_vectorize_mode is {mode!r}"
            + (" and sim_process own: sims that step in one call share a process." if mode == MODE else "."),
            hint=f"It is sync (one by one) or {MODE} (all in one call). For a process per sim say: sim_process: own",
        )
    if mode == MODE:
        Vectorised(spec, 1).registered()
    return mode == MODE


def _filtered_steps(config: AlgorithmConfig, name: str) -> int | None:
    """How many observations the filter learns from: with replay, those that come before learning."""
    if name not in ("SAC", "DQN"):
        return None
    return max(MIN_FILTERED_STEPS, int(getattr(config, "num_steps_sampled_before_learning_starts", 0)))


def _make_filter(kind: Callable[..., Any], numeric: Any, max_count: int | None, *_: Any, **__: Any) -> Any:
    return kind(numeric=numeric, max_count=max_count)


def _bound_waiting(config: AlgorithmConfig, settings: SimSettings) -> None:
    """RLlib drops what a runner has not sampled after `sample_timeout_s` (60 s): slow sims would yield nothing."""
    if config.sample_timeout_s == type(config)().sample_timeout_s:
        fragment = config.total_train_batch_size / max(1, config.num_env_runners or 1)
        config.env_runners(sample_timeout_s=max(600.0, 10.0 * fragment * (settings.step_s or 0.0)))


def assign_seeds(*, env: Any, env_runner: Any, **_: Any) -> None:
    """Callback: give a runner's sims their own stream of seeds; a runner that Ray restarted gets a fresh one."""
    import ray

    quiet_rllib()  # in a process of RLlib's own env runner nobody has yet
    stream = [env_runner.worker_index or 0]
    if ray.is_initialized() and env_runner.worker_index:
        context = ray.get_runtime_context()
        if context.get_actor_id() and context.was_current_actor_reconstructed:
            import secrets

            stream.append(secrets.randbits(31))
    if hasattr(env, "assign"):
        env.assign(*stream)


def count_failures(*, env_runner: Any, metrics_logger: Any, **_: Any) -> None:
    """Callback: put the sims' failures into RLlib's metrics as `sim_failures`."""
    new_failures = getattr(env_runner.env.unwrapped, "new_failures", None)
    if new_failures is not None:
        reasons = new_failures()
        metrics_logger.log_value("sim_failures", len(reasons), reduce="lifetime_sum")
        keep_reason(env_runner, reasons)


def _mixed(seed: int, attempt: int) -> int:
    import numpy as np

    return int(np.random.SeedSequence([seed, attempt]).generate_state(1)[0]) % (2**31 - 2_000_001)


def as_list(value: Any) -> list[Any]:
    """What RLlib takes as one callback, as several, or as None."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
