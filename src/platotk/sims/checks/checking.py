"""`check(project)`: every check there is, in processes that may die, within a time limit.

The sim is tried in a worker process. When it hangs or dies there, that is a finding, and a fresh worker
goes on with what can still be checked. What concerns RLlib and this machine is checked beside it.
"""

from __future__ import annotations

import dataclasses
import signal
import time
from typing import TYPE_CHECKING, Any

from ...project_guard import places_of
from ...project_units import places_of as unit_places
from ..loading import SimSpec, sim_spec
from ..vectorised import is_asked_for
from .findings import Finding, finding, ordered
from .fitting import check_resources, replay_asked_for
from .rllib import RLlibCheck
from .trial import PHASES, Request
from .watching import Outcome, watch

if TYPE_CHECKING:
    from ...project import Project

NUM_STEPS = 2000
MAX_WORKERS = 5
SLOW_STEPS_PER_S = 500.0
_OPENING = ("start", "load", "construct", "api", "first-reset")


def check(project: Project, *, time_limit_s: float = 60.0, probe_steps: int | None = None) -> list[Finding]:
    """Everything that is wrong, or worth knowing, about a project's sim.

    The sim runs in processes of its own: it may hang, crash or exit there. All findings are collected.

    Args:
        project: The project.
        time_limit_s: Seconds for the whole check. One call of the sim may take a quarter of it, and no longer
            than the project's `step_timeout_s`.
        probe_steps: Random steps to play; None plays 2,000, or two episodes of `max_episode_steps` up to
            5,000.

    Returns:
        Errors first, then warnings, then notes.
    """
    deadline = time.monotonic() + time_limit_s
    spec = sim_spec(project)
    rllib = RLlibCheck(project, deadline)
    try:
        request = _request(project, spec, time_limit_s, probe_steps)
        limits_s = min(project.step_timeout_s, time_limit_s / 4), time_limit_s / 2
        findings, misfits = _check_sim(request, deadline, limits_s)
        findings += check_resources(project)
        findings += rllib.findings()
        if rllib.algorithm in misfits:
            findings.append(Finding(**misfits[rllib.algorithm]))
    finally:
        rllib.close()
    return ordered(findings)


def _request(project: Project, spec: SimSpec, time_limit_s: float, probe_steps: int | None) -> Request:
    algorithm = project.algorithm or "PPO"
    is_named = isinstance(algorithm, str) and ":" not in algorithm
    limit = project.max_episode_steps
    return Request(
        spec=spec,
        algorithm=algorithm if is_named else "PPO",
        is_named=is_named,
        action_scale=project.action_scale,
        action_mask=project.action_mask,
        frame_stack=project.frame_stack,
        replay=replay_asked_for(project),
        max_episode_steps=limit,
        is_limit_given="max_episode_steps" in project.model_fields_set,
        num_steps=probe_steps or min(5000, max(NUM_STEPS, 2 * (limit or 0))),
        budget_s=time_limit_s * 0.8,
        phases=PHASES,
        vectorised=project.where("env_runners.gym_env_vectorize_mode") if is_asked_for(project) else None,
        guard=(project.guard.to_data(project.root), places_of(project)),
        units=(project.units.to_data(), unit_places(project)),
    )


def _check_sim(
    request: Request, deadline: float, limits_s: tuple[float, float]
) -> tuple[list[Finding], dict[str, dict[str, Any]]]:
    """Run workers until one ends whole, each without the phase in which the one before hung or died.

    Returns:
        The findings, and those that there would be if the algorithm were another one, by its name.
    """
    misfits: dict[str, dict[str, Any]] = {}
    fates: set[tuple[str, str | None]] = set()
    findings: list[Finding] = []
    payload, refusal = _pickled(request)
    if refusal is not None:
        findings.append(finding("unpicklable", refusal, where=request.spec.locations.get("")))
    measured: dict[str, Any] = {}
    num_printed, num_calls, tail = 0, 0, ""
    left_out: list[str] = []
    for _ in range(MAX_WORKERS):
        outcome = watch(request, payload, deadline=deadline, limits_s=limits_s)
        findings += [Finding(**fields) for fields in outcome.findings]
        measured = outcome.measured or measured
        misfits = outcome.misfits or misfits
        if outcome.num_printed:
            num_printed += outcome.num_printed
            num_calls += max(1, outcome.measured.get("num_steps", 0) or outcome.progress.step)
            tail = outcome.tail
        if outcome.how == "done":
            break
        for one in _fate(outcome):
            if (one.id, one.where) not in fates:
                findings.append(one)
            fates.add((one.id, one.where))
        follow_up = _follow_up(request, outcome, left_out)
        if follow_up is None or time.monotonic() > deadline - 1.0:
            begun = request.phases.index(outcome.phase) if outcome.phase in request.phases else 0
            left_out += request.phases[begun:]
            break
        request, payload = follow_up, _pickled(follow_up)[0]
    findings += _about_printing(num_printed, num_calls, tail)
    findings += _about_speed(measured)
    if left_out:
        findings.append(finding("not-finished", f"left out: {', '.join(dict.fromkeys(left_out))}"))
    return findings, misfits


