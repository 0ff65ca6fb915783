"""Reads what clients send: bytes from the network to checked values, with an error that names the field.

Given a body, gives JSON without NaN, duplicate keys or endless nesting; given that JSON, gives a `Request` of one or
several observations. Everything wrong with it is a `RequestError`, which is an answer (4xx) and never a crash.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from gymnasium import Space, spaces

from .openapi import MAX_BATCH

MIN_BODY_LIMIT = 1 << 20
MAX_BODY_LIMIT = 256 << 20
_NUMBER_CHARS = 32
"""A float64 has 24 characters at most; the rest is for commas, spaces and brackets."""
_CHARACTER_CHARS = 12
"""A character beyond the basic plane, as two escapes."""
MAX_DEPTH = 64
MAX_CLIENT_CHARS = 200
DEFAULT_CLIENT = "default"
"""Whose memory is used when a request names nobody."""

_OBSERVATION_NAMES = ("observation", "observations", "state")
_KNOWN = frozenset({*_OBSERVATION_NAMES, "client", "action_mask", "observed_at"})
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))


class RequestError(Exception):
    """A request that cannot be answered with an action.

    Attributes:
        status: The HTTP status.
        message: What is wrong, with the value.
        field: Which field of the body, or None for the whole.
    """

    def __init__(self, message: str, *, field: str | None = None, status: int = 422) -> None:
        super().__init__(message)
        self.message, self.field, self.status = message, field, status


@dataclass
class Request:
    """One call of `/act`, its values not yet checked against the agent's spaces."""

    observations: list[Any]
    is_batch: bool
    name: str
    client: str
    masks: Any
    observed_at: float | None


def body_limit(space: Space[Any]) -> int:
    """How many bytes a body may have by default: 1 MiB, or room for one observation of the space where that is more."""
    return min(MAX_BODY_LIMIT, max(MIN_BODY_LIMIT, MIN_BODY_LIMIT // 16 + _num_chars(space)))


def _num_chars(space: Space[Any]) -> int:
    if isinstance(space, spaces.Dict):
        return sum(len(str(key)) * _CHARACTER_CHARS + _num_chars(child) for key, child in space.spaces.items())
    if isinstance(space, spaces.Tuple):
        return sum(map(_num_chars, space.spaces))
    if isinstance(space, spaces.Text):
        return space.max_length * _CHARACTER_CHARS
    return math.prod(space.shape or (1,)) * _NUMBER_CHARS


def parse_json(body: bytes) -> Any:
    """The JSON of a body.

    Raises:
        RequestError: Not UTF-8, not JSON, NaN or infinity, a key twice in one object, or nested too deeply.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8: byte {error.start} is {body[error.start]:#04x}.") from None
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _is_too_deep(body):
        raise RequestError(f"the body is nested more than {MAX_DEPTH} levels deep.")
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column {error.colno}"
        raise RequestError(f"the body is not JSON: {error.msg} at {at}.") from None
    except (ValueError, RecursionError) as error:  # a number of more digits than Python reads
        raise RequestError(f"the body cannot be read: {error}") from None


def parse_act(body: bytes) -> Request:
    """The body of `POST /act`.

    Raises:
        RequestError: Unreadable, or not the object that `/act` takes.
    """
    data = parse_json(body)
    if not isinstance(data, dict):
        raise RequestError('the body must be an object such as {"observation": ...}.')
    unknown = [key for key in data if key not in _KNOWN]
    if unknown:
        field = _shown(unknown[0])
        raise RequestError(f"{field}: unknown; known are {', '.join(sorted(_KNOWN))}.", field=field)
    given = [name for name in _OBSERVATION_NAMES if name in data]
    if len(given) != 1:
        what = "is missing" if not given else f"stands beside {given[1]}; give one of them"
        raise RequestError(f"observation: {what}.", field="observation")
    name = given[0]
    observations, is_batch = data[name], name == "observations"
    if not is_batch:
        observations = [observations]
    elif not isinstance(observations, list) or not observations:
        raise RequestError("observations: expected an array of at least one observation.", field=name)
    elif len(observations) > MAX_BATCH:
        raise RequestError(f"observations: {len(observations)} of them; {MAX_BATCH} are allowed.", field=name)
    masks = data.get("action_mask")
    if is_batch and masks is not None and (not isinstance(masks, list) or len(masks) != len(observations)):
        raise RequestError("action_mask: expected an array with one mask for each observation.", field="action_mask")
    return Request(
        observations, is_batch, name, client_of(data.get("client")), masks, _observed_at(data.get("observed_at"))
    )


def client_of(value: Any) -> str:
    """The id of a client, as given or the default one.

    Raises:
        RequestError: Not a string of 1 to 200 characters.
    """
    if value is None:
        return DEFAULT_CLIENT
    if not isinstance(value, str) or not 0 < len(value) <= MAX_CLIENT_CHARS:
        raise RequestError(f"client: expected a string of 1 to {MAX_CLIENT_CHARS} characters.", field="client")
    return value


def _observed_at(value: Any) -> float | None:
    if value is None:
        return None
    try:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        is_number = False
    if not is_number:
        raise RequestError("observed_at: expected seconds since 1970 as a number.", field="observed_at")
    return float(value)


def _is_too_deep(body: bytes) -> bool:
    """Whether brackets outside strings are nested beyond the limit: innermost pairs go, one level at a time."""
    rest = _STRING.sub(b"", body).translate(_BRACKETS, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        if not rest:
            return False
        rest = _without_innermost(rest)
    return bool(rest)


def _without_innermost(brackets: bytes) -> bytes:
    return brackets.replace(b"[]", b"")


def _shown(key: str) -> str:
    return key if len(key) <= 60 else key[:57] + "..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RequestError(f"{_shown(key)}: this key stands twice in one object.", field=_shown(key))
            seen.add(key)
    return found


def _refuse(constant: str) -> NoReturn:
    raise RequestError(f"the body holds {constant}, which is not a JSON number.")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)
