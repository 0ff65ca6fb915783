"""From the `sim:` line of a project to a running simulator.

`sim_spec(project)` gives a `SimSpec`: a small recipe that pickles, travels to any process and makes the sim
there. Our own errors name the file that was searched or the name that was meant; exceptions of the sim itself
pass through whole.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium

from ..errors import SimError
from .importing import import_from_root, module_names

if TYPE_CHECKING:
    from ..project import Project


def sim_spec(project: Project) -> SimSpec:
    """The recipe for a project's sim."""
    config = dict(project.sim_config or {})
    locations = {key: project.where(f"sim_config.{key}") for key in config}
    locations[""] = project.where("sim")
    return SimSpec(project.sim, config, root=project.root, locations=locations)


@dataclass(frozen=True)
class SimSpec:
    """How to make a sim, here or in any other process.

    Attributes:
        target: A Gymnasium id (`CartPole-v1`), `module:attribute` next to plato.yaml or installed, or any
            class or callable that returns an environment.
        config: Keyword arguments of the sim; every sim gets its own copy.
        root: Directory of the project, put on `sys.path`. When it does not exist (on another machine), the
            working directory stands in.
        locations: Where each key of `config` is set, for messages, and under "" where the sim is.
    """

    target: str | Callable[..., Any]
    config: dict[str, Any] = field(default_factory=dict)
    root: Path | None = None
    locations: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The sim's name for people: the id, `module:Class`, or the name of the object."""
        if isinstance(self.target, str):
            return self.target
        return str(getattr(self.target, "__qualname__", None) or repr(self.target))

    def make(self) -> gymnasium.Env[Any, Any]:
        """A new sim.

        Raises:
            SimError: The target cannot be found, or does not take `config`. The sim's own exceptions pass
                through.
        """
        creator = self.creator()
        if isinstance(creator, gymnasium.envs.registration.EnvSpec):
            sim = self._make_registered(creator)
        else:
            _refuse_misfit(self, creator, self.config, allowed=())
            sim = creator(**_own_copy(self.config))
        if sim is None:
            raise SimError(f"sim: {self.label} returned None, not an environment", hint="Add: return env")
        return sim  # type: ignore[no-any-return]

    def creator(self) -> Any:
        """What makes the sim: a Gymnasium `EnvSpec`, or a class or function.

        Raises:
            SimError: As in `make`.
        """
        root = self._root()
        if not isinstance(self.target, str):
            found: Any = self.target
        elif ":" in self.target:
            found = load_attribute(self.target, root)
        else:
            found = _registered(self.target, root)
        if isinstance(found, gymnasium.envs.registration.EnvSpec):
            return found
        if isinstance(found, gymnasium.Env) or not callable(found):
            raise SimError(
                f"sim: {self.label} is {_article(type(found).__name__)} object, not a class or function",
                hint="Name the class, or a function that returns a new environment each time it is called.",
            )
        return found

    def _root(self) -> Path:
        if self.root is None:
            return Path.cwd()
        root = Path(self.root)
        return root.resolve() if root.is_dir() else Path.cwd()

    def _make_registered(self, registered: gymnasium.envs.registration.EnvSpec) -> Any:
        # Gymnasium's own checker only warns, once, about what `plato check` reports better; order enforcement
        # costs a call per step. The time limit stays.
        registered = copy.deepcopy(registered)
        registered.order_enforce = False
        entry = registered.entry_point
        if entry is not None:
            creator = gymnasium.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
            config = {**registered.kwargs, **self.config}
            _refuse_misfit(self, creator, config, allowed=("max_episode_steps", "render_mode"))
        try:
            return gymnasium.make(registered, disable_env_checker=True, **_own_copy(self.config))
        except gymnasium.error.DependencyNotInstalled as error:
            raise SimError(f"sim: {self.target} needs a package that is not installed: {error}") from error

    def __deepcopy__(self, memo: dict[int, Any]) -> SimSpec:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # cloudpickle (a dependency of Gymnasium), because a sim given in Python may be a local class; with
        # the import path, because a class may live in a module that only this process can find.
        import cloudpickle

        state = (self.target, self.config, self.root, self.locations)
        return _rebuild, ([os.path.abspath(entry) for entry in sys.path], cloudpickle.dumps(state))


def _rebuild(import_path: list[str], state: bytes) -> SimSpec:
    """The far side of pickling: sees the modules the near side saw, then unpickles."""
    known = {os.path.abspath(entry) for entry in sys.path}
    sys.path.extend(entry for entry in import_path if entry not in known and os.path.exists(entry))
    return SimSpec(*pickle.loads(state))


