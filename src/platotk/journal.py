"""The metrics journal of a run: one JSON line per iteration, steps strictly rising, never rewritten.

`Journal` appends lines and, on resume, moves those past the checkpoint to `metrics.discarded.jsonl`;
`read` gives the lines back, tolerant of a last line that a killed writer left torn.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import PlatoError
from .formats import finite


class Journal:
    """Appends to one metrics.jsonl.

    Args:
        path: The file; made at the first append.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = read(path)
        self._last: Mapping[str, Any] | None = lines[-1] if lines else None
        self._is_mended = False

    @property
    def discarded_path(self) -> Path:
        """Where lines go that a resumed run does not build on."""
        return self.path.with_name("metrics.discarded.jsonl")

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line; it is on disk when this returns. NaN and infinity become null, numpy values plain.

        Raises:
            PlatoError: `iteration` or `env_steps` does not rise.
        """
        if self._last is not None:
            for key in ("iteration", "env_steps"):
                if line[key] <= self._last[key]:
                    raise PlatoError(f"the journal's {key} must rise: {line[key]} follows {self._last[key]}.")
        if not self._is_mended:
            self._mend()
        add_line(self.path, line)
        self._last = {"iteration": line["iteration"], "env_steps": line["env_steps"]}

    def discard_after(self, iteration: int) -> int:
        """Move the lines past an iteration, and a torn last line, to metrics.discarded.jsonl.

        May be killed at any moment and called again: each file is replaced in one step, the one with
        what is set aside first, and a line that is there already is not written twice.

        Returns:
            How many lines were moved.
        """
        kept: list[str] = []
        moved: list[str] = []
        for text in _texts(self.path):
            line = _parse(text)
            is_kept = line is not None and line["iteration"] <= iteration
            (kept if is_kept and not moved else moved).append(text)
        if moved:
            _replace(self.discarded_path, _without_tail(_texts(self.discarded_path), moved) + moved)
        if moved or not _ends_whole(self.path):
            _replace(self.path, kept)
        self._last = _parse(kept[-1]) if kept else None
        self._is_mended = True
        return len(moved)

    def _mend(self) -> None:
        """A line that a killed writer left without its end must not run into the next one."""
        if not _ends_whole(self.path):
            self.discard_after(-1 if self._last is None else self._last["iteration"])
        self._is_mended = True


class Follower:
    """Reads a journal as it grows, each byte once.

    Args:
        path: The file; may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._at, self._file = path, 0, 0

    def new_lines(self) -> list[dict[str, Any]]:
        """The whole lines since the last call; after a resume that took lines away, those that are left once more."""
        if not self._path.is_file():
            return []
        with self._path.open("rb") as stream:
            found = os.fstat(stream.fileno())
            if found.st_ino != self._file or found.st_size < self._at:  # a resume replaces the file
                self._at, self._file = 0, found.st_ino
            stream.seek(self._at)
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        texts = whole.decode("utf-8", errors="replace").split("\n")
        return [line for text in texts if (line := _parse(text)) is not None]


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal, oldest first; none when there is no file yet."""
    return [line for text in _texts(path) if (line := _parse(text)) is not None]


def last(path: Path) -> dict[str, Any] | None:
    """The last whole line, read from the end: quick however long the journal is."""
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        at = stream.seek(0, os.SEEK_END)
        tail = b""
        while at > 0:
            size = min(at, 65536)
            at = stream.seek(at - size)
            tail = stream.read(size) + tail
            texts = tail.decode("utf-8", errors="replace").split("\n")
            # The first one may have begun before what has been read.
            for text in reversed(texts if at == 0 else texts[1:]):
                if (line := _parse(text)) is not None:
                    return line
    return None


def add_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append one JSON line; it is on disk when this returns, and absent when there was no room for it."""
    text = json.dumps(finite(line), separators=(",", ":"), allow_nan=False) + "\n"
    with path.open("ab", buffering=0) as stream:
        size = stream.tell()
        try:
            rest = memoryview(text.encode("ascii"))
            while rest:
                rest = rest[stream.write(rest) or 0 :]
            os.fsync(stream.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                stream.truncate(size)
            raise


def _texts(path: Path) -> list[str]:
    """A file's lines as they stand, blank ones left out."""
    if not path.is_file():
        return []
    return [text for text in path.read_text(encoding="utf-8", errors="replace").split("\n") if text.strip()]


def _parse(text: str) -> dict[str, Any] | None:
    """The line, or None when it is torn."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("iteration"), int) else None


def _ends_whole(path: Path) -> bool:
    """Whether a file is absent, empty, or ends with the end of a line."""
    if not path.is_file() or path.stat().st_size == 0:
        return True
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read() == b"\n"


def _without_tail(there: list[str], moved: list[str]) -> list[str]:
    """`there` less the end that it shares with `moved`: what a killed call had set aside already."""
    shared = 0
    while shared < min(len(there), len(moved)) and there[-1 - shared] == moved[-1 - shared]:
        shared += 1
    return there[: len(there) - shared]


def _replace(path: Path, texts: list[str]) -> None:
    """Write lines so that the file is there whole or not at all."""
    draft = path.with_name(path.name + ".tmp")
    with draft.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(text + "\n" for text in texts)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(draft, path)
