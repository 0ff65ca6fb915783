"""The scoring script of a managed online endpoint of Azure Machine Learning: `init` and `run`.

Microsoft's inference server loads this file by its path, calls `init` once and `run` with each body. It is given the
folder AZUREML_MODEL_DIR, in which the agent lies, and answers as `POST /act` does, with the same limits and errors.
"""

from __future__ import annotations

import json
import os
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

# Absolute: the server loads this file alone, not as a module of the package.
from platotk.agents.agent import Agent
from platotk.agents.application import Server
from platotk.agents.folders import is_agent
from platotk.errors import AgentError

_MAX_DEPTH = 3
_server: Server | None = None


def init() -> None:
    """Load, verify and prove the agent; the endpoint is not ready before.

    Raises:
        AgentError: AZUREML_MODEL_DIR holds no agent, several, or one that does not act as recorded.
    """
    global _server
    agent = Agent.load(find_model(Path(os.environ.get("AZUREML_MODEL_DIR", "."))))
    _server = Server(agent, is_loopback=False)  # keys and hosts are the endpoint's business


def run(raw_data: str) -> Any:
    """The action for an observation, or those for several.

    Args:
        raw_data: The body of the request, as for `POST /act`.

    Returns:
        `{"action": ...}` or `{"actions": [...]}`; an error with its status and the field otherwise.
    """
    if _server is None:
        raise AgentError("init() has not been called.")
    status, answer = _ask(_server, raw_data.encode())
    if status == 200:
        return answer
    from azureml_inference_server_http.api.aml_response import AMLResponse

    return AMLResponse(answer, status, json_str=True)


def _ask(server: Server, body: bytes) -> tuple[int, Any]:
    """Status and JSON of `POST /act`. Nothing in it waits, so that it ends at the coroutine's first step."""
    said: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        said.append(message)

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/act", "headers": [], "client": None}
    with suppress(StopIteration):
        server(scope, receive, send).__await__().send(None)
    start, content = said
    return start["status"], json.loads(content["body"])


def find_model(folder: Path) -> Path:
    """The agent in a model's folder, which holds it as it was registered: itself, or some levels deeper.

    Raises:
        AgentError: There is none, or more than one.
    """
    level = [folder]
    for _ in range(_MAX_DEPTH + 1):
        found = [path for path in level if is_agent(path)]
        if len(found) == 1:
            return found[0]
        if found:
            raise AgentError(f"{folder} holds several agents: {', '.join(str(path) for path in found)}.")
        level = [path for parent in level if parent.is_dir() for path in sorted(parent.iterdir())]
    raise AgentError(f"{folder} holds no agent.", hint="Register the folder that plato export wrote as the model.")
