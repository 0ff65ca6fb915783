"""What the server counts, in Prometheus' text format (version 0.0.4), written by hand: no dependency for four counters.

Given each answered request, `ServerMetrics.text` gives the page that `/metrics` serves. Several worker processes each
write their counters into a file of their own in one folder, and each of them shows the sum of all.
Format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path

from .counters import Counters

BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_EDGES = tuple(str(edge) for edge in (*BUCKETS_S, "+Inf"))
_BUCKETS = tuple(f'plato_request_seconds_bucket{{le="{edge}"}}' for edge in _EDGES)
_HELP = {
    "plato_requests_total": "Requests answered.",
    "plato_actions_total": "Actions given.",
    "plato_errors_total": "Requests answered with a status of 400 or more.",
}
_GUARD = "plato_guard_actions_total"
_MORE_HELP = {_GUARD: "Actions that a guard had to do with."}


def escaped(label: str) -> str:
    """A label's value as the format wants it; names of leaves are the sim's own and may hold anything."""
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class ServerMetrics:
    """The counters of one server, however many processes it has."""

    def __init__(self, folder: Path | None = None) -> None:
        """Count in this process, or, with a folder, together with all others that are given the same."""
        self._counters = Counters(folder)
        self._series: dict[tuple[str, int], str] = {}
        for name in ("plato_actions_total", "plato_errors_total"):
            self._counters.add(name, 0)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one request; `route` is one of the server's own routes, never what a client wrote."""
        series = self._series.get((route, status))
        if series is None:
            series = f'plato_requests_total{{route="{route}",status="{status}"}}'
            self._series[(route, status)] = series
        add = self._counters.add
        add(series)
        add(_BUCKETS[bisect_left(BUCKETS_S, seconds)])
        add("plato_request_seconds_sum", seconds)
        if status >= 400:
            add("plato_errors_total")

    def acted(self, num_actions: int) -> None:
        """Count actions given."""
        self._counters.add("plato_actions_total", num_actions)

    def count(self, name: str, /, **labels: str) -> None:
        """Count anything else, such as `plato_guard_total{rule="clamp"}`; names and labels are the server's own."""
        given = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
        self._counters.add(f"{name}{{{given}}}" if given else name)

    def text(self, *, num_clients: int) -> str:
        """The page, ending in a newline."""
        values = self._counters.total()
        seconds = values.pop("plato_request_seconds_sum", 0.0)
        buckets = [int(values.pop(bucket, 0)) for bucket in _BUCKETS]
        families: dict[str, list[str]] = {name: [] for name in _HELP}
        for series, value in sorted(values.items()):
            families.setdefault(series.partition("{")[0], []).append(f"{series} {value:.15g}")
        lines = []
        for name, entries in families.items():
            what = _HELP.get(name) or _MORE_HELP.get(name)
            help_line = [f"# HELP {name} {what}"] if what else []
            lines += [*help_line, f"# TYPE {name} counter", *entries]
        lines += [
            "# HELP plato_request_seconds Time from the request's headers to its answer.",
            "# TYPE plato_request_seconds histogram",
        ]
        total = 0
        for series, count in zip(_BUCKETS, buckets, strict=True):
            total += count
            lines.append(f"{series} {total}")
        lines += [f"plato_request_seconds_sum {seconds:.9g}", f"plato_request_seconds_count {total}"]
        lines += ["# HELP plato_clients Clients whose memory is held.", "# TYPE plato_clients gauge"]
        return "\n".join([*lines, f"plato_clients {num_clients}"]) + "\n"
