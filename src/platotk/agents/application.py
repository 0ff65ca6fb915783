"""The ASGI application of one agent: routes, key, limits and the way from an observation to an action.

Given a loaded agent, `Server` answers `/act`, tells how it is and shows two pages. One dictionary of routes and nothing
between the socket and the policy. `prove` replays recorded rows before it counts as ready.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ..errors import AgentError, SimError
from ..spaces import from_json, from_json_batch, to_json, to_json_batch
from .agent import Agent
from .guarded import GuardedPolicy, read_observation
from .openapi import openapi
from .page import form, html
from .parity import compare
from .prometheus import ServerMetrics, escaped
from .requests import DEFAULT_CLIENT, Request, RequestError, body_limit, client_of, parse_act, parse_json
from .schemas import bare
from .sessions import DEFAULT_LIMIT, DEFAULT_TTL_S, ClientSessions

NUM_PROOF_ROWS = 16
"""Recorded rows that the agent must answer as recorded before it is ready."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Answer = tuple[int, bytes, bytes]
"""Status, content type, body."""

JSON = b"application/json"
HTML = b"text/html; charset=utf-8"
logger = logging.getLogger(__name__)
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Server:
    """The ASGI application of one agent.

    Args:
        agent: It is proven first.
        key: What clients must send; None for nothing.
        is_loopback: Whether it listens for this machine alone, so that other hosts in a request are refused.
        ttl_s: A memory that was not used for so long is forgotten.
        max_clients: Memories that are kept; beyond that the one unused for longest goes.
        max_body_bytes: Of a request. Default: see `requests.body_limit`.
        metrics: Where to count.

    Attributes:
        metrics: What `/metrics` shows.
        sessions: The memory of each client.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        key: str | None = None,
        is_loopback: bool = True,
        ttl_s: float = DEFAULT_TTL_S,
        max_clients: int = DEFAULT_LIMIT,
        max_body_bytes: int | None = None,
        metrics: ServerMetrics | None = None,
    ) -> None:
        prove(agent.unguarded)
        self._guarded = agent.guarded  # refused now, not at the first request, where its controller may not be imported
        self.metrics = metrics or ServerMetrics()
        self.sessions = ClientSessions(agent, ttl_s=ttl_s, limit=max_clients)
        self._agent = agent
        self._observation_space, self._action_space = agent.observation_space, agent.action_space
        self._has_info_mask = agent.adapter.mask_source == "info"
        self._key = None if key is None else key.encode()
        self._is_guarded = key is None and is_loopback
        self._max_body_bytes = max_body_bytes or body_limit(agent.observation_space)
        self._first_peer, self._is_warned = "", False
        contract = agent.path / "openapi.json"
        name = str(agent.manifest.get("name") or agent.path.resolve().parent.name)
        document = (
            contract.read_bytes()
            if "openapi.json" in agent.manifest.get("files", {})
            else _encode(
                openapi(agent.adapter, name=name, has_memory=agent.has_memory, guards=agent.guards, units=agent.units)
            ).encode()
        )
        page = _encode(form(agent, name=name)).encode()
        get = {"GET", "HEAD"}
        self._routes: dict[str, tuple[set[str], Callable[[bytes, Scope], Answer]]] = {
            "/act": ({"POST"}, self._act),
            "/v1/prediction": ({"GET", "POST"}, self._prediction),
            "/v1": ({"DELETE"}, self._forget),
            "/reset": ({"POST"}, self._reset),
            "/healthz": (get, lambda body, scope: (200, JSON, b'{"status":"alive"}')),
            "/readyz": (get, lambda body, scope: (200, JSON, b'{"status":"ready"}')),
            "/metrics": (get, self._metrics),
            "/openapi.json": (get, lambda body, scope: (200, JSON, document)),
            "/form.json": (get, lambda body, scope: (200, JSON, page)),
            "/docs": (get, lambda body, scope: (200, HTML, html("docs"))),
            "/": (get, lambda body, scope: (200, HTML, html("page"))),
        }
        self._open = frozenset({"/healthz", "/readyz", "/", "/docs"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3)."""
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        path = scope["path"]
        route = self._routes.get(path)
        extra: list[tuple[bytes, bytes]] = []
        try:
            length = self._admit(scope, path)
            if route is None:
                raise RequestError(f"there is no {path[:200]}; see /docs.", status=404)
            if scope["method"] not in route[0]:
                extra.append((b"allow", ", ".join(sorted(route[0])).encode()))
                raise RequestError(f"{path} takes {', '.join(sorted(route[0]))}.", status=405)
            body = await self._body(receive, length)
            if body is None:
                return  # the client went away
            status, kind, content = route[1](body, scope)
        except RequestError as error:
            status, kind = error.status, JSON
            content = _encode({"error": error.message, "field": error.field}).encode()
            if status in (401, 413):
                extra += [(b"connection", b"close")]
            if status == 401:
                extra += [(b"www-authenticate", b"Bearer")]
                # Only where plants call: a browser would ask for a password over the page.
                extra += [(b"www-authenticate", b'Basic realm="plato"')] if path in ("/v1/prediction", "/v1") else []
        except Exception as error:
            is_known = isinstance(error, AgentError)
            logger.error("the agent failed on a request: %s", error, exc_info=None if is_known else error)
            status, kind, content = 500, JSON, b'{"error":"the agent failed; see the log of the server","field":null}'
        self.metrics.answered(path if route else "other", status, time.perf_counter() - began)
        headers = [(b"content-type", kind), (b"content-length", str(len(content)).encode()), *extra]
        if kind is HTML:
            headers += _PAGE_HEADERS
        if status == 204:
            headers = extra
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _admit(self, scope: Scope, path: str) -> int:
        """Check key, size and origin by the headers alone; gives the announced length of the body."""
        length, given, host, origin = 0, b"", b"", b""
        for name, value in scope["headers"]:
            if name == b"content-length":
                length = int(value) if value.isdigit() else 0
            elif name == b"authorization":
                given = _key_of(value)
            elif name == b"x-api-key":
                given = value
            elif name == b"host":
                host = value
            elif name == b"origin":
                origin = value
        if self._key is not None and path not in self._open and not hmac.compare_digest(given, self._key):
            raise RequestError("the key is missing or wrong; send Authorization: Bearer KEY.", status=401)
        if self._is_guarded and host and not _is_local(host):
            raise RequestError("this server answers on its loopback address only.", status=403)
        if origin and origin.partition(b"://")[2] != host:
            raise RequestError("pages of another origin may not call this server.", status=403)
        if length > self._max_body_bytes:
            raise self._too_large()
        return length

    async def _body(self, receive: Receive, length: int) -> bytes | None:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            if len(body) > self._max_body_bytes:
                raise self._too_large()
            return body
        parts, size = [body], len(body)
        while message.get("more_body", False):
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > self._max_body_bytes:
                raise self._too_large()
            parts.append(part)
        return b"".join(parts)

    def _too_large(self) -> RequestError:
        return RequestError(f"the body is larger than {self._max_body_bytes} bytes.", status=413)

    def _act(self, body: bytes, scope: Scope) -> Answer:
        request = parse_act(body)
        self._mind_shared_memory(request, scope)
        actions, did = self._actions(request)
        answer = {"actions": actions} if request.is_batch else {"action": actions[0]}
        if any(did):
            answer["guarded"] = did if request.is_batch else did[0]
        return 200, JSON, _encode(answer).encode()

    def _prediction(self, body: bytes, scope: Scope) -> Answer:
        state = parse_json(body)
        request = Request([state], False, "state", client_of(None), None, None)
        self._mind_shared_memory(request, scope)
        action = self._actions(request)[0][0]
        return 200, JSON, _encode(bare(self._action_space, action)).encode()

    def _actions(self, request: Request) -> tuple[list[Any], list[Any]]:
        """Check observations against their space, act, and give plain JSON values back, and what guards did to each."""
        masks = self._masks(request)
        did: list[Any] = []
        if self._guarded is not None:
            actions, did = self._within_guards(self._guarded, request, masks)
        else:
            actions = self._several(request, masks) if request.is_batch else [self._one(request, masks)]
        self.metrics.acted(len(actions))
        return actions, did

    def _one(self, request: Request, masks: list[Any] | None) -> Any:
        agent, name = self._agent, request.name
        with _named(name):
            observation = from_json(self._observation_space, request.observations[0], name=name)
        policy = self.sessions.get(request.client) if agent.has_memory else agent
        try:
            action = policy.act(observation, mask=masks[0] if masks else None)
            return to_json(self._action_space, action, name="action")
        except SimError as error:
            raise RequestError(f"{name}: the agent has no action for it: {error.message}", field=name) from None

    def _within_guards(
        self, guarded: GuardedPolicy, request: Request, masks: list[Any] | None
    ) -> tuple[list[Any], list[Any]]:
        """The same with guards, which are told when it was observed: now, unless the client knows better."""
        agent, name = self._agent, request.name
        if request.is_batch and agent.has_memory:
            raise RequestError("observations: this agent has memory; send one observation at a time.", field=name)
        at = guarded.now() if request.observed_at is None else request.observed_at
        names = [f"{name}[{row}]" if request.is_batch else name for row in range(len(request.observations))]
        actions, did = [], []
        for row, (data, one) in enumerate(zip(request.observations, names, strict=True)):
            with _named(one):
                observation = read_observation(agent, data, name=one)
            session: Any = self.sessions.get(request.client) if agent.has_memory else agent.session()
            try:
                action = session.act(observation, mask=masks[row] if masks else None, observed_at=at, is_live=True)
                actions.append(to_json(self._action_space, action, name="action"))
            except SimError as error:
                raise RequestError(f"{one}: the agent has no action for it: {error.message}", field=name) from None
            did.append(list(session.guarded))
        for one_did in did:
            for entry in one_did:
                self.metrics.count("plato_guard_actions_total", **{key: escaped(text) for key, text in entry.items()})
        return actions, did

    def _several(self, request: Request, masks: list[Any] | None) -> list[Any]:
        """All observations of a batch at once, column by column."""
        agent, name, num_rows = self._agent, request.name, len(request.observations)
        if agent.has_memory:
            raise RequestError("observations: this agent has memory; send one observation at a time.", field=name)
        with _named(name):
            columns = from_json_batch(self._observation_space, request.observations, name=name)
        try:
            acted = agent.act_columns(columns, num_rows, masks=masks)
            return to_json_batch(self._action_space, acted, num_rows, name="actions")
        except SimError as error:
            raise RequestError(f"{name}: the agent has no action for it: {error.message}", field=name) from None

    def _masks(self, request: Request) -> list[Any] | None:
        if request.masks is None:
            return None
        if not self._has_info_mask:
            raise RequestError("action_mask: this agent takes none.", field="action_mask")
        masks = request.masks if request.is_batch else [request.masks]
        try:
            self._agent.adapter.encode_masks(masks)
        except (SimError, OverflowError, ValueError, TypeError) as error:
            message = error.message if isinstance(error, SimError) else str(error)
            raise RequestError(f"action_mask: {message}", field="action_mask") from None
        return list(masks)

    def _mind_shared_memory(self, request: Request, scope: Scope) -> None:
        """Plants that do not say who they are share one memory without noticing: the log says so, once."""
        if request.client != DEFAULT_CLIENT or not self._agent.has_memory or self._is_warned:
            return
        peer = (scope.get("client") or ("",))[0]
        self._first_peer = self._first_peer or peer
        if peer != self._first_peer:
            self._is_warned = True
            logger.warning(
                "requests without a client come from %s and from %s, and this agent has a memory, which they share; "
                'give each its own: {"observation": ..., "client": "pump-3"}',
                self._first_peer,
                peer,
            )

    def _forget(self, body: bytes, scope: Scope) -> Answer:
        query = scope.get("query_string", b"").decode("latin-1")
        named = parse_qs(query, keep_blank_values=True).get("client", [None])[0]
        self.sessions.clear(client_of(named))
        return 204, JSON, b""

    def _reset(self, body: bytes, scope: Scope) -> Answer:
        data = parse_json(body) if body else {}
        if not isinstance(data, dict) or data.keys() - {"client"}:
            raise RequestError('client: expected {"client": ID}, or nothing.', field="client")
        self.sessions.clear(client_of(data.get("client")))
        return 200, JSON, b'{"status":"reset"}'

    def _metrics(self, body: bytes, scope: Scope) -> Answer:
        text = self.metrics.text(num_clients=len(self.sessions))
        return 200, b"text/plain; version=0.0.4; charset=utf-8", text.encode()


