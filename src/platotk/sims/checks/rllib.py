"""Does RLlib take the project's sections: the algorithm, the keys, the values.

A named algorithm is compared with RLlib's source, at once, and its well-known numbers with their ranges. Calling
`algorithm: module:function`, and asking RLlib itself about values, loads RLlib: that runs beside the trial of the sim,
in a process of its own whose entry is `main`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import PlatoError, ProjectError
from ...learning import section_values
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

    Attributes:
        algorithm: RLlib's name of what the project's own function configures, once `findings` was called; None for a
            named algorithm.
    """

    def __init__(self, project: Project, deadline: float) -> None:
        self._project = project
        self._deadline = deadline
        self._sections = {name: dict(getattr(project, name, None) or {}) for name in SECTIONS}
        self._process: subprocess.Popen[bytes] | None = None
        self._problems: list[Problem] = []
        self._files = contextlib.ExitStack()
        self.algorithm: str | None = None
        if rllib_source.rllib_home() is None:
            return
        self._is_named = project.algorithm is None or (
            isinstance(project.algorithm, str) and ":" not in project.algorithm
        )
        name = project.algorithm or "PPO"
        if self._is_named:
            self._problems = list(_compare_named(name, self._sections))
        if not self._is_named or (not self._problems and section_values.needs_rllib(name.upper(), self._sections)):
            self._start()

    def findings(self) -> list[Finding]:
        """The findings; waits for the process, at most until the deadline."""
        problems = self._problems
        if self._process is not None:
            try:
                code = self._process.wait(timeout=max(1.0, self._deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                what = "asking RLlib about the sections" if self._is_named else "calling the project's `algorithm`"
                return [finding("not-finished", f"left out: {what}, which took too long")]
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
            algorithm = self._project.algorithm or "PPO"
            payload = cloudpickle.dumps((algorithm, self._sections, self._project.root))
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
            name, problems = json.loads(text)
            self.algorithm = None if self._is_named else name
            return [tuple(one) for one in problems]
        self._output.seek(0)
        last = " ".join(self._output.read().decode(errors="replace").strip().splitlines()[-1:])
        what = "asking RLlib about" if self._is_named else "calling"
        message = f"{what} {self._project.algorithm} ended its process with exit code {code}: {last}"
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
    if name in section_values.OFFLINE and not sections.get("offline_data", {}).get("input_"):
        yield "rllib-value", "algorithm", section_values.NO_DATA.format(name=name), section_values.DATA_CURE
    if name in section_values.UNFIT:
        yield "rllib-algorithm", "algorithm", section_values.UNFIT[name], "algorithm: PPO"


def _compare(
    name: str, sections: dict[str, dict[str, Any]], known: dict[str, Any], model_keys: Collection[str]
) -> Iterator[Problem]:
    """Keys that are not known, and values that cannot be.

    A section without any known key could not be read, and is left alone.
    """
    for key, message in section_values.out_of_range(sections):
        yield "rllib-value", key, message, f"See AlgorithmConfig.{key.partition('.')[0]}()."
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


def examine(algorithm: Any, sections: dict[str, dict[str, Any]], root: Path) -> tuple[str | None, list[Problem]]:
    """RLlib's name of an algorithm, and its problems with the sections.

    Args:
        algorithm: A name, which was compared with the source already, or the user's function, which is called.
        sections: The project's.
        root: The project's directory.
    """
    name: str | None = None
    problems: list[Problem] = []
    if not isinstance(algorithm, str) or ":" in algorithm:
        name, problems = _examine_function(algorithm, sections, root)
        if name is None:
            return name, problems
    if not problems:
        problems = _examine_whole(algorithm, sections, root)
    return name, problems


def _examine_function(
    algorithm: Any, sections: dict[str, dict[str, Any]], root: Path
) -> tuple[str | None, list[Problem]]:
    """Call the user's function, and give the config every section."""
    from ...learning.algorithm import _user_config, algorithm_name, section_keys
    from ...project import Project

    try:
        config = _user_config(Project(sim="CartPole-v1", algorithm=algorithm, _root=root))
    except PlatoError as error:
        return None, [("rllib-algorithm", "algorithm", error.message, error.hint)]
    except Exception as error:
        message = f"{algorithm} raised {type(error).__name__}: {error}"
        return None, [("rllib-algorithm", "algorithm", message, None)]
    known = {section: section_keys(config, section) for section in sections}
    name = type(config).__name__.removesuffix("Config")
    problems = list(_compare(name, sections, known, rllib_source.model_keywords()))
    left = {key for _, key, _, _ in problems} | {"rl_module.model_config"}
    for section, values in sections.items():
        taken = {key: value for key, value in values.items() if f"{section}.{key}" not in left and value != "auto"}
        try:
            if taken:
                getattr(config, section)(**taken)
        except Exception as error:
            message = f"RLlib refuses {section}: {error}"
            problems.append(("rllib-value", section, message, f"See AlgorithmConfig.{section}()."))
    if algorithm_name(config) in section_values.OFFLINE and config.input_ == "sampler":
        message = section_values.NO_DATA.format(name=algorithm_name(config))
        problems.append(("rllib-value", "algorithm", message, section_values.DATA_CURE))
    return algorithm_name(config), problems


def _examine_whole(algorithm: Any, sections: dict[str, dict[str, Any]], root: Path) -> list[Problem]:
    """What RLlib has against the config that would be trained; with a sim of ours, for theirs is on trial elsewhere."""
    from gymnasium import spaces

    from ...learning.algorithm import SimSettings, sectioned_config
    from ...learning.cluster import quiet_rllib
    from ...project import Project
    from ...spaces import adapt
    from ..loading import sim_spec

    quiet_rllib()
    try:
        project = Project(sim="CartPole-v1", algorithm=algorithm, _root=root, **sections)
        adapter = adapt(spaces.Box(-1, 1, (4,)), spaces.Box(-1, 1, (1,)))
        config = sectioned_config(project, adapter, sim_spec(project), SimSettings(), os.cpu_count())
    except ProjectError as error:
        placed = re.match(r"Project\(([\w.]+)\): (.*)", error.message, re.DOTALL)
        key, message = (placed[1], placed[2]) if placed else ("algorithm", error.message)
        return [("rllib-value", key, message, error.hint)]
    wrong = section_values.refused(config, sections)
    return [] if wrong is None else [("rllib-value", *wrong, f"See AlgorithmConfig.{wrong[0].partition('.')[0]}().")]


def main() -> None:
    """Read the request from standard input, write the answer to the file descriptor given."""
    import pickle

    answer = examine(*pickle.loads(sys.stdin.buffer.read()))
    os.write(int(sys.argv[1]), json.dumps(answer, default=str).encode())
