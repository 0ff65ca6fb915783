"""The space adapter: any Gymnasium space in, what a network learns from out, and back, exactly.

Given a sim's observation and action space, `adapt` decides how each leaf is learned from and returns an
`Adapter`: training, serving and JSON all go through that one object, so they agree by construction. Needs
numpy and gymnasium.spaces alone.
"""

from platotk.spaces.adapter import ALGORITHMS, CHOOSY, Adapter, adapt, fitting, refusal
from platotk.spaces.columns import columns_of, from_json_batch, rows_of, to_json_batch
from platotk.spaces.description import space_from_json, space_to_json
from platotk.spaces.values import from_json, to_json

__all__ = [
    "ALGORITHMS",
    "CHOOSY",
    "Adapter",
    "adapt",
    "columns_of",
    "fitting",
    "from_json",
    "from_json_batch",
    "refusal",
    "rows_of",
    "space_from_json",
    "space_to_json",
    "to_json",
    "to_json_batch",
]
