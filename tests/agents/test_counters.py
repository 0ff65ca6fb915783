"""Counters are summed over processes, and what an ended process counted stays."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from platotk.agents.counters import MAX_NAMES, NAME_BYTES, Counters
from platotk.agents.prometheus import ServerMetrics


def work(folder: Path, times: int) -> None:
    counters = Counters(folder)
    for _ in range(times):
        counters.add("requests")
        counters.add("seconds", 0.25)


def test_every_process_shows_the_sum_and_nothing_is_lost_when_one_ends(tmp_path: Path) -> None:
    mine = Counters(tmp_path)
    mine.add("requests", 5)
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=work, args=(tmp_path, times)) for times in (10, 20)]
    for process in others:
        process.start()
    for process in others:
        process.join(30)
        assert process.exitcode == 0
    assert mine.total() == {"requests": 35.0, "seconds": 7.5}
    assert {path.stat().st_size for path in tmp_path.iterdir()} == {(NAME_BYTES + 8) * MAX_NAMES}


def test_more_names_than_fit_are_still_counted_here(tmp_path: Path) -> None:
    counters = Counters(tmp_path)
    for number in range(MAX_NAMES + 10):
        counters.add(f"name {number}", number)
    counters.add("x" * 1000, 3)
    total = counters.total()
    assert total[f"name {MAX_NAMES + 9}"] == MAX_NAMES + 9
    assert total["x" * 1000] == 3


def test_the_page_of_prometheus() -> None:
    metrics = ServerMetrics()
    metrics.answered("/act", 200, 0.0002)
    metrics.answered("/act", 422, 2.0)
    metrics.acted(256)
    metrics.count("plato_guard_total", rule="clamp")
    lines = metrics.text(num_clients=3).splitlines()
    for line in [
        'plato_requests_total{route="/act",status="200"} 1',
        'plato_requests_total{route="/act",status="422"} 1',
        "plato_errors_total 1",
        "plato_actions_total 256",
        'plato_guard_total{rule="clamp"} 1',
        "# TYPE plato_guard_total counter",
        'plato_request_seconds_bucket{le="0.0001"} 0',
        'plato_request_seconds_bucket{le="0.00025"} 1',
        'plato_request_seconds_bucket{le="+Inf"} 2',
        "plato_request_seconds_sum 2.0002",
        "plato_request_seconds_count 2",
        "plato_clients 3",
    ]:
        assert line in lines, (line, lines)
    assert sum(line.startswith("# TYPE plato_requests_total") for line in lines) == 1
