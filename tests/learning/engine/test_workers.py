"""Sims in processes of their own, stepped when ready: the same transitions, exact counts, nothing left over."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.learning.engine.sims import Counting, Everything
from tests.learning.engine.slow_sims import Hopeless, Uneven, Unmakeable

from platotk.errors import SimError
from platotk.learning import local
from platotk.learning.algorithm import SimSettings, build_config
from platotk.learning.engine import compilation
from platotk.learning.engine.native import Native
from platotk.learning.engine.ready_first import StaggeredBuilder
from platotk.learning.engine.runner import EngineRunner
from platotk.project import Project
from platotk.sims.loading import SimSpec, sim_spec
from platotk.sims.vector import SimVector
from platotk.sims.workers import SimWorkers
from platotk.spaces import adapt


def config_for(sim: Any, *, num_sims: int, **fields: Any) -> Any:
    project = Project(sim=sim, env_runners={"num_envs_per_env_runner": num_sims}, **fields)
    made = sim_spec(project).make()
    adapter = adapt(made.observation_space, made.action_space)
    return build_config(project, adapter, sim_spec(project), SimSettings(own_process=True))


def runner_for(sim: Any, **settings: Any) -> Any:
    return EngineRunner(config=config_for(sim, **settings), worker_index=0, num_workers=0)


def log_of(tmp_path: Path) -> str:
    path = tmp_path / "steps"
    path.touch()
    return str(path)


def left_over(runner: Any) -> int:
    """Steps that are in no fragment yet, once those under way have ended."""
    sims, sampler = runner.env.unwrapped, runner._ready_first
    asked = np.flatnonzero(sims.in_flight | np.isin(np.arange(sims.num_envs), sampler._held))
    while sims.in_flight.any():
        sims.wait()
    return int(sampler._builder.num_steps + np.count_nonzero(~sampler._builder.is_done[asked]))


def workers(sim: Any, **settings: Any) -> SimWorkers:
    spec = SimSpec(sim, settings.pop("config", {}))
    made = sim(**spec.config)
    return SimWorkers(spec, adapt(made.observation_space, made.action_space), **settings)


@pytest.mark.parametrize("sim", [Counting, Everything])
def test_the_same_transitions_as_in_this_process(sim: Any) -> None:
    made = sim()
    adapter = adapt(made.observation_space, made.action_space, frame_stack=2)
    settings: dict[str, Any] = {"num_envs": 3, "seed": (5,), "max_episode_steps": 6}
    here = SimVector(SimSpec(sim), adapter, **settings)
    there = SimWorkers(SimSpec(sim), adapter, **settings)
    rng = np.random.default_rng(0)
    try:
        np.testing.assert_equal(there.reset()[0], here.reset()[0])
        for _ in range(40):
            actions = {
                "continuous": rng.uniform(0, 5, (3, 2)).astype(np.float32),
                "discrete": np.zeros((3, 1), np.int64),
            }
            sent = actions if sim is Everything else rng.integers(2, size=3)
            ours, theirs = there.step(sent), here.step(sent)
            np.testing.assert_equal(ours[:4], theirs[:4])
            np.testing.assert_equal(ours[4], theirs[4])
    finally:
        there.close()
        here.close()


def test_sims_stepped_when_ready_give_each_the_transitions_of_lockstep() -> None:
    here = SimVector(SimSpec(Counting), workers(Counting, num_envs=1).adapter, num_envs=4, seed=(3,))
    expected: list[list[Any]] = [[] for _ in range(4)]
    for column, row in zip(expected, here.reset()[0], strict=True):
        column.append((row.tolist(), 0.0, False, False))
    for _ in range(60):
        observations, rewards, terminated, truncated, _ = here.step(np.zeros(4, np.int64))
        for sim in range(4):
            expected[sim].append((observations[sim].tolist(), rewards[sim], terminated[sim], truncated[sim]))
    there = workers(Counting, num_envs=4, seed=(3,))
    seen: list[list[Any]] = [[(row.tolist(), 0.0, False, False)] for row in there.reset()[0]]
    rng = np.random.default_rng(1)
    try:
        while min(map(len, seen)) < 40:
            idle = np.flatnonzero(~there.in_flight)
            some = idle[rng.random(len(idle)) < 0.6]
            there.begin(some, np.zeros(len(some), np.int64))
            for sim in there.wait(0.5):
                flags = there.terminated[sim], there.truncated[sim]
                seen[sim].append((there.observations[sim].tolist(), there.rewards[sim], *flags))
    finally:
        there.close()
    for ours, theirs in zip(seen, expected, strict=True):
        length = min(len(ours), len(theirs))
        assert length >= 40
        assert ours[:length] == theirs[:length]


def test_steps_are_exact_and_rows_around_a_reset_belong_to_one_episode(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    runner = runner_for(Uneven, num_sims=6, sim_config={"log": log}, normalize_observations=False)
    total = 0
    for wanted in (101, 64, 200):
        (fragment,) = runner.sample(num_timesteps=wanted)
        assert len(fragment) == wanted
        total += wanted
        assert total <= os.path.getsize(log) <= total + 6  # a step of each sim may be under way
        acted_on, led_to = fragment.observations[fragment.rows], fragment.observations[fragment.rows + 1]
        np.testing.assert_array_equal(led_to[:, 1], acted_on[:, 1] + 1)
        np.testing.assert_array_equal(led_to[:, 2], acted_on[:, 2])
        is_over = led_to[:, 1] == led_to[:, 2]
        np.testing.assert_array_equal(fragment.steps["terminateds"], is_over & (led_to[:, 2] % 2 == 0))
        np.testing.assert_array_equal(fragment.steps["truncateds"], is_over & (led_to[:, 2] % 2 == 1))
        assert fragment.num_episodes == is_over.sum()
    metrics = runner.get_metrics()
    assert int(metrics["num_env_steps_sampled_lifetime"]) == total
    extra = left_over(runner)
    assert os.path.getsize(log) == total + extra
    (fragment,) = runner.sample(num_episodes=4, explore=False)
    assert fragment.num_episodes == 4
    runner.stop()


def test_sims_go_on_while_the_policy_learns_and_no_step_is_lost(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    runner = runner_for(Uneven, num_sims=4, sim_config={"log": log}, normalize_observations=False)
    fragments = runner.sample(num_timesteps=160)
    runner.set_state({"rl_module": runner.get_state(["rl_module"])["rl_module"], "weights_seq_no": 5})
    looks = iter(range(10_000))
    runner.go_on(lambda: next(looks) > 5000)
    ahead = runner._ready_first._builder.num_steps
    assert 16 <= ahead + 4 <= 20 + 4  # an eighth of the batch, some of it under way
    for _ in range(2):
        fragments += runner.sample(num_timesteps=160)
    assert [len(fragment) for fragment in fragments] == [160, 160, 160]
    # What was chosen before the weights changed is told as such.
    assert [fragment.weights_seq_no for fragment in fragments] == [0, 0, 5]
    played = sorted(tuple(row) for one in fragments for row in one.observations[one.rows][:, 1:].tolist())
    assert len(played) == 480
    assert int(runner.get_metrics()["num_env_steps_sampled_lifetime"]) == 480
    runner.go_on(lambda: False)  # returns by itself, when there is enough
    extra = left_over(runner)
    assert os.path.getsize(log) == 480 + extra
    runner.sample(num_episodes=2)
    runner.go_on(lambda: False)  # nothing to go on with: all sims begin anew
    assert runner._ready_first._builder is None
    runner.stop()


def test_an_algorithm_learns_beside_its_sims_and_counts_every_step(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    compilation.kernel()
    training = {"train_batch_size_per_learner": 400, "minibatch_size": 50, "num_epochs": 20}
    config = config_for(Uneven, num_sims=4, sim_config={"log": log}, training=training)
    algo = local.build_algo(config)
    learner, runner = algo.learner_group._learner, algo.env_runner
    threads = []
    update = Native.update

    def noted(self: Native, *args: Any, **kwargs: Any) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return update(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Native, "update", noted)
        results = [algo.train() for _ in range(3)]
    assert threads == [False] * 3
    assert learner.meanwhile == runner.go_on
    assert runner._ready_first._builder.num_steps > 0  # taken while the last update went on
    assert [int(result["env_runners"]["num_env_steps_sampled_lifetime"]) for result in results] == [400, 800, 1200]
    assert results[-1]["learners"]["default_policy"]["num_nonfinite_updates"] == 0
    extra = left_over(runner)
    assert os.path.getsize(log) == 1200 + extra
    algo.stop()


@pytest.mark.parametrize("how", ["hang", "exit", "crash", "raise", "nan"])
def test_one_sim_that_goes_wrong_ends_its_own_episode_only(how: str, tmp_path: Path) -> None:
    log = log_of(tmp_path)
    runner = runner_for(
        Uneven, num_sims=4, sim_config={"log": log, "at": 2, "how": how}, step_timeout_s=1.0, max_episode_steps=None
    )
    runner.sample(num_timesteps=4)  # all processes have started
    began = time.monotonic()
    fragments = [fragment for _ in range(2) for fragment in runner.sample(num_timesteps=60)]
    if how == "hang":
        assert time.monotonic() - began < 0.9  # nobody waited for it
    until = time.monotonic() + 10
    while not sum(_failures(runner)) and time.monotonic() < until:
        fragments += runner.sample(num_timesteps=60)
    fragments += runner.sample(num_timesteps=60)
    assert int(runner.get_metrics()["sim_failures"]) == 1
    # The failed step is one row, and noted in no file; nothing else is missing or there twice.
    extra = left_over(runner)
    assert sum(map(len, fragments)) + 4 + extra == os.path.getsize(log) + 1
    reason = next(worker.last_failure.reason for worker in runner.env.unwrapped._workers if worker.last_failure)
    said = {"hang": "within 1 s", "exit": "sys.exit(3)", "crash": "SIGSEGV", "raise": "no solution", "nan": "NaN"}
    assert said[how].lower() in reason.lower()
    runner.stop()


def _failures(runner: Any) -> list[int]:
    return [worker.num_failures for worker in runner.env.unwrapped._workers]


def _played(sims: SimWorkers, num_steps: int) -> None:
    sims.reset()
    for _ in range(num_steps):
        sims.step(np.zeros(sims.num_envs, np.int64))


def test_a_sim_that_cannot_be_made_or_always_fails_ends_training_with_its_reason() -> None:
    for sim, reason in (
        (Unmakeable, "cannot be started: .*no licence"),
        (Hopeless, "failed 10 times.*never converges"),
    ):
        made = workers(sim, num_envs=2)
        with pytest.raises(SimError, match=f"(?s){reason}"):
            _played(made, 40)
        made.close()


def test_staggered_steps_are_each_sims_own_timeline() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        builder = StaggeredBuilder(3, np.arange(3.0)[:, None] * 1000, 2, np.zeros(3, bool))
        clock, expected = np.zeros(3, np.int64), []
        is_done = np.zeros(3, bool)
        for _ in range(60):
            sims = np.flatnonzero(rng.random(3) < 0.5)
            if not len(sims):
                continue
            ends = rng.random((2, len(sims))) < 0.15
            was_step = builder.add(
                sims,
                {"actions": clock[sims]},
                clock[sims] * 0.5,
                ends[0],
                ends[1],
                (sims * 1000.0 + clock[sims] + 1)[:, None],
            )
            np.testing.assert_array_equal(was_step, ~is_done[sims])
            expected += [(sim, clock[sim]) for sim in sims[was_step]]
            clock[sims] += 1
            is_done[sims] = ends.any(axis=0) & was_step
        fragment = builder.fragment(7)
        assert builder.num_steps == len(fragment) == len(expected)
        acted_on, led_to = fragment.observations[fragment.rows, 0], fragment.observations[fragment.rows + 1, 0]
        np.testing.assert_array_equal(acted_on, [sim * 1000 + step for sim, step in sorted(expected)])
        np.testing.assert_array_equal(led_to, acted_on + 1)
        np.testing.assert_array_equal(fragment.steps["actions"], [step for _, step in sorted(expected)])
        assert not (fragment.steps["terminateds"] & fragment.steps["truncateds"]).any()


def test_nothing_is_left_when_the_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            """
            import gymnasium as gym, numpy as np, subprocess, sys, time
            from platotk.sims.loading import SimSpec
            from platotk.sims.workers import SimWorkers
            from platotk.spaces import adapt

            class Hanging(gym.Env):
                observation_space, action_space = gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(2)
                def __init__(self):
                    self.helper = None
                def reset(self, *, seed=None, options=None):
                    self.helper = subprocess.Popen(["sleep", "300"])
                    return np.zeros(2, np.float32), {}
                def step(self, action):
                    time.sleep(300)

            if __name__ == "__main__":
                sims = SimWorkers(SimSpec(Hanging), adapt(Hanging.observation_space, Hanging.action_space), num_envs=3)
                sims.reset()
                sims.begin(np.arange(3), np.zeros(3, np.int64))
                print(sims._forking._process.pid, flush=True)
                time.sleep(300)
            """
        )
    )
    named_before = set(os.listdir("/dev/shm"))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    forking = int(parent.stdout.readline())
    family = _descendants(forking)
    assert len(family) >= 6  # three sims, and what each of them has started
    assert not {name for name in set(os.listdir("/dev/shm")) - named_before if "platotk" in name}
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 10
    while any(map(_is_alive, [forking, *family])) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [pid for pid in [forking, *family] if _is_alive(pid)]


def _descendants(pid: int) -> list[int]:
    children: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            children.append(int(stat.parent.name))
    return [*children, *(grandchild for child in children for grandchild in _descendants(child))]


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_how_many_sims_follows_from_how_slow_they_are() -> None:
    def chosen(step_s: float | None, num_cpus: float = 2, *, own_process: bool = True, **fields: Any) -> Any:
        project = Project(sim=Counting, **fields)
        adapter = adapt(Counting.observation_space, Counting.action_space)
        settings = SimSettings(own_process, step_s=step_s)
        config = build_config(project, adapter, sim_spec(project), settings, num_cpus=num_cpus)
        return config.num_envs_per_env_runner

    assert chosen(0.005) == 32
    assert chosen(0.0025) == 16
    assert chosen(0.050, 64) == 64
    assert chosen(0.050, 8, env_runners={"num_env_runners": 4}) == 32
    assert chosen(0.00001, own_process=False) == chosen(None) == 8
    assert chosen(0.005, env_runners={"num_envs_per_env_runner": 3}) == 3
    assert chosen(0.005, algorithm="DQN") == 1


def test_spaces_of_every_kind_cross() -> None:
    runner = runner_for(Everything, num_sims=3)
    (fragment,) = runner.sample(num_timesteps=60)
    assert fragment.observations["image_0"].dtype == np.uint8
    chosen = fragment.steps["actions"]["discrete"].reshape(-1)
    masks = fragment.observations["action_mask"][fragment.rows]
    assert (masks[np.arange(len(chosen)), chosen] == 1).all()
    runner.stop()