def prove(agent: Agent) -> None:
    """Replay the first recorded rows.

    Raises:
        AgentError: The agent acts differently on this machine.
    """
    rows = agent.recorded(limit=NUM_PROOF_ROWS)
    session, actions = agent.session(), []
    for row in rows:
        if row.is_first:
            session.reset()
        actions.append(session.act(row.observation, mask=row.mask))
    proof = compare(agent.action_space, [row.action for row in rows], actions, [row.margin for row in rows])
    if proof.max_error > 1e-4 or proof.num_mismatches:
        raise AgentError(
            f"{agent.path} does not act as recorded: {proof.num_mismatches} of {len(rows)} choices differ, "
            f"largest error {proof.max_error:.2g}.",
            hint="Export the agent again.",
        )


@contextmanager
def _named(name: str) -> Iterator[None]:
    """An observation that does not fit is the client's error, and names its field."""
    try:
        yield
    except SimError as error:
        raise RequestError(error.message, field=error.message.partition(": ")[0]) from None
    except (OverflowError, ValueError, TypeError, RecursionError) as error:
        raise RequestError(f"{name}: {error}", field=name) from None


_PAGE_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
        b"img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; a name other than localhost may be anything."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _key_of(authorization: bytes) -> bytes:
    """The key in an Authorization header: a bearer token, or the password that goes with any name."""
    scheme, _, given = authorization.partition(b" ")
    if scheme.lower() == b"bearer":
        return given.strip()
    if scheme.lower() != b"basic":
        return b""
    try:
        return base64.b64decode(given.strip(), validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


@lru_cache(maxsize=64)
def _is_local(host: bytes) -> bool:
    """Whether a Host header names this machine; remembered, as a client sends the same one each time."""
    try:
        return is_loopback(urlsplit("//" + host.decode("latin-1")).hostname or "")
    except ValueError:
        return False
