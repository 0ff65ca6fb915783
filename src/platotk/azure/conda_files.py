"""Conda files: which of their lines contradict what a job needs, and a file that works instead.

`findings_of_conda` gives findings, each with its line and the line to write; `migrate` writes those lines and keeps
the rest of the file as it is. What is needed is read from the metadata of the installed platotk.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..errors import ProjectError
from .environments import requirement_name

if TYPE_CHECKING:
    from ..sims.checks.findings import Finding

IN_A_JOB = ("train",)
"""Extras that a job needs; platotk itself travels with the job."""
ALSO = ("azureml-mlflow>=1.62.0.post6", "fsspec>=2024.6")
"""Of the extra `azure`, what a job needs."""
PYTHON = "3.11"
"""What a file without a usable pin of Python gets."""
NEEDLESS = {
    "azureml-defaults": "brings version 1 of Azure's SDK, which jobs no longer need",
    "azureml-core": "is version 1 of Azure's SDK, which jobs no longer need",
    "azureml-sdk": "is version 1 of Azure's SDK, which jobs no longer need",
    "ray-on-aml": "forms clusters of Ray 2.3 and brings version 1 of Azure's SDK; `plato node` forms the cluster",
    "tensorflow": "is not used: RLlib trains with torch",
    "gym": "is gymnasium today",
}
OPEN_PYTHON = "no pin of Python: conda would take its newest"
LEAVE_OUT = "leave the line out"
"""The cure of a line that has no better one."""
OF_THIS_MACHINE = re.compile(r"\s*(-e\b|--editable\b|-r\b|--requirement\b|-c\b|--constraint\b|\.|/|file:)|.*@\s*file:")
OF_CONDA = {"pytorch": "torch", "ray-rllib": "ray", "ray-default": "ray", "ray-core": "ray", "ray-tune": "ray"}
"""conda-forge calls some packages otherwise than pip's index does."""


@dataclass(frozen=True)
class Line:
    """One dependency of a conda file.

    Attributes:
        text: As it stands there.
        number: Of its line, from 1.
        is_pip: Whether it stands under pip.
    """

    text: str
    number: int
    is_pip: bool

    @property
    def name(self) -> str:
        """The package, as pip's index calls it."""
        if self.is_pip:
            return requirement_name(self.text)
        name = requirement_name(self.text.rpartition("::")[2])
        return OF_CONDA.get(name, name)


def findings_of_conda(path: Path) -> list[Finding]:
    """What a conda file says that contradicts platotk, and what it lacks.

    Args:
        path: Of the conda file.

    Returns:
        Errors (a job could not start), then warnings and notes; `cure` is the line to write.

    Raises:
        ProjectError: It is not a conda file.
    """
    text = _read(path)
    return [found for found, _ in _found(text, path)]


def migrate(path: Path) -> str:
    """The conda file with every finding cured; other lines and comments stay as they are.

    Args:
        path: Of the conda file; it is not changed.

    Raises:
        ProjectError: It is not a conda file.
    """
    return _migrated(_read(path), path)


def _migrated(text: str, path: Path) -> str:
    if not _is_one_per_line(text):
        content = yaml.safe_load(text)
        content["dependencies"] = content["dependencies"] or [f"python={PYTHON}"]
        text = yaml.safe_dump(content, sort_keys=False)
    lines, listed = text.splitlines(), _found(text, path)
    named = [(found, line) for found, line in listed if found.id == "conda-local" and found.cure != LEAVE_OUT]
    if named:
        # First the packages of the files that it names, which may have findings of their own.
        for found, line in named:
            _replace(lines, line, found.cure)
        return _migrated("\n".join(lines), path)
    missing: list[str] = []
    gone: set[int] = set()
    for found, line in listed:
        if found.id == "conda-channel" or line is None:
            missing += [] if found.id != "conda-missing" else (found.cure or "").splitlines()
        elif found.cure == LEAVE_OUT:
            gone.add(line.number - 1)
        else:
            _replace(lines, line, found.cure)
    if any(line.startswith("- python=") for line in missing):
        _insert_python(lines, next(line for line in missing if line.startswith("- python=")))
    wanted = [line.strip() for line in missing if not line.startswith("- python=")]
    kept = [row for index, row in enumerate(lines) if index not in gone]
    return "\n".join(_with_pip(kept, wanted)) + "\n"


def _replace(lines: list[str], line: Line | None, cure: str | None) -> None:
    """Write a cure where a line stands, as far in as it stands."""
    if line is not None:
        row = lines[line.number - 1]
        indent = row[: len(row) - len(row.lstrip())]
        lines[line.number - 1] = "\n".join(indent + one for one in (cure or "").splitlines())


