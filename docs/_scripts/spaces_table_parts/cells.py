"""One cell of the table "spaces that train": two iterations of one algorithm on one pair of spaces, for real.

Given a pair's name and a column, `measure` gives back its outcome as a dict: trained, refused (by platotk, before
anything is trained, with the reason) or failed (with the error). `round_trips` takes fuzzed values both ways.
"""

from __future__ import annotations

import json
import pickle
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pairs import PAIRS, Toy

from platotk import Project, spaces
from platotk.errors import PlatoError, SimError
from platotk.learning.algorithm import build_config
from platotk.sims.loading import sim_spec
from platotk.sims.vector import SimVector

ALGORITHMS = ("PPO", "APPO", "IMPALA", "BC", "SAC", "DQN")
RLLIB = ("RLlib", "RLlib, flattened")
ITERATIONS = 2
MAX_TRAIN_CALLS = 20
LIMIT_S = 90
NETWORK = {"model_config": {"fcnet_hiddens": [16, 16]}}
ON_POLICY = {
    "env_runners": {"num_env_runners": 0, "num_envs_per_env_runner": 2},
    "rl_module": NETWORK,
}
ASYNCHRONOUS = {
    "env_runners": {**ON_POLICY["env_runners"], "rollout_fragment_length": 10},
    "rl_module": NETWORK,
    "learners": {"num_learners": 0},  # a process of its own takes 20 s to start
    "training": {"train_batch_size_per_learner": 40},
    "reporting": {"min_time_s_per_iteration": 0.05},
}
OFF_POLICY = {
    "env_runners": {"num_env_runners": 0},
    "rl_module": NETWORK,
    "training": {"train_batch_size_per_learner": 16, "num_steps_sampled_before_learning_starts": 16},
    "reporting": {"min_sample_timesteps_per_iteration": 32, "min_time_s_per_iteration": None},
}
PPO_TRAINING = {"train_batch_size_per_learner": 64, "minibatch_size": 32, "num_epochs": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "PPO": {**ON_POLICY, "training": PPO_TRAINING},
    "APPO": ASYNCHRONOUS,
    "IMPALA": ASYNCHRONOUS,
    "BC": {
        "env_runners": {"num_env_runners": 0},
        "rl_module": NETWORK,
        "training": {"train_batch_size_per_learner": 40},
    },
    "SAC": OFF_POLICY,
    "DQN": OFF_POLICY,
}


class TooLong(BaseException):
    """The cell's time limit has passed; a BaseException, so that nobody takes it for a failure of the sim."""


