"""`tune`: many trainings of one project, each with other settings, best first.

What is drawn, and which trial is ended early, is Ray Tune's (its domains, its ASHA); a trial is a run like any other
under the tuning's `trials/`, trained by a process of its own. All there is to know lies in those folders, so
that a tuning which was stopped or killed goes on where it was.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import JobFailedError, ProjectError
from ..journal import Journal
from ..process_lock import this_process
from ..project import Project
from ..run import Run, create_run
from ..trials import FOLDER, KIND, best_first, value_of
from . import local
from .preparation import Tell, open_run
from .stopping import Interrupts
from .trial import OUTPUT, Trial

VARIANTS = "trials.json"
"""What was drawn for each trial, in the tuning's folder."""
POLL_S = 0.2
MAX_FAILURES = 3
"""When so many trials have failed and none has got anywhere, the rest would too."""


def tune(
    project: Project | None = None,
    *,
    run: Run | Path | str | None = None,
    resume: Run | Path | str | None = None,
    runs_dir: Path | str | None = None,
    on_event: Tell | None = None,
) -> list[Run]:
    """Train a project with many settings, as its section `tune` says.

    Args:
        project: What to tune. May be left out with `resume`, which then uses the tuning's own.
        run: A folder that is created, or continued when it is a tuning already; repeating the call is always safe.
        resume: A tuning to continue; its name, a unique prefix, its folder or "last".
        runs_dir: Where new runs go; default: `runs/` beside plato.yaml.
        on_event: Called with what happens, as dicts (`{"event": "trial_ended", ...}`).

    Returns:
        The trials, best first; the tuning is the run in whose `trials/` they lie.

    Raises:
        ProjectError: There is nothing to draw, or a key that is not the project's.
        JobFailedError: Every trial failed.
    """
    project, found, path = open_run(project, run, resume, runs_dir)
    if found is not None and found.info.get("kind", KIND) != KIND:
        raise ProjectError(f"{found.name} is no tuning.", hint=f"Go on with: plato train --resume {found.name}")
    if not project.tune.param_space:
        raise ProjectError(
            f"{project.where('tune')}: there is nothing to draw: tune.param_space is empty.",
            hint="For example: tune: {param_space: {training.lr: {loguniform: [1e-5, 1e-2]}}}",
        )
    drawn = [] if found is None or not (found.path / VARIANTS).is_file() else _read(found.path / VARIANTS)
    drawn += draw(project)[len(drawn) :]
    projects = [trial_project(project, params) for params in drawn]  # what cannot be is refused before it is begun
    tuning = found or create_run(project, runs_dir=runs_dir, run=path, algorithm=KIND)
    tuning.project = project
    (tuning.path / FOLDER).mkdir(exist_ok=True)
    (tuning.path / VARIANTS).write_text(json.dumps(drawn, indent=1) + "\n", encoding="utf-8")
    with tuning.lock():
        tuning.update(kind=KIND, attempt=int(tuning.info.get("attempt") or 0) + 1)
        _Tuning(tuning, drawn, projects, on_event or (lambda event: None)).play()
    return best_first(tuning)


def draw(project: Project) -> list[dict[str, Any]]:
    """The settings of each trial, by key; the same seed draws the same, and more samples begin with the same."""
    from numpy.random import RandomState
    from ray import tune as ray_tune
    from ray.tune.search.variant_generator import generate_variants

    space = {}
    for key, domain in project.tune.param_space.items():
        ((word, given),) = domain.items()
        make = getattr(ray_tune, word)
        space[key] = make(given) if word in ("choice", "grid_search") else make(*given)
    random = RandomState(project.seed)
    return [
        {key: value.item() if hasattr(value, "item") else value for key, value in resolved.items()}
        for _ in range(project.tune.num_samples)
        for _, resolved in generate_variants(space, random_state=random)
    ]


