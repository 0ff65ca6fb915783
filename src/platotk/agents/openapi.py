"""The HTTP contract of one agent, typed by its own spaces.

Given an adapter, `openapi` gives an OpenAPI 3.1 document: what every route takes and gives back, with the names, bounds
and shapes of this agent's observation and action. What fits the document is answered, and what does not is refused.
"""

from __future__ import annotations

from typing import Any

from ..spaces import Adapter
from .guards import Guards
from .schemas import space_schema
from .units import Units, with_units

MAX_BATCH = 4096
_OBSERVATION = {"$ref": "#/components/schemas/Observation"}
_ACTION = {"$ref": "#/components/schemas/Action"}


def openapi(
    adapter: Adapter,
    *,
    name: str,
    has_memory: bool = False,
    guards: Guards | None = None,
    units: Units | None = None,
) -> dict[str, Any]:
    """The document.

    Args:
        adapter: The agent's spaces.
        name: Title of the document.
        has_memory: Whether the agent remembers, so that it takes one observation at a time.
        guards: What it may not do; the answer says what they did.
        units: What its numbers are measured in; `x-unit` and the description of a leaf say it.
    """
    has_memory = has_memory or (guards is not None and guards.has_memory)
    names = ("observation",) if has_memory else ("observation", "observations")
    request = {"oneOf": [_request(given, adapter) for given in (*names, "state")]}
    answers = [_answer(_ACTION, "action", _DID, guards)]
    if not has_memory:
        every = {"type": "array", "items": _DID}
        answers.append(_answer({"type": "array", "items": _ACTION}, "actions", every, guards))
    answer = {"oneOf": answers}
    bonsai = {
        "requestBody": _body(_OBSERVATION),
        "responses": {
            "200": _json("The action.", {"$ref": "#/components/schemas/BareAction"}),
            **_refusals("413", "422"),
        },
    }
    alive = {"200": _json("It is.", _object(status={"type": "string"})), **_refusals()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": name,
            "version": "1",
            "description": "A trained agent: an observation in, an action out.",
        },
        "security": [{}, {"bearer": []}, {"key": []}, {"basic": []}],
        "paths": {
            "/act": {
                "post": {
                    "operationId": "act",
                    "summary": "The best action for an observation, or for each of several.",
                    "requestBody": _body(request),
                    "responses": {"200": _json("The action.", answer), **_refusals("413", "422")},
                }
            },
            "/reset": {
                "post": {
                    "operationId": "reset",
                    "summary": "Begin a new episode: forget what this client's agent remembers.",
                    "requestBody": _body({**_object(client=_client()), "required": []}, is_required=False),
                    "responses": {
                        "200": _json("Forgotten.", _object(status={"type": "string"})),
                        **_refusals("413", "422"),
                    },
                }
            },
            "/v1/prediction": {
                "post": {"operationId": "predict", "summary": "As an exported Bonsai brain answers.", **bonsai},
                "get": {"operationId": "predictByGet", "summary": "The same; old clients send a body.", **bonsai},
            },
            "/v1": {
                "delete": {
                    "operationId": "forget",
                    "summary": "As /reset.",
                    "parameters": [{"name": "client", "in": "query", "schema": _client(or_null=False)}],
                    "responses": {"204": {"description": "Forgotten."}, **_refusals("422")},
                }
            },
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "What was counted, for Prometheus.",
                    "responses": {
                        "200": {
                            "description": "The counters.",
                            "content": {"text/plain": {"schema": {"type": "string"}}},
                        },
                        **_refusals(),
                    },
                }
            },
            "/healthz": {"get": {"operationId": "healthz", "summary": "Is it alive?", "responses": alive}},
            "/readyz": {"get": {"operationId": "readyz", "summary": "Does it answer?", "responses": alive}},
        },
        "components": {
            "schemas": {
                "Observation": _observation(adapter, guards, units or {}),
                "Action": _action(adapter, units or {}),
                "BareAction": _action(adapter, units or {}, is_bare=True),
                "Problem": _object(error={"type": "string"}, field={"type": ["string", "null"]}),
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "basic": {"type": "http", "scheme": "basic"},
            },
        },
    }


def _observation(adapter: Adapter, guards: Guards | None, units: Units) -> dict[str, Any]:
    """What is taken as an observation; guards deal with some that would be refused."""
    space = adapter.observation_space
    schema = with_units(space_schema(space, is_input=True), space, units, "observation")
    return schema if guards is None or not guards.inputs.is_lenient else {"anyOf": [schema, _ANYTHING]}


def _action(adapter: Adapter, units: Units, *, is_bare: bool = False) -> dict[str, Any]:
    space = adapter.action_space
    return with_units(space_schema(space, is_bare=is_bare), space, units, "action")


_ANYTHING = {"description": "With leaves missing, null or outside their bounds: the guards deal with it, or refuse it."}
_DID = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"guard": {"type": "string"}, "leaf": {"type": "string"}},
        "required": ["guard", "leaf"],
        "additionalProperties": False,
    },
    "description": "What guards did to the action.",
}


def _answer(value: dict[str, Any], name: str, did: dict[str, Any], guards: Guards | None) -> dict[str, Any]:
    schema = _object(**{name: value})
    return schema if guards is None else {**schema, "properties": {**schema["properties"], "guarded": did}}


def _request(given: str, adapter: Adapter) -> dict[str, Any]:
    """The body of `/act` with the observation under one of its names."""
    is_batch = given == "observations"
    value: dict[str, Any] = _OBSERVATION
    if is_batch:
        value = {"type": "array", "items": _OBSERVATION, "minItems": 1, "maxItems": MAX_BATCH}
    properties = {
        given: value,
        "client": _client(),
        "observed_at": {"type": ["number", "null"], "description": "When it was observed, in seconds since 1970."},
    }
    if adapter.mask_source == "info":
        mask = _mask(adapter.num_logits)
        properties["action_mask"] = {"type": ["array", "null"], "items": mask} if is_batch else mask
    return {**_object(**properties), "required": [given]}


def _client(*, or_null: bool = True) -> dict[str, Any]:
    return {
        "type": ["string", "null"] if or_null else "string",
        "minLength": 1,
        "maxLength": 200,
        "description": "Whose memory to use, for agents that have one.",
    }


def _mask(num_logits: int) -> dict[str, Any]:
    bit = {"type": "integer", "enum": [0, 1]}
    return {"type": ["array", "null"], "items": bit, "minItems": num_logits, "maxItems": num_logits}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _body(schema: dict[str, Any], *, is_required: bool = True) -> dict[str, Any]:
    return {"required": is_required, "content": {"application/json": {"schema": schema}}}


def _refusals(*more: str) -> dict[str, Any]:
    what = {
        "401": "The key is missing or wrong.",
        "403": "Another host or origin than this server's own.",
        "413": "The body is too large.",
        "422": "It does not fit; the field is named.",
    }
    problem = {"$ref": "#/components/schemas/Problem"}
    return {status: _json(what[status], problem) for status in ("401", "403", *more)}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