def needed() -> dict[str, str]:
    """Package to requirement of all that a job needs: `{"ray": "ray[rllib]<2.61,>=2.60", ...}`."""
    found: dict[str, str] = {}
    for line in [*(importlib.metadata.requires("platotk") or ()), *ALSO]:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
        if extra is None or extra[1] in IN_A_JOB:
            found[requirement_name(requirement)] = requirement.strip()
    return found


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ProjectError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("dependencies"), list):
        raise ProjectError(
            f"{path} is not a conda file: it has no list `dependencies:`.",
            hint="See examples/simple-adder/conda.yml for one.",
        )
    return text


def _found(text: str, path: Path) -> list[tuple[Finding, Line | None]]:
    """Each finding and the line it is about; ordered by gravity, then by place."""
    from ..sims.checks.findings import Finding

    lines, wanted = list(_lines(text)), needed()
    found: list[tuple[Finding, Line | None]] = []

    def add(name: str, severity: Any, message: str, line: Line | None, cure: str | None) -> None:
        where = f"{path.name}:{line.number}" if line is not None else path.name
        found.append((Finding(name, severity, message, where, cure), line))

    there = {line.name for line in lines}
    for line in lines:
        if line.name == "python":
            if not line.text.rpartition("::")[2].strip()[len("python") :]:
                add("conda-python", "error", OPEN_PYTHON, line, f"- python={PYTHON}")
            elif not _python_fits(line.text):
                told = f"{line.text}: platotk needs Python {_python_range()}"
                add("conda-python", "error", told, line, f"- python={PYTHON}")
        elif line.is_pip and OF_THIS_MACHINE.match(line.text):
            packages = _named_by(line.text, path.parent)
            there |= {requirement_name(package) for package in packages}
            told = f"{line.text} names a file of this machine, and only the conda file is sent"
            add("conda-local", "error", told, line, "\n".join(f"- {one}" for one in packages) or LEAVE_OUT)
        elif line.name in NEEDLESS:
            add("conda-needless", "warning", f"{line.text} {NEEDLESS[line.name]}", line, LEAVE_OUT)
        elif line.name in wanted and not _fits(line, wanted[line.name]):
            told = f"{line.text}: a job needs {wanted[line.name]}"
            add("conda-pin", "error", told, line, f"- {_written(line, wanted[line.name])}")
    if "python" not in there:
        add("conda-missing", "error", OPEN_PYTHON, None, f"- python={PYTHON}")
    lacking = [name for name in wanted if name not in there]
    if "platotk" not in there and lacking:
        told = f"a job needs {', '.join(lacking)} too"
        add("conda-missing", "error", told, None, "\n".join(f"- {wanted[name]}" for name in lacking))
    if _channels(text) & {"anaconda", "defaults"}:
        told = "Anaconda's own channels ask a licence of larger organisations; conda-forge does not"
        add("conda-channel", "note", told, None, "channels: [conda-forge]")
    rank = {"error": 0, "warning": 1, "note": 2}
    return sorted(found, key=lambda one: (rank[one[0].severity], one[1].number if one[1] else 1 << 30))


def _lines(text: str) -> Iterator[Line]:
    """Every dependency with its place."""
    for item in _dependencies(yaml.compose(text)):
        if isinstance(item, yaml.ScalarNode):
            yield Line(item.value, item.start_mark.line + 1, is_pip=False)
        elif isinstance(item, yaml.MappingNode):
            for key, value in item.value:
                if key.value == "pip" and isinstance(value, yaml.SequenceNode):
                    for one in value.value:
                        yield Line(str(one.value), one.start_mark.line + 1, is_pip=True)


def _dependencies(root: Any) -> list[Any]:
    for key, value in root.value:
        if key.value == "dependencies":
            return list(value.value)
    return []


def _named_by(text: str, folder: Path) -> list[str]:
    """The packages in a file of requirements that is beside the conda file; none of anything else."""
    match = re.match(r"\s*(?:-r|--requirement)[\s=]+(\S+)", text)
    if match is None or not (folder / match[1]).is_file():
        return []
    content = re.sub(r"\s*\\\n\s*--hash=\S+|\s+--hash=\S+", "", (folder / match[1]).read_text(encoding="utf-8"))
    rows = [re.sub(r"(^|\s)#.*", "", row).strip() for row in content.splitlines()]
    return [row for row in rows if row and not OF_THIS_MACHINE.match(row)]


def _channels(text: str) -> set[str]:
    listed = yaml.safe_load(text).get("channels")
    return {str(channel) for channel in listed} if isinstance(listed, list) else set()


