"""The metrics journal of a run: one JSON line per iteration, steps strictly rising, never rewritten.

`Journal` appends lines and, on resume, moves those past the checkpoint to `metrics.discarded.jsonl`; `read` gives the
lines back, tolerant of a last line that a killed writer left torn.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import PlatoError


class Journal:
    """Appends to one metrics.jsonl.

    Args:
        path: The file; made at the first append.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: Mapping[str, Any] | None = None
        if path.is_file():
            lines = read(path)
            self._last = lines[-1] if lines else None

    @property
    def discarded_path(self) -> Path:
        """Where lines go that a resumed run does not build on."""
        return self.path.with_name("metrics.discarded.jsonl")

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line; it is on disk when this returns.

        Raises:
            PlatoError: `iteration` or `env_steps` does not rise.
        """
        if self._last is not None:
            for key in ("iteration", "env_steps"):
                if line[key] <= self._last[key]:
                    raise PlatoError(f"the journal's {key} must rise: {line[key]} follows {self._last[key]}.")
        text = json.dumps(_finite(line), separators=(",", ":"), allow_nan=False, default=_plain) + "\n"
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        self._last = {"iteration": line["iteration"], "env_steps": line["env_steps"]}

    def discard_after(self, iteration: int) -> int:
        """Move the lines past an iteration, and a torn last line, to metrics.discarded.jsonl.

        May be killed at any moment and called again: what is kept is replaced in one step, after what is set aside is
        on disk, and a line that is there already is not written twice.

        Returns:
            How many lines were moved.
        """
        if not self.path.is_file():
            return 0
        kept, moved = [], []
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            line = _parse(text)
            (kept if line is not None and line["iteration"] <= iteration else moved).append((text, line))
        if moved:
            _append_new(self.discarded_path, [text for text, _ in moved])
            _replace(self.path, "".join(text + "\n" for text, _ in kept))
        self._last = kept[-1][1] if kept else None
        return len(moved)


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal; none when there is no file yet."""
    if not path.is_file():
        return []
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for text in texts if (line := _parse(text)) is not None]


def _parse(text: str) -> dict[str, Any] | None:
    """The line, or None when it is torn."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("iteration"), int) else None


def _append_new(path: Path, texts: list[str]) -> None:
    there = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    if there[len(there) - len(texts) :] == texts:
        return  # moved already by a call that was killed before it replaced the journal
    with path.open("a", encoding="utf-8") as stream:
        stream.writelines(text + "\n" for text in texts)
        stream.flush()
        os.fsync(stream.fileno())


def _replace(path: Path, content: str) -> None:
    draft = path.with_name(path.name + ".tmp")
    with draft.open("w", encoding="utf-8") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(draft, path)


def _finite(value: Any) -> Any:
    """NaN and infinity are not JSON: null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _plain(value: Any) -> str:
    return str(value)
