"""A sim's observation, with its action mask, as training sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import SimError
from ..spaces import Adapter
from .process import NOTHING_ALLOWED, SimFailure

MASK_KEY = "action_mask"


def encode(adapter: Adapter, observation: Any, info: Mapping[str, Any], *, step: int, is_over: bool) -> Any:
    """What a sim said after a step (or, with `step` 0, after a reset), encoded.

    At the end of an episode nobody acts: a mask that allows nothing is right there, and stands for none.

    Raises:
        SimFailure: It is not in the observation space, or the mask is wrong.
    """
    mask = info.get(MASK_KEY) if adapter.mask_source == "info" else None
    try:
        return adapter.encode(observation, mask)
    except SimError as error:
        if not error.message.startswith(NOTHING_ALLOWED):
            raise SimFailure(error.message) from error
        if is_over:
            return _encode_last(adapter, observation)
        when = f"after step {step} of the episode" if step else "after reset()"
        raise SimFailure(f"{error.message.rstrip('.')} {when}") from error


def _encode_last(adapter: Adapter, observation: Any) -> Any:
    key = adapter.mask_source
    try:
        if key == "info":
            return adapter.encode(observation)
        return adapter.encode({**observation, key: _allowing(observation[key])})
    except SimError as error:
        raise SimFailure(f"at the end of an episode: {error.message}") from error


def _allowing(mask: Any) -> Any:
    """A mask of the same form that allows everything."""
    if isinstance(mask, Mapping):
        return {key: _allowing(part) for key, part in mask.items()}
    if isinstance(mask, tuple):
        return tuple(_allowing(part) for part in mask)
    return np.ones_like(mask)
