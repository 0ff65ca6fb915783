"""Does what the project asks for fit this machine: CPUs for env runners and learners, GPUs, memory for replay."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...container import usable_memory
from ...learning import replay_size
from .catalogue import Severity
from .findings import Finding, finding
from .trial import Trial

if TYPE_CHECKING:
    from ...project import Project


def check_resources(project: Project) -> list[Finding]:
    """Findings about CPUs and GPUs that are not there; Ray would wait for them for ever."""
    runners, learners = project.env_runners or {}, project.learners or {}
    num_runners = runners.get("num_env_runners", 0)
    num_runners = 0 if num_runners == "auto" else _number(num_runners)
    num_learners = _number(learners.get("num_learners", 0))
    cpus = num_runners * _number(runners.get("num_cpus_per_env_runner", 1))
    cpus += num_learners * _number(learners.get("num_cpus_per_learner", 1), default=1.0)
    gpus = num_runners * _number(runners.get("num_gpus_per_env_runner", 0))
    gpus += max(1.0, num_learners) * _number(learners.get("num_gpus_per_learner", 0))
    severity = _severity(project)
    findings = []
    has_cpus, has_gpus = os.cpu_count() or 1, num_gpus()
    if cpus > has_cpus:
        asked = f"{num_runners:g} env runners and {num_learners:g} learners need {cpus:g} CPUs"
        message = f"{asked}; this machine has {has_cpus}"
        where = project.where("env_runners.num_env_runners" if num_runners else "learners.num_learners")
        findings.append(finding("resources", message, where=where, severity=severity))
    if gpus > has_gpus:
        message = f"the project asks for {gpus:g} GPUs; this machine has {has_gpus}"
        key = "learners.num_gpus_per_learner"
        if "num_gpus_per_learner" not in learners:
            key = "env_runners.num_gpus_per_env_runner"
        cure = f"{key.split('.')[0]}: {{{key.split('.')[1]}: 0}}"
        findings.append(finding("resources", message, where=project.where(key), cure=cure, severity=severity))
    return findings


def replay_asked_for(project: Project) -> tuple[int, str, Severity] | None:
    """How many steps the project wants replayed, where it says so, and how grave it is when they do not fit."""
    capacity = replay_size.asked_for(project.training)
    return None if capacity is None else (capacity, project.where(replay_size.KEY), _severity(project))


def check_replay(trial: Trial) -> None:
    """Whether the steps that the project wants replayed fit the memory; their size depends on the spaces."""
    adapter, asked = trial.adapter, trial.request.replay
    if adapter is None or asked is None or adapter.algorithm.upper() not in ("SAC", "DQN"):
        return
    capacity, where, severity = asked
    each = replay_size.step_bytes(adapter.encoded_observation_space, adapter.encoded_action_space)
    memory = usable_memory()
    if wrong := replay_size.too_large(capacity, each, memory):
        cure = f"replay_buffer_config: {{capacity: {replay_size.fitting_capacity(each, memory):_}}}"
        trial.found("resources", wrong, where=where, cure=cure, severity=severity)


def _severity(project: Project) -> Severity:
    """With another place to run, this machine need not be the one that trains."""
    return "warning" if project.backends or "RAY_ADDRESS" in os.environ else "error"


def num_gpus() -> int:
    """GPUs of NVIDIA that this process may use, without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([one for one in visible.split(",") if one.strip() not in ("", "-1")])
    devices = list(Path("/proc/driver/nvidia/gpus").glob("*"))
    return len(devices) or int(shutil.which("nvidia-smi") is not None)


def _number(value: Any, default: float = 0.0) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else default
