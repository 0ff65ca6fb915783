"""`assess`: seeded episodes of a trained policy, one row each, and their summary.

Given a run (or a path or name of one) or an exported agent, it gives back an `Assessment` and keeps it in the run's
folder under `assessments/0001/`: `rows.jsonl` (one line per episode) and `summary.json`.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..agents.agent import Agent
from ..agents.folders import is_agent, run_of
from ..agents.guarded import GuardedPolicy, guard_policy
from ..errors import ProjectError
from ..project import Project
from ..run import Run, find_run
from ..sims.loading import sim_spec
from ..sims.supervised import SupervisedSim
from ..trials import trained_run
from .episodes import Episode, play, starts

NUM_SIMS = 16
DEFAULT_SEED = 1_000_003


@dataclass(frozen=True)
class Assessment:
    """The outcome of an assessment.

    Attributes:
        episodes: One row per episode, in order.
        path: The folder it is kept in, or None.
        about: What was assessed: run, checkpoint, seed.
    """

    episodes: list[Episode]
    path: Path | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The episodes as plain dicts."""
        return [episode.to_dict() for episode in self.episodes]

    def summary(self) -> dict[str, Any]:
        """Counts, means and rates; returns are undiscounted, rates are shares of episodes in 0..1."""
        returns = [episode.return_ for episode in self.episodes]
        num = len(self.episodes)
        return {
            **self.about,
            "episodes": num,
            "return_mean": statistics.fmean(returns) if num else None,
            "return_std": statistics.pstdev(returns) if num else None,
            "return_min": min(returns, default=None),
            "return_max": max(returns, default=None),
            "episode_length_mean": statistics.fmean(e.length for e in self.episodes) if num else None,
            "terminated_rate": sum(e.terminated for e in self.episodes) / num if num else None,
            "truncated_rate": sum(e.truncated for e in self.episodes) / num if num else None,
            "failed_episodes": sum(e.failure is not None for e in self.episodes),
        }


