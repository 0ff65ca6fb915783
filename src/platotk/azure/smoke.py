"""The smoke test of an endpoint: the agent's own recording is sent to it, and every answer must be the recorded one.

Given the address, its key and the agent as it lies here, gives back how alike the answers are and how long they took.
An agent with guards is compared with itself, guarded, on the same observations at the same times.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..agents.agent import Agent
from ..agents.parity import Verification, compare
from ..agents.recorded import Row
from ..errors import AzureError
from ..spaces import from_json, to_json
from .client import asking

NUM_SINGLE = 100
"""Rows that are sent one by one, and timed."""
TOLERANCE = 1e-4
"""Of an action's range: processors differ in the last digits; the same as when a server starts."""
WARM_UP_S = 60.0
"""How long the first answer may take to come: routes to new machines are not there at once."""
TIMEOUT_S = 30.0
MAX_BODY_CHARS = 500_000
_BATCH = 256
_STEP_S = 1e-4
_NOT_YET = (404, 408, 424, 429, 502, 503, 504)


@dataclass(frozen=True)
class Smoke:
    """What came of it.

    Attributes:
        num_rows: Observations that were answered.
        max_error: Largest difference of a number, as a share of its range.
        num_mismatches: Rows that chose differently although the trained policy was decided.
        p50_ms: Half of the single requests took less, seen from here.
        p95_ms: 95 in 100 took less.
    """

    num_rows: int
    max_error: float
    num_mismatches: int
    p50_ms: float
    p95_ms: float

    @property
    def is_equal(self) -> bool:
        """Whether the endpoint acts as the agent does."""
        return self.num_rows > 0 and self.num_mismatches == 0 and self.max_error <= TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "is_equal": self.is_equal}


class Scoring:
    """Asks one deployment of an endpoint, over one connection.

    Args:
        url: The scoring address.
        key: Of the endpoint.
        deployment: Which one answers; None leaves it to the endpoint's traffic.
    """

    def __init__(self, url: str, key: str, deployment: str | None = None) -> None:
        import requests  # azure-core's own client: it knows proxies and certificates as the SDK does

        self._url, self._what = url, f"deployment {deployment}" if deployment else "the endpoint"
        self._session = requests.Session()
        self._session.headers.update({"Authorization": f"Bearer {key}"})
        if deployment:
            self._session.headers["azureml-model-deployment"] = deployment

    def ask(self, body: dict[str, Any], *, patience_s: float = 0.0) -> Any:
        """The answer to one body.

        Raises:
            AzureError: It is not 200, or none comes.
        """
        until = time.monotonic() + patience_s
        while True:
            with asking(self._what):
                response = self._session.post(self._url, json=body, timeout=TIMEOUT_S)
            if response.status_code == 200:
                break
            if response.status_code not in _NOT_YET or time.monotonic() > until:
                said = " ".join(response.text.split())[:300]
                raise AzureError(
                    f"{self._what} answered with status {response.status_code}: {said}",
                    hint="Its log says more; the studio shows it under Endpoints.",
                )
            time.sleep(1.0)
        try:
            return response.json()
        except ValueError:
            raise AzureError(f"{self._what} answered with what is no JSON: {response.text[:200]!r}") from None

    def close(self) -> None:
        """Close the connection."""
        self._session.close()


def smoke(scoring: Scoring, agent: Agent) -> Smoke:
    """Replay the agent's recording through an endpoint.

    Args:
        scoring: Where to.
        agent: What is deployed there.

    Raises:
        AzureError: It did not answer, or refused an observation.
    """
    rows = agent.recorded()
    single = rows[:NUM_SINGLE]
    answered, expected, times = _one_by_one(scoring, agent, single)
    margins = [row.margin for row in single]
    if not agent.has_memory:
        rest = rows[NUM_SINGLE:]
        expected += _expected_alone(agent, rest)
        margins += [row.margin for row in rest]
        for body in _batches(agent, rest):
            answered += scoring.ask(body)["actions"]
    space = agent.action_space
    actual = [from_json(space, action, check_bounds=False) for action in answered]
    proof: Verification = compare(space, expected, actual, margins)
    p50, p95 = np.percentile(times[1:] or times or [0.0], [50, 95])
    return Smoke(len(actual), proof.max_error, proof.num_mismatches, round(1e3 * p50, 2), round(1e3 * p95, 2))


def first_body(agent: Agent) -> dict[str, Any]:
    """The first recorded observation, as a client sends it."""
    (row, *_) = agent.recorded(limit=1)
    mask = {} if row.mask is None else {"action_mask": row.mask}
    return {**_observation(agent, row), **mask, "client": f"smoke-{uuid.uuid4().hex}"}


def _one_by_one(scoring: Scoring, agent: Agent, rows: list[Row]) -> tuple[list[Any], list[Any], list[float]]:
    """Answers, what they should be, and how long they took; an episode is a client of its own."""
    answered, expected, times = [], [], []
    session, client, observed_at = agent.session(), "", 0.0
    needs_clock = agent.guards is not None and agent.guards.needs_clock
    for number, row in enumerate(rows):
        is_new = row.is_first or not agent.has_memory or not client
        if is_new:
            session.reset()
            client = f"smoke-{uuid.uuid4().hex}"
        # Where speed is limited, less time is said to pass than does on any clock, so that both sides reckon the same.
        observed_at = observed_at + _STEP_S if needs_clock and not is_new else time.time()
        body = {**_observation(agent, row), "client": client, "observed_at": observed_at}
        if row.mask is not None:
            body["action_mask"] = row.mask
        began = time.perf_counter()
        answered.append(scoring.ask(body, patience_s=0.0 if number else WARM_UP_S)["action"])
        times.append(time.perf_counter() - began)
        if agent.guards is None:
            expected.append(row.action)
        else:
            expected.append(session.act(row.observation, mask=row.mask, observed_at=observed_at))
    return answered, expected, times


def _observation(agent: Agent, row: Row) -> dict[str, Any]:
    return {"observation": to_json(agent.observation_space, row.observation)}


def _expected_alone(agent: Agent, rows: list[Row]) -> list[Any]:
    if agent.guards is None:
        return [row.action for row in rows]
    has_masks = agent.adapter.mask_source == "info"
    masks = [row.mask for row in rows] if has_masks else None
    return agent.act_batch([row.observation for row in rows], masks=masks)


def _batches(agent: Agent, rows: list[Row]) -> Iterator[dict[str, Any]]:
    """Bodies of several rows each, none too large for a server."""
    taken: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        one = _observation(agent, row)["observation"]
        chars = len(json.dumps(one))
        if taken and (len(taken) == _BATCH or size + chars > MAX_BODY_CHARS):
            yield _body(taken)
            taken, size = [], 0
        taken.append({"observation": one, "mask": row.mask})
        size += chars
    if taken:
        yield _body(taken)


def _body(rows: list[dict[str, Any]]) -> dict[str, Any]:
    body: dict[str, Any] = {"observations": [row["observation"] for row in rows]}
    if rows[0]["mask"] is not None:
        body["action_mask"] = [row["mask"] for row in rows]
    return body