def _is_one_per_line(text: str) -> bool:
    """Whether every dependency has a line of its own, so that lines can be exchanged."""
    root: Any = yaml.compose(text)
    lists = [value for key, value in root.value if key.value == "dependencies"]
    for item in _dependencies(root):
        lists += [value for _, value in item.value] if isinstance(item, yaml.MappingNode) else []
    return all(isinstance(one, yaml.SequenceNode) and not one.flow_style and one.value for one in lists)


def _python_range() -> str:
    return str(importlib.metadata.metadata("platotk")["Requires-Python"])


def _python_fits(text: str) -> bool:
    from packaging.specifiers import SpecifierSet

    ours = SpecifierSet(_python_range())
    return _meet(_specifier(text, is_pip=False), ours, ["3.10", "3.11", "3.12", "3.13"])


def _fits(line: Line, requirement: str) -> bool:
    """Whether some version satisfies both."""
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    if any(mark in line.text for mark in ("@", "git+")):
        return True  # an address: nobody knows which version is behind it
    try:
        installed = [importlib.metadata.version(wanted.name)]
    except importlib.metadata.PackageNotFoundError:
        installed = []
    return _meet(_specifier(line.text, is_pip=line.is_pip), wanted.specifier, installed)


def _specifier(text: str, *, is_pip: bool) -> Any:
    """What follows the name; conda's `=1.2` and `1.2` mean `==1.2.*`. None when it is not understood."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    match = re.match(r"\s*(?:[\w.-]+::)?[A-Za-z0-9][\w.-]*\s*(?:\[[^\]]*\])?\s*([^;#]*)", text)
    rest = "" if match is None else match[1].strip()
    if not is_pip:
        rest = re.split(r"(?<=[\w*])[=\s](?=[A-Za-z_])", rest)[0].strip()  # without the build: numpy=1.24.2=py38h
        rest = re.sub(r"(^|,)\s*=?\s*(\d[\w.]*?)(?:\.\*)?(?=$|,)", r"\1==\2.*", rest)
    try:
        return SpecifierSet(rest)
    except InvalidSpecifier:
        return None


def _meet(theirs: Any, ours: Any, candidates: list[str]) -> bool:
    """Whether one of the versions that the two speak of, or one of the candidates, satisfies both."""
    if theirs is None:
        return True
    spoken = [one.version.removesuffix(".*") for one in [*theirs, *ours]]
    both = theirs & ours
    return any(both.contains(one, prereleases=True) for one in [*candidates, *spoken])


def _written(line: Line, requirement: str) -> str:
    """A requirement as its place takes it, with the extras that the user asked for."""
    if not line.is_pip:
        name = requirement_name(line.text.rpartition("::")[2])
        return ("ray-rllib" if name == "ray" else name) + re.sub(r"^[\w.-]+(\[[^\]]*\])?", "", requirement)
    theirs, ours = (_extras(text) for text in (line.text, requirement))
    extras = ",".join(sorted(theirs | ours))
    return re.sub(r"^([\w.-]+)(\[[^\]]*\])?", rf"\1[{extras}]" if extras else r"\1", requirement)


def _extras(text: str) -> set[str]:
    match = re.match(r"[\w.-]+\[([^\]]*)\]", text)
    return set() if match is None else {one.strip() for one in match[1].split(",")}


def _insert_python(lines: list[str], line: str) -> None:
    at = next(index for index, row in enumerate(lines) if row.startswith("dependencies"))
    first = next((row for row in lines[at + 1 :] if row.lstrip().startswith("-")), "- ")
    lines.insert(at + 1, first[: len(first) - len(first.lstrip())] + line)


def _with_pip(lines: list[str], wanted: list[str]) -> list[str]:
    """The lines with more under pip; the list is made where there is none."""
    if not wanted:
        return lines
    at = next((index for index, row in enumerate(lines) if re.match(r"\s*-\s*pip\s*:", row)), None)
    if at is not None:
        first = next((row for row in lines[at + 1 :] if row.lstrip().startswith("-")), None)
        outer = len(lines[at]) - len(lines[at].lstrip())
        inner = len(first) - len(first.lstrip()) if first is not None else 0
        indent = " " * (inner if inner > outer else outer + 4)
        return [*lines[: at + 1], *(f"{indent}{row}" for row in wanted), *lines[at + 1 :]]
    last = max(index for index, row in enumerate(lines) if row.lstrip().startswith("-"))
    indent = " " * (len(lines[last]) - len(lines[last].lstrip()))
    has_pip = any(re.match(r"\s*-\s*pip\b", row) for row in lines)
    more = [*([] if has_pip else [f"{indent}- pip"]), f"{indent}- pip:", *(f"{indent}    {row}" for row in wanted)]
    return [*lines[: last + 1], *more, *lines[last + 1 :]]