def trial_project(project: Project, params: dict[str, Any]) -> Project:
    """The project of a trial.

    Raises:
        ProjectError: A key is none of the project's, or a value is not allowed there.
    """
    changes = [f"{key}={json.dumps(value)}" for key, value in params.items()]
    if (project.env_runners or {}).get("num_env_runners") == "auto" and "env_runners.num_env_runners" not in params:
        changes.append("env_runners.num_env_runners=0")  # the CPUs are for trials side by side
    return project.override([*changes, "tune=null"])


def num_side_by_side(projects: Sequence[Project], wish: int | str) -> int:
    """How many trials train at a time."""
    if wish != "auto":
        return int(wish)
    resources = local.resources()
    needed = max(
        1.0
        + float((project.env_runners or {}).get("num_env_runners") or 0)
        + float((project.learners or {}).get("num_learners") or 0)
        for project in projects
    )
    fitting = int(resources["CPU"] // needed)
    gpus = max(float((project.learners or {}).get("num_gpus_per_learner") or 0) for project in projects)
    return max(1, min(fitting, int(resources["GPU"] // gpus)) if gpus else fitting)


class _Tuning:
    """One attempt at all trials."""

    def __init__(self, run: Run, drawn: list[dict[str, Any]], projects: list[Project], tell: Tell) -> None:
        self.run, self.project, self.tell = run, run.project, tell
        self.drawn, self.projects = drawn, projects
        self.tune = self.project.tune
        self.journal = Journal(run.metrics_path)
        before = run.metrics()
        self.num_ended, self.time_before = len(before), before[-1]["time_s"] if before else 0.0
        self.began = time.monotonic()
        self.parallel = num_side_by_side(projects, self.tune.max_concurrent_trials)
        self.scheduler = _scheduler(self.project)
        self.waiting: deque[Trial] = deque()
        self.running: list[Trial] = []
        self.over: list[Trial] = []

    def play(self) -> None:
        """Train what is to be trained, and leave the tuning in a state that tells what happened."""
        status, reason, error = "failed", None, None
        self.run.update(status="running", started=_now(), ended=None, reason=None, error=None, process=this_process())
        told = {"run": self.run.name, "path": str(self.run.path), "trials": len(self.drawn)}
        self.tell({"event": "tuning", **told, "parallel": self.parallel})
        try:
            # A trial may take its grace to save itself, and Ray's own time to leave.
            with Interrupts(self.project.checkpoint.grace_s + 10.0) as interrupts:
                self._take_up()
                status, reason = self._train(interrupts)
        except BaseException as raised:
            error = f"{type(raised).__name__}: {raised}"
            raise
        finally:
            for trial in self.running:
                trial.kill()
            self.run.update(status=status, ended=_now(), reason=reason, error=error)

    def _take_up(self) -> None:
        """Make the trials' folders; what has ended before tells the scheduler how far it came."""
        for number, (params, project) in enumerate(zip(self.drawn, self.projects, strict=True), start=1):
            trial = Trial(create_run(project, run=self.run.path / FOLDER / f"{number:04d}"))
            trial.run.update(parent=self.run.name, params=params, root=str(self.project.root))
            self.scheduler.on_trial_add(None, trial)
            if trial.has_ended:
                self.over.append(trial)
                for line in trial.new_lines():
                    self._is_behind(trial, line)
            else:
                # Its project as it is now: a tuning may be resumed with other stop rules.
                (trial.run.path / "plato.yaml").write_text(project.to_yaml(), encoding="utf-8")
                self.waiting.append(trial)

    def _train(self, interrupts: Interrupts) -> tuple[str, str | None]:
        environment = dict(os.environ)
        if self.parallel > 1:
            environment.setdefault("OMP_NUM_THREADS", "1")
        is_ending = False
        while self.running or (self.waiting and not is_ending):
            if not is_ending and (interrupts.is_requested or self._is_out_of_time()):
                is_ending = True
                self.tell({"event": "stopping", "signal": interrupts.signal_name})
                for trial in self.running:
                    trial.stop()
            while self.waiting and len(self.running) < self.parallel and not is_ending:
                trial = self.waiting.popleft()
                trial.start(environment)
                self.running.append(trial)
                self.tell({"event": "trial_started", "trial": int(trial.run.name), "params": trial.run.info["params"]})
            for trial in list(self.running):
                self._look_at(trial, is_ending)
            time.sleep(POLL_S)
        if interrupts.is_requested:
            return "stopped", interrupts.signal_name
        return "finished", "time_budget_s reached" if is_ending else None

    def _look_at(self, trial: Trial, is_ending: bool) -> None:
        is_over = trial.is_over()
        for line in trial.new_lines():
            self.tell({"event": "trial_iteration", "trial": int(trial.run.name), "line": line})
            if self._is_behind(trial, line) and not (is_ending or is_over or trial.is_pruned):
                trial.is_pruned = True
                trial.stop()
        if is_over:
            self.running.remove(trial)
            self._close(trial)

    def _is_behind(self, trial: Trial, line: dict[str, Any]) -> bool:
        if line.get(self.tune.metric) is None:
            return False
        verdict = self.scheduler.on_trial_result(None, trial, line)
        return bool(verdict == self.scheduler.STOP)

    def _close(self, trial: Trial) -> None:
        status = "pruned" if trial.run.info.get("pruned") else trial.run.status
        value = value_of(trial.run, self.tune.metric, self.tune.mode)
        if trial.has_ended:
            self.over.append(trial)
            self._write_line(trial, value)
        about = {"trial": int(trial.run.name), "status": status, "value": value, "params": trial.run.info["params"]}
        self.tell({"event": "trial_ended", **about, "error": trial.run.info.get("error")})
        if len(self.over) == min(MAX_FAILURES, len(self.drawn)) and not self.run.metrics():
            first = self.over[0].run
            raise JobFailedError(
                f"{len(self.over)} trials failed and none has got anywhere; the first: {first.info['error']}",
                hint=f"See {first.path / OUTPUT}, and check the project with: plato check",
            )

    def _write_line(self, trial: Trial, value: float | None) -> None:
        """A line of the tuning's own journal: how good the best trial is by now, and what those that ended cost."""
        if value is None:
            return
        best = best_first(self.run)[0]
        ended = [lines[-1] for one in self.over if (lines := one.run.metrics())]
        env_steps, time_s = sum(line["env_steps"] for line in ended), self.time_before + time.monotonic() - self.began
        known = [line for line in best.metrics() if line.get(self.tune.metric) is not None]
        shown = (max if self.tune.mode == "max" else min)(known, key=lambda line: line[self.tune.metric])
        self.num_ended += 1
        self.journal.append(
            {
                **{key: shown[key] for key in ("return_mean", "return_min", "return_max", "episode_length_mean")},
                "iteration": self.num_ended,
                "env_steps": env_steps,
                "time_s": round(time_s, 3),
                "env_steps_per_s": round(env_steps / time_s, 1),
                "episodes": sum(line["episodes"] for line in ended),
                "trial": int(trial.run.name),
                "value": value,
                "best_trial": int(best.name),
            }
        )

    def _is_out_of_time(self) -> bool:
        budget = self.tune.time_budget_s
        return budget is not None and time.monotonic() - self.began > budget


def _scheduler(project: Project) -> Any:
    """Ray Tune's scheduler, asked directly: it needs a trial's name and its results, no Ray."""
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

    section, limit = project.tune, project.stop.iterations
    if section.scheduler == "fifo":
        return FIFOScheduler()
    grace = section.grace_period or (10 if limit is None else max(1, limit // 9))
    return AsyncHyperBandScheduler(
        time_attr="iteration",
        metric=section.metric,
        mode=section.mode,
        max_t=max(grace + 1, limit or 100 * grace),
        grace_period=grace,
        reduction_factor=section.reduction_factor,
        stop_last_trials=False,
    )


def _read(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
