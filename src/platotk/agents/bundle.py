"""`deploy`: an agent with all that it needs elsewhere, as a Docker context or as a folder that starts itself.

Given an exported agent, writes a folder with the agent, the wheel of the running platotk, and requirements pinned by
hash. `to="docker"` adds a Dockerfile and builds the image where a Docker engine answers; `to="folder"` adds scripts
that make a virtual environment and serve. No key is ever written.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from ..errors import AgentError, ProjectError
from ..own_package import own_package
from .agent import Agent
from .archive import is_archive, open_archive
from .manifest import NAME, read_manifest

PLACES = ("docker", "folder")
_TEMPLATES = {"docker": ("Dockerfile",), "folder": ("run.sh", "run.ps1")}
_DOCKER_TIMEOUT_S = 10.0
_TAG = re.compile(r"[a-z0-9]+(?:(?:[._/:-]|__)[a-z0-9]+)*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?")


@dataclass
class Deployment:
    """What `deploy` wrote, or would write.

    Attributes:
        to: docker or folder.
        path: The folder.
        agent: The agent that is in it.
        files: Size in bytes of each file, by its path in the folder.
        commands: What to type to build and start it, in the folder.
        tag: The image's name; None for a folder.
        is_built: Whether the image was built here.
        texts: The files that `deploy` wrote itself, for people to look at.
    """

    to: str
    path: Path
    agent: Path
    files: dict[str, int]
    commands: list[str]
    tag: str | None = None
    is_built: bool = False
    texts: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "path": str(self.path), "agent": str(self.agent)}


def deploy(
    agent: Path | str,
    *,
    to: str,
    out: Path | str | None = None,
    tag: str | None = None,
    build: bool = True,
    dry_run: bool = False,
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> Deployment:
    """Write an agent with all that it needs to be served elsewhere.

    Args:
        agent: The folder, or the `.zip`, that `plato export` wrote.
        to: `docker` or `folder`.
        out: The folder to write, which must not exist or be empty. Default: beside the agent, `<agent>-docker`.
        tag: The image's name; default: made of the agent's name and its hash.
        build: Whether to build the image, if a Docker engine answers.
        dry_run: Write and build nothing.
        on_event: Called with `{"event": "building", "command": ...}` before the image is built.

    Raises:
        AgentError: Not a whole agent, not acting as recorded, or in need of code of the project's.
        ProjectError: An unknown place, a bad tag, a folder that holds something, or the build failed.
    """
    if to not in PLACES:
        also = "; azure is plato deploy --to azure, or platotk.azure.endpoints.deploy"
        raise ProjectError(f"agents are not deployed to {to!r}.", hint=f"Known are: {', '.join(PLACES)}{also}.")
    if tag is not None and (to != "docker" or not _TAG.fullmatch(tag)):
        why = "is for --to docker alone" if to != "docker" else "is no name of an image"
        raise ProjectError(f"the tag {tag!r} {why}.", hint="Such as --tag registry.example.com/pump:1, in lower case.")
    source = Path(agent)
    loaded = proven(source)
    name = plain_name(loaded.manifest)
    path = Path(out) if out is not None else source.with_name(f"{source.stem}-{to}")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ProjectError(f"{path} is there already.", hint="Name another folder with --out, or remove it first.")
    content = agent_files(source)
    tag = (tag or f"plato-{name}:{sha256(content[f'agent/{NAME}']).hexdigest()[:12]}") if to == "docker" else None
    commands = [f"docker build --tag {tag} .", _run(tag)] if tag else ["./run.sh"]
    with tempfile.TemporaryDirectory(prefix="plato-deploy-") as draft:
        wheel = own_package(Path(draft))
        content[wheel.name] = wheel.read_bytes()
    words = {"WHEEL": wheel.name, "NAME": name, "BUILD": commands[0], "RUN": commands[-1]}
    texts = {one: template(one, words) for one in _TEMPLATES[to]}
    texts["README.md"] = template(f"{to}.md", words)
    if to == "docker":
        allowed = ["requirements.txt", wheel.name, "agent"]
        texts[".dockerignore"] = "\n".join(["*", *(f"!{one}" for one in allowed), ""])
    content |= {one: text.encode() for one, text in texts.items()}
    content["requirements.txt"] = template("serve.lock", {}).encode()
    sizes = {one: len(data) for one, data in sorted(content.items())}
    made = Deployment(to, path, source, sizes, commands, tag, texts=texts)
    if dry_run:
        return made
    _write(path, content)
    if tag and build and _has_engine():
        (on_event or (lambda event: None))({"event": "building", "command": commands[0]})
        _build(path, tag)
        made.is_built = True
    return made


def proven(source: Path) -> Agent:
    """The agent, if it acts as recorded and needs no code of anybody's."""
    agent = Agent.load(source)
    if agent.guards is not None and agent.guards.controller is not None:
        raise AgentError(
            f"{source} falls back to the controller {agent.guards.controller!r}, which is code of its project and no "
            "part of the agent.",
            hint="Guard with hold or a fallback action, or serve it beside its project: plato serve --controllers",
        )
    if not agent.verify().is_equal:
        raise AgentError(f"{source} does not act as recorded.", hint="See: plato verify AGENT")
    return agent


def agent_files(source: Path) -> dict[str, bytes]:
    """The manifest and every file that it names, and nothing else that may lie there."""
    _, content = read_manifest(source)
    manifest = open_archive(source)[NAME] if is_archive(source) else (source / NAME).read_bytes()
    return {f"agent/{name}": data for name, data in {NAME: manifest, **content}.items()}


def plain_name(manifest: Mapping[str, Any]) -> str:
    """An agent's name as images may be named."""
    words = re.findall(r"[a-z0-9]+", str(manifest.get("name") or "agent").lower())
    return "-".join(words) or "agent"


def _run(tag: str) -> str:
    return (
        "docker run --rm --read-only --cap-drop ALL --security-opt no-new-privileges "
        f"--env PLATO_SERVE_KEY --publish 127.0.0.1:8000:8000 {shlex.quote(tag)}"
    )


def template(name: str, words: dict[str, str]) -> str:
    """A file of `templates/deploy`, with `@WORD@` replaced."""
    text = resources("platotk").joinpath(f"templates/deploy/{name}").read_text(encoding="utf-8")
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text


def _write(path: Path, content: dict[str, bytes]) -> None:
    """Every file, readable by the user of the container whatever the umask here."""
    path.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        target = path / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(data)
        target.chmod(0o755 if target.suffix == ".sh" else 0o644)
        if target.parent != path:
            target.parent.chmod(0o755)


def _has_engine() -> bool:
    """Whether a Docker engine answers; the client alone builds nothing."""
    docker = shutil.which("docker")
    if docker is None:
        return False
    command = [docker, "version", "--format", "{{.Server.Version}}"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_DOCKER_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _build(path: Path, tag: str) -> None:
    command = ["docker", "build", "--tag", tag, "."]
    environment = {key: value for key, value in os.environ.items() if key != "PLATO_SERVE_KEY"}
    done = subprocess.run(
        command, cwd=path, env=environment, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode != 0:
        said = done.stdout.decode("utf-8", "replace").splitlines()[-15:]
        raise ProjectError(
            "\n".join([f"docker build failed with exit code {done.returncode}; it said:", *said]),
            hint=f"Try it in {path}: {shlex.join(command)}",
        )
