"""The project: what to train and how, as plain data.

`Project.load` reads plato.yaml, `Project(...)` takes the same fields from Python; both refuse what they do
not know, with the line and the nearest word. Sections that RLlib knows better (`training`, `env_runners` ...)
are passed on word for word, and `where` tells others the line of any key for their own messages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
    field_validator,
)

from . import project_errors as errors
from . import strict_yaml
from .errors import ProjectError
from .project_dump import plain, reference
from .project_fields import (
    CODE,
    Checkpoint,
    Count,
    Flag,
    Free,
    Natural,
    Seconds,
    Section,
    Stop,
    Tracking,
    Words,
    number,
    section,
    whole,
)
from .project_file import FILE_NAME, find_project_file
from .project_guard import Guard
from .project_tune import Tune
from .project_units import Units


class Project(Section):
    """Everything `plato train` needs to know. `sim` alone is enough; the rest has defaults."""

    name: Words = ""
    """What runs are called: letters, digits, `.`, `_`, `-`. Default: the directory's name."""
    sim: Annotated[Any, WithJsonSchema(CODE)]
    """The simulator: a Gymnasium id (`CartPole-v1`) or `module:Class` next to plato.yaml; in Python also the
    class, or any callable that returns an environment."""
    sim_config: Free = Field(default_factory=dict)
    """Keyword arguments of the sim."""
    algorithm: Annotated[Any, WithJsonSchema({"anyOf": [CODE, {"type": "null"}]})] = None
    """Any algorithm of RLlib by name (`PPO`, `SAC`, `DQN` ...), or `module:function` that returns a whole
    `AlgorithmConfig`. Default: PPO, which takes all spaces."""
    training: Free = Field(default_factory=dict)
    """Passed word for word to `AlgorithmConfig.training(...)`: `lr`, `gamma`, `train_batch_size_per_learner`
    ..."""
    env_runners: Free = Field(default_factory=dict)
    """Passed word for word to `AlgorithmConfig.env_runners(...)`; `num_env_runners: auto` takes the CPUs that
    the driver and the learners leave."""
    learners: Free = Field(default_factory=dict)
    """Passed word for word to `AlgorithmConfig.learners(...)`: `num_learners`, `num_gpus_per_learner` ..."""
    rl_module: Free = Field(default_factory=dict)
    """Passed word for word to `AlgorithmConfig.rl_module(...)`: `model_config: {fcnet_hiddens: [64, 64]}`
    ..."""
    evaluation: Free = Field(default_factory=dict)
    """Passed word for word to `AlgorithmConfig.evaluation(...)`: RLlib's own evaluation during training."""
    fault_tolerance: Free = Field(default_factory=dict)
    """Passed word for word to `AlgorithmConfig.fault_tolerance(...)`: how failed env runners are
    restarted."""
    reporting: Free = Field(default_factory=dict)
    """Passed word for word to `AlgorithmConfig.reporting(...)`: how long an iteration is."""
    offline_data: Free = Field(default_factory=dict)
    """Passed word for word to `AlgorithmConfig.offline_data(...)`: the recorded episodes that BC and MARWIL
    learn from."""
    max_episode_steps: Count | None = 1000
    """Truncate an episode after this many steps, so that none goes on for ever; null for no limit."""
    action_scale: Annotated[
        Any,
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "number"},
                    {"type": "object", "additionalProperties": {"type": "number"}},
                    {"type": "null"},
                ]
            }
        ),
    ] = None
    """How large a typical action is where the action space has no bound: one number, or one for each leaf by
    its path (`valve.flow`)."""
    action_mask: Words | None = None
    """Where the mask of allowed actions is: `info` for `info["action_mask"]`, or a key of the observation.
    Default: found by itself in `info`."""
    frame_stack: Count = 1
    """How many of the last observations the policy sees side by side; more than 1 gives it a memory, of speeds for
    one. An episode begins with its first observation repeated."""
    normalize_observations: Flag = True
    """Subtract the running mean of each numeric observation and divide by its deviation; categories, masks
    and images are left alone. With SAC and DQN: the mean and deviation of what came before learning began."""
    step_timeout_s: Seconds = 60.0
    """How long one step or reset of the sim may take before it counts as hanging and is started again:
    seconds, or 2m."""
    sim_process: Literal["auto", "own", "inline"] = "auto"
    """Where sims run: `own` (each in a process of its own), `inline` (in the env runner), or `auto` (inline
    where the sim is quick and well-behaved)."""
    engine: Literal["auto", "rllib"] = "auto"
    """Who samples and learns: `auto` is platotk's fast engine inside RLlib wherever it applies (the run says so
    where it does not), `rllib` is RLlib's own env runner and learner."""
    guard: Annotated[Guard, BeforeValidator(section)] = Guard()
    """What the agent may never do, and what it does when it cannot see. Travels with the agent; training is without."""
    units: Annotated[Units, BeforeValidator(section)] = Units()
    """What the numbers of the spaces are measured in. Travels with the agent, and is shown wherever they are read."""
    tune: Annotated[Tune, BeforeValidator(section)] = Tune()
    """What `plato tune` tries; `plato train` does without."""
    stop: Annotated[Stop, BeforeValidator(section)] = Stop(iterations=100)
    """When training ends: at the first rule that is met."""
    checkpoint: Annotated[Checkpoint, BeforeValidator(section)] = Checkpoint()
    """What is saved while training."""
    seed: Natural = 0
    """Fixes the network's first weights, exploration, and the resets of every sim."""
    tracking: Annotated[Tracking, BeforeValidator(section)] = Tracking()
    """Where metrics go besides the run folder."""
    backends: Annotated[dict[str, Free], BeforeValidator(section)] = Field(default_factory=dict)
    """Other places to run, by a name of your own; each has a `type` and that type's options. No secrets
    here."""

    _root: Path = PrivateAttr()
    _source: errors.Source = PrivateAttr()

    def __init__(self, /, **fields: Any) -> None:
        """Take the fields that plato.yaml takes.

        Raises:
            ProjectError: A field is unknown or its value is not allowed.
        """
        source, root = fields.pop("_source", None) or errors.Source(), fields.pop("_root", None) or Path.cwd()
        if fields.get("name") is None:
            fields["name"] = _default_name(fields.get("sim"), root if source.path else None)
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise errors.refusal(error, source, type(self)) from None
        self._root, self._source = root, source
        self._check_backends()

    @classmethod
    def find(cls, start: str | Path | None = None) -> Path:
        """The nearest plato.yaml: in `start` (default: here) or in a directory above it.

        Raises:
            ProjectError: There is none.
        """
        return find_project_file(start)

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        *,
        overrides: Iterable[str] = (),
        root: str | Path | None = None,
    ) -> Project:
        """Read a project file.

        Args:
            path: The file, or the directory it lies in. Default: the nearest one, here or upward.
            overrides: `training.lr=1e-3` and so on, applied in order over what the file says.
            root: Where the sim's modules are. Default: the file's directory.

        Raises:
            ProjectError: With file:line, what is wrong and what is meant or allowed.
        """
        path = cls.find() if path is None else Path(path)
        if path.is_dir():
            path = path / FILE_NAME
        path = path.absolute()
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ProjectError(f"{path}: {error.strerror or error}", hint="Start a project with: plato init") from None
        shown = _shown_path(path)
        document = strict_yaml.parse(content, shown)
        if not isinstance(document.data, dict):
            found = "is empty" if document.data is None else "is not made of `key: value` lines"
            raise ProjectError(f"{shown}:1: the project file {found}", hint="At the least: sim: CartPole-v1")
        source = errors.Source(path, shown, document.lines)
        fields, source = errors.override(document.data, overrides, source, cls)
        return cls(
            **_words(fields, source, cls),
            _source=source,
            _root=Path(root).absolute() if root else path.parent,
        )

    def _check_backends(self) -> None:
        """Hold each backend's options against what its kind takes; loads no SDK."""
        if not self.backends:
            return
        from .compute import registry

        for name, options in self.backends.items():
            model = registry.options_model(options["type"])
            if model is None and not registry.is_inside_a_job():
                raise registry.unknown_kind(self.where(f"backends.{name}.type"), options["type"])
            try:
                if model is not None:
                    model.model_validate(options)
            except ValidationError as error:
                raise errors.refusal(error, self._source, model or type(self), within=("backends", name)) from None

    def override(self, overrides: Iterable[str]) -> Project:
        """A copy in which `training.lr=1e-3` and so on replace what is set.

        Raises:
            ProjectError: A path or value is wrong.
        """
        given = {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}
        given = {name: _given(value) for name, value in given.items()}
        fields, source = errors.override(given, overrides, self._source, type(self))
        return type(self)(**fields, _source=source, _root=self._root)

    @property
    def root(self) -> Path:
        """The directory of plato.yaml, where the sim's modules are; for `Project(...)` where it was made."""
        return self._root

    @property
    def path(self) -> Path | None:
        """The project file; None for a project made in Python."""
        return self._source.path

    def where(self, key: str) -> str:
        """Where a key is set, for messages: `plato.yaml:7`, `--set training.lr` or `Project(training.lr)`.

        Args:
            key: Dotted path, such as `training.lr`. A key that is not set gives the line of its section.
        """
        return self._source.where(tuple(key.split(".")))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, resolved: defaults filled in, code as `module:name`."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        for name in ("tune", "stop", "checkpoint", "tracking"):
            values[name] = values[name].model_dump()
        values["stop"] = {name: value for name, value in values["stop"].items() if value is not None}
        values["guard"] = self.guard.to_data(self._root)
        values["units"] = self.units.to_data()
        return {name: plain(value, self._root) for name, value in values.items()}

    def to_yaml(self) -> str:
        """The resolved project as YAML, which `Project.load` reads back."""
        notes = [
            f"# {name}: {text} cannot be imported from {self._root}; it was given as an object.\n"
            for name, value in (("sim", self.sim), ("algorithm", self.algorithm))
            for text, is_importable in [reference(value, self._root)]
            if not isinstance(value, (str, type(None))) and not is_importable
        ]
        return "".join(notes) + strict_yaml.dump(self.to_dict())

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON Schema of plato.yaml, for editors."""
        schema = _on_one_line(cls.model_json_schema())
        schema["properties"]["name"].pop("default", None)
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": FILE_NAME}

    @field_validator("name")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?", value) or _is_reserved(value):
            raise ValueError("expected at most 64 letters, digits, '.', '_', '-', for it names folders")
        return value

    @field_validator("sim")
    @classmethod
    def _sim_or_code(cls, value: Any) -> Any:
        if isinstance(value, str) and value.strip():
            return value.strip()
        if isinstance(value, str) or not callable(value):
            raise ValueError(
                "expected a Gymnasium id such as CartPole-v1 or module:Class next to plato.yaml"
                + (" (or, in Python, a class or function)" if not isinstance(value, str) else "")
            )
        return value

    @field_validator("algorithm")
    @classmethod
    def _algorithm_or_code(cls, value: Any) -> Any:
        if value is None or callable(value) or hasattr(value, "build_algo"):
            return value
        if isinstance(value, str) and value.strip():
            return value.strip()
        raise ValueError("expected the name of an RLlib algorithm, such as PPO, or module:function")

    @field_validator("action_scale", mode="before")
    @classmethod
    def _positive_scale(cls, value: Any) -> Any:
        scales = list(value.values()) if isinstance(value, Mapping) else [value]
        if value is not None and not all(_is_positive(scale) for scale in scales):
            raise ValueError("expected a number above 0, or one for each leaf of the action space")
        return dict(value) if isinstance(value, Mapping) else value

    @field_validator("env_runners")
    @classmethod
    def _count_or_auto(cls, value: dict[str, Any]) -> dict[str, Any]:
        count = value.get("num_env_runners", 0)
        if count == "auto":
            return value
        try:
            count = whole(count)
        except ValueError:
            count = -1
        if count < 0:
            raise ValueError(f"num_env_runners is {value['num_env_runners']!r}; expected auto or 0, 1, 2 ...")
        return {**value, "num_env_runners": count} if "num_env_runners" in value else value

    @field_validator("stop", mode="before")
    @classmethod
    def _some_rule(cls, value: Any) -> Any:
        value = section(value)
        if value and all(rule is None for rule in value.values()):
            raise ValueError(f"no rule is set, so training would never end; set one of {', '.join(Stop.model_fields)}")
        return value or {"iterations": 100}

    @field_validator("backends")
    @classmethod
    def _typed(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, options in value.items():
            if not isinstance(options.get("type"), str):
                raise ValueError(f"backend {name!r} has no type; expected for example type: ray")
        return value


def _words(fields: dict[Any, Any], source: errors.Source, model: type[BaseModel]) -> dict[str, Any]:
    """The file's top level as keyword arguments."""
    for key in fields:
        if not isinstance(key, str) or key.startswith("_"):
            raise errors.unknown_key((str(key),), source, model)
    return fields


