"""The first look at a sim: can it be made, are its methods and spaces right, can it be learned from.

Each function is one phase of a check; `load` and `construct` stop the check when they fail, for nothing can
follow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces as gym_spaces

from ...agents.guards import Guards
from ...agents.units import checked_units
from ...errors import PlatoError, ProjectError, SimError
from ...spaces import CHOOSY, adapt, fitting, refusal
from ...spaces.features import is_flattened_picture
from ...spaces.leaves import describe_space, label, under_index, under_key
from ..importing import HIDING, module_names
from ..loading import load_attribute
from ..vectorised import Vectorised
from .findings import Finding, finding
from .fitting import check_replay
from .places import Places
from .trial import RAISED, Trial, takes_argument

NEEDED_MODULES = frozenset(
    {
        "gymnasium",
        "numpy",
        "ray",
        "torch",
        "platotk",
        "pydantic",
        "yaml",
        "rich",
        "typer",
        "cloudpickle",
        "mlflow",
    }
)
WIDE = 1e4


class Stop(Exception):
    """Nothing can be checked beyond this; the reason is already reported."""


def load(trial: Trial) -> None:
    """Find what makes the sim.

    Raises:
        Stop: It cannot be found or imported.
    """
    spec = trial.request.spec
    _check_hidden(trial, spec.root)
    try:
        trial.creator = trial.load()
    except SimError as error:
        _report_not_found(trial, error)
        raise Stop from None
    except RAISED as error:
        message = f"{spec.label}: importing it raised {type(error).__name__}: {error}"
        if isinstance(error, SystemExit):
            trial.found("exits", message, where=trial.places.raised(error.__traceback__))
        else:
            where = _syntax_place(error) or trial.places.raised(error.__traceback__)
            trial.found("import-fails", message, where=where, cure=_import_cure(spec.target, error))
        raise Stop from None


def construct(trial: Trial) -> None:
    """Make the sim.

    Raises:
        Stop: It cannot be made.
    """
    spec = trial.request.spec
    try:
        trial.sim = trial.make()
    except SimError as error:
        _report_not_found(trial, error)
        raise Stop from None
    except SystemExit as error:
        message = f"the constructor called sys.exit({error.code!r})"
        trial.found("exits", message, where=trial.places.raised(error.__traceback__))
        raise Stop from None
    except RAISED as error:
        text = str(error)
        if isinstance(error, TypeError) and "Gym is incompatible with Gymnasium" in text:
            trial.found("old-gym", f"{spec.label} is derived from gym.Env", where=spec.locations.get(""))
            raise Stop from None
        message = f"{spec.label}: the constructor raised {type(error).__name__}: {text}"
        trial.found("constructor-fails", message, where=trial.places.raised(error.__traceback__))
        raise Stop from None
    trial.places = Places(trial.sim, spec.root)


def api(trial: Trial) -> None:
    """Base class, methods, spaces, and what can learn from them.

    Raises:
        Stop: There is no reset, step or space to go on with.
    """
    sim = trial.sim
    inner = getattr(sim, "unwrapped", sim)
    where = trial.places.sim()
    if _is_from_gym(type(inner)):
        trial.found("old-gym", f"{type(inner).__name__} is derived from gym.Env, not gymnasium.Env", where=where)
    elif not isinstance(sim, gymnasium.Env):
        message = f"{type(sim).__name__} is not derived from gymnasium.Env"
        trial.found("not-gymnasium", message, where=where, cure=f"class {type(sim).__name__}(gymnasium.Env):")
    missing = [name for name in ("reset", "step") if not callable(getattr(sim, name, None))]
    for name in missing:
        trial.found("method-missing", f"{type(sim).__name__} has no {name}()", where=where)
    spaces_there = [_check_space(trial, name) for name in ("observation_space", "action_space")]
    if not missing:
        _check_reset_arguments(trial, inner)
    if all(spaces_there):
        _check_action_bounds(trial, sim.action_space)
        _adapt(trial)
        _check_sight(trial)
        check_replay(trial)
        if not trial.request.is_named and trial.adapter is not None:
            _tell_misfits(trial)
        _check_vectorised(trial)
        _check_guard(trial)
        _check_units(trial)
    if missing or not all(spaces_there):
        raise Stop


def _check_sight(trial: Trial) -> None:
    """Whether there is anything to see, and whether pictures are seen as such."""
    where = trial.places.attribute("observation_space")
    if trial.adapter is not None and trial.adapter.is_blind:
        trial.found("observation-empty", f"{describe_space(trial.sim.observation_space)} holds no number", where=where)
    for path, leaf in _leaves_of(trial.sim.observation_space, "observation"):
        if is_flattened_picture(leaf):
            size = int(np.prod(leaf.shape))
            message = f"{path}: shape {leaf.shape} {leaf.dtype}, learned as {size:,} plain numbers"
            trial.found("picture-flattened", message, where=where)


def _leaves_of(space: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(space, gym_spaces.Dict):
        for key, child in space.spaces.items():
            yield from _leaves_of(child, under_key(path, key))
    elif isinstance(space, gym_spaces.Tuple):
        for index, child in enumerate(space.spaces):
            yield from _leaves_of(child, under_index(path, index))
    else:
        yield path, space


def _check_vectorised(trial: Trial) -> None:
    """Whether the sim has the vectorised form that the project asks for."""
    request = trial.request
    if request.vectorised is None:
        return
    try:
        Vectorised(request.spec, 2, request.max_episode_steps).make().close()
    except SimError as error:
        trial.found("project-setting", error.message, where=request.vectorised, cure=error.hint)
    except Exception as error:
        message = f"the vectorised {request.spec.label}: the constructor raised {type(error).__name__}: {error}"
        trial.found("constructor-fails", message, where=trial.places.raised(error.__traceback__))


def _check_guard(trial: Trial) -> None:
    """Whether the guards fit the spaces, and their controller is there."""
    (data, places), root = trial.request.guard, trial.request.spec.root
    if not data or trial.adapter is None:
        return
    try:
        guards = Guards(data, trial.adapter, where=lambda key: places.get(key, places[""]))
        if guards.controller is not None and not callable(load_attribute(guards.controller, root or Path())):
            raise SimError(f"{places.get('guard.fallback', '')}: {guards.controller} is no function")
    except PlatoError as error:
        placed = re.match(r"(\S+:\d+): (.*)", error.message, re.DOTALL)
        where, message = (placed[1], placed[2]) if placed else (places.get("guard.fallback"), error.message)
        trial.found("project-setting", message, where=where, cure=error.hint)


def _check_units(trial: Trial) -> None:
    """Whether the leaves that have a unit exist."""
    data, places = trial.request.units
    if not data or trial.adapter is None:
        return
    try:
        checked_units(data, trial.adapter, where=lambda key: places.get(key, places[""]))
    except ProjectError as error:
        placed = re.match(r"(\S+:\d+): (.*)", error.message, re.DOTALL)
        where, message = (placed[1], placed[2]) if placed else (places[""], error.message)
        trial.found("project-setting", message, where=where, cure=error.hint)


def unit_lines(trial: Trial) -> list[str]:
    """What the leaves that have a unit are measured in, one line each; none where a unit is wrong."""
    try:
        units = checked_units(trial.request.units[0], trial.adapter) if trial.adapter is not None else {}
    except ProjectError:
        return []
    return [
        f"{name if name.startswith(side) else label(side, name)}: in {unit}"
        for side, of_side in units.items()
        for name, unit in of_side.items()
    ]


def adopt_mask(trial: Trial, info: Any) -> None:
    """Use the mask of `info` when there is one and the project leaves it open, as training does."""
    adapter = trial.adapter
    if adapter is None or adapter.mask_source is not None or trial.request.action_mask is not None:
        return
    if isinstance(info, dict) and "action_mask" in info and adapter.num_logits:
        request = trial.request
        trial.adapter = adapt(
            adapter.observation_space,
            adapter.action_space,
            algorithm=adapter.algorithm,
            action_scale=request.action_scale,
            action_mask="info",
            frame_stack=request.frame_stack,
        )


def _report_not_found(trial: Trial, error: SimError) -> None:
    where, message = trial.request.spec.locations.get(""), error.message
    placed = re.match(r"(\S+:\d+): (.*)", message, re.DOTALL)
    if placed:
        where, message = placed[1], placed[2]
    trial.found("not-found", message, where=where, cure=error.hint)


def _import_cure(target: Any, error: BaseException) -> str | None:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"pip install {error.name.split('.')[0]}   # or correct the import"
    module = target.partition(":")[0] if isinstance(target, str) and ":" in target else None
    return f"python -c 'import {module}'   # until it is quiet" if module else None


def _check_hidden(trial: Trial, root: Path | None) -> None:
    if root is None or not root.is_dir():
        return
    for name in sorted(module_names(root) & (NEEDED_MODULES | HIDING)):
        if (root / "pyproject.toml").is_file() and name == "platotk":
            continue  # platotk's own source tree
        file = f"{name}.py" if (root / f"{name}.py").is_file() else f"{name}/"
        message = f"{file} next to plato.yaml hides the module {name!r}, which training needs"
        trial.found("hides-module", message, where=f"{file}:1", cure=f"mv {file.rstrip('/')} my_{file.rstrip('/')}")


def _syntax_place(error: BaseException) -> str | None:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    return None


def _is_from_gym(kind: type) -> bool:
    return any(parent.__module__.split(".")[0] == "gym" for parent in kind.__mro__)


def _check_space(trial: Trial, name: str) -> bool:
    sim = trial.sim
    space = getattr(sim, name, None)
    if isinstance(space, gym_spaces.Space):
        return True
    where = trial.places.attribute(name)
    if space is not None and _is_from_gym(type(space)):
        message = f"{name} is a {type(space).__name__} of the old gym package"
        trial.found("old-gym", message, where=where, cure="from gymnasium import spaces   # instead of: from gym")
    else:
        what = "missing" if space is None else f"{space!r:.60} ({type(space).__name__}), not a space"
        trial.found("spaces-missing", f"{name} is {what}", where=where)
    return False


def _check_reset_arguments(trial: Trial, inner: Any) -> None:
    where = trial.places.method("reset")
    function = inner.reset if callable(getattr(inner, "reset", None)) else trial.sim.reset
    for name in ("seed", "options"):
        trial.takes[name] = takes_argument(function, name)
        if not trial.takes[name]:
            message = f"reset() takes no `{name}`; training calls reset(seed=..., options=...)"
            trial.found(f"reset-{name}", message, where=where)


def _check_action_bounds(trial: Trial, action_space: Any) -> None:
    where = trial.places.attribute("action_space")
    for path, space in _leaves_of(action_space, "action"):
        if not isinstance(space, gym_spaces.Box) or not np.issubdtype(space.dtype, np.floating) or not space.low.size:
            continue
        is_bounded = np.isfinite(space.low) & np.isfinite(space.high)
        if not is_bounded.all() and trial.request.action_scale is None:
            message = f"{path}: {int((~is_bounded).sum())} of {is_bounded.size} elements have no bound"
            trial.found("action-unbounded", message, where=where)
        reach = np.where(is_bounded, space.high.astype(np.float64) - space.low, 0.0)
        if reach.max(initial=0.0) > WIDE:
            at = int(np.argmax(reach))
            message = f"{path}: bounded by {space.low.reshape(-1)[at]:g} and {space.high.reshape(-1)[at]:g}"
            trial.found("action-range", message, where=where)


def _adapt(trial: Trial) -> None:
    """Make the adapter of the project; when it is refused, one of another algorithm to go on with."""
    sim, request = trial.sim, trial.request
    spaces = (sim.observation_space, sim.action_space)
    try:
        trial.adapter = adapt(
            *spaces,
            algorithm=request.algorithm,
            action_scale=request.action_scale,
            action_mask=request.action_mask,
            frame_stack=request.frame_stack,
        )
        return
    except ProjectError as error:
        trial.found("project-setting", error.message, cure=error.hint)
    except SimError as error:
        trial.report(_refusal_finding(trial, request.algorithm, error))
    for name in fitting(*spaces, action_scale=request.action_scale)[:1]:
        try:
            trial.adapter = adapt(*spaces, algorithm=name, action_scale=request.action_scale)
        except PlatoError:
            return


def _tell_misfits(trial: Trial) -> None:
    """What to report if the project's own function, which is called elsewhere, configures one of the choosy ones."""
    sim, scale = trial.sim, trial.request.action_scale
    spaces = (sim.observation_space, sim.action_space)
    refusals = {name: refusal(*spaces, name, action_scale=scale) for name in CHOOSY}
    told = {name: _refusal_finding(trial, name, error).to_dict() for name, error in refusals.items() if error}
    trial.tell({"misfits": told})


def _refusal_finding(trial: Trial, algorithm: str, error: SimError) -> Finding:
    sim, request = trial.sim, trial.request
    fits = fitting(sim.observation_space, sim.action_space, action_scale=request.action_scale)
    name = "observation_space" if error.message.startswith("observation") else "action_space"
    where = trial.places.attribute(name)
    if not fits:
        return finding("spaces-not-learnable", error.message, where=where, cure=error.hint)
    cure = f"algorithm: {fits[0]}" + (f"   # or {', '.join(fits[1:])}" if fits[1:] else "")
    if error.hint:
        cure = f"{cure}\n{error.hint}"
    message = f"{algorithm} cannot learn from these spaces: {error.message}"
    return finding("algorithm-misfit", message, where=where, cure=cure)
