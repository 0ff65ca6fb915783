"""What `plato init` writes: a commented project that checks and trains as it stands.

Given a directory and, if wanted, a source (a Gymnasium id or the name of an example); gives back the files it
wrote. It never overwrites a file, and when it refuses, or fails half-way, it leaves nothing behind.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from .errors import ProjectError

TEMPLATES = Path(__file__).parent / "templates"
NUM_ITERATIONS = 30


def init(path: str | Path = ".", *, source: str | None = None) -> list[Path]:
    """Start a project in `path`.

    Args:
        path: The directory; made if it is not there.
        source: A Gymnasium id (`CartPole-v1`) for a project without code, the name of an example
            (`simple-adder`) for a copy of it, or None for a `sim.py` to fill in.

    Returns:
        The files written, plato.yaml first.

    Raises:
        ProjectError: A file of that name is there already, or there is no such source.
    """
    return _write(Path(path), _files(source))


def examples() -> dict[str, Path]:
    """The examples by name, each a directory: in the installed package, or in the checkout."""
    package = Path(__file__).resolve().parent
    for place in (package / "examples", package.parents[1] / "examples"):
        if place.is_dir():
            return {file.parent.name: file.parent for file in sorted(place.glob("*/plato.yaml"))}
    return {}


def _files(source: str | None) -> dict[str, str]:
    """Names and contents of what to write."""
    if source is None:
        files = {"plato.yaml": _project_file("sim: sim:Sim # the class Sim in sim.py")}
        return {**files, "sim.py": (TEMPLATES / "sim.py.txt").read_text("utf-8")}
    shipped = examples()
    if source in shipped:
        # Only what the example is made of: no runs, no caches.
        names = [file.name for file in shipped[source].iterdir() if file.suffix in (".yaml", ".py", ".md")]
        names.sort(key=lambda name: (name != "plato.yaml", name))
        return {name: (shipped[source] / name).read_text("utf-8") for name in names}
    _require_gymnasium_id(source, list(shipped))
    return {"plato.yaml": _project_file(f"sim: {source}")}


def _project_file(sim: str) -> str:
    text = (TEMPLATES / "plato.yaml").read_text("utf-8")
    return text.replace("@sim@", sim).replace("@iterations@", str(NUM_ITERATIONS))


def _require_gymnasium_id(source: str, shipped: list[str]) -> None:
    import gymnasium

    if re.fullmatch(r"(?:[\w.]+:)?(?:[\w.-]+/)?[\w.:-]+", source):
        try:
            gymnasium.spec(source)
            return
        except (gymnasium.error.Error, ImportError):
            pass  # told below, with the nearest names
    names = [*shipped, *gymnasium.registry]
    near = difflib.get_close_matches(source, names, n=1) or [
        name for name in names if name.lower().partition("-v")[0] == source.lower().partition("-v")[0]
    ]
    raise ProjectError(
        f"--from {source}: neither an example nor a Gymnasium id." + (f" Did you mean {near[-1]!r}?" if near else ""),
        hint=f"Examples: {', '.join(shipped)}. Ids: those of gymnasium.registry, such as CartPole-v1.",
    )


def _write(folder: Path, files: dict[str, str]) -> list[Path]:
    """All of the files or none."""
    if folder.exists() and not folder.is_dir():
        raise ProjectError(f"{folder} is a file, not a directory", hint="Name another: plato init my-project")
    there = [folder / name for name in files if (folder / name).exists() or (folder / name).is_symlink()]
    if there:
        raise ProjectError(
            f"{', '.join(str(path) for path in there)}: there already, and never overwritten",
            hint="Name another directory: plato init my-project",
        )
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            with (folder / name).open("x", encoding="utf-8", newline="\n") as file:
                written.append(folder / name)
                file.write(text)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        for parent in made:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        raise ProjectError(f"{error.filename or folder}: {error.strerror or error}; nothing was written") from error
    return written