def _given(value: Any) -> Any:
    return value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value


def _on_one_line(schema: Any) -> Any:
    """A schema whose descriptions are not broken where the source was."""
    if isinstance(schema, list):
        return [_on_one_line(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: " ".join(inner.split()) if key == "description" and isinstance(inner, str) else _on_one_line(inner)
        for key, inner in schema.items()
    }


def _default_name(sim: Any, directory: Path | None) -> str:
    """A safe name from the directory, or else from the sim."""
    if isinstance(sim, str) and ":" not in sim:
        words = sim  # a Gymnasium id has its own dashes
    else:
        sim_name = sim.rpartition(":")[2] if isinstance(sim, str) else getattr(sim, "__name__", "")
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", sim_name)
    for text in (directory.name if directory else "", words):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._").lower()[:64].rstrip("-._")
        if name and not _is_reserved(name):
            return name
    return "project"


def _is_reserved(name: str) -> bool:
    """Windows keeps these names for devices, whatever follows the first dot."""
    return re.fullmatch(r"(?i:con|prn|aux|nul|com[0-9]|lpt[0-9])", name.partition(".")[0]) is not None


def _is_positive(value: Any) -> bool:
    try:
        return bool(0.0 < number(value) < float("inf"))
    except ValueError:
        return False


def _shown_path(path: Path) -> str:
    """The path as a person standing here would write it."""
    near = os.path.relpath(path)
    return str(path) if near.startswith(os.pardir) else near
