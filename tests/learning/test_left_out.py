"""A restored algorithm is the one that was saved: its learner's variables, replay buffer and counters.

The comparison does not ask `left_out` what there is: it takes every tensor and number it finds in a learner.
"""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from platotk.errors import CheckpointError
from platotk.learning import checkpoints, left_out, replay
from platotk.learning.packing import Packer, Unpackable, unpack
from platotk.learning.randomness import learner_random_state, random_state, set_random_state

MODULE = "default_policy"

OF_THE_PROCESS = {
    "_submitted_updates",
    "_num_updates",
    "_rank",
    "_learner_index",
    "_learner_state",
    "_update_kwargs",
}
"""What the threads of one process tell each other; the first update fills it anew."""


def ppo() -> Any:
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.connectors.env_to_module import MeanStdFilter

    config = PPOConfig().environment("CartPole-v1")
    config.env_runners(
        num_env_runners=0, env_to_module_connector=lambda env=None, spaces=None, device=None: MeanStdFilter()
    )
    config.training(train_batch_size=100, minibatch_size=50, num_epochs=1)
    config.training(lr=[[0, 1e-3], [1000, 1e-5]], entropy_coeff=[[0, 0.1], [1000, 0.0]])
    return config.rl_module(model_config={"fcnet_hiddens": [8]})


def appo() -> Any:
    from ray.rllib.algorithms.appo import APPOConfig

    config = APPOConfig().environment("CartPole-v1").learners(num_learners=0)
    config.env_runners(num_env_runners=0, rollout_fragment_length=50)
    config.training(train_batch_size_per_learner=50, entropy_coeff=[[0, 0.1], [1000, 0.0]], use_kl_loss=True)
    config.reporting(min_time_s_per_iteration=0, min_sample_timesteps_per_iteration=100)
    return config.rl_module(model_config={"fcnet_hiddens": [8]})


def impala() -> Any:
    from ray.rllib.algorithms.impala import IMPALAConfig

    config = IMPALAConfig().environment("CartPole-v1").learners(num_learners=0)
    config.env_runners(num_env_runners=0, rollout_fragment_length=50)
    config.training(train_batch_size_per_learner=50, entropy_coeff=[[0, 0.1], [1000, 0.0]])
    config.reporting(min_time_s_per_iteration=0, min_sample_timesteps_per_iteration=100)
    return config.rl_module(model_config={"fcnet_hiddens": [8]})


def sac() -> Any:
    from ray.rllib.algorithms.sac import SACConfig

    config = SACConfig().environment("Pendulum-v1").env_runners(num_env_runners=0)
    config.training(num_steps_sampled_before_learning_starts=20, train_batch_size_per_learner=8)
    config.training(replay_buffer_config={"type": "PrioritizedEpisodeReplayBuffer", "capacity": 1000})
    return config.reporting(min_time_s_per_iteration=0, min_sample_timesteps_per_iteration=30)


def dqn() -> Any:
    from ray.rllib.algorithms.dqn import DQNConfig

    config = DQNConfig().environment("CartPole-v1").env_runners(num_env_runners=0)
    config.training(num_steps_sampled_before_learning_starts=20, train_batch_size_per_learner=8)
    # Small enough for episodes to be evicted; targets are updated every 15 steps.
    config.training(target_network_update_freq=15, epsilon=[[0, 1.0], [200, 0.1]])
    config.training(replay_buffer_config={"type": "PrioritizedEpisodeReplayBuffer", "capacity": 60})
    return config.reporting(min_time_s_per_iteration=0, min_sample_timesteps_per_iteration=60)


CONFIGS = {"PPO": ppo, "APPO": appo, "IMPALA": impala, "SAC": sac, "DQN": dqn}