def _pickled(request: Request) -> tuple[bytes | None, str | None]:
    """The request as bytes; or None and what is wrong with it."""
    import cloudpickle

    try:
        return cloudpickle.dumps(request), None
    except Exception as error:
        culprit = request.spec.label
        for key, value in request.spec.config.items():
            try:
                cloudpickle.dumps(value)
            except Exception:
                culprit = f"sim_config[{key!r}]"
        return None, f"{culprit} cannot be pickled, so it cannot be sent to other processes: {error}"


def _fate(outcome: Outcome) -> list[Finding]:
    """The finding for a worker that did not end whole."""
    progress = outcome.progress
    call = progress.call or f"the phase {outcome.phase!r}"
    at = ""
    if progress.call == "step()":
        at = f" at step {progress.step:,} (step {progress.episode_step:,} of its episode)"
    printed = "".join(f"\n    {line}" for line in outcome.tail.splitlines()[-5:])
    said = f". The last lines it printed:{printed}" if printed else ""
    if outcome.how == "hang":
        message = f"{call} did not return within {outcome.waited_s:.3g} s{at}{said}"
        return [finding("hangs", message, where=outcome.place)]
    if outcome.how == "late":
        return []
    if outcome.how == "signal":
        what = "out of memory, or killed" if outcome.code == signal.SIGKILL.name else "in native code"
        message = f"{call} ended the process with {outcome.code} ({what}){at}{said}"
        return [finding("crashes", message, where=outcome.place)]
    message = f"{call} ended the process with exit code {outcome.code}{at}{said}"
    return [finding("exits", message, where=outcome.place)]


def _follow_up(request: Request, outcome: Outcome, left_out: list[str]) -> Request | None:
    """What a fresh worker can still check, or None."""
    phase = outcome.phase
    if phase in _OPENING or phase not in request.phases:
        return None
    rest = request.phases[request.phases.index(phase) + 1 :]
    step = outcome.progress.step
    if phase == "steps" and request.last_step is None and outcome.progress.call == "step()" and step > 1:
        # Once more, up to the step before; what was seen until there is worth knowing.
        return dataclasses.replace(request, phases=(phase, *rest), last_step=step - 1)
    left_out.append(phase)
    return dataclasses.replace(request, phases=rest) if rest else None


def _about_printing(num_bytes: int, num_calls: int, tail: str) -> list[Finding]:
    per_step = num_bytes / max(1, num_calls)
    if num_bytes < 10_000 or per_step < 20:
        return []
    last = next((line.strip() for line in reversed(tail.splitlines()) if line.strip()), "")
    message = f"the sim printed {num_bytes:,} bytes in {num_calls:,} steps ({per_step:,.0f} a step): {last:.80}"
    return [finding("prints", message)]


def _about_speed(measured: dict[str, Any]) -> list[Finding]:
    steps_per_s = measured.get("steps_per_s")
    if not steps_per_s:
        return []
    reset_ms = measured.get("reset_ms")
    rate = f"{steps_per_s:,.0f}" if steps_per_s >= 10 else f"{steps_per_s:.2g}"
    message = f"{rate} steps/s in one process, {1e3 / steps_per_s:.3g} ms a step"
    if reset_ms is not None:
        message += f", {reset_ms:.3g} ms a reset"
    findings = [finding("speed", f"{message} ({measured['num_steps']:,} random steps)")]
    if steps_per_s < SLOW_STEPS_PER_S:
        hours = 100_000 / steps_per_s / 3600
        time_needed = f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.0f} minutes"
        findings.append(finding("slow", f"100,000 steps, a small training run, take {time_needed} in one process"))
    return findings
