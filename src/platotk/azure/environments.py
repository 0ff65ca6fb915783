"""The environment of jobs: an image built from the project's requirements and the wheel of the running platotk.

`environment` is given the options and the project and gives an entity of the SDK, with its build context written into
a folder; nothing is sent. Its name says its content, so that nothing is built twice. A project may give its own image,
conda file or Dockerfile instead.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ProjectError, missing_extra
from ..own_package import own_package
from .options import AzureOptions

if TYPE_CHECKING:
    from ..project import Project

CONDA_IMAGE = "mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04"
"""Where a conda file gets its packages put into, unless `image` says otherwise."""
EXTRAS = "train,serve,azure"
LOCKS = ("requirements.lock", "requirements.txt")
"""Of a project; the first that there is counts."""
MPI = "openmpi-bin libopenmpi-dev openssh-client iproute2"
CPU_TORCH = "https://download.pytorch.org/whl/cpu"
"""Torch without CUDA, a tenth of the size; for machines without a GPU."""


def environment(options: AzureOptions, project: Project | None, folder: Path) -> Any:
    """The `azure.ai.ml.entities.Environment` that jobs of a project need.

    Args:
        options: What plato.yaml says: `environment`, `requirements`, `distribution`, `size`.
        project: Whose requirements are read and whose folder paths are meant from; None for neither.
        folder: Where a build context is written; made if need be. It has to stay until the environment is sent.

    Raises:
        ProjectError: A file is not there, or a conda file's pins contradict what platotk needs.
        MissingExtraError: The extra is not installed.
    """
    try:
        from azure.ai.ml.entities import BuildContext, Environment
    except ImportError:
        raise missing_extra("azure-ai-ml", "azure") from None
    given = options.environment
    root = Path() if project is None else project.root
    about: dict[str, Any] = {}
    if "dockerfile" in given:
        dockerfile = existing(root, given["dockerfile"], "dockerfile")
        context = folder / "context"
        _copy(dockerfile.parent, context)
        digest = _digest(_contents(context))
        about["build"] = BuildContext(path=str(context), dockerfile_path=dockerfile.name)
    elif "conda_file" in given:
        conda = existing(root, given["conda_file"], "conda_file")
        _refuse_contradictions(conda)
        about = {"image": str(given.get("image", CONDA_IMAGE)), "conda_file": str(conda.resolve())}
        digest = _digest([about["image"].encode(), conda.read_bytes()])
    elif "image" in given:
        about["image"] = str(given["image"])
        digest = _digest([about["image"].encode()])
    else:
        context = build_context(options, root if project is not None else None, folder / "context")
        digest = _digest(_contents(context))
        about["build"] = BuildContext(path=str(context), dockerfile_path="Dockerfile")
    name, version = _name(given, project, digest)
    return Environment(
        name=name,
        version=version,
        description="Of jobs of plato train; its name or version says its content.",
        tags={"platotk": _version(), "platotk_content": digest},
        **about,
    )


def build_context(options: AzureOptions, root: Path | None, folder: Path) -> Path:
    """Write a Docker build context: Dockerfile, the wheel of platotk, requirements and constraints.

    Args:
        options: `requirements`, `distribution`, `size`.
        root: The project's folder, whose requirements.lock or requirements.txt is taken; None for none.
        folder: Made if need be.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wheel = own_package(folder).name
    lock = "" if root is None else _lock(root)
    has_hashes = "--hash=" in lock
    own = [*options.requirements, *([] if has_hashes else lock.splitlines())]
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in own), encoding="utf-8")
    (folder / "constraints.txt").write_text(_constraints(own), encoding="utf-8")
    extras = EXTRAS + (",ray" if options.distribution == "ray" else "")
    index = "" if _has_gpu(options.size) else f" --extra-index-url {CPU_TORCH}"
    lines = [
        "# The image of jobs on Azure Machine Learning. Written by platotk.",
        f"FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim-bookworm",
        "ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1",
        *_apt(options),
        "WORKDIR /platotk",
        f"COPY {wheel} requirements.txt constraints.txt ./",
        f"RUN python -m pip install -c constraints.txt{index} './{wheel}[{extras}]' fsspec -r requirements.txt",
    ]
    if has_hashes:
        (folder / "locked.txt").write_text(lock, encoding="utf-8")
        lines += ["COPY locked.txt ./", "RUN python -m pip install --require-hashes --no-deps -r locked.txt"]
    (folder / "Dockerfile").write_text("\n".join([*lines, ""]), encoding="utf-8")
    # Without it the SDK would leave out what a .gitignore above names.
    (folder / ".amlignore").touch()
    return folder


