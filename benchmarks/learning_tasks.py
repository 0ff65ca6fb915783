"""What `learning.py` has learned, and how one run of it is made: the task, the side, the seed; steps until it is done.

CartPole is trained by `platotk.train` with its defaults and by plain RLlib with the same values. Pendulum and the
Simple Adder are trained by the same config on both sides, with the engine and with RLlib's own runner and learner
(`engine: rllib`), on platotk's encoding of the spaces.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from startup import ROOT

EPISODES = 100


@dataclass(frozen=True)
class Task:
    """One thing to learn.

    Attributes:
        title: Its name.
        target: What the judged number reaches when it is learned.
        told: What is judged, for the report.
        max_steps: Environment steps after which a run gives up.
        sim: Gymnasium id, or the folder of an example.
        training: Arguments of `AlgorithmConfig.training`.
        is_success: The judged number is the share of greedy episodes that terminated, and not the training return.
    """

    title: str
    target: float
    told: str
    max_steps: int
    sim: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    is_success: bool = False


WINDOWED = "RLlib's windowed mean return (`episode_return_mean`)"
TASKS = {
    "cartpole": Task("CartPole-v1", 475.0, WINDOWED, 400_000),
    # Pendulum wants a short horizon; the values of RL Zoo's PPO for it.
    "pendulum": Task("Pendulum-v1", -250.0, WINDOWED, 600_000, "Pendulum-v1", {"gamma": 0.9, "lr": 1e-3}),
    "simple-adder": Task(
        "Simple Adder",
        0.95,
        f"the share of {EPISODES} greedy episodes that end on 50",
        400_000,
        "simple-adder",
        is_success=True,
    ),
}


def play(name: str, side: str, seed: int) -> dict[str, Any]:
    """One run.

    Args:
        name: Of the task.
        side: `platotk` or `rllib`.
        seed: Of the run.
    """
    task = TASKS[name]
    if name == "cartpole":
        steps, reached, greedy = (by_defaults if side == "platotk" else plain_rllib)(task, seed)
    else:
        steps, reached, greedy = by_config(task, "auto" if side == "platotk" else "rllib", seed)
    return {"env_steps": steps, "is_solved": reached >= task.target, "return_mean": reached, "greedy_mean": greedy}


def by_defaults(task: Task, seed: int) -> tuple[int, float, float]:
    """`platotk.train` with nothing set but the sim, the seed and when to stop, then `platotk.assess`."""
    import platotk

    with tempfile.TemporaryDirectory() as folder:
        project = platotk.Project(
            sim="CartPole-v1",
            seed=seed,
            stop={"return_mean": task.target, "env_steps": task.max_steps},
            checkpoint={"every": 1000},  # only the last one: this counts steps, not what is saved on the way
            tracking={"mlflow": False},
        )
        run = platotk.train(project, run=Path(folder) / "run")
        if run.status != "finished":
            raise SystemExit(f"seed {seed} was stopped by {run.info.get('reason')}; repeat the command to go on")
        last = run.metrics()[-1]
        greedy = platotk.assess(run, episodes=EPISODES, checkpoint="last").summary()["return_mean"]
    return last["env_steps"], last["return_mean"], greedy


def plain_rllib(task: Task, seed: int) -> tuple[int, float, float]:
    """Plain RLlib with the values that platotk gives it, and RLlib's own filter."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.connectors.env_to_module import MeanStdFilter
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    from platotk.learning.algorithm import MODEL_DEFAULTS, NUM_ENVS, TRAINING_DEFAULTS

    config = (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=NUM_ENVS,
            env_to_module_connector=lambda *_, **__: MeanStdFilter(),
        )
        .training(**TRAINING_DEFAULTS["PPO"])
        .rl_module(model_config=DefaultModelConfig(**MODEL_DEFAULTS))
        .debugging(seed=seed, log_level="ERROR")
    )
    return _until_solved(config.build_algo(), task)


def by_config(task: Task, engine: str, seed: int) -> tuple[int, float, float]:
    """The config that `platotk.train` makes, with the engine or without."""
    import platotk
    from platotk.learning.algorithm import build_config
    from platotk.sims.loading import sim_spec
    from platotk.spaces import adapt

    fields: dict[str, Any] = {"engine": engine, "seed": seed}
    if task.sim.endswith("-v1"):
        project = platotk.Project(sim=task.sim, training=task.training, **fields)
    else:
        sys.path.insert(0, str(ROOT / "examples" / task.sim))
        given = platotk.Project.load(ROOT / "examples" / task.sim)
        fields |= {"training": given.training, "rl_module": given.rl_module, "_root": given.root}
        project = platotk.Project(sim=given.sim, sim_config=given.sim_config, **fields)
    spec = sim_spec(project)
    sim = spec.make()
    adapter = adapt(sim.observation_space, sim.action_space)
    sim.close()
    return _until_solved(build_config(project, adapter, spec).build_algo(), task)


def _until_solved(algo: Any, task: Task) -> tuple[int, float, float]:
    try:
        steps, first, reached = 0, 0, float("-inf")
        while steps < task.max_steps and not reached >= task.target:
            result = algo.train()["env_runners"]
            if task.is_success:
                # The runner counts what it plays greedily too; every iteration learns from as much as the first did.
                first = first or int(result["num_env_steps_sampled_lifetime"])
                steps = first * int(algo.iteration)
                reached = statistics.fmean(episode.is_terminated for episode in _greedy(algo))
            else:
                steps = int(result["num_env_steps_sampled_lifetime"])
                reached = float(result.get("episode_return_mean", float("nan")))
        return steps, reached, statistics.fmean(episode.total for episode in _greedy(algo))
    finally:
        algo.stop()


class Played(NamedTuple):
    """One episode: its sum of rewards, and whether the sim ended it."""

    total: float
    is_terminated: bool


def _greedy(algo: Any) -> list[Played]:
    """Episodes without exploration, by the training runner: the policy sees through the filter it was trained with."""
    sampled = algo.env_runner.sample(num_episodes=EPISODES, explore=False, force_reset=True)
    return [one for part in sampled for one in _played(part)]


def _played(sampled: Any) -> list[Played]:
    """The whole episodes of an RLlib episode, or of a fragment of the engine."""
    if hasattr(sampled, "get_return"):
        return [Played(float(sampled.get_return()), bool(sampled.is_terminated))]
    ends = sampled.ends.nonzero()[0] + 1
    rewards, terminated = sampled.steps["rewards"], sampled.steps["terminateds"]
    return [
        Played(float(rewards[start:end].sum()), bool(terminated[end - 1]))
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
