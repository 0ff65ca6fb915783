"""The HTTP contract of one agent, typed by its own spaces.

Given an adapter, `openapi` gives an OpenAPI 3.1 document: what `POST /act` takes and gives back, with the names, bounds
and shapes of this agent's observation and action.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import Space, spaces

from ..spaces import Adapter

MAX_BATCH = 4096


def openapi(adapter: Adapter, *, name: str) -> dict[str, Any]:
    """The document.

    Args:
        adapter: The agent's spaces.
        name: Title of the document.
    """
    observation = space_schema(adapter.observation_space)
    extra: dict[str, Any] = {
        "client": {
            "type": "string",
            "maxLength": 200,
            "description": "Whose memory to use, for agents that have one.",
        },
        "observed_at": {"type": "number", "description": "When it was observed, in seconds since 1970."},
    }
    if adapter.mask_source == "info":
        bit = {"type": "integer", "enum": [0, 1]}
        extra["action_mask"] = {
            "type": "array",
            "items": bit,
            "minItems": adapter.num_logits,
            "maxItems": adapter.num_logits,
        }
    single = {
        "type": "object",
        "properties": {"observation": {"$ref": "#/components/schemas/Observation"}, **extra},
        "required": ["observation"],
    }
    batch = {
        "type": "object",
        "properties": {
            "observations": {
                "type": "array",
                "items": {"$ref": "#/components/schemas/Observation"},
                "minItems": 1,
                "maxItems": MAX_BATCH,
            }
        },
        "required": ["observations"],
    }
    answer = {
        "oneOf": [
            _object(action={"$ref": "#/components/schemas/Action"}),
            _object(actions={"type": "array", "items": {"$ref": "#/components/schemas/Action"}}),
        ]
    }
    problem = {
        "type": "object",
        "properties": {"error": {"type": "string"}, "field": {"type": ["string", "null"]}},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": name,
            "version": "1",
            "description": "A trained agent: an observation in, an action out.",
        },
        "paths": {
            "/act": {
                "post": {
                    "operationId": "act",
                    "summary": "The best action for an observation, or for each of several.",
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": {"oneOf": [single, batch]}}},
                    },
                    "responses": {
                        "200": _json("The action.", answer),
                        "422": _json("The observation does not fit; the field is named.", problem),
                    },
                }
            },
            "/healthz": {"get": {"operationId": "healthz", "responses": {"200": _json("Alive.", {"type": "object"})}}},
        },
        "components": {
            "schemas": {"Observation": observation, "Action": space_schema(adapter.action_space)},
        },
    }


def space_schema(space: Space[Any]) -> dict[str, Any]:
    """JSON Schema of the values of a space, in the JSON form of `platotk.spaces.to_json`."""
    if isinstance(space, spaces.Dict):
        properties = {key: space_schema(child) for key, child in space.spaces.items()}
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
    if isinstance(space, spaces.Tuple):
        items = [space_schema(child) for child in space.spaces]
        return {
            "type": "array",
            "prefixItems": items,
            "items": False,
            "minItems": len(items),
            "maxItems": len(items),
        }
    if isinstance(space, spaces.Discrete):
        return _integer(int(space.start), int(space.start) + int(space.n) - 1)
    if isinstance(space, spaces.MultiDiscrete):
        low = np.asarray(space.start)
        return _array(space.shape, _integer(int(low.min()), int((low + space.nvec - 1).max())))
    if isinstance(space, spaces.MultiBinary):
        return _array(space.shape, _integer(0, 1))
    if isinstance(space, spaces.Box):
        return _box(space)
    if isinstance(space, spaces.Text):
        return {"type": "string", "minLength": space.min_length, "maxLength": space.max_length}
    if isinstance(space, spaces.OneOf):
        options = [
            {
                "type": "array",
                "prefixItems": [{"const": index}, space_schema(child)],
                "items": False,
                "minItems": 2,
            }
            for index, child in enumerate(space.spaces)
        ]
        return {"oneOf": options}
    return {}


def _box(space: spaces.Box) -> dict[str, Any]:
    is_integer = np.dtype(space.dtype).kind != "f"
    item: dict[str, Any] = {"type": "integer" if is_integer else "number"}
    low, high = (
        float(space.low.min()) if space.low.size else -np.inf,
        float(space.high.max()) if space.high.size else np.inf,
    )
    if np.isfinite(low):
        item["minimum"] = int(low) if is_integer else low
    if np.isfinite(high):
        item["maximum"] = int(high) if is_integer else high
    if space.shape == (1,):  # a bare number is taken too
        return {"anyOf": [item, _array(space.shape, item)]}
    return _array(space.shape, item)


def _array(shape: tuple[int, ...], item: dict[str, Any]) -> dict[str, Any]:
    for length in reversed(shape):
        item = {"type": "array", "items": item, "minItems": length, "maxItems": length}
    return item


def _integer(low: int, high: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
