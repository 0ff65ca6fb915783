"""Jobs of runs: submit one, follow it, read its log, stop it, fetch its files; from any shell, tomorrow too.

Everything starts from a run's folder, whose run.json lists its jobs. What a backend answers is handed on; what has
ended is written down, so that it is not asked for again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..errors import AzureError, BackendError, PlatoError, ProjectError, RunNotFoundError, SubmitError
from ..project import Project
from ..project_dump import reference
from ..run import Run, create_run, find_run
from . import following
from .base import PYTHON, RUN, STOPPED_EXIT_CODE, Backend, Job, JobSpec, JobState, JobStatus
from .registry import get_backend

What = Literal["train", "tune", "assess"]
NEW_RUN = "<new run>"
"""What a dry run calls the run that a submission would make."""


def submit(
    what: What,
    project: Project | None = None,
    *,
    on: str,
    run: Run | Path | str | None = None,
    arguments: Sequence[str] = (),
    nodes: int | None = None,
    timeout_s: float | None = None,
    runs_dir: Path | str | None = None,
) -> Run:
    """Submit a command of `plato` as a job of a run.

    Args:
        what: `train` and `tune` make the run, or continue one; `assess` takes one that is there.
        project: What to train; may be left out with a run, which then keeps its own.
        on: The backend: a name under `backends:`, or "local" for a detached process on this machine.
        run: A run to continue or assess, or the folder of a new one.
        arguments: More words for the command line.
        nodes: How many machines; default: 1, and for `train` what the backend's options say.
        timeout_s: How long it may run; default likewise, or for ever.
        runs_dir: Where new runs go; default: `runs/` beside plato.yaml.

    Returns:
        The run; the job is the last under `jobs` in run.json. Go on with `follow`, `logs`, `stop` and `fetch`.

    Raises:
        ProjectError: No such backend, or a sim or algorithm that is an object and can't travel.
        SubmitError: The backend refused, or the run has a job that has not ended.
    """
    project, found = _project_and_run(what, project, run, runs_dir)
    backend = get_backend(project, on)
    require_importable(project)
    if found is not None:
        _require_idle(found)
        _fetch_before(found)
    spec = _spec(what, project, Path(NEW_RUN) if found is None else found.path, arguments, backend, nodes, timeout_s)
    backend.request(spec)  # what cannot be asked for is refused before there is a folder for it
    if found is None:
        where = None if run is None else Path(str(run)).absolute()
        found = create_run(project, runs_dir=runs_dir, run=where, algorithm="tune" if what == "tune" else None)
        spec = replace(spec, name=found.name, run=found.path)
    found.update(backend=on)
    try:
        job = replace(backend.submit(spec), what=what)
    except BaseException as error:
        if found.status == "created":
            found.update(status="failed", error=f"not submitted: {getattr(error, 'message', error)}")
        raise
    found.update(jobs=[*found.info.get("jobs", []), job.to_dict()])
    return found


def request(
    what: What,
    project: Project | None = None,
    *,
    on: str,
    run: Run | Path | str | None = None,
    arguments: Sequence[str] = (),
    nodes: int | None = None,
    timeout_s: float | None = None,
    runs_dir: Path | str | None = None,
) -> dict[str, Any]:
    """Exactly what `submit` would send, without sending it: no run is made, nothing is reached."""
    project, found = _project_and_run(what, project, run, runs_dir)
    backend = get_backend(project, on)
    require_importable(project)
    path = (Path(runs_dir or project.root / "runs") / NEW_RUN) if found is None else found.path
    return backend.request(_spec(what, project, path, arguments, backend, nodes, timeout_s))


def advice(
    project: Project, *, on: str, what: What = "train", nodes: int | None = None, is_offline: bool = False
) -> list[str]:
    """What to think over before submitting: sentences of the backend, where it has any; offline it asks nobody."""
    backend = get_backend(project, on)
    ask: Callable[..., list[str]] | None = getattr(backend, "advice", None)
    if ask is None or what == "assess":
        return []
    return ask(project, _nodes(what, backend, nodes), what=what, is_offline=is_offline)


def cost(
    project: Project, *, on: str, what: What = "train", nodes: int | None = None, is_offline: bool = False
) -> list[str]:
    """What a job comes to at most: sentences of a backend that bills; none of the others."""
    backend = get_backend(project, on)
    ask: Callable[..., list[str]] | None = getattr(backend, "cost", None)
    limit = getattr(getattr(backend, "options", None), "timeout_s", None)
    return [] if ask is None else ask(_nodes(what, backend, nodes), limit, is_offline=is_offline)


def state(run: Run) -> JobState | None:
    """How the last job of a run stands; None when it has none. Its end is written down in run.json.

    Raises:
        BackendError: The place cannot be reached, or knows no such job.
    """
    found = _last(run)
    if found is None:
        return None
    known = run.info["jobs"][-1].get("ended")
    if known is not None:
        return JobState(JobStatus(known["status"]), known.get("message", ""), known.get("exit_code"))
    now = _backend(run, found).status(found)
    if now.status.has_ended:
        _write_down(run, ended={"status": str(now.status), "message": now.message, "exit_code": now.exit_code})
        _close(run, now)
    return now


def follow(
    run: Run,
    *,
    on_text: Callable[[str], None],
    on_state: Callable[[JobState], None] = lambda state: None,
    start: int = 0,
) -> JobState:
    """Follow the last job of a run to its end, and fetch its files.

    Args:
        run: The run.
        on_text: Called with what the job prints.
        on_state: Called when its status changes.
        start: Where in its log to begin.

    Returns:
        How it ended.

    Raises:
        BackendError: The run has no job, or its place does not answer any more.
    """
    job = _require_job(run)
    following.follow(_backend(run, job), job, on_text=on_text, on_state=on_state, start=start)
    fetch(run)
    ended = state(run)
    if ended is None:
        raise BackendError(f"run {run.name} has lost its job.")
    return ended


def logs(run: Run, *, tell: Callable[[str], None] = lambda line: None) -> str:
    """All that the last job of a run has printed so far.

    Args:
        run: The run.
        tell: Called when it is the run's own log.txt instead, because what the job printed went with its place.

    Raises:
        BackendError: Its place does not answer, and the job is not known to have ended.
    """
    job = _require_job(run)
    backend = _backend(run, job)
    parts: list[str] = []
    position = 0
    while True:
        try:
            text, position = backend.logs(job, position)
        except (BackendError, AzureError) as error:
            if "ended" not in run.info["jobs"][-1] or not run.log_path.is_file():
                raise
            tell(f"{error.message} What follows is log.txt of the run.")
            return run.log_path.read_text(encoding="utf-8", errors="replace")
        if not text:
            return "".join(parts)
        parts.append(text)


def stop(run: Run) -> bool:
    """Ask the last job of a run to save itself and stop; the run can be resumed. False when it had ended."""
    job = _require_job(run)
    now = state(run)
    if now is not None and now.status.has_ended:
        return False
    _backend(run, job).stop(job)
    return True


def write_off(run: Run) -> str:
    """Give up the last job of a run, whose place is gone for good; the run can then be submitted elsewhere.

    Returns:
        Why what it wrote could not be fetched; empty when it is here.

    Raises:
        BackendError: The job goes on, as its place says.
    """
    _require_job(run)
    try:
        now = state(run)
    except PlatoError:
        now = JobState(JobStatus.FAILED, "written off: its place did not answer any more")
        _write_down(run, ended={"status": str(now.status), "message": now.message, "exit_code": None})
        _close(run, now)
    if now is not None and not now.status.has_ended:
        raise BackendError(
            f"the job of run {run.name} is not lost: its place says {now.status}.",
            hint=f"Stop it with: plato stop {run.name}",
        )
    _write_down(run, lost=True)
    try:
        fetch(run)
    except PlatoError as error:
        return error.message
    return ""


def fetch(run: Run, *, tell: Callable[[str], None] = lambda line: None) -> Run:
    """Bring what the last job has written so far into the run's folder; safe to repeat.

    Args:
        run: The run.
        tell: Called with what is not known: how the job stands, when its place does not say.
    """
    job = _require_job(run)
    if job.fetched:
        return run
    now: JobState | None = None
    try:
        now = state(run)
    except PlatoError as error:
        tell(f"whether job {job.id} goes on is not known: {error.message}")
    _backend(run, job).fetch(job, run)
    if now is not None and now.status.has_ended:
        _close(run, now)  # once more: what came may be a run.json that its process could not finish
        _write_down(run, fetched=True)
    return run


def exit_code(ended: JobState) -> int:
    """What the command line exits with for a job that ended like this: its own code where it is known."""
    if ended.exit_code is not None and ended.status is not JobStatus.STOPPED:
        return ended.exit_code
    return {JobStatus.SUCCEEDED: 0, JobStatus.STOPPED: STOPPED_EXIT_CODE}.get(ended.status, 1)


def _project_and_run(
    what: What, project: Project | None, run: Run | Path | str | None, runs_dir: Path | str | None
) -> tuple[Project, Run | None]:
    found: Run | None
    if isinstance(run, Run):
        found = run
    elif run is None:
        found = None
    elif (Path(run) / "run.json").is_file():
        found = Run(run)
    elif what == "assess" or (isinstance(run, str) and "/" not in run):
        where = runs_dir or (project.root if project else Path()) / "runs"
        try:
            found = find_run(run, runs_dir=where)
        except RunNotFoundError:
            if what == "assess":
                raise
            found = None
    else:
        found = None
    if found is None and what == "assess":
        raise ProjectError("there is nothing to assess: name a run.", hint="plato runs lists them.")
    if project is None:
        if found is None:
            raise ProjectError("nothing to train: give a project, or a run to continue.")
        project = found.project
    return project, found


def _spec(
    what: What,
    project: Project,
    run: Path,
    arguments: Sequence[str],
    backend: Backend,
    nodes: int | None,
    timeout_s: float | None,
) -> JobSpec:
    options = getattr(backend, "options", None)
    words = ("assess", RUN) if what == "assess" else (what, "--resume", RUN)
    return JobSpec(
        name=run.name,
        run=run,
        command=(PYTHON, "-m", "platotk", *words, *arguments),
        working_dir=project.root,
        nodes=_nodes(what, backend, nodes),
        timeout_s=timeout_s if timeout_s is not None else getattr(options, "timeout_s", None),
    )


def _nodes(what: What, backend: Backend, nodes: int | None) -> int:
    """As many as are asked for; by itself only training takes more than one, for the others use one machine."""
    usual = getattr(getattr(backend, "options", None), "nodes", 1) if what == "train" else 1
    return nodes or int(usual or 1)


def require_importable(project: Project) -> None:
    """A job reads the project from a file, which holds no objects."""
    for name, value in (("sim", project.sim), ("algorithm", project.algorithm)):
        if value is None or isinstance(value, str):
            continue
        text, is_importable = reference(value, project.root)
        if not is_importable:
            raise ProjectError(
                f"{name} is an object ({text}) that a job cannot import.",
                hint=f"Put it into a module in {project.root} and name it: {name}: module:name",
            )


def _fetch_before(run: Run) -> None:
    """What the last job wrote must not be overwritten by what is older here."""
    if _last(run) is None:
        return
    try:
        fetch(run)
    except (BackendError, AzureError) as error:
        if run.info["jobs"][-1].get("lost"):
            return
        raise SubmitError(
            f"what the last job of run {run.name} wrote cannot be fetched: {error.message}",
            hint=_way_through(run, error, "To go on from what is here"),
        ) from None


def _way_through(run: Run, error: PlatoError, when: str) -> str:
    return f"{error.hint or 'Try again later.'} {when}: plato stop {run.name} --lost"


def _require_idle(run: Run) -> None:
    try:
        now = state(run)
    except (BackendError, AzureError) as error:
        raise SubmitError(
            f"run {run.name} has a job of which it is not known whether it goes on: {error.message}",
            hint=_way_through(run, error, "If its place is gone for good"),
        ) from None
    if now is not None and not now.status.has_ended:
        raise SubmitError(
            f"run {run.name} has a job that has not ended ({now.status}).",
            hint=f"Follow it with: plato logs {run.name} -f   Stop it with: plato stop {run.name}",
        )
    if run.status == "running":
        raise SubmitError(f"run {run.name} is being trained here.", hint="Wait for it, or stop it first.")


def _last(run: Run) -> Job | None:
    listed = run.info.get("jobs") or []
    return Job.from_dict(listed[-1]) if listed else None


def _require_job(run: Run) -> Job:
    job = _last(run)
    if job is None:
        raise BackendError(
            f"run {run.name} was never submitted: it has no job.", hint=f"Its lines are in {run.path / 'log.txt'}"
        )
    return job


def _backend(run: Run, job: Job) -> Backend:
    """The backend of a job: as the run's own project says, whatever plato.yaml says by now."""
    return get_backend(run.project, job.backend)


def _write_down(run: Run, **fields: Any) -> None:
    listed = run.info["jobs"]
    run.update(jobs=[*listed[:-1], {**listed[-1], **fields}])


def _close(run: Run, ended: JobState) -> None:
    """A job that failed before or without training's own last word must not leave a run that seems to go on."""
    try:
        info = run.info
    except PlatoError:
        return
    if info["jobs"][-1].get("what") == "assess" or info.get("status") not in ("created", "running"):
        return
    if ended.status is JobStatus.FAILED:
        run.update(status="failed", error=info.get("error") or f"job {info['jobs'][-1]['id']}: {ended.message}")
    elif ended.status is JobStatus.STOPPED:
        run.update(status="stopped")
