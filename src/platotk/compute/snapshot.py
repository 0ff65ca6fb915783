"""Which of a project's files travel to another machine: all but runs, caches, secrets, and what `.platoignore` names.

`snapshot` copies them into a folder, so that nothing that is edited meanwhile is half sent.
"""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import SubmitError

IGNORE_FILE = ".platoignore"
NEVER = (
    *("runs", "mlruns", "mlflow.db", "logs", "outputs", "wandb"),
    *(
        ".git",
        ".venv",
        "venv",
        "node_modules",
        "__pycache__",
        "*.pyc",
        ".*_cache",
        ".tox",
        ".idea",
        ".vscode",
        ".cache",
    ),
    *(".env", ".env.*", "*.pem", "*.key", "id_rsa*", ".netrc", ".aws", ".azure", ".ssh"),
)
PACKAGE = ".platotk"
"""In the code of a job: the platotk that submitted it, whatever the image has."""
MOST_BYTES = 200 * 1024**2


def snapshot(root: Path, folder: Path) -> int:
    """Copy the files that travel.

    Args:
        root: The project's directory.
        folder: Where to; made.

    Returns:
        How many bytes.

    Raises:
        SubmitError: They are more than 200 MiB.
    """
    total = size_of(root)
    for path in files(root):
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    folder.mkdir(parents=True, exist_ok=True)
    return total


def size_of(root: Path) -> int:
    """Bytes of the files that travel.

    Raises:
        SubmitError: They are more than 200 MiB.
    """
    sizes = {path: path.stat().st_size for path in files(root)}
    total = sum(sizes.values())
    if total > MOST_BYTES:
        largest = max(sizes, key=lambda path: sizes[path])
        raise SubmitError(
            f"the project's files are {total / 1024**2:.0f} MiB, and {MOST_BYTES // 1024**2} MiB travel with a job; "
            f"the largest is {largest.relative_to(root)}.",
            hint=f"Name what is not needed in {root / IGNORE_FILE}, one pattern a line.",
        )
    return total


def files(root: Path) -> Iterator[Path]:
    """The files that travel, in order; links are followed for files, not for folders."""
    patterns = [*NEVER, *_ignored(root)]
    yield from _walk(root, root, patterns)


def _walk(root: Path, folder: Path, patterns: list[str]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        name = path.relative_to(root).as_posix()
        if any(fnmatch.fnmatch(path.name, pattern) or fnmatch.fnmatch(name, pattern) for pattern in patterns):
            continue
        if path.is_dir():
            # `code` beside job.yml is a copy of the project, which `plato azure yaml` wrote.
            if not path.is_symlink() and not (path / "code" / PACKAGE).is_dir():
                yield from _walk(root, path, patterns)
        elif path.is_file():
            yield path


def _ignored(root: Path) -> list[str]:
    """The patterns of the ignore file; `#` begins a comment, a final slash says nothing more."""
    path = root / IGNORE_FILE
    if not path.is_file():
        return []
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line.strip("/") for line in lines if line and not line.startswith("#")]
