"""Counters that several processes keep together without waiting for one another.

Given a folder, each process writes its own numbers into a file of its own there, mapped into memory; the total is the
sum over all files, those of processes that have ended included, so that no counter ever goes down. Without a folder the
numbers stay in this process.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

NAME_BYTES = 248
MAX_NAMES = 512
_RECORD = struct.Struct(f"<d{NAME_BYTES}s")
_VALUE = struct.Struct("<d")


class Counters:
    """Numbers by name that only grow."""

    def __init__(self, folder: Path | None = None) -> None:
        self._values: dict[str, float] = {}
        self._places: dict[str, int] = {}
        self._folder = folder
        self._own = None if folder is None else folder / f"{os.getpid()}"
        self._shared: mmap.mmap | None = None
        if self._own is not None:
            with self._own.open("w+b") as stream:
                stream.truncate(_RECORD.size * MAX_NAMES)
                self._shared = mmap.mmap(stream.fileno(), 0)

    def add(self, name: str, amount: float = 1) -> None:
        """Count."""
        value = self._values.get(name, 0) + amount
        self._values[name] = value
        if self._shared is not None:
            place = self._places.get(name)
            if place is None:
                self._place(self._shared, name, value)
            else:
                _VALUE.pack_into(self._shared, place, value)

    def total(self) -> dict[str, float]:
        """Every number, summed over all processes."""
        found = dict(self._values)
        for path in self._folder.iterdir() if self._folder is not None else ():
            if path == self._own:
                continue
            for value, name in _RECORD.iter_unpack(path.read_bytes()[: _RECORD.size * MAX_NAMES]):
                if not name[0]:
                    break
                key = name.rstrip(b"\0").decode()
                found[key] = found.get(key, 0) + value
        return found

    def _place(self, shared: mmap.mmap, name: str, value: float) -> None:
        place = len(self._places) * _RECORD.size
        encoded = name.encode()
        if place >= len(shared) or len(encoded) > NAME_BYTES:
            return  # shown by this process alone
        _RECORD.pack_into(shared, place, value, encoded)
        self._places[name] = place
