"""What is settled before training begins: the project, its sim, the spaces' mapping, RLlib's config, the run's folder.

Everything that can be checked is checked here, before a run folder exists.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ProjectError, SimError
from ..project import Project
from ..run import Run, create_run, find_run
from ..sims import vectorised
from ..sims.loading import SimSpec, sim_spec
from ..sims.probe import Probe, probe
from ..spaces import Adapter, adapt, refusal
from . import local
from .cluster import RayStart, limit_threads, require_resources
from .patience import patience_s
from .supervisor import OWN_PROCESS_VARIABLE

Tell = Callable[[dict[str, Any]], None]

MAX_INLINE_STEP_S = 0.001
"""A slower sim gets a process of its own: a pipe costs 0.1 ms a step, and sims in processes step side by side."""


@dataclass
class Setup:
    """All that is settled before the first iteration.

    Attributes:
        project: What is trained.  run: Its folder.  spec: How its sims are made.  adapter: How its spaces are learned.
        config: RLlib's.  algorithm: Its name.
        attempt: How often this run was started, this time included.
        own_process: Whether each sim runs in a process of its own.
        patience_s: How long an iteration without a step may take.
    """

    project: Project
    run: Run
    spec: SimSpec
    adapter: Adapter
    config: Any
    algorithm: str
    attempt: int
    own_process: bool
    patience_s: float


def open_run(
    project: Project | None,
    run: Run | Path | str | None,
    resume: Run | Path | str | None,
    runs_dir: Path | str | None,
) -> tuple[Project, Run | None, Path | None]:
    """The project, the run to continue if there is one, and the folder to create if one was named."""
    if resume is not None:
        where = Path(runs_dir) if runs_dir else (project.root / "runs" if project else Path("runs"))
        found = (
            resume if isinstance(resume, Run) else find_run(None if resume == "last" else str(resume), runs_dir=where)
        )
        return project or found.project, found, None
    if project is None:
        raise ProjectError(
            "nothing to train: give a project, or a run to resume.", hint="platotk.train(Project.load('.'))"
        )
    if isinstance(run, Run):
        return project, run, None
    if run is not None and (Path(run) / "run.json").is_file():
        return project, Run(Path(run)), None
    return project, None, None if run is None else Path(run)


def prepare(
    opened: tuple[Project, Run | None, Path | None],
    runs_dir: Path | str | None,
    ray_start: RayStart,
    tell: Tell,
) -> Setup:
    """Check everything that can be checked before a run folder exists, then create or continue it."""
    from ..agents.guarded import controller_of, guards_of
    from ..agents.units import units_of
    from .algorithm import SimSettings, algorithm_name, build_config, choose_algorithm
    from .engine.plan import chosen_for

    project, run, path = opened
    tell({"event": "starting", "project": project.name, "resuming": None if run is None else run.name})
    spec = sim_spec(project)
    measured = _measure(project, spec)
    own_process = needs_own_process(project, measured, tell)
    ray_start.wait()
    name, why = choose_algorithm(project)
    if why:
        tell({"event": "note", "text": why})
    adapter = _adapter(project, measured, name)
    guards_of(project, adapter)
    units_of(project, adapter)
    controller_of(project)
    attempt = 1 if run is None else int(run.info.get("attempt", 0)) + 1
    settings = SimSettings(own_process, attempt, 1.0 / measured.steps_per_s if measured.steps_per_s else None)
    is_local = local.may_be_local(project) is not False
    resources = local.resources() if is_local else ray_start.cluster()
    config = build_config(project, adapter, spec, settings, num_cpus=resources.get("CPU"))
    if is_local and not local.is_local(config):
        resources = ray_start.cluster()
        config = build_config(project, adapter, spec, settings, num_cpus=resources.get("CPU"))
    if note := chosen_for(config)["note"]:
        tell({"event": "note", "text": note})
    require_resources(config, resources)
    limit_threads(adapter.encoded_observation_space)
    if run is None:
        run = create_run(project, runs_dir=runs_dir, run=path, algorithm=algorithm_name(config))
    elif run.info.get("adapter") not in (None, adapter.to_json()):
        raise CheckpointError(
            f"the sim's spaces, or how they are learned from, have changed since run {run.name} was started.",
            hint="Start a new run with: plato train",
        )
    run.project = project
    tell({"event": "algorithm", "algorithm": algorithm_name(config)})
    tell({"event": "mapping", "lines": adapter.describe()})
    limit_s = patience_s(config, settings.step_s or 0.0)
    return Setup(project, run, spec, adapter, config, algorithm_name(config), attempt, own_process, limit_s)


def _adapter(project: Project, measured: Probe, algorithm: str) -> Adapter:
    """How the sim's spaces are learned by this algorithm.

    Raises:
        ProjectError: The project names an algorithm that cannot learn them, where another can.
        SimError: Nothing can.
    """
    given: dict[str, Any] = {
        "action_scale": project.action_scale,
        "action_mask": project.action_mask or ("info" if measured.has_mask_in_info else None),
        "frame_stack": project.frame_stack,
    }
    sides = measured.observation_space, measured.action_space
    try:
        return adapt(*sides, algorithm=algorithm, **given)
    except SimError as error:
        if project.algorithm is None or refusal(*sides, "PPO", **given):
            raise
        raise ProjectError(f"{project.where('algorithm')}: {error.message}", hint=error.hint) from None


def _measure(project: Project, spec: SimSpec) -> Probe:
    """A short trial of the sim in a process of its own: its spaces, its speed, whether it behaves."""
    return probe(spec, steps=200, seconds=1.0, timeout_s=project.step_timeout_s + 1.0)


def needs_own_process(project: Project, measured: Probe, tell: Tell) -> bool:
    """Whether a sim steps in a process of its own: as the project says, or because it is slow or ill-behaved."""
    if vectorised.is_asked_for(project):
        return False
    wish = os.environ.get(OWN_PROCESS_VARIABLE) or project.sim_process
    if wish != "auto":
        return wish == "own"
    if not measured.is_well_behaved:
        tell({"event": "warning", "text": f"the sim runs in processes of its own: {measured.reason}"})
        return True
    step_s = 1.0 / measured.steps_per_s if measured.steps_per_s else 0.0
    if step_s > MAX_INLINE_STEP_S:
        tell({"event": "note", "text": f"{step_s * 1e3:.3g} ms a step: each sim runs in a process of its own"})
        return True
    return False
