"""RLlib's timers of connector pieces, kept although the engine does their work in batch or has no need of it.

Whoever plots `env_runners/env_to_module_connector/...` finds the same keys as with RLlib's own runner; what the engine
does without took no time and says 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.rllib.utils.metrics import CONNECTOR_PIPELINE_TIMER, CONNECTOR_TIMERS, TIMERS
from ray.rllib.utils.metrics.utils import to_snake_case


def log_pipeline(metrics: Any, prefix: tuple[str, ...], pipeline: Any, seconds: Mapping[str, float]) -> None:
    """Log a pipeline's timers.

    Args:
        metrics: The MetricsLogger of the runner or learner.
        prefix: Where RLlib puts the pipeline's timers.
        pipeline: RLlib's pipeline.
        seconds: What the engine measured, by a piece's name in RLlib's spelling.
    """
    total = 0.0
    for piece in pipeline.connectors:
        name = to_snake_case(type(piece).__name__)
        total += seconds.get(name, 0.0)
        metrics.log_value((*prefix, TIMERS, CONNECTOR_TIMERS, name), seconds.get(name, 0.0))
    metrics.log_value((*prefix, CONNECTOR_PIPELINE_TIMER), total)
