"""What the server counts, in Prometheus' text format (version 0.0.4), written by hand: no dependency for four counters.

Given each answered request, `ServerMetrics.text` gives the page that `/metrics` serves.
Format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from bisect import bisect_left

BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class ServerMetrics:
    """Counters of one server process."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int], int] = {}
        self.num_actions = 0
        self._buckets = [0] * (len(BUCKETS_S) + 1)
        self._sum_s = 0.0

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one request; `route` is one of the server's own routes, never what a client wrote."""
        key = (route, status)
        self.requests[key] = self.requests.get(key, 0) + 1
        self._buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self._sum_s += seconds

    def text(self, *, num_clients: int) -> str:
        """The page, ending in a newline."""
        errors = sum(count for (_, status), count in self.requests.items() if status >= 400)
        lines = ["# HELP plato_requests_total Requests answered.", "# TYPE plato_requests_total counter"]
        lines += [
            f'plato_requests_total{{route="{route}",status="{status}"}} {count}'
            for (route, status), count in sorted(self.requests.items())
        ]
        lines += [
            "# HELP plato_request_seconds Time from the request's headers to its answer.",
            "# TYPE plato_request_seconds histogram",
        ]
        total = 0
        for edge, count in zip((*BUCKETS_S, "+Inf"), self._buckets, strict=True):
            total += count
            lines.append(f'plato_request_seconds_bucket{{le="{edge}"}} {total}')
        lines += [f"plato_request_seconds_sum {self._sum_s:.9g}", f"plato_request_seconds_count {total}"]
        for name, kind, what, value in (
            ("plato_actions_total", "counter", "Actions given.", self.num_actions),
            ("plato_errors_total", "counter", "Requests answered with a status of 400 or more.", errors),
            ("plato_clients", "gauge", "Clients whose memory is held.", num_clients),
        ):
            lines += [f"# HELP {name} {what}", f"# TYPE {name} {kind}", f"{name} {value}"]
        return "\n".join(lines) + "\n"
