"""What an SDK would send: before azure-ai-ml 1.35 some of its models are of another kind than later."""

from __future__ import annotations

from typing import Any


def as_sent(model: Any) -> dict[str, Any]:
    """A model of the SDK's own clients as it goes on the wire."""
    made: dict[str, Any] = model.serialize() if hasattr(model, "serialize") else model.as_dict()
    return made