def existing(root: Path, path: Any, key: str) -> Path:
    """A file that `environment:` names, beside plato.yaml.

    Raises:
        ProjectError: It is not there.
    """
    found = root / str(path)
    if not found.is_file():
        raise ProjectError(f"environment: {key}: there is no file {found}.", hint="It is looked for beside plato.yaml.")
    return found


def project_requirements(options: AzureOptions, root: Path | None) -> list[str]:
    """Packages beside platotk, one a line: those of the options, then the project's own, without their hashes."""
    lock = "" if root is None else re.sub(r"\s*\\\n\s*--hash=\S+|\s+--hash=\S+", "", _lock(root))
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in lock.splitlines()]
    return [*options.requirements, *(line for line in lines if line)]


def _apt(options: AzureOptions) -> list[str]:
    if options.distribution != "mpi":
        return []
    return [
        f"RUN apt-get update && apt-get install -y --no-install-recommends {MPI} \\",
        "    && rm -rf /var/lib/apt/lists/*",
    ]


def _lock(root: Path) -> str:
    """The project's requirements.

    Raises:
        ProjectError: They name what is not in an image: files of this machine.
    """
    for name in LOCKS:
        path = root / name
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            if re.match(r"\s*(-e\b|--editable\b|-r\b|-c\b|\.|/|[A-Za-z]:\\|file:)", line) or "@ file:" in line:
                raise ProjectError(
                    f"{path}:{number}: {line.strip()!r} names a file of this machine, which no image has.",
                    hint="The project's own files travel with each job; give others by a URL or an index, or write "
                    "your own Dockerfile: environment: {dockerfile: docker/Dockerfile}",
                )
        return text
    return ""


def _constraints(own: Iterable[str]) -> str:
    """The versions platotk is tested with, where it runs from a checkout, less those that the user names."""
    path = Path(__file__).resolve().parents[3] / "requirements.lock"
    if not path.is_file() or not (path.parent / "pyproject.toml").is_file():
        return ""
    named = {requirement_name(line) for line in own}
    lines = path.read_text(encoding="utf-8").splitlines()
    return "".join(f"{line}\n" for line in lines if requirement_name(line) not in {*named, ""})


def requirement_name(line: str) -> str:
    """The package that a line of a requirements file names, as indexes spell it; empty for an option or a comment."""
    match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", line)
    return "" if match is None else re.sub(r"[-_.]+", "-", match[1]).lower()


def _has_gpu(size: str) -> bool:
    """N-series machines have NVIDIA GPUs."""
    return re.match(r"standard_n", size, re.IGNORECASE) is not None


def _refuse_contradictions(path: Path) -> None:
    """An image that cannot run platotk takes 20 minutes to build and a job to find out."""
    from .conda_files import findings_of_conda

    for found in findings_of_conda(path):
        if found.severity == "error":
            raise ProjectError(
                f"{found.where}: {found.message}",
                hint=f"Write a working one with: plato azure environment --migrate {path.name} > new.yml",
            )


def _copy(source: Path, target: Path) -> None:
    """A user's build context, without what never travels."""
    from ..compute.snapshot import snapshot

    snapshot(source, target)
    (target / ".amlignore").touch()


def _contents(folder: Path) -> Iterable[bytes]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix().encode()
            yield path.read_bytes()


def _digest(parts: Iterable[bytes]) -> str:
    """12 hexadecimal digits over the parts and where each ends."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(f"{len(part)}:".encode() + part)
    return whole.hexdigest()[:12]


def _name(given: dict[str, Any], project: Project | None, digest: str) -> tuple[str, str]:
    """The content stands in the version of an environment that the user named, else in the name."""
    if "name" in given:
        return str(given["name"]), str(given.get("version", digest))
    called = "" if project is None else re.sub(r"[^A-Za-z0-9-]+", "-", project.name).strip("-")
    return "-".join(filter(None, ["platotk", called[:60], digest])), str(given.get("version", "1"))


def _version() -> str:
    from .. import __version__

    return __version__
