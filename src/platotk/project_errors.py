"""What is said when a project is wrong: where, what, and which word was probably meant.

`Source` knows where every key comes from (a line of the file, `--set`, or Python); `refusal` turns pydantic's
errors into one ProjectError; `override` applies `--set a.b=c`.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from . import strict_yaml
from .errors import ProjectError

Key = tuple[str, ...]

# Words that people bring from elsewhere.
_SYNONYMS = {
    "env": "sim",
    "environment": "sim",
    "simulator": "sim",
    "env_config": "sim_config",
    "config": "sim_config",
    "algo": "algorithm",
    "lr": "training.lr",
    "gamma": "training.gamma",
    "num_env_runners": "env_runners.num_env_runners",
    "num_workers": "env_runners.num_env_runners",
    "model_config": "rl_module.model_config",
    "timesteps": "stop.env_steps",
    "episode_reward_mean": "return_mean",
}


@dataclass(frozen=True)
class Source:
    """Where the keys of a project were written.

    Attributes:
        path: The file, or None for `Project(...)`.
        shown: The file as messages name it.
        lines: Line of each key.
        overridden: Keys that `--set` replaced.
    """

    path: Path | None = None
    shown: str = ""
    lines: dict[Key, int] = field(default_factory=dict)
    overridden: frozenset[Key] = frozenset()

    def where(self, key: Key) -> str:
        """The place of a key, or of the nearest section around it that was written down."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.overridden:
                return f"--set {'.'.join(key)}"
            if key[:length] in self.lines:
                return f"{self.shown}:{self.lines[key[:length]]}"
        return self.shown if self.path else f"Project({'.'.join(key)})"

    def order(self, key: Key) -> int:
        """For sorting messages as the file goes."""
        return next((self.lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.lines), 0)


def refusal(error: ValidationError, source: Source, model: type[BaseModel], *, within: Key = ()) -> ProjectError:
    """All that pydantic found, as one error, in the order of the file; `within` is the section that was checked."""
    found: dict[str, tuple[float, str | None]] = {}
    missing: list[ProjectError] = []
    for detail in error.errors(include_url=False):
        key = (*within, *(str(part) for part in detail["loc"]))
        if detail["type"] == "missing":
            missing.append(ProjectError(f"{source.where(key)}: {_complaint(key, detail)}"))
            continue
        if detail["type"] == "extra_forbidden":
            one = unknown_key(key, source, model)
        else:
            one = ProjectError(f"{source.where(key)}: {_complaint(key, detail)}")
        found.setdefault(one.message, (source.order(key), one.hint))
    if not any("Did you mean 'sim'?" in message for message in found):
        found.update({one.message: (float("inf"), None) for one in missing})
    messages = sorted(found, key=lambda message: found[message][0])
    hints = dict.fromkeys(hint for _, hint in found.values() if hint)
    return ProjectError("\n".join(messages), hint="\n".join(hints) or None)


def unknown_key(key: Key, source: Source, model: type[BaseModel]) -> ProjectError:
    """The error for a key that does not exist, with the nearest that does."""
    for part in key[:-1]:
        model = _models(model).get(part, model)  # a key of the user's own, or a place in a list, leads no deeper
    known, last = list(model.model_fields), key[-1]
    meant = _nearest(last, model, is_top=len(key) == 1)
    section = f" in {'.'.join(key[:-1])}" if len(key) > 1 else ""
    message = f"{source.where(key)}: unknown key {last!r}{section}."
    if meant:
        return ProjectError(f"{message} Did you mean {meant!r}?")
    return ProjectError(message, hint=f"Allowed{section}: {', '.join(known)}")


def override(
    fields: dict[Any, Any], overrides: Iterable[str], source: Source, model: type[BaseModel]
) -> tuple[dict[Any, Any], Source]:
    """Apply `a.b=c` in order; gives the new fields and a source that knows which were set so.

    Raises:
        ProjectError: Not of that form, an unknown section, or a path that leads through a value.
    """
    fields, overridden = copy.copy(fields), set(source.overridden)
    for text in overrides:
        dotted, equals, written = text.partition("=")
        key = tuple(part.strip() for part in dotted.split("."))
        if not equals or not all(key):
            raise ProjectError(f"--set {text}: expected key=value", hint="For example: --set training.lr=1e-3")
        if key[0] not in model.model_fields:
            named = replace(source, lines={}, overridden=frozenset({key[:1]}))
            raise ProjectError(
                unknown_key(key[:1], named, model).message.replace(f"--set {key[0]}:", f"--set {dotted.strip()}:", 1)
            )
        value = strict_yaml.parse(written, f"--set {dotted.strip()}").data
        inner = fields
        for depth, part in enumerate(key[:-1], start=1):
            below = inner.get(part)
            if below is not None and not isinstance(below, dict):
                section = ".".join(key[:depth])
                raise ProjectError(f"--set {dotted.strip()}: {section} is {below!r}, which has nothing inside")
            inner[part] = dict(below or {})
            inner = inner[part]
        inner[key[-1]] = value
        overridden.add(key)
    return fields, replace(source, overridden=frozenset(overridden))


def _nearest(word: str, model: type[BaseModel], *, is_top: bool) -> str | None:
    """The known key that was probably meant; from the top level also one inside a section."""
    known = list(model.model_fields)
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.7)
    if near:
        return near[0]
    if is_top:
        for section, inner in _models(model).items():
            if word in inner.model_fields:
                return f"{section}.{word}"
    if word in _SYNONYMS and (is_top or _SYNONYMS[word] in known):
        return _SYNONYMS[word]
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return near[0] if near else None


def _models(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The sections of a model that are models themselves."""
    inner = {}
    for name, about in model.model_fields.items():
        for kind in (about.annotation, *get_args(about.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                inner[name] = kind
    return inner


def _complaint(key: Key, detail: Any) -> str:
    name, kind, given = ".".join(key), detail["type"], detail["input"]
    if kind == "missing":
        return f"{name} is missing" + ("; at the least: sim: CartPole-v1" if name == "sim" else "")
    text = str(detail["ctx"]["error"]) if kind == "value_error" else detail["msg"]
    text = text.replace("Input should be", "expected").replace("String should", "text should")
    text = text.replace("expected greater than or equal to", "expected at least")
    text = text.replace("expected greater than", "expected more than")
    if not text.startswith("expected"):
        return f"{name}: {text[:1].lower() + text[1:]}"
    return f"{name} is {_short(given)}; {text}"


def _short(value: Any) -> str:
    shown = {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, (bool, type(None))) else None
    shown = shown or repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