@pytest.fixture(scope="module")
def saved(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Trains an algorithm for two iterations, changes what changes slowly, saves it; once for each."""
    made: dict[str, Saved] = {}

    def get(name: str) -> Saved:
        if name not in made:
            made[name] = _save(CONFIGS[name], tmp_path_factory.mktemp(name))
        return made[name]

    yield get
    for one in made.values():
        one.algo.stop()


@dataclasses.dataclass
class Saved:
    algo: Any
    checkpoint: Path
    variables: dict[str, Any]


def _save(config: Callable[[], Any], run_path: Path) -> Saved:
    algo = config().build_algo()
    for _ in range(2):
        algo.train()
    left_out.settle(algo)
    learner = algo.learner_group._learner
    if hasattr(learner, "curr_kl_coeffs_per_module"):
        learner.curr_kl_coeffs_per_module[MODULE].data.fill_(0.45)
    if hasattr(learner, "curr_log_alpha"):
        learner.curr_log_alpha[MODULE].data.fill_(-0.7)
    checkpoint = checkpoints.save(algo, run_path, 2, extra={"env_steps": 200})
    return Saved(algo, checkpoint, learner_variables(learner))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_learner_variable_comes_back(name: str, saved: Any) -> None:
    before = saved(name)
    algo = CONFIGS[name]().build_algo()
    try:
        extra = checkpoints.restore(algo, before.checkpoint)
        after = learner_variables(algo.learner_group._learner)

        assert extra["notes"] == []
        assert differences(before.variables, after) == []
        assert algo.iteration == 2
        assert algo._time_total == before.algo._time_total
        lifetime = ("env_runners", "num_env_steps_sampled_lifetime")
        assert algo.metrics.peek(lifetime) == before.algo.metrics.peek(lifetime) > 0
        runner, old_runner = algo.env_runner, before.algo.env_runner
        assert runner.num_env_steps_sampled_lifetime == old_runner.num_env_steps_sampled_lifetime
        # Without the weights: those of asynchronous algorithms' runners lag behind the learner's.
        states = [each.get_state(not_components=["rl_module"]) for each in (old_runner, runner)]
        assert differences(*states) == []
        # Weights have reached the policy that samples, too.
        assert (
            differences(
                {key: value for key, value in before.variables.items() if key.startswith(f"_module/{MODULE}/")},
                {f"_module/{MODULE}/{key}": value for key, value in leaves(runner.module.get_state()).items()},
                only_common=True,
            )
            == []
        )

        result = algo.train()
        assert result["training_iteration"] == 3
        assert result["env_runners"]["num_env_steps_sampled_lifetime"] > before.algo.metrics.peek(lifetime)
    finally:
        algo.stop()


FORGOTTEN = {
    "PPO": {
        f"curr_kl_coeffs_per_module/{MODULE}",
        f"entropy_coeff_schedulers_per_module/{MODULE}/_curr_value",
    },
    "APPO": {
        f"curr_kl_coeffs_per_module/{MODULE}",
        f"entropy_coeff_schedulers_per_module/{MODULE}/_curr_value",
    },
    "IMPALA": {f"entropy_coeff_schedulers_per_module/{MODULE}/_curr_value"},
    "SAC": {f"curr_log_alpha/{MODULE}", f"last_update_ts_by_mid/{MODULE}"},
    "DQN": {f"last_update_ts_by_mid/{MODULE}"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_rllib_alone_forgets(name: str, saved: Any) -> None:
    """Why `left_out` exists; should RLlib learn to keep one of these, this says so."""
    before = saved(name)
    algo = CONFIGS[name]().build_algo()
    try:
        algo.restore_from_path(str(before.checkpoint / "rllib"))
        after = learner_variables(algo.learner_group._learner)

        assert set(differences(before.variables, after)) >= FORGOTTEN[name]
    finally:
        algo.stop()


@pytest.mark.parametrize("name", ["SAC", "DQN"])
def test_replay_buffer_comes_back(name: str, saved: Any) -> None:
    before = saved(name)
    algo = CONFIGS[name]().build_algo()
    try:
        checkpoints.restore(algo, before.checkpoint)
        old, new = before.algo.local_replay_buffer, algo.local_replay_buffer

        assert len(new) == len(old) > 0
        assert old.get_num_episodes_evicted() == new.get_num_episodes_evicted()
        assert name != "DQN" or new.get_num_episodes_evicted() > 0
        assert differences(old.get_state(), new.get_state()) == []
        assert new.episodes[0].observation_space == old.episodes[0].observation_space
        assert [episode.id_ for episode in new.episodes] == [episode.id_ for episode in old.episodes]
        # Not only the content: the next batch is the one that would have been drawn.
        drawn = [
            buffer.sample(num_items=8, sample_episodes=True, n_step=1, gamma=0.9, beta=0.4) for buffer in (old, new)
        ]
        assert (
            differences([one.get_observations() for one in drawn[0]], [one.get_observations() for one in drawn[1]])
            == []
        )
    finally:
        algo.stop()


def test_replay_buffer_that_is_too_large_is_refilled(
    saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved("DQN").algo
    monkeypatch.setattr(replay, "MAX_REPLAY_BYTES", 100)
    checkpoint = checkpoints.save(source, tmp_path, 2, extra={})
    algo = dqn().build_algo()
    try:
        extra = checkpoints.restore(algo, checkpoint)
        (note,) = extra["notes"]
        assert "the replay buffer is not kept" in extra["not_kept"][0]
        assert "the replay buffer was not restored" in note
        assert len(algo.local_replay_buffer) == 0

        weights = learner_variables(algo.learner_group._learner)
        threshold = algo.config.num_steps_sampled_before_learning_starts
        sampled = algo.metrics.peek(("env_runners", "num_env_steps_sampled_lifetime"))
        assert threshold > sampled
        while algo.metrics.peek(("env_runners", "num_env_steps_sampled_lifetime")) < threshold - 1:
            assert differences(weights, learner_variables(algo.learner_group._learner)) == []
            algo.training_step()
        for _ in range(3):
            algo.training_step()
        assert differences(weights, learner_variables(algo.learner_group._learner)) != []
        # Saved while it refills, it goes on refilling when resumed.
        monkeypatch.undo()
        again = dqn().build_algo()
        checkpoints.restore(again, checkpoints.save(algo, tmp_path, 3, extra={}))
        assert again.config.num_steps_sampled_before_learning_starts == threshold
        again.stop()
    finally:
        algo.stop()


def test_replay_buffer_of_another_size_is_refilled(saved: Any) -> None:
    config = dqn().training(replay_buffer_config={"type": "PrioritizedEpisodeReplayBuffer", "capacity": 5000})
    algo = config.build_algo()
    try:
        (note,) = checkpoints.restore(algo, saved("DQN").checkpoint)["notes"]
        assert "its capacity has changed" in note
        algo.train()
    finally:
        algo.stop()


def test_random_generators_go_on() -> None:
    import torch

    before = random_state()
    packer = Packer()
    packed = packer.pack(before)
    drawn = (random.random(), np.random.rand(), torch.rand(1).item())

    set_random_state(unpack(packed, packer.arrays(), packer.text_table()))

    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn


@pytest.mark.slow
def test_remote_learner(ray_session: None, tmp_path: Path) -> None:
    """The learner in a process of its own, as on clusters; resumed there, and in this process."""
    algo = ppo().learners(num_learners=1).build_algo()
    here = ppo().build_algo()
    try:
        algo.train()
        algo.learner_group.foreach_learner(_set_kl_coefficient)
        checkpoint = checkpoints.save(algo, tmp_path, 1, extra={})
        before, random_before = _remote_state(algo)
        algo.train()
        assert differences(before, _remote_state(algo)[0]) != []

        checkpoints.restore(algo, checkpoint)
        after, random_after = _remote_state(algo)
        assert before[f"curr_kl_coeffs_per_module/{MODULE}"] == np.float32(0.45)
        assert differences(before, after) == []
        assert differences(random_before, random_after) == []

        checkpoints.restore(here, checkpoint)
        assert differences(before, learner_variables(here.learner_group._learner)) == []
    finally:
        algo.stop()
        here.stop()


def test_remote_env_runner(saved: Any) -> None:
    """A run that sampled in this process goes on with an env runner of its own."""
    before = saved("PPO")
    algo = ppo().env_runners(num_env_runners=1).build_algo()
    try:
        checkpoints.restore(algo, before.checkpoint)
        (remote,) = algo.env_runner_group.foreach_env_runner(
            lambda runner: runner.get_state(not_components=["rl_module"]), local_env_runner=False
        )
        assert differences(before.algo.env_runner.get_state(not_components=["rl_module"]), remote) == []
        result = algo.train()["env_runners"]
        assert result["num_env_steps_sampled_lifetime"] > remote["num_env_steps_sampled_lifetime"]
    finally:
        algo.stop()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BC", "MARWIL"])
def test_offline_algorithms(name: str, ray_session: None, tmp_path: Path) -> None:
    """They have no env runners, at which RLlib's own restoring fails."""
    import torch

    algo, again = (offline(name, tmp_path).build_algo() for _ in range(2))
    try:
        learner = algo.learner_group._learner
        # One step of the optimiser; RLlib's way there, a stream of data, takes a minute.
        learner.apply_gradients({ref: torch.ones_like(value) for ref, value in learner._params.items()})
        if name == "MARWIL":
            learner.moving_avg_sqd_adv_norms_per_module[MODULE].data.fill_(7.0)
        before = learner_variables(learner)
        assert differences(before, learner_variables(again.learner_group._learner)) != []

        checkpoints.restore(again, checkpoints.save(algo, tmp_path / "run", 1, extra={}))
        assert differences(before, learner_variables(again.learner_group._learner)) == []
    finally:
        algo.stop()
        again.stop()


def offline(name: str, folder: Path) -> Any:
    """BC or MARWIL on two recorded episodes of 20 steps."""
    import gymnasium as gym
    import pyarrow
    import pyarrow.parquet
    from ray.rllib.algorithms.bc import BCConfig
    from ray.rllib.algorithms.marwil import MARWILConfig

    rows = [
        {
            "eps_id": str(step // 20),
            "t": step % 20,
            "obs": [step / 40, 0.5],
            "new_obs": [(step + 1) / 40, 0.5],
            "actions": step % 2,
            "rewards": 1.0,
            "terminateds": step % 20 == 19,
            "truncateds": False,
        }
        for step in range(40)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "steps.parquet")
    config = {"BC": BCConfig, "MARWIL": MARWILConfig}[name]()
    config.environment(observation_space=gym.spaces.Box(0, 2, (2,)), action_space=gym.spaces.Discrete(2))
    config.offline_data(input_=[str(folder / "steps.parquet")], dataset_num_iters_per_learner=1)
    return config.training(train_batch_size_per_learner=10).env_runners(num_env_runners=0)


def test_torch_schedulers_and_grad_scalers(ray_session: None, tmp_path: Path) -> None:
    import torch

    def config() -> Any:
        made = ppo().training(lr=1e-3)
        halve = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)  # noqa: E731
        return made.experimental(
            _torch_lr_scheduler_classes=[halve],
            _torch_grad_scaler_class=lambda: torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1),
        )

    algo, again = config().build_algo(), config().build_algo()
    try:
        for _ in range(2):
            algo.train()
        checkpoint = checkpoints.save(algo, tmp_path, 2, extra={})
        checkpoints.restore(again, checkpoint)
        before, after = (each.learner_group._learner for each in (algo, again))

        (scheduler,) = after._lr_schedulers[MODULE][f"{MODULE}_default_optimizer"]
        assert scheduler.last_epoch == 2
        assert before._grad_scalers[MODULE].get_scale() == after._grad_scalers[MODULE].get_scale() > 64.0
        assert differences(learner_variables(before), learner_variables(after)) == []
        again.train()
        assert after.get_optimizer(MODULE).param_groups[0]["lr"] == pytest.approx(1e-3 / 8)
    finally:
        algo.stop()
        again.stop()


