"""Does RLlib take the project's sections: algorithm, keys and values; checked in a process of its own.

Loading RLlib takes seconds, so `RLlibCheck` starts at once, runs beside the trial of the sim, and is only started
when the project says something to RLlib. `main` is what that process runs: it reads a pickled dict of the algorithm
and the sections, and writes a list of findings as JSON.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import PlatoError
from .findings import Finding, finding

if TYPE_CHECKING:
    from ...project import Project

SECTIONS = (
    "training",
    "env_runners",
    "learners",
    "rl_module",
    "evaluation",
    "fault_tolerance",
    "reporting",
    "offline_data",
)


class RLlibCheck:
    """The check of one project against RLlib, begun when this is made.

    Args:
        project: The project.
        deadline: When to give up, in `time.monotonic()` seconds.
    """

    def __init__(self, project: Project, deadline: float) -> None:
        self._project = project
        self._deadline = deadline
        self._process: subprocess.Popen[bytes] | None = None
        self._refusal: Finding | None = None
        sections = {name: dict(getattr(project, name, None) or {}) for name in SECTIONS}
        has_something = project.algorithm is not None or any(sections.values())
        if not has_something or importlib.util.find_spec("ray") is None:
            return
        import cloudpickle

        request = {"algorithm": project.algorithm, "sections": sections, "root": project.root}
        try:
            payload = cloudpickle.dumps(request)
        except Exception as error:
            message = f"algorithm, or a section, cannot be pickled: {error}"
            self._refusal = finding("unpicklable", message, where=project.where("algorithm"))
            return
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._answer = tempfile.TemporaryFile()  # noqa: SIM115
        source = str(Path(__file__).resolve().parents[3])
        path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()", str(self._answer.fileno())],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=self._output,
            pass_fds=[self._answer.fileno()],
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        )
        stdin = self._process.stdin
        with contextlib.suppress(OSError):
            if stdin is not None:
                stdin.write(payload)
                stdin.close()

    def findings(self) -> list[Finding]:
        """Wait for the answer, at most until the deadline."""
        if self._refusal is not None:
            return [self._refusal]
        if self._process is None:
            return []
        try:
            code = self._process.wait(timeout=max(1.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return [finding("not-finished", "left out: the check against RLlib, which did not end in time")]
        self._answer.seek(0)
        text = self._answer.read().decode()
        if not text:
            self._output.seek(0)
            last = self._output.read().decode(errors="replace").strip().splitlines()[-1:]
            message = f"checking against RLlib ended with exit code {code}: {' '.join(last)}"
            return [finding("rllib-algorithm", message, where=self._project.where("algorithm"))]
        return [
            finding(one["id"], one["message"], where=self._project.where(one["key"]), cure=one["cure"])
            for one in json.loads(text)
        ]

    def close(self) -> None:
        """End the process when it still runs."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._output.close()
        self._answer.close()


def examine(algorithm: Any, sections: dict[str, dict[str, Any]], root: Path) -> list[dict[str, Any]]:
    """What RLlib would refuse, as dicts of id, key, message and cure."""
    from ...learning.algorithm import section_keys
    from ..loading import did_you_mean

    problems: list[dict[str, Any]] = []

    def found(check_id: str, key: str, message: str, cure: str | None = None) -> None:
        problems.append({"id": check_id, "key": key, "message": message, "cure": cure})

    try:
        config = _config(algorithm, root)
    except PlatoError as error:
        found("rllib-algorithm", "algorithm", error.message, error.hint)
        return problems
    except Exception as error:
        found("rllib-algorithm", "algorithm", f"{algorithm} raised {type(error).__name__}: {error}")
        return problems
    for section, values in sections.items():
        known = section_keys(config, section)
        for key in values:
            if key not in known:
                near = did_you_mean(key, known)
                cure = (
                    f"{section}: {{{near}: {values[key]}}}"
                    if near
                    else f"{section} takes: {', '.join(sorted(known))}"
                )
                name = type(config).__name__
                found("rllib-key", f"{section}.{key}", f"{name}.{section}() takes no {key!r}", cure)
        taken = {key: value for key, value in values.items() if key in known and value != "auto"}
        if section == "rl_module" and isinstance(taken.get("model_config"), dict):
            _check_model_keys(taken.pop("model_config"), found)
        try:
            if taken:
                getattr(config, section)(**taken)
        except Exception as error:
            found(
                "rllib-value",
                section,
                f"RLlib refuses {section}: {error}",
                f"See AlgorithmConfig.{section}().",
            )
    return problems


def _config(algorithm: Any, root: Path) -> Any:
    """The algorithm's own config, freshly made."""
    from ...learning.algorithm import _user_config, choose_algorithm, default_config
    from ...project import Project

    project = Project(sim="CartPole-v1", algorithm=algorithm, _root=root)
    name, _ = choose_algorithm(project)
    if algorithm is None or (isinstance(algorithm, str) and ":" not in algorithm):
        return default_config(name)
    return _user_config(project)


def _check_model_keys(given: dict[str, Any], found: Any) -> None:
    import dataclasses

    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    from ..loading import did_you_mean

    known = {one.name for one in dataclasses.fields(DefaultModelConfig)}
    for key in given:
        if key not in known:
            near = did_you_mean(key, known)
            cure = f"rl_module: {{model_config: {{{near}: {given[key]}}}}}" if near else None
            found("rllib-key", f"rl_module.model_config.{key}", f"model_config takes no {key!r}", cure)


def main() -> None:
    """Read the request from standard input, write the answer to the file descriptor given."""
    import pickle

    answer = int(sys.argv[1])
    request = pickle.loads(sys.stdin.buffer.read())
    problems = examine(request["algorithm"], request["sections"], request["root"])
    os.write(answer, json.dumps(problems, default=str).encode())