def _own_copy(config: dict[str, Any]) -> dict[str, Any]:
    """A deep copy; what cannot be copied (a lock, a connection) is shared."""
    copied = {}
    for key, value in config.items():
        try:
            copied[key] = copy.deepcopy(value)
        except Exception:
            copied[key] = value
    return copied


def load_attribute(target: str, root: Path) -> Any:
    """The object behind `module:attribute`, or Gymnasium's registration behind `module:Id-v0`.

    Args:
        target: The reference; the module lies in `root` or is installed.
        root: The project's directory, put first on `sys.path`.

    Raises:
        SimError: There is no such module or attribute. What the module itself raises passes through.
    """
    module_name, _, attribute = target.partition(":")
    if module_name.endswith(".py"):
        raise SimError(f"{target!r} names a file", hint=f"Write: {module_name[:-3]}:{attribute}")
    if not module_name or not attribute:
        raise SimError(f"{target!r} is not module:attribute", hint="For example: sim:MySim")
    module = import_from_root(module_name, root)
    if not all(part.isidentifier() for part in attribute.split(".")):
        return _registered(attribute, root)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise _no_attribute(target, part, found)
        found = getattr(found, part)
    return found


def _no_attribute(target: str, part: str, owner: Any) -> SimError:
    names = [name for name in vars(owner) if not name.startswith("_")]
    classes = [name for name in names if inspect.isclass(vars(owner)[name]) and hasattr(vars(owner)[name], "step")]
    file = getattr(owner, "__file__", None) or getattr(owner, "__name__", repr(owner))
    near = did_you_mean(part, names) or (classes[0] if len(classes) == 1 else None)
    defined = f"It defines: {', '.join(sorted(classes or names)) or 'nothing'}."
    return SimError(f"{target!r}: {file} has no {part!r}", hint=f"Did you mean {near!r}?" if near else defined)


def _registered(name: str, root: Path) -> gymnasium.envs.registration.EnvSpec:
    """The registration of a Gymnasium id."""
    registry = gymnasium.envs.registration.registry
    if name in registry:
        return registry[name]
    hint = _hint_for_module(name, root)
    if hint is None:
        near = _newest_version(name, registry) or did_you_mean(name, registry)
        listing = "List all with: python -c 'import gymnasium; gymnasium.pprint_registry()'"
        hint = f"Did you mean {near!r}?" if near else listing
    raise SimError(f"sim: {name!r} is not a registered Gymnasium id", hint=hint)


def _hint_for_module(name: str, root: Path) -> str | None:
    """What to write when a module or file was meant instead of a Gymnasium id."""
    if name.endswith(".py") or name in module_names(root):
        return f"For a class in a file next to plato.yaml, write: sim: {name.removesuffix('.py')}:ClassName"
    module, _, attribute = name.rpartition(".")
    if module and module.split(".")[0] in module_names(root):
        return f"Did you mean '{module}:{attribute}'?"
    return None


def _newest_version(name: str, known: Iterable[str]) -> str | None:
    """The newest registered version of an id written without one, with another, or in other letters."""
    stem = name.rpartition("-v")[0] or name
    same = [entry for entry in known if entry.rpartition("-v")[0].lower() == stem.lower()]
    exact = [entry for entry in same if entry.lower() == name.lower()]
    same.sort(key=lambda entry: int(entry.rpartition("-v")[2]) if entry.rpartition("-v")[2].isdigit() else 0)
    return next(iter([*exact, *reversed(same)]), None)


def _refuse_misfit(
    spec: SimSpec, creator: Callable[..., Any], config: Mapping[str, Any], *, allowed: tuple[str, ...]
) -> None:
    """Raise when the creator does not take `config` (a TypeError from inside it is the sim's own)."""
    try:
        signature = inspect.signature(creator)
    except (TypeError, ValueError):
        return
    parameters = signature.parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for key in config:
        if key not in names and key not in allowed and not takes_any:
            near = did_you_mean(key, names)
            raise SimError(
                f"{_where(spec, key)}sim_config: {spec.label} takes no {key!r}",
                hint=f"Did you mean {near!r}?" if near else f"It takes: {', '.join(names) or 'no keywords'}.",
            )
    required = {p.name for p in parameters if p.default is p.empty}
    missing = [name for name in names if name in required and name not in config]
    if missing:
        raise SimError(
            f"{_where(spec, '')}{spec.label} needs {', '.join(missing)}, which sim_config does not give",
            hint="Give it: sim_config: {" + ", ".join(f"{name}: ..." for name in missing) + "}",
        )


def _where(spec: SimSpec, key: str) -> str:
    """`plato.yaml:7: ` for a key of sim_config ("" for the sim itself), when it is known."""
    return f"{spec.locations[key]}: " if key in spec.locations else ""


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The known word nearest to a misspelt one, or None."""
    by_lower = {entry.lower(): entry for entry in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[near[0]] if near else None


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