def test_state_of_another_algorithm_is_refused(saved: Any) -> None:
    algo = saved("DQN").algo
    with pytest.raises(CheckpointError, match="is of PPO, not of DQN"):
        checkpoints.restore(algo, saved("PPO").checkpoint)
    with pytest.raises(CheckpointError, match="schema 99"):
        left_out.apply(algo, {}, {"schema": 99})
    arrays, meta = left_out.collect(saved("PPO").algo)
    with pytest.raises(CheckpointError, match="do not fit"):
        left_out.apply(algo, arrays, {**meta, "learner": {"tensors": {"array": ["float32", 0, [10**9]]}}})


def test_learner_of_ones_own(saved: Any) -> None:
    """A user's learner may keep tensors of its own, also such as exist only while it learns."""
    import torch

    algo = saved("PPO").algo
    learner = algo.learner_group._learner
    learner.baseline, learner.last_errors = torch.full((2,), 0.5, dtype=torch.bfloat16), torch.ones(3)
    arrays, meta = left_out.collect(algo)
    learner.baseline.zero_()
    del learner.last_errors

    (note,) = left_out.apply(algo, arrays, meta)
    assert "the learner's last_errors was not restored" in note
    assert learner.baseline.tolist() == [0.5, 0.5]
    del learner.baseline


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        2**100,
        float("-inf"),
        "text",
        "long text " * 20,
        (1, [2, (3.5,)], {"a": {}, 5: None, (1, 2): "tuple"}),
        list(range(1000)),
        [0.25] * 1000,
        [(index, index + 1) for index in range(100)],
        [{}] * 200,
        deque([1, 2]),
        {3, 4},
        np.float32(1.5),
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.zeros((0, 4)),
        np.array(7.0),
        np.array(["a", "bc"]),
        np.array([{"step": 1}, None], dtype=object),
    ],
    ids=lambda value: str(value)[:20],
)
def test_packing_keeps_value_and_type(value: Any) -> None:
    import json

    packer = Packer()
    data = json.loads(json.dumps(packer.pack(value), allow_nan=False))
    result = unpack(data, packer.arrays(), packer.text_table())

    assert type(result) is type(value)
    assert differences(value, result) == []


