"""What a machine has for Ray's object store: memory within its container, and room in /dev/shm.

Containers often get 64 MB to 2 GB of /dev/shm; Ray would then put its store on the disk, with a warning that nobody
reads.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ...container import usable_memory

SHM = Path("/dev/shm")
SHARE_OF_MEMORY = 0.3
"""What Ray takes too."""
SHARE_OF_SHM = 0.9
LEAST_BYTES = 80 * 1024**2
"""Ray refuses a store below 75 MiB."""


@dataclass(frozen=True)
class ObjectStore:
    """How large Ray's object store may be, and where it lies.

    Attributes:
        num_bytes: Its size.
        folder: Where, when not in /dev/shm.
        note: What to tell people, or empty.
    """

    num_bytes: int
    folder: Path | None = None
    note: str = ""


def fit_object_store(temp: Path, *, shm: Path = SHM, memory: int | None = None) -> ObjectStore:
    """A store that fits this machine.

    Args:
        temp: Where it goes when there is next to no shared memory.
        shm: Where shared memory is.
        memory: Bytes of memory; default: what this container may use.
    """
    wanted = int(SHARE_OF_MEMORY * (usable_memory() if memory is None else memory))
    try:
        about = os.statvfs(shm)
        room = int(SHARE_OF_SHM * about.f_bavail * about.f_frsize)
    except OSError:
        room = 0
    if room < LEAST_BYTES:
        return ObjectStore(
            max(LEAST_BYTES, min(wanted, 1024**3)),
            temp,
            f"{shm} has {room // 1024**2} MiB: the object store is on disk. Give the container more (shm_size: 8g).",
        )
    note = ""
    if room < wanted // 4:
        note = f"{shm} has {room // 1024**2} MiB of the {wanted // 1024**2} MiB that suit this machine (shm_size)."
    return ObjectStore(max(LEAST_BYTES, min(wanted, room)), None, note)
