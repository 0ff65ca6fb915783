"""What a tracking store takes of one run, and what is logged first where that is less than there is.

Azure ML takes 200 parameters and 50 metric names a run, far below what RLlib counts. `limits_of` is given the store's
address and gives its limits; `params_of` and `MetricNames` choose within them and say what they left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from .metrics import CURATED, LEARNER_METRICS

LAST_PARAMS = ("sim_config", "guard", "backends", "offline_data")
"""Sections that may be long and say least about how a run learned."""
NOT_IN_A_NAME = re.compile(r"[^\w\-. :/]")
"""What MLflow takes in no name."""
NAME_CHARS = 250
TAG_CHARS = 1000


@dataclass(frozen=True)
class Limits:
    """What a store takes.

    Attributes:
        params: Parameters of a run that are logged at most.
        params_a_call: Of those, in one call.
        param_chars: Characters of a value.
        metric_names: Different names of metrics of a run.
        metrics_a_call: Values of metrics in one call.
    """

    params: int = 1000
    params_a_call: int = 100
    param_chars: int = 500
    metric_names: int = 200
    metrics_a_call: int = 1000


ANY = Limits()
"""MLflow's own are by call and value; the others keep a folder store, a file for each, quick."""
AZURE = Limits(params=150, metric_names=50, metrics_a_call=250)
"""Azure ML refuses a run's 201st parameter, of which the project's own code may have some, and its 51st metric name
(learn.microsoft.com, resource-limits-capacity; azure-sdk-for-python issue 35685)."""


def limits_of(uri: str, *, is_from_environment: bool) -> Limits:
    """The limits of the store at an address.

    Args:
        uri: The tracking URI.
        is_from_environment: Whether the environment named it: a job of Azure ML finds its workspace's there.
    """
    parts = urlsplit(uri)
    is_azure = parts.scheme == "azureml" or (parts.hostname or "").endswith(".api.azureml.ms")
    return AZURE if is_azure or (is_from_environment and "AZUREML_RUN_ID" in os.environ) else ANY


def params_of(config: Mapping[str, Any], limits: Limits) -> tuple[list[tuple[str, str]], int]:
    """A project as parameters by dotted key, long sections last; and how many there was no room for."""
    ordered = sorted(config.items(), key=lambda item: item[0] in LAST_PARAMS)
    found = [(valid_name(name), _shortened(str(value), limits.param_chars)) for name, value in flat(dict(ordered))]
    unique = list(dict(found).items())
    return unique[: limits.params], max(0, len(unique) - limits.params)


class MetricNames:
    """Which metrics of a run are logged: what people compare runs by has its place, the rest while there is room.

    Args:
        limit: How many names the store takes.
        known: Those that the run has there already.
    """

    def __init__(self, limit: int, known: Iterable[str] = ()) -> None:
        self._limit = limit
        self._names = set(known)
        self._expected = set(CURATED)
        self._left_out: dict[str, None] = {}

    def admit(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """What of an iteration's metrics is logged.

        Args:
            metrics: By name, those that people need first.
        """
        learner = {f"learner/{name}" for name in LEARNER_METRICS}
        if self._expected & learner and learner & set(metrics):
            self._expected -= learner  # each algorithm has a few of them: room for the others need not be kept
        admitted = {}
        for given, value in metrics.items():
            name = valid_name(given)
            kept = 0 if given in CURATED else len(self._expected - self._names)
            if name in self._names or len(self._names) + kept < self._limit:
                self._names.add(name)
                admitted[name] = value
            else:
                self._left_out[name] = None
        return admitted

    def left_out(self) -> list[str]:
        """The names there was no room for."""
        return list(self._left_out)


def valid_name(name: str) -> str:
    """A name as MLflow takes it."""
    return NOT_IN_A_NAME.sub("_", name)[:NAME_CHARS]


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values by dotted key: `training.lr`."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