def test_packing_refuses_what_is_not_data() -> None:
    with pytest.raises(Unpackable, match="function"):
        Packer().pack({"hook": lambda: None})
    packer = Packer()
    data = packer.pack(np.zeros(3))
    with pytest.raises(ValueError, match="are not there"):
        unpack(data, {"float64": np.zeros(2)}, [])


def learner_variables(learner: Any) -> dict[str, Any]:
    """Every tensor and number that can be reached from a learner, by path."""
    if hasattr(learner, "target_entropy"):
        _ = learner.target_entropy[MODULE]  # a constant of the config, made when it is first asked for
    return leaves(vars(learner), skip={"config", "metrics", "_module_spec", *OF_THE_PROCESS})


def leaves(value: Any, path: str = "", skip: set[str] = frozenset(), seen: set[int] | None = None) -> dict[str, Any]:  # type: ignore[assignment]
    import torch
    from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
    from ray.rllib.utils.schedules.scheduler import Scheduler

    seen = set() if seen is None else seen
    if isinstance(value, torch.Tensor):
        return {path: value.detach().cpu().numpy().copy()}
    if isinstance(value, (bool, int, float, str, np.ndarray, np.generic)) or value is None:
        return {path: value}
    if id(value) in seen:
        return {}
    seen = seen | {id(value)}
    if isinstance(value, MultiRLModule):
        return leaves({key: module.unwrapped().state_dict() for key, module in value.items()}, path, skip, seen)
    if hasattr(value, "state_dict"):
        return leaves(value.state_dict(), path, skip, seen)
    if isinstance(value, Scheduler):
        return leaves(vars(value), path, skip, seen)
    if isinstance(value, Mapping):
        items = [
            (key if isinstance(key, (str, int, tuple)) else index, item)
            for index, (key, item) in enumerate(value.items())
        ]
    elif isinstance(value, (list, tuple, deque)):
        items = list(enumerate(value))
    else:
        return {}
    found: dict[str, Any] = {}
    for key, item in items:
        if key not in skip:
            found |= leaves(item, f"{path}/{key}" if path else str(key), skip, seen)
    return found


def differences(before: Any, after: Any, *, ignore: set[str] = frozenset(), only_common: bool = False) -> list[str]:  # type: ignore[assignment]
    """The paths at which two states differ, exactly."""
    old, new = leaves(before, skip=ignore), leaves(after, skip=ignore)
    paths = (old.keys() & new.keys()) if only_common else (old.keys() | new.keys())
    assert paths or not only_common
    return sorted(
        path
        for path in paths
        if path not in old
        or path not in new
        or not np.array_equal(old[path], new[path], equal_nan=_is_number(old[path]))
    )


def _is_number(value: Any) -> bool:
    return np.asarray(value).dtype.kind in "fc"


def _remote_state(algo: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    group = algo.learner_group
    (variables,) = (result.get() for result in group.foreach_learner(learner_variables))
    (generators,) = (result.get() for result in group.foreach_learner(learner_random_state))
    return variables, generators


def _set_kl_coefficient(learner: Any) -> None:
    learner.curr_kl_coeffs_per_module["default_policy"].data.fill_(0.45)


def _by_value() -> None:
    """Remote learners cannot import the tests: their functions travel whole."""
    import sys

    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])


_by_value()
