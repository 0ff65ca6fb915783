"""The manifest of an agent: what it is, what it was made from, and the hash of every file.

`write_manifest` closes a folder; `read_manifest` opens one (or an archive of one) and refuses it when a byte has
changed, a file is missing or too large, a name leads out of the folder, or the schema is not known. The manifest guards
itself too: it must be byte for byte the canonical form of what it says, and carries the hash of that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import AgentError
from .archive import is_archive, open_archive

SCHEMA = 1
SCHEMA_WITH_GUARD = 2
"""Of an agent with guards: what does not know them refuses it, and does not act without."""
KIND = "platotk-agent"
NAME = "manifest.json"
MAX_FILE_BYTES = 512 << 20
MAX_MANIFEST_BYTES = 16 << 20
REQUIRED_FILES = frozenset({"policy.onnx", "parity.json"})
_SELF = "manifest_sha256"


def write_manifest(folder: Path, content: Mapping[str, Any]) -> Path:
    """Hash every file in the folder and write the manifest, last.

    Args:
        folder: The agent's folder, complete but for the manifest.
        content: Everything else the manifest says; plain JSON values.
    """
    files = {
        entry.name: {"sha256": _sha256(entry.read_bytes()), "bytes": entry.stat().st_size}
        for entry in sorted(folder.iterdir())
        if entry.is_file() and entry.name != NAME
    }
    schema = SCHEMA_WITH_GUARD if content.get("guard") else SCHEMA
    manifest = {"schema": schema, "kind": KIND, **content, "files": files}
    manifest[_SELF] = _sha256(_canonical(manifest))
    path = folder / NAME
    path.write_bytes(_canonical(manifest))
    return path


def read_manifest(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest of an agent and the bytes of its files, read once, so that what was verified is what is used.

    Args:
        path: The agent's folder, or its archive.

    Raises:
        AgentError: Not an agent, or not the one that was written.
    """
    held = open_archive(path) if is_archive(path) else None
    manifest = _parse(path / NAME, _bytes(path, NAME, MAX_MANIFEST_BYTES, held))
    files = manifest.get("files")
    if not isinstance(files, dict) or not files.keys() >= REQUIRED_FILES:
        raise AgentError(f"{path / NAME} does not name the files of an agent.", hint="Export the agent again.")
    if held is not None and (more := held.keys() - files.keys() - {NAME}):
        raise AgentError(f"{path} holds {sorted(more)[0]!r}, which its manifest does not name.")
    return manifest, {name: _verified(path, name, entry, held) for name, entry in files.items()}


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AgentError(f"{path} is not JSON: {error}", hint="Export the agent again.") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise AgentError(f"{path} is not the manifest of an agent.", hint="Write one with: plato export RUN")
    if manifest.get("schema") not in (SCHEMA, SCHEMA_WITH_GUARD):
        raise AgentError(
            f"{path} has the schema {manifest.get('schema')!r}; this version of platotk reads {SCHEMA} and "
            f"{SCHEMA_WITH_GUARD}.",
            hint="Use the version of platotk that wrote it, or export the agent again.",
        )
    claimed = manifest.pop(_SELF, None)
    try:
        is_whole = claimed == _sha256(_canonical(manifest)) and _canonical({**manifest, _SELF: claimed}) == data
    except (ValueError, RecursionError):  # NaN, or nested without end: never written by export
        is_whole = False
    if not is_whole:
        raise _changed(path)
    return manifest


def _verified(folder: Path, name: Any, entry: Any, held: Mapping[str, bytes] | None) -> bytes:
    if not isinstance(name, str) or not name or name != Path(name).name or name in (".", "..", NAME) or "\\" in name:
        raise AgentError(f"the manifest of {folder} names the file {name!r}, which leads out of it.")
    data = _bytes(folder, name, MAX_FILE_BYTES, held)
    if not isinstance(entry, dict) or entry.get("sha256") != _sha256(data):
        raise _changed(folder / name)
    return data


def _bytes(folder: Path, name: str, limit: int, held: Mapping[str, bytes] | None) -> bytes:
    """One file of a folder, or of what an archive held."""
    path = folder / name
    is_there = name in held if held is not None else path.is_file() and not path.is_symlink()
    if not is_there and name == NAME:
        raise AgentError(f"{folder} holds no agent: there is no {NAME}.", hint="Write one with: plato export RUN")
    if not is_there:
        raise AgentError(f"{path} is missing, or a link.", hint="Copy the whole agent, or export it again.")
    if held is not None:
        data = held[name]
    else:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    if len(data) > limit:
        raise AgentError(f"{path} is larger than {limit >> 20} MiB.", hint="This is not a file that export wrote.")
    return data


def _canonical(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _changed(path: Path) -> AgentError:
    return AgentError(
        f"{path} is not what was exported: its hash does not match.",
        hint="Copy it again from its source, or export anew.",
    )
