"""Does RLlib take the project's sections: the algorithm, the keys, and for a user's own function the values.

A named algorithm is compared with RLlib's source, at once. `algorithm: module:function` has to be called,
which loads RLlib: that runs beside the trial of the sim, in a process of its own whose entry is `main`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import PlatoError
from ...project_fields import SECTIONS
from ..loading import did_you_mean
from . import rllib_source
from .findings import Finding, finding

if TYPE_CHECKING:
    from ...project import Project

Problem = tuple[str, str, str, str | None]
"""Id of the finding, dotted key of the project, message, cure."""


class RLlibCheck:
    """The check of one project against RLlib, begun when this is made; where Ray is not installed, none.

    Args:
        project: The project.
        deadline: When to give up, in `time.monotonic()` seconds.
    """

    def __init__(self, project: Project, deadline: float) -> None:
        self._project = project
        self._deadline = deadline
        self._sections = {name: dict(getattr(project, name, None) or {}) for name in SECTIONS}
        self._process: subprocess.Popen[bytes] | None = None
        self._problems: list[Problem] = []
        self._files = contextlib.ExitStack()
        if rllib_source.rllib_home() is None:
            return
        if project.algorithm is None or (isinstance(project.algorithm, str) and ":" not in project.algorithm):
            self._problems = list(_compare_named(project.algorithm or "PPO", self._sections))
        else:
            self._start()

    def findings(self) -> list[Finding]:
        """The findings; waits for the process, at most until the deadline."""
        problems = self._problems
        if self._process is not None:
            try:
                code = self._process.wait(timeout=max(1.0, self._deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                return [finding("not-finished", "left out: calling the project's `algorithm`, which took too long")]
            problems = self._answered(code)
        where = self._project.where
        return [finding(one, message, where=where(key), cure=cure) for one, key, message, cure in problems]

    def close(self) -> None:
        """End the process when it still runs."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._files.close()

    def _start(self) -> None:
        import cloudpickle

        try:
            payload = cloudpickle.dumps((self._project.algorithm, self._sections, self._project.root))
        except Exception as error:
            message = f"algorithm, or a section, cannot be pickled: {error}"
            self._problems = [("unpicklable", "algorithm", message, "algorithm: train:config   # by name")]
            return
        self._request, self._answer, self._output = (
            self._files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - closed in close()
            for _ in range(3)
        )
        self._request.write(payload)
        self._request.seek(0)
        source = str(Path(__file__).resolve().parents[3])
        path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()", str(self._answer.fileno())],
            stdin=self._request,
            stdout=self._output,
            stderr=self._output,
            pass_fds=[self._answer.fileno()],
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        )

    def _answered(self, code: int) -> list[Problem]:
        self._answer.seek(0)
        text = self._answer.read().decode()
        if text:
            return [tuple(one) for one in json.loads(text)]
        self._output.seek(0)
        last = " ".join(self._output.read().decode(errors="replace").strip().splitlines()[-1:])
        message = f"calling {self._project.algorithm} ended its process with exit code {code}: {last}"
        return [("rllib-algorithm", "algorithm", message, None)]


def _compare_named(algorithm: str, sections: dict[str, dict[str, Any]]) -> Iterator[Problem]:
    """Problems of a named algorithm, by RLlib's source."""
    names = {name.lower(): name for name in rllib_source.algorithms()}
    if not names:
        return
    if algorithm.lower() not in names:
        near = did_you_mean(algorithm, names.values())
        message = f"RLlib has no algorithm {algorithm!r}; it has {', '.join(sorted(names.values()))}"
        yield "rllib-algorithm", "algorithm", message, f"algorithm: {near or 'PPO'}"
        return
    name = names[algorithm.lower()]
    known = {section: rllib_source.section_keywords(name, section) for section in sections}
    yield from _compare(name, sections, known, rllib_source.model_keywords())


def _compare(
    name: str, sections: dict[str, dict[str, Any]], known: dict[str, Any], model_keys: Collection[str]
) -> Iterator[Problem]:
    """Keys that are not known; a section without any known key could not be read, and is left alone."""
    for section, values in sections.items():
        for key, value in values.items():
            if known[section] and key not in known[section]:
                message = f"{name}Config.{section}() takes no {key!r}"
                yield "rllib-key", f"{section}.{key}", message, _cure(section, key, value, known[section])
        model = values.get("model_config") if section == "rl_module" else None
        if isinstance(model, dict) and model.get("use_lstm"):
            yield from _compare_memory(name, sections.get("training", {}))
        for key, value in (model if isinstance(model, dict) else {}).items():
            if model_keys and key not in model_keys:
                cure = _cure("model_config", key, value, model_keys)
                yield "rllib-key", f"rl_module.model_config.{key}", f"model_config takes no {key!r}", cure


def _compare_memory(name: str, training: dict[str, Any]) -> Iterator[Problem]:
    """What RLlib 2.60 cannot do with `use_lstm`."""
    if name == "SAC":
        message = "SAC cannot learn with use_lstm: RLlib keeps no memory for it"
        yield "rllib-value", "rl_module.model_config.use_lstm", message, "algorithm: PPO   # or DQN, for few choices"
    buffer = training.get("replay_buffer_config")
    if name == "DQN" and isinstance(buffer, dict) and "Prioritized" in str(buffer.get("type")):
        message = f"{buffer['type']} gives no priorities to the sequences that use_lstm learns from"
        cure = "replay_buffer_config: {type: EpisodeReplayBuffer}"
        yield "rllib-value", "training.replay_buffer_config", message, cure


def _cure(section: str, key: str, value: Any, known: Collection[str]) -> str:
    near = did_you_mean(key, known)
    return f"{section}: {{{near}: {value}}}" if near else f"{section} takes: {', '.join(sorted(known))}"


def examine(algorithm: Any, sections: dict[str, dict[str, Any]], root: Path) -> list[Problem]:
    """Problems of an algorithm that is the user's function: call it, and give the config every section."""
    from ...learning.algorithm import _user_config, section_keys
    from ...project import Project

    try:
        config = _user_config(Project(sim="CartPole-v1", algorithm=algorithm, _root=root))
    except PlatoError as error:
        return [("rllib-algorithm", "algorithm", error.message, error.hint)]
    except Exception as error:
        message = f"{algorithm} raised {type(error).__name__}: {error}"
        return [("rllib-algorithm", "algorithm", message, None)]
    known = {section: section_keys(config, section) for section in sections}
    name = type(config).__name__.removesuffix("Config")
    problems = list(_compare(name, sections, known, rllib_source.model_keywords()))
    for section, values in sections.items():
        taken = {key: value for key, value in values.items() if key in known[section] and value != "auto"}
        taken.pop("model_config", None)
        try:
            if taken:
                getattr(config, section)(**taken)
        except Exception as error:
            message = f"RLlib refuses {section}: {error}"
            problems.append(("rllib-value", section, message, f"See AlgorithmConfig.{section}()."))
    return problems


def main() -> None:
    """Read the request from standard input, write the answer to the file descriptor given."""
    import pickle

    problems = examine(*pickle.loads(sys.stdin.buffer.read()))
    os.write(int(sys.argv[1]), json.dumps(problems, default=str).encode())
