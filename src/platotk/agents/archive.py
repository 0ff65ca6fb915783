"""An agent in one file: its folder as a zip, for copying and for registries.

`write_archive` makes one of a folder; `open_archive` reads one entirely in memory, so that nothing it says about paths
ever reaches a disk. Whatever an export does not write (folders, links, absolute or climbing names, two files of one
name, encryption, files that unpack out of all proportion) is refused before anything is unpacked.
"""

from __future__ import annotations

import os
import stat
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import AgentError

if TYPE_CHECKING:
    import zipfile  # loaded where it is used: most agents are folders, and must start fast

SUFFIX = ".zip"
MAX_FILES = 64
MAX_UNPACKED_BYTES = 1 << 30
MAX_RATIO = 100
"""Unpacked to packed, for archives that unpack to more than FREE_BYTES; real agents stay under 30."""
FREE_BYTES = 16 << 20
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 0x1
_MOMENT = (1980, 1, 1, 0, 0, 0)  # the same folder gives the same bytes


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a path names an agent in one file; it is not opened."""
    return Path(path).suffix.lower() == SUFFIX and Path(path).is_file()


def write_archive(folder: Path) -> Path:
    """Write `<folder>.zip` beside an agent's folder.

    Returns:
        The archive, byte for byte the same for the same folder.

    Raises:
        AgentError: The folder is no agent, or was changed since it was exported.
    """
    import zipfile

    from .manifest import NAME, read_manifest

    _, files = read_manifest(folder)
    target = folder.with_name(folder.name + SUFFIX)
    draft = target.with_name(f".{target.name}-{os.getpid()}")
    try:
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in sorted({**files, NAME: (folder / NAME).read_bytes()}.items()):
                entry = zipfile.ZipInfo(name, _MOMENT)
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, (stat.S_IFREG | 0o644) << 16
                archive.writestr(entry, data)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def open_archive(path: Path) -> dict[str, bytes]:
    """Every file of an archive by name, in memory; what is in them is not looked at.

    Raises:
        AgentError: Not a zip, damaged, or not what `write_archive` writes.
    """
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _require_harmless(path, entries)
            return {entry.filename: _read(path, archive, entry) for entry in entries}
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise AgentError(f"{path} cannot be read as a zip: {error}", hint="Copy it again from its source.") from error


def _require_harmless(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MAX_FILES:
        raise _refused(path, f"holds {len(entries)} files, at most {MAX_FILES} may be")
    seen: set[str] = set()
    for entry in entries:
        # As it stands in the file: zipfile itself cuts names off at a NUL and turns backslashes around.
        name, mode = entry.orig_filename, entry.external_attr >> 16
        if not _is_plain(name) or entry.filename != name:
            raise _refused(path, f"names the file {name!r}, which leads out of it")
        if entry.is_dir() or (mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG)):
            raise _refused(path, f"holds {name!r}, which is no file but a link, a folder or a device")
        if name.casefold() in seen:
            raise _refused(path, f"holds {name!r} twice")
        if entry.flag_bits & _ENCRYPTED or entry.compress_type not in (_STORED, _DEFLATED):
            raise _refused(path, f"holds {name!r} encrypted, or packed in a way that export does not use")
        seen.add(name.casefold())
    unpacked, packed = sum(entry.file_size for entry in entries), path.stat().st_size
    if unpacked > MAX_UNPACKED_BYTES or (unpacked > FREE_BYTES and unpacked > MAX_RATIO * packed):
        raise _refused(path, f"unpacks from {packed:,} to {unpacked:,} bytes")


def _is_plain(name: str) -> bool:
    """A file name and nothing else, on every system."""
    return bool(name) and name not in (".", "..") and name.isprintable() and not set(name) & set('/\\:*?"<>|')


def _read(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    with archive.open(entry) as stream:
        data = stream.read(entry.file_size + 1)
    if len(data) != entry.file_size:
        raise _refused(path, f"holds {entry.filename!r} with another size than it says")
    return data


def _refused(path: Path, why: str) -> AgentError:
    return AgentError(f"{path} {why}.", hint="This is not an archive that plato export wrote; do not trust it.")
