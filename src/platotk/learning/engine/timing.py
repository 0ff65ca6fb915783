"""RLlib's timers and counters, kept although the engine does the work in batch or has no need of it.

Whoever plots `env_runners/env_to_module_connector/...` finds the same keys as with RLlib's own runner; what the engine
does without took no time and says 0. What RLlib counts at every minibatch is counted once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    CONNECTOR_PIPELINE_TIMER,
    CONNECTOR_TIMERS,
    DIFF_NUM_GRAD_UPDATES_VS_SAMPLER_POLICY,
    MODULE_TRAIN_BATCH_SIZE_MEAN,
    NUM_ENV_STEPS_TRAINED,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    NUM_MODULE_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    TIMERS,
    WEIGHTS_SEQ_NO,
)
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


def log_steps(learner: Any, num_rows: int, size: float, *, lag: float | None = None) -> None:
    """Log what a learner has learned from.

    Args:
        learner: RLlib's or the engine's.
        num_rows: Rows of all minibatches; those that were learned from twice count twice.
        size: Rows of a minibatch, on average.
        lag: Updates since the weights that sampled; None where RLlib does not say.
    """
    module, everything, log = DEFAULT_MODULE_ID, ALL_MODULES, learner.metrics.log_value
    log((module, WEIGHTS_SEQ_NO), learner._weights_seq_no, window=1)
    if lag is not None:
        log((module, DIFF_NUM_GRAD_UPDATES_VS_SAMPLER_POLICY), lag, window=1)
    log((module, MODULE_TRAIN_BATCH_SIZE_MEAN), size, reduce="mean")
    log((module, NUM_MODULE_STEPS_TRAINED), num_rows, reduce="sum")
    for key in (
        (module, NUM_MODULE_STEPS_TRAINED_LIFETIME),
        (everything, NUM_MODULE_STEPS_TRAINED_LIFETIME),
        (everything, NUM_ENV_STEPS_TRAINED_LIFETIME),
    ):
        log(key, num_rows, reduce="lifetime_sum", with_throughput=True)
    for key in ((everything, NUM_MODULE_STEPS_TRAINED), (everything, NUM_ENV_STEPS_TRAINED)):
        log(key, num_rows, reduce="sum", with_throughput=True)
    learner._metrics_all_modules_num_env_steps_trained.inc(value=num_rows)
    learner._metrics_all_modules_num_module_steps_trained.inc(value=num_rows)
