"""`serve`: an agent behind HTTP.

Given an exported agent, it answers `POST /act` with actions, tells how it is (`/healthz`, `/readyz`, `/metrics`) and
shows a page where a person can try it (`/`). This module opens the socket and stops in good order; `application`
answers. Loopback needs no key, any other address does.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import ProjectError, missing_extra
from .agent import Agent
from .application import Server, is_loopback
from .prometheus import ServerMetrics
from .sessions import DEFAULT_LIMIT, DEFAULT_TTL_S

KEY_VARIABLE = "PLATO_SERVE_KEY"
MIN_KEY_CHARS = 16
MAX_CONNECTIONS = 1000
READ_TIMEOUT_S = 10.0
_AGENT_VARIABLE = "PLATO_SERVE_AGENT"
_METRICS_VARIABLE = "PLATO_SERVE_METRICS"
_CONTROLLERS_VARIABLE = "PLATO_SERVE_CONTROLLERS"
_LIMITS_VARIABLE = "PLATO_SERVE_LIMITS"
_ANYWHERE = "*"


def serve(
    agent: Agent | Path | str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str | None = None,
    workers: int = 1,
    read_timeout_s: float = READ_TIMEOUT_S,
    max_body_bytes: int | None = None,
    memory_ttl_s: float = DEFAULT_TTL_S,
    max_clients: int = DEFAULT_LIMIT,
    controllers: bool | Path | str = False,
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Serve an agent over HTTP until SIGTERM or Ctrl-C, then finish what is under way and return.

    Args:
        agent: A loaded agent, or the folder that `plato export` wrote.
        host: Address to listen on; any but a loopback address needs a key.
        port: 0 takes a free one.
        key: What clients must send as `Authorization: Bearer KEY`, `x-api-key: KEY`, or the password of HTTP Basic; at
            least 16 characters. Default: the environment variable PLATO_SERVE_KEY, if it is set.
        workers: Processes that answer; more than one only for agents without memory.
        read_timeout_s: A request must have arrived whole after this time, or its connection is closed.
        max_body_bytes: A larger request is a 413. Default: 1 MiB, and more where one observation may need it.
        memory_ttl_s: The memory of a client that did not call for so long is forgotten.
        max_clients: Clients with a memory at one time; beyond that the one that did not call for longest is forgotten.
        controllers: Whether a fallback controller that the agent names may be imported; see `Agent.load`.
        on_event: Called with `{"event": "serving", "url": ...}` once it answers.

    Raises:
        AgentError: The folder is not a whole agent, or it does not act as recorded.
        ProjectError: No key for an address that others can reach, a short key, a port in use, too many workers.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise missing_extra("uvicorn", "serve") from error
    key = os.environ.get(KEY_VARIABLE) or None if key is None else key
    require_key(host, key)
    loaded = agent if isinstance(agent, Agent) else Agent.load(agent, controllers=controllers)
    if workers < 1 or (workers > 1 and loaded.has_memory):
        why = "must be at least 1" if workers < 1 else "would each have a memory of their own, and this agent has one"
        raise ProjectError(f"{workers} workers {why}.", hint="Use --workers 1.")
    limits: dict[str, Any] = {"max_body_bytes": max_body_bytes, "ttl_s": memory_ttl_s, "max_clients": max_clients}
    if min(1 if limit is None else limit for limit in limits.values()) <= 0:
        raise ProjectError(
            "a limit of the server is not above 0.", hint="Leave out --max-body and its like for defaults."
        )
    app = Server(loaded, key=key, is_loopback=is_loopback(host), **limits)
    listener = _listen(host, port)
    url = _url(listener)
    told = on_event or (lambda event: None)
    from .protocol import PatientProtocol  # here, as it needs uvicorn

    options: dict[str, Any] = {
        "http": partial(PatientProtocol, read_timeout_s=read_timeout_s),
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        "lifespan": "off",
        "ws": "none",
        "limit_concurrency": MAX_CONNECTIONS,
        "timeout_graceful_shutdown": 10,
    }
    with listener, _quiet_signals():
        if workers == 1:

            class Started(uvicorn.Server):
                async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                    await super().startup(sockets)
                    told({"event": "serving", "url": url})

            Started(uvicorn.Config(app, **options)).run(sockets=[listener])
        else:
            told_to_workers = {_AGENT_VARIABLE: str(loaded.path.resolve()), KEY_VARIABLE: key or ""}
            told_to_workers[_CONTROLLERS_VARIABLE] = _as_text(loaded.controllers)
            told_to_workers[_LIMITS_VARIABLE] = json.dumps(limits)
            with _shared_folder() as folder, _environment({**told_to_workers, _METRICS_VARIABLE: folder}):
                from uvicorn.supervisors import Multiprocess

                config = uvicorn.Config(f"{__name__}:worker_app", factory=True, workers=workers, **options)
                told({"event": "serving", "url": url})
                more: dict[str, Any] = {"sockets": [listener]}
                if "target" in inspect.signature(Multiprocess).parameters:  # an older uvicorn
                    more["target"] = uvicorn.Server(config).run
                start: Any = Multiprocess
                start(config, **more).run()


def require_key(host: str, key: str | None) -> None:
    """Refuse an address that others can reach without a key, and a key that can be guessed.

    Raises:
        ProjectError: Either of them.
    """
    how = f"Put {MIN_KEY_CHARS} or more random characters into a file (--key-file), or into ${KEY_VARIABLE}."
    if key is None and not is_loopback(host):
        raise ProjectError(f"{host} can be reached by others, and there is no key.", hint=how)
    if key is not None and (len(key) < MIN_KEY_CHARS or not key.isascii() or not key.isprintable()):
        raise ProjectError(f"the key must have at least {MIN_KEY_CHARS} printable ASCII characters.", hint=how)


def worker_app() -> Server:
    """The application of one of several worker processes, which find their agent and key in the environment."""
    key = os.environ.get(KEY_VARIABLE) or None
    folder = os.environ.get(_METRICS_VARIABLE)
    metrics = ServerMetrics(Path(folder) if folder else None)
    controllers = os.environ.get(_CONTROLLERS_VARIABLE, "")
    allowed = controllers == _ANYWHERE or (Path(controllers) if controllers else False)
    agent = Agent.load(os.environ[_AGENT_VARIABLE], controllers=allowed)
    limits = json.loads(os.environ.get(_LIMITS_VARIABLE, "{}"))
    return Server(agent, key=key, is_loopback=key is None, metrics=metrics, **limits)


def _as_text(controllers: bool | Path) -> str:
    return str(controllers.resolve()) if isinstance(controllers, Path) else _ANYWHERE if controllers else ""


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sets TCP_NODELAY; without it, an answer may wait 40 ms for Nagle's algorithm.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
        listener.set_inheritable(True)
    except (OSError, OverflowError) as error:
        listener.close()
        raise ProjectError(
            f"cannot listen on {host}:{port}: {error}", hint="Choose another with --port, or --port 0 for a free one."
        ) from None
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """Let uvicorn end quietly: once it has shut down, it raises the signal that stopped it again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _shared_folder() -> Iterator[str]:
    """Where the workers keep their counters: in memory where there is such a place, as a container may be read-only."""
    in_memory = "/dev/shm"
    with TemporaryDirectory(dir=in_memory if os.access(in_memory, os.W_OK) else None, prefix="plato-serve-") as folder:
        yield folder


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def read_key(path: Path) -> str:
    """The key that a file holds, without the white space around it.

    Raises:
        ProjectError: The file cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ProjectError(f"cannot read the key file {path}: {error}") from None
