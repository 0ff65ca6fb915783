"""The wheel of the running platotk, for wherever else it has to run.

platotk is on no package index, so images, endpoints and nodes install the very package that runs here. `own_package`
writes its wheel from the files in use: those of the checkout, or those that were installed. Nothing is downloaded, and
the same files give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

from .errors import ProjectError

_MOMENT = (1980, 1, 1, 0, 0, 0)
_WHEEL = b"Wheel-Version: 1.0\nGenerator: platotk\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_PACKAGE = Path(__file__).resolve().parent
_SHIPPED = ("plato.yaml", "sim.py", "train.py", "README.md")
"""Of the examples: what pyproject.toml puts into a wheel."""


def own_package(folder: Path) -> Path:
    """Write the wheel of the running platotk into a folder.

    Args:
        folder: Made if need be.

    Returns:
        `platotk-<version>-py3-none-any.whl` in the folder.

    Raises:
        ProjectError: platotk runs without having been installed, so that what it requires is not known.
    """
    try:
        installed = importlib.metadata.distribution("platotk")
    except importlib.metadata.PackageNotFoundError:
        raise ProjectError(
            "platotk is not installed, so its requirements are not known.",
            hint="In its checkout type: make install",
        ) from None
    name = f"platotk-{installed.version}"
    files = dict(_package_files())
    for part in ("METADATA", "entry_points.txt"):
        files[f"{name}.dist-info/{part}"] = (installed.read_text(part) or "").encode()
    licence = installed.read_text("licenses/LICENSE")
    if licence:
        files[f"{name}.dist-info/licenses/LICENSE"] = licence.encode()
    files[f"{name}.dist-info/WHEEL"] = _WHEEL
    files[f"{name}.dist-info/RECORD"] = _record(files, f"{name}.dist-info/RECORD")
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            entry = zipfile.ZipInfo(path, _MOMENT)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, data)
    return wheel


def _package_files() -> Iterator[tuple[str, bytes]]:
    """Path in the wheel and bytes of every file of the package; from a checkout, of the examples too."""
    for path in sorted(_PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
            yield f"platotk/{path.relative_to(_PACKAGE).as_posix()}", path.read_bytes()
    if (_PACKAGE / "examples").is_dir():
        return
    for place in sorted((_PACKAGE.parents[1] / "examples").glob("*/plato.yaml")):
        for name in _SHIPPED:
            if (place.parent / name).is_file():
                yield f"platotk/examples/{place.parent.name}/{name}", (place.parent / name).read_bytes()


def _record(files: dict[str, bytes], own_name: str) -> bytes:
    """The list of files with their hashes, as the wheel format asks (PEP 427)."""
    lines = [f"{path},sha256={_digest(data)},{len(data)}" for path, data in files.items()]
    return "\n".join([*lines, f"{own_name},,", ""]).encode()


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
