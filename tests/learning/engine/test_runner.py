"""The engine's env runner: exact steps, RLlib's metrics, filters, episodes and callbacks."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from tests.learning.engine.sims import Counting, Everything

from platotk.learning.algorithm import SimSettings, build_config
from platotk.learning.engine import compilation, plan
from platotk.learning.engine.acting import Actor
from platotk.learning.engine.compiled import CompiledActor
from platotk.learning.engine.fragments import Fragment
from platotk.learning.engine.runner import EngineRunner
from platotk.learning.filters import NumericFilter
from platotk.project import Project
from platotk.sims.loading import sim_spec
from platotk.spaces import adapt

pytestmark = pytest.mark.usefixtures("ray_session", "compiled")


@pytest.fixture(scope="module")
def compiled() -> None:
    compilation.kernel()


def config_for(sim: Any, *, engine: str = "auto", own: Any = None, own_process: bool = False, **fields: Any) -> Any:
    project = Project(sim=sim, engine=engine, **fields)
    made = sim_spec(project).make()
    adapter = adapt(made.observation_space, made.action_space)
    config = build_config(project, adapter, sim_spec(project), SimSettings(own_process))
    return own(config) if own else config


def runner_for(sim: Any, *, engine: str = "auto", path: str | None = None, **given: Any) -> Any:
    config = config_for(sim, engine=engine, **given)
    if path is not None:
        plan.apply(plan.EnginePlan(path), config)
    kind = config.env_runner_cls or SingleAgentEnvRunner
    assert kind is (EngineRunner if engine == "auto" else SingleAgentEnvRunner)
    return kind(config=config, worker_index=0, num_workers=0)


def learned(runner: Any) -> Any:
    return runner._env_to_module[NumericFilter][0].frozen()


def keys(value: Any, prefix: str = "") -> set[str]:
    if not isinstance(value, dict):
        return {prefix}
    return {key for name, inner in value.items() for key in keys(inner, f"{prefix}/{name}")}


def test_steps_are_exact_and_overshoot_by_less_than_one_vector_step() -> None:
    runner = runner_for(Counting, env_runners={"num_envs_per_env_runner": 5})
    Counting.forget()
    total = 0
    for _ in range(4):
        (fragment,) = runner.sample(num_timesteps=101)
        assert isinstance(fragment, Fragment)
        assert 101 <= len(fragment) < 101 + 5
        total += len(fragment)
    metrics = runner.get_metrics()
    assert total == Counting.num_steps == int(metrics["num_env_steps_sampled_lifetime"])
    # Every episode that ended, and those under way, began with a reset.
    assert int(metrics["num_episodes"]) in range(Counting.num_resets - 5, Counting.num_resets + 1)
    runner.stop()


@pytest.mark.parametrize("own_process", [False, True])
def test_a_fraction_of_a_step_is_a_whole_one(own_process: bool) -> None:
    runner = runner_for(Counting, env_runners={"num_envs_per_env_runner": 1}, own_process=own_process)
    assert runner.sample(num_timesteps=0) == []
    assert [len(fragment) for fragment in runner.sample(num_timesteps=50.7)] == [51]
    assert runner.sample(num_timesteps=0.0) == []
    assert int(runner.get_metrics()["num_env_steps_sampled"]) == 51
    runner.stop()


def test_rows_around_a_reset_belong_to_one_episode() -> None:
    runner = runner_for(Counting, normalize_observations=False)
    (fragment,) = runner.sample(num_timesteps=400)
    acted_on, led_to = fragment.observations[fragment.rows], fragment.observations[fragment.rows + 1]
    np.testing.assert_array_equal(led_to[:, 1], acted_on[:, 1] + 1)  # never from an end to a beginning
    np.testing.assert_array_equal(led_to[:, 2], acted_on[:, 2])
    is_over = led_to[:, 1] == led_to[:, 2]
    np.testing.assert_array_equal(fragment.steps["terminateds"], is_over & (led_to[:, 2] % 2 == 0))
    np.testing.assert_array_equal(fragment.steps["truncateds"], is_over & (led_to[:, 2] % 2 == 1))
    (again,) = runner.sample(num_timesteps=50)
    # The next fragment goes on where this one was cut.
    assert again.observations[0].tolist() in fragment.observations.tolist()
    runner.stop()


def test_the_filter_learns_each_observation_once_as_with_rllibs_runner() -> None:
    seen = {}
    for engine in ("auto", "rllib"):
        runner = runner_for(Counting, engine=engine)
        Counting.forget()
        for _ in range(3):
            runner.sample(num_timesteps=64)
        rows = np.array(Counting.given, dtype=np.float64)
        frozen = seen[engine] = learned(runner)
        assert frozen.count == len(rows)
        np.testing.assert_allclose(frozen.mean, rows.mean(axis=0), rtol=1e-9)
        np.testing.assert_allclose(frozen.std, rows.std(axis=0, ddof=1), rtol=1e-9)
        runner.sample(num_episodes=2, explore=False)
        assert learned(runner).count == frozen.count
        runner.stop()
    # The same seeds, lengths and observations on both sides: these sims do not look at actions.
    assert seen["auto"].count == seen["rllib"].count
    np.testing.assert_allclose(seen["auto"].mean, seen["rllib"].mean, rtol=1e-12)
    np.testing.assert_allclose(seen["auto"].std, seen["rllib"].std, rtol=1e-9)


def test_metrics_are_rllibs_keys_and_values() -> None:
    said = {}
    for engine in ("auto", "rllib"):
        runner = runner_for(Counting, engine=engine)
        for _ in range(2):
            runner.sample(num_timesteps=128)
        metrics = runner.get_metrics()
        said[engine] = metrics
        runner.stop()
    ours, rllibs = said["auto"], said["rllib"]
    assert keys(ours) == keys(rllibs)
    names = ["num_env_steps_sampled", "num_episodes", "num_env_steps_sampled_lifetime", "num_episodes_lifetime"]
    for name in [*names, *(f"episode_{what}_{how}" for what in ("len", "return") for how in ("mean", "min", "max"))]:
        assert float(ours[name]) == pytest.approx(float(rllibs[name])), name


@pytest.mark.parametrize("path", ["torch", "kernel"])
def test_whole_episodes_for_evaluation(path: str) -> None:
    runner = runner_for(Counting, path=path, env_runners={"num_envs_per_env_runner": 4})
    runner.sample(num_timesteps=30)
    assert isinstance(runner._actor(False), Actor if path == "torch" else CompiledActor)
    runner.get_metrics()
    Counting.forget()
    (fragment,) = runner.sample(num_episodes=6, explore=False)
    metrics = runner.get_metrics()
    assert fragment.num_episodes == 6 == int(metrics["num_episodes"])
    ended = fragment.steps["terminateds"] | fragment.steps["truncateds"]
    assert ended.sum() == 6
    np.testing.assert_array_equal(ended, fragment.ends)  # nothing is cut
    assert (fragment.steps["action_logp"] == 0).all()
    assert float(metrics["episode_len_mean"]) == pytest.approx(len(fragment) / 6)
    assert int(metrics["num_env_steps_sampled"]) == Counting.num_steps
    (later,) = runner.sample(num_timesteps=40)
    assert len(later) >= 40
    runner.stop()


def test_mixed_spaces_images_and_masks() -> None:
    runner = runner_for(Everything)
    Everything.forbidden_chosen = 0
    (fragment,) = runner.sample(num_timesteps=300)
    assert Everything.forbidden_chosen == 0
    observations, actions = fragment.observations, fragment.steps["actions"]
    assert observations["image_0"].dtype == np.uint8
    assert observations["image_0"].shape[1:] == (3, 12, 12)
    assert actions["continuous"].shape == (len(fragment), 2)
    chosen = actions["discrete"].reshape(-1)
    masks = observations["action_mask"][fragment.rows]
    assert (masks[np.arange(len(chosen)), chosen] == 1).all()
    assert set(chosen) == {0, 2, 3}
    assert abs(observations["vector"][:, :2].mean()) < 1  # numbers are filtered
    runner.stop()


def test_a_project_of_one_sim() -> None:
    runner = runner_for(Counting, env_runners={"num_envs_per_env_runner": 1})
    (fragment,) = runner.sample(num_timesteps=25)
    assert len(fragment) == 25
    runner.stop()


@pytest.mark.parametrize("path", ["torch", "kernel"])
def test_sampling_is_reproduced_by_the_seed(path: str) -> None:
    def rewards(seed: int) -> Any:
        runner = runner_for("CartPole-v1", path=path, seed=seed)
        (fragment,) = runner.sample(num_timesteps=200)
        runner.stop()
        return fragment.observations.tolist(), fragment.steps["actions"].tolist()

    assert rewards(3) == rewards(3)
    assert rewards(3) != rewards(4)


class MaskedChoices(gym.Env[Any, Any]):
    """A vector, a mask, and two choices; the mask forbids the last value of each."""

    observation_space = gym.spaces.Dict(
        {"level": gym.spaces.Box(-9, 9, (3,), np.float32), "action_mask": gym.spaces.MultiBinary(7)}
    )
    action_space = gym.spaces.MultiDiscrete([3, 4])

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action[0] < 2
        assert action[1] < 3
        return self._obs(), 1.0, bool(self.np_random.random() < 0.1), False, {}

    def _obs(self) -> Any:
        mask = np.array([1, 1, 0, 1, 1, 1, 0], dtype=np.int8)
        return {"level": self.np_random.normal(size=3).astype(np.float32), "action_mask": mask}


@pytest.mark.parametrize("path", ["torch", "kernel"])
def test_both_ways_of_acting_say_what_the_module_says(path: str) -> None:
    runner = runner_for(MaskedChoices, path=path)
    (fragment,) = runner.sample(num_timesteps=100)
    assert isinstance(runner._actor(True), Actor if path == "torch" else CompiledActor)
    batch = {"obs": {key: torch.from_numpy(value[fragment.rows]) for key, value in fragment.observations.items()}}
    inputs = runner.module.forward_exploration(batch)["action_dist_inputs"]
    np.testing.assert_allclose(fragment.steps["action_dist_inputs"], inputs.detach().numpy(), rtol=1e-4, atol=1e-5)
    dist = runner.module.get_exploration_action_dist_cls().from_logits(inputs)
    logp = dist.logp(torch.from_numpy(fragment.steps["actions"]))
    np.testing.assert_allclose(fragment.steps["action_logp"], logp.detach().numpy(), atol=1e-4)
    runner.stop()


class Watching(RLlibCallback):
    """Counts what it is told, and adds up episodes over their chunks."""

    seen: list[tuple[str, Any]] = []  # noqa: RUF012

    def on_episode_created(self, *, episode: Any, **_: Any) -> None:
        self.seen.append(("created", episode.id_))

    def on_episode_start(self, *, episode: Any, **_: Any) -> None:
        self.seen.append(("start", len(episode)))

    def on_episode_step(self, *, episode: Any, env_index: int, **_: Any) -> None:
        self.seen.append(("step", episode.get_infos(-1)["step"]))

    def on_episode_end(self, *, episode: Any, prev_episode_chunks: Any, metrics_logger: Any, **_: Any) -> None:
        chunks = [*prev_episode_chunks, episode]
        length = sum(len(chunk) for chunk in chunks)
        metrics_logger.log_value("own_length", length, window=100)
        self.seen.append(("end", (length, sum(chunk.get_return() for chunk in chunks))))


@pytest.mark.parametrize("engine", ["auto", "rllib"])
def test_episode_callbacks_see_rllibs_episodes(engine: str) -> None:
    runner = runner_for(Counting, engine=engine, own=lambda config: config.callbacks(Watching))
    Watching.seen.clear()
    Counting.forget()
    for _ in range(3):
        runner.sample(num_timesteps=60)
    metrics = runner.get_metrics()
    told = [name for name, _ in Watching.seen]
    assert told.count("step") == Counting.num_steps
    assert told.count("start") == Counting.num_resets
    assert told.count("created") in range(Counting.num_resets, Counting.num_resets + 9)
    ended = [value for name, value in Watching.seen if name == "end"]
    assert len(ended) == int(metrics["num_episodes"])
    assert all(length == return_ for length, return_ in ended)  # 1.0 a step, over all chunks
    assert float(metrics["own_length"]) == pytest.approx(float(metrics["episode_len_mean"]))
    runner.stop()


class Failing(gym.Env[Any, Any]):
    """Fails at every 40th step of its class."""

    num_steps = 0
    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        Failing.num_steps += 1
        if Failing.num_steps % 40 == 0:
            raise RuntimeError("a solver that did not converge")
        return np.zeros(1, np.float32), 1.0, False, False, {}


def test_a_failing_sim_ends_its_episode_only() -> None:
    runner = runner_for(Failing, max_episode_steps=None)
    (fragment,) = runner.sample(num_timesteps=200)
    assert len(fragment) in range(200, 208)
    assert fragment.steps["truncateds"].sum() == Failing.num_steps // 40
    assert int(runner.get_metrics()["sim_failures"]) == Failing.num_steps // 40
    runner.stop()


def plain_gymnasium(config: Any) -> Any:
    """RLlib's own vector of environments instead of platotk's supervised ones, made anew when one fails."""
    config.environment(env=lambda _: Failing()).fault_tolerance(restart_failed_sub_environments=True)
    config.callbacks(on_environment_created=None, on_sample_end=None)
    return config.env_runners(gym_env_vectorize_mode="sync")


def test_restarted_environments_lose_what_was_not_finished() -> None:
    Failing.num_steps = 0
    runner = runner_for(Failing, own=plain_gymnasium, max_episode_steps=None)
    fragments = runner.sample(num_timesteps=24)
    assert sum(map(len, fragments)) == 24
    fragments = runner.sample(num_timesteps=24)  # the 40th step is in here
    assert sum(map(len, fragments)) == 24
    assert int(runner.get_metrics()["num_env_step_failures"]) == 1
    runner.stop()
