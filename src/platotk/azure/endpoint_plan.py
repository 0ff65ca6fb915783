"""What an endpoint for an agent is made of: names, machines, and the files of its image. Asks Azure nothing.

Given an agent and the options, `plan` gives an `EndpointPlan`, which `endpoints.deploy` carries out and a dry run
shows. The image holds Microsoft's inference server, platotk with its serve extra alone, and no agent: that is a model
of the workspace, which Azure puts in beside the scoring script.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..agents.agent import Agent
from ..agents.bundle import agent_files, plain_name, proven, template
from ..agents.manifest import NAME
from ..errors import ProjectError
from ..own_package import own_package
from .options import AzureOptions

SIZE = "Standard_DS3_v2"
"""The smallest that Azure recommends for endpoints; smaller ones may be refused."""
SERVER = "azureml-inference-server-http==1.5.1"
ROUTES = {
    "liveness_route": {"port": 5001, "path": "/"},
    "readiness_route": {"port": 5001, "path": "/"},
    "scoring_route": {"port": 5001, "path": "/score"},
}
"""Of the inference server; it answers none of them before `init` has loaded and verified the agent."""
SCRIPT = "score.py"
COLORS = ("blue", "green")
_ENDPOINT = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]{1,30}[A-Za-z0-9])")
_SIZE = re.compile(r"[A-Za-z]+_\w+")
_MAX_ENDPOINT = 32
_MAX_INSTANCES = 100


@dataclass(frozen=True)
class EndpointPlan:
    """What would be made.

    Attributes:
        agent: The folder, or the archive.
        endpoint: The name of the endpoint, which is part of its address.
        size: The kind of machine.
        instances: How many machines.
        model: The name of the model that the agent is registered as.
        manifest: SHA-256 of the agent's manifest: the same one is registered once.
        environment: The name of the environment; ends in a hash of its files.
        image: The files that the image is built from.
        agent_files: The files of the agent.
    """

    agent: Path
    endpoint: str
    size: str
    instances: int
    model: str
    manifest: str
    environment: str
    image: dict[str, bytes] = field(repr=False)
    agent_files: dict[str, bytes] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: each file by its size, and the texts that were written for it."""
        return {
            "agent": str(self.agent),
            "endpoint": self.endpoint,
            "auth": "key",
            "size": self.size,
            "instances": self.instances,
            "model": self.model,
            "environment": self.environment,
            "scoring_script": SCRIPT,
            "routes": ROUTES,
            "files": {name: len(data) for name, data in sorted({**self.agent_files, **self.image}.items())},
            "dockerfile": self.image["Dockerfile"].decode(),
        }


def plan(
    agent: Path | str,
    options: AzureOptions,
    *,
    endpoint: str | None = None,
    size: str | None = None,
    instances: int = 1,
) -> tuple[EndpointPlan, Agent]:
    """What would be made for an agent, which is verified first; and the agent.

    Args:
        agent: The folder, or the archive, that `plato export` wrote.
        options: The workspace.
        endpoint: Its name. Default: made of the agent's and of the workspace, so that it is the same every time.
        size: Of a machine; default `SIZE`.
        instances: How many machines answer.

    Raises:
        AgentError: The agent is not whole, does not act as recorded, or needs code of its project.
        ProjectError: A name or number that Azure does not take, or several machines for an agent with memory.
    """
    source = Path(agent)
    loaded = proven(source)
    if not 1 <= instances <= _MAX_INSTANCES:
        raise ProjectError(f"{instances} instances.", hint=f"Between 1 and {_MAX_INSTANCES} machines can answer.")
    if loaded.has_memory and instances > 1:
        raise ProjectError(
            f"{instances} machines would each have a memory of their own, and {source} has one.", hint="Use one."
        )
    if size is not None and not _SIZE.fullmatch(size):
        raise ProjectError(f"{size!r} is no size of machine.", hint=f"Such as {SIZE}.")
    name = plain_name(loaded.manifest)
    files = agent_files(source)
    image = _image()
    return EndpointPlan(
        agent=source,
        endpoint=endpoint_name(name, options, endpoint),
        size=size or SIZE,
        instances=instances,
        model=name[:_MAX_ENDPOINT],
        manifest=hashlib.sha256(files[f"agent/{NAME}"]).hexdigest(),
        environment=f"platotk-serve-{_digest(image)}",
        image=image,
        agent_files=files,
    ), loaded


def endpoint_name(name: str, options: AzureOptions, given: str | None = None) -> str:
    """The name that is given, or one for an agent of that name: unique in a region, and the same every time.

    Raises:
        ProjectError: Not a name that Azure takes.
    """
    if given is not None:
        if not _ENDPOINT.fullmatch(given):
            raise ProjectError(
                f"{given!r} is no name of an endpoint.",
                hint="3 to 32 letters, digits and hyphens, beginning with a letter, not ending in a hyphen.",
            )
        return given
    place = f"{options.subscription}/{options.resource_group}/{options.workspace}".lower()
    letters = re.sub(r"^[^a-z]+", "", name)[: _MAX_ENDPOINT - 7].rstrip("-") or "agent"
    return f"{letters}-{hashlib.sha256(place.encode()).hexdigest()[:6]}"


def write(files: dict[str, bytes], folder: Path) -> Path:
    """Write files into a folder that is made for them."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def score_file() -> bytes:
    """The scoring script: the module of the package, word for word."""
    from ..agents import score

    return Path(score.__file__).read_bytes()


def _image() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="plato-endpoint-") as draft:
        wheel = own_package(Path(draft))
        content = {wheel.name: wheel.read_bytes()}
    words = {"WHEEL": wheel.name, "SERVER": SERVER}
    content["Dockerfile"] = template("Dockerfile.azure", words).encode()
    content["requirements.txt"] = template("serve.lock", {}).encode()
    content[SCRIPT] = score_file()
    return content


def _digest(files: dict[str, bytes]) -> str:
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    told = json.dumps([hashes, ROUTES], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:12]