def measure(pair: str, column: str, *, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """The outcome of one cell; every error is caught.

    Args:
        pair: A key of PAIRS.
        column: One of ALGORITHMS (through platotk) or of RLLIB.
        limit_s: Seconds after which the cell has failed.
    """
    began, Toy.refused = time.time(), None
    train = partial(train_rllib, column=column) if column in RLLIB else partial(train_platotk, algorithm=column)
    try:
        with time_limit(limit_s):
            outcome = train(pair)
    except (Exception, TooLong) as raised:
        error = Toy.refused or raised  # what the sim said tells more than what was made of it
        outcome = {"outcome": "failed", "error": type(error).__name__, "detail": " ".join(str(error).split())[:300]}
    return {**outcome, "seconds": round(time.time() - began, 1)}


def train_platotk(pair: str, algorithm: str) -> dict[str, Any]:
    """Two iterations through platotk's own config.

    Raises:
        Exception: Whatever went wrong, a failed sim included.
    """
    try:
        adapter = adapter_of(pair, algorithm)
    except PlatoError as error:
        own = PAIRS[pair]
        fitting = [name for name in spaces.fitting(own.observation, own.action) if name in ALGORITHMS]
        return {"outcome": "refused", "detail": error.message, "hint": error.hint, "fitting": fitting}
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(SETTINGS[algorithm])
        if algorithm == "BC":
            settings["offline_data"] = _recorded(pair, adapter, Path(folder))
        project = Project(sim=Toy, sim_config={"pair": pair}, algorithm=algorithm, **settings)
        config = build_config(project, adapter, sim_spec(project), num_cpus=1)
        _iterate(config)
    return {"outcome": "trained"}


def train_rllib(pair: str, column: str) -> dict[str, Any]:
    """Two iterations of RLlib's PPO, as it is or with its own connector that flattens observations."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.connectors.env_to_module import FlattenObservations
    from ray.tune.registry import register_env

    register_env("toy", lambda _: Toy(pair))
    config = PPOConfig().environment("toy").training(**PPO_TRAINING)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=2).rl_module(**NETWORK)
    if column == "RLlib, flattened":
        config.env_runners(env_to_module_connector=lambda *_, **__: FlattenObservations())
    _iterate(config.debugging(seed=0, log_level="ERROR"))
    return {"outcome": "trained"}


def round_trips(pair: str, num: int = 1000) -> dict[str, int]:
    """Take fuzzed values both ways, for every algorithm that fits.

    Observations: encoded one by one and as a batch, equal and inside the encoded space; to JSON text and back,
    equal, types and shapes included. Actions: the policy's (also far outside its bounds) decoded into the sim's own
    space; the sim's own to JSON text and back.

    Raises:
        SimError: One did not come back; it names which.
    """
    own = PAIRS[pair]
    observation_space, action_space = own.observation, own.action
    observation_space.seed(1)
    action_space.seed(2)
    observations = [observation_space.sample() for _ in range(num)]
    for observation in observations:
        _require(_same(observation, _through_json(observation_space, observation)), pair, "JSON", observation)
    for action in (action_space.sample() for _ in range(num)):
        _require(_same(action, _through_json(action_space, action)), pair, "JSON", action)
    # APPO, IMPALA and BC have the adapter of PPO.
    names = [name for name in ("PPO", "SAC", "DQN") if name in spaces.fitting(observation_space, action_space)]
    for name in names:
        adapter = adapter_of(pair, name)
        if own.mask not in (None, "info"):
            masks = [_any_mask(own.choices, index) for index in range(num)]
            observations = [{**value, own.mask: mask} for value, mask in zip(observations, masks, strict=True)]
        batch = adapter.encode_batch(observations)
        for index, observation in enumerate(observations):
            encoded = adapter.encode(observation)
            row = {key: part[index] for key, part in batch.items()} if isinstance(batch, dict) else batch[index]
            _require(adapter.encoded_observation_space.contains(encoded), pair, "encoding", observation)
            _require(_same(encoded, row), pair, "batch encoding", observation)
        adapter.encoded_action_space.seed(3)
        for index in range(num):
            action = _stretched(adapter.encoded_action_space.sample(), 1.0 if index % 2 else 10.0)
            decoded = adapter.decode(action)
            _require(action_space.contains(decoded), pair, "decoding", action)
            _require(_same(decoded, _through_json(action_space, decoded)), pair, "JSON", decoded)
    return {"observations": num, "actions": num, "adapters": len(names)}


def adapter_of(pair: str, algorithm: str) -> spaces.Adapter:
    """The adapter of a pair, its mask found where the sim puts it."""
    own = PAIRS[pair]
    return spaces.adapt(own.observation, own.action, algorithm=algorithm, action_mask=own.mask)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooLong in the main thread when the block takes longer."""

    def too_long(*_: Any) -> None:
        raise TooLong(f"over {seconds:g} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _iterate(config: Any) -> None:
    """Train until the weights have changed in two iterations.

    Raises:
        RuntimeError: They never did, or a sim failed on the way.
        FloatingPointError: They are no longer finite.
    """
    algo = config.build_algo()
    try:
        weights, num_learned = _weights(algo), 0
        for _ in range(MAX_TRAIN_CALLS):
            result = algo.train()
            failures = (result.get("env_runners") or {}).get("sim_failures")
            if failures is not None and float(failures) > 0:
                raise RuntimeError(f"{failures:g} failures of the sim")
            before, weights = weights, _weights(algo)
            if not all(np.isfinite(value).all() for value in weights.values()):
                raise FloatingPointError("weights are not finite")
            num_learned += any(not np.array_equal(before[key], weights[key]) for key in weights)
            if num_learned == ITERATIONS:
                return
        raise RuntimeError(f"nothing was learned in {MAX_TRAIN_CALLS} iterations")
    finally:
        algo.stop()


def _weights(algo: Any) -> dict[str, np.ndarray]:
    module = algo.learner_group._learner.module["default_policy"]
    return {name: value.detach().cpu().numpy().copy() for name, value in module.named_parameters()}


def _recorded(pair: str, adapter: spaces.Adapter, folder: Path) -> dict[str, Any]:
    """Episodes of random actions as the network sees them, and the section that has BC learn from them."""
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

    project = Project(sim=Toy, sim_config={"pair": pair})
    sims = SimVector(sim_spec(project), adapter, num_envs=1)
    adapter.encoded_action_space.seed(0)
    episodes = []
    for _ in range(8):
        observations, _ = sims.reset()
        episode = SingleAgentEpisode(
            observation_space=adapter.encoded_observation_space, action_space=adapter.encoded_action_space
        )
        episode.add_env_reset(_first(observations))
        while not episode.is_done:
            action = _allowed(adapter, _first(observations))
            observations, rewards, terminated, truncated, _ = sims.step(_batch_of_one(action))
            episode.add_env_step(
                _first(observations), action, rewards[0], terminated=terminated[0], truncated=truncated[0]
            )
        episodes.append(episode.get_state())
    failures = sum(sim.num_failures for sim in sims.sims)
    sims.close()
    if failures:
        raise SimError(f"{failures} failures while recording")
    path = folder / "episodes.pickle"
    path.write_bytes(pickle.dumps(episodes))
    return {"input_": [str(path)], "offline_data_class": _recorded_episodes(), "dataset_num_iters_per_learner": 1}


def _recorded_episodes() -> type:
    """RLlib's reader of recorded data, without the processes of Ray Data, which take a minute to start."""
    from ray.rllib.core import DEFAULT_MODULE_ID
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode
    from ray.rllib.offline.offline_data import OfflineData
    from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

    class RecordedEpisodes(OfflineData):
        def __init__(self, config: Any) -> None:
            self.config, self.iter_batches_kwargs = config, {}
            self.states = pickle.loads(Path(config.input_[0]).read_bytes())

        def sample(self, num_samples: int, **_: Any) -> Any:
            learner = self.learner_handles[0]
            connector = learner.config.build_learner_connector(
                input_observation_space=self.config.observation_space, input_action_space=self.config.action_space
            )
            episodes = [SingleAgentEpisode.from_state(state) for state in self.states]
            data = connector(rl_module=learner.module, batch={}, episodes=episodes, shared_data={}, metrics=None)
            return MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(data[DEFAULT_MODULE_ID])}, env_steps=num_samples)

    return RecordedEpisodes