def assess(
    what: Run | Agent | Path | str | None = None,
    *,
    project: Project | None = None,
    episodes: int = 100,
    seed: int = DEFAULT_SEED,
    options: Sequence[dict[str, Any]] | None = None,
    checkpoint: str | int | Path = "best",
    runs_dir: Path | str | None = None,
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> Assessment:
    """Play seeded episodes with a trained policy, acting greedily, within its guards.

    An agent has the guards it was exported with; a checkpoint those of `project`, or else of its run. What they did is
    counted under `guards` in the summary.

    Args:
        what: A run, its folder or its name; an agent or its folder; None takes the newest run.
        project: Whose sim is played instead of the run's own, e.g. `run.project.override(["sim_config.noise=2"])`. An
            agent that lies in no run needs one, and its assessment is not kept.
        episodes: How many; with `options`, each is used in turn.
        seed: The same seed gives the same episodes, whatever is assessed.
        options: What the sim's `reset` gets as `options`, e.g. `[{"value": v} for v in range(101)]`.
        checkpoint: "best", "last" or an iteration; an agent is one already.
        runs_dir: Where runs are looked up by name; default: `runs/` here.
        on_event: Called with `{"event": "episode", "done": n, "episodes": N, "row": {...}}`.

    Raises:
        RunNotFoundError: No such run.
        CheckpointError: It has no such checkpoint.
        SimError: The sim failed too often.
    """
    if episodes < 1:
        raise ProjectError(f"episodes must be at least 1, got {episodes}.", hint="e.g. plato assess --episodes 100")
    agent = _agent_of(what)
    run: Run | None
    policy: Any
    about: dict[str, Any]
    if agent is not None:
        run = run_of(agent.path)
        agent = _with_controller(agent, project, run)
        policy = agent if agent.guarded is None else agent.guarded.anew()
        about = {"run": None if run is None else run.name, "agent": str(agent.path), "seed": seed}
    else:
        from ..learning.greedy import greedy
        from ..learning.policies import find_checkpoint, load_policy

        name = None if what is None else str(what)
        run = trained_run(what if isinstance(what, Run) else find_run(name, runs_dir=_runs_dir(runs_dir)))
        path = find_checkpoint(run, checkpoint)
        policy = guard_policy(greedy(load_policy(run, path)), project or run.project)
        about = {"run": run.name, "checkpoint": path.name, "seed": seed}
    if run is not None and project is not None:
        about |= {"sim": str(project.sim), "sim_config": dict(project.sim_config)}
    num_done = 0

    def tell(episode: Episode) -> None:
        nonlocal num_done
        num_done += 1
        if on_event is not None:
            on_event({"event": "episode", "done": num_done, "episodes": episodes, "row": episode.to_dict()})

    sims = _sims(run, project, agent, min(episodes, NUM_SIMS))
    try:
        played = play(
            policy,
            sims,
            starts(episodes, seed, options),
            mask_from_info=policy.adapter.mask_source == "info",
            on_episode=tell,
        )
    finally:
        for sim in sims:
            sim.close()
    if isinstance(policy, GuardedPolicy):
        about["guards"] = policy.report()
    assessment = Assessment(played, about=about)
    return assessment if run is None else _keep(run, assessment)


def make_sims(run: Run, num_sims: int) -> list[SupervisedSim]:
    """Sims for a run's project, run as in its training (in this process or in their own)."""
    return _make_sims(run.project, bool(run.info.get("own_process", False)), num_sims)


def _agent_of(what: Any) -> Agent | None:
    if isinstance(what, Agent):
        return what
    return Agent.load(what) if isinstance(what, Path | str) and is_agent(what) else None


def _with_controller(agent: Agent, project: Project | None, run: Run | None) -> Agent:
    """The agent, with its fallback controller where the project, whose sim is run too, names the same one."""
    name = None if agent.guards is None else agent.guards.controller
    owner = project or (None if run is None else run.project)
    if name is None or agent.controllers is not False or owner is None:
        return agent
    is_same = owner.guard.to_data(owner.root).get("fallback") == name
    return Agent.load(agent.path, controllers=owner.root) if is_same else agent


def _sims(run: Run | None, project: Project | None, agent: Agent | None, num_sims: int) -> list[SupervisedSim]:
    """The sims of the run, or else of the project."""
    if run is not None:
        return _make_sims(project or run.project, bool(run.info.get("own_process", False)), num_sims)
    if project is None:
        raise ProjectError(
            f"the agent {agent.path if agent else ''} lies in no run, so that there is no sim to play with.",
            hint="Name its project: plato assess AGENT -C PROJECT, or assess(agent, project=project).",
        )
    return _make_sims(project, project.sim_process != "inline", num_sims)


def _make_sims(project: Project, own_process: bool, num_sims: int) -> list[SupervisedSim]:
    if own_process:
        num_sims = min(num_sims, max(2, 2 * (os.cpu_count() or 1)))
    return [
        SupervisedSim(
            sim_spec(project),
            seeds=np.random.SeedSequence([project.seed, 2, index]),
            max_episode_steps=project.max_episode_steps,
            step_timeout_s=project.step_timeout_s,
            own_process=own_process,
        )
        for index in range(num_sims)
    ]


def _runs_dir(runs_dir: Path | str | None) -> Path:
    return Path("runs") if runs_dir is None else Path(runs_dir)


def _keep(run: Run, assessment: Assessment) -> Assessment:
    """Write rows and summary under the next free number of the run."""
    root = run.path / "assessments"
    root.mkdir(exist_ok=True)
    number = 1 + max((int(entry.name) for entry in root.iterdir() if entry.name.isdigit()), default=0)
    while True:
        path = root / f"{number:04d}"
        try:
            path.mkdir()
            break
        except FileExistsError:
            number += 1
    rows = "".join(json.dumps(row, default=_plain) + "\n" for row in assessment.rows)
    (path / "rows.jsonl").write_text(rows, encoding="utf-8")
    (path / "summary.json").write_text(json.dumps(assessment.summary(), indent=2) + "\n", encoding="utf-8")
    return Assessment(assessment.episodes, path, assessment.about)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
