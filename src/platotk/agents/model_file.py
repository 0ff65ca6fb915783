"""Reads an ONNX file just far enough to refuse what an agent has no business containing.

onnxruntime loads tensors that lie outside the model file, and resolves their paths against the working directory when
it is given bytes. `inspect_model` walks the protobuf itself (wire format only, no onnx package) and refuses external
data, custom operator domains, nesting without end and anything that is not a model, before a session is made.
Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import AgentError

ALLOWED_DOMAINS = frozenset({"", "ai.onnx"})
MAX_DEPTH = 32

# Message kind -> field number -> kind of the nested message.
_NESTED: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "opset", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 9: "opset", 11: "attribute"},
}
_DOMAIN = {"node": 7, "opset": 1, "function": 10}
_LOCATION, _EXTERNAL = 14, 13


def inspect_model(data: bytes) -> None:
    """Refuse a model that reaches outside its own file.

    Raises:
        AgentError: External data, a custom operator domain, training information, or not a model at all.
    """
    has_graph = _walk(memoryview(data), "model", 0)
    if not has_graph:
        raise AgentError("policy.onnx is not an ONNX model: it holds no graph.", hint="Export the agent again.")


def _walk(data: memoryview, kind: str, depth: int) -> bool:
    if depth > MAX_DEPTH:
        raise AgentError(f"policy.onnx nests more than {MAX_DEPTH} levels deep.", hint="Export the agent again.")
    nested, has_graph = _NESTED.get(kind, {}), False
    for number, wire, value in _fields(data):
        if kind == "tensor" and (number == _EXTERNAL or (number == _LOCATION and value != 0)):
            raise AgentError(
                "policy.onnx keeps tensors in another file; an agent must hold all it needs in one.",
                hint="Export the agent again, or do not trust where it came from.",
            )
        if _DOMAIN.get(kind) == number and isinstance(value, memoryview):
            domain = bytes(value[:200]).decode("utf-8", "replace")
            if domain not in ALLOWED_DOMAINS:
                raise AgentError(
                    f"policy.onnx uses operators of the domain {domain!r}; allowed are the standard ones.",
                    hint="Export the agent again, or do not trust where it came from.",
                )
        inner = nested.get(number)
        if inner is None:
            continue
        if inner == "training":
            raise AgentError("policy.onnx holds training information.", hint="Export the agent again.")
        if wire != 2 or not isinstance(value, memoryview):
            raise _broken()
        has_graph |= kind == "model" and inner == "graph"
        _walk(value, inner, depth + 1)
    return has_graph


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """(field number, wire type, value) of one message."""
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, wire, value
        elif wire == 2:
            length, position = _varint(data, position)
            if length > end - position:
                raise _broken()
            yield number, wire, data[position : position + length]
            position += length
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
            if position > end:
                raise _broken()
            yield number, wire, 0
        else:
            raise _broken()


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise _broken()
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _broken() -> AgentError:
    return AgentError("policy.onnx is damaged: it cannot be read as an ONNX model.", hint="Export the agent again.")