def _allowed(adapter: spaces.Adapter, observation: Any) -> Any:
    """A random encoded action, one that the mask allows."""
    action = adapter.encoded_action_space.sample()
    if not isinstance(observation, dict) or "action_mask" not in observation:
        return action
    parts = np.split(observation["action_mask"], np.cumsum(adapter.nvec)[:-1])
    chosen = [int(np.flatnonzero(part)[0]) for part in parts]
    return chosen[0] if np.ndim(action) == 0 else np.array(chosen, dtype=np.int64)


def _first(batch: Any) -> Any:
    return {key: value[0] for key, value in batch.items()} if isinstance(batch, dict) else batch[0]


def _batch_of_one(action: Any) -> Any:
    return {key: value[None] for key, value in action.items()} if isinstance(action, dict) else np.asarray(action)[None]


def _through_json(space: Any, value: Any) -> Any:
    return spaces.from_json(space, json.loads(json.dumps(spaces.to_json(space, value), allow_nan=False)))


def _stretched(action: Any, factor: float) -> Any:
    """Continuous numbers beyond their bounds, as a normal distribution gives them."""
    if isinstance(action, dict):
        return {key: _stretched(value, factor) for key, value in action.items()}
    return action * np.float32(factor) if getattr(action, "dtype", None) == np.float32 else action


def _any_mask(choices: tuple[int, ...], index: int) -> np.ndarray:
    rng = np.random.default_rng(index)
    return np.concatenate([(np.arange(num) == rng.integers(num)).astype(np.int8) for num in choices])


def _require(is_good: Any, pair: str, what: str, value: Any) -> None:
    if not is_good:
        raise SimError(f"{pair}: {what} of {value!r} does not come back.")


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    return bool(a == b)
