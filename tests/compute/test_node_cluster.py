"""`plato node` on machines of their own network each: one Ray cluster results, and its end is everybody's."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.compute.machines import machines, needs_machines, start_node

COUNT_AND_FAIL = """
import ray, sys
ray.init(logging_level="ERROR")
@ray.remote(num_cpus=1)
def where(hold):
    import time; time.sleep(hold)
    return ray.util.get_node_ip_address()
places = set()
while len(places) < 3:
    places |= set(ray.get([where.remote(0.3) for _ in range(3)]))
print("nodes:", *sorted(places), flush=True)
sys.exit(3)
"""


@needs_machines
def test_three_machines_form_one_cluster_and_end_with_the_commands_exit_code(tmp_path: Path) -> None:
    with machines(3, tmp_path) as (first, second, third):
        late = time.monotonic()
        head = start_node(first, 0, 3, sys.executable, "-c", COUNT_AND_FAIL)
        workers = [start_node(second, 1, 3, "unused")]
        time.sleep(1.0)
        workers.append(start_node(third, 2, 3, "unused"))
        assert head.wait(120) == 3, first.said()
        ended = time.monotonic()
        codes = [worker.wait(20) for worker in workers]
        left_s = time.monotonic() - ended
        print(f"\n{ended - late:.1f} s to the end, workers left after {left_s:.1f} s")
        said = first.said()
        assert "nodes: 10.77.0.1 10.77.0.2 10.77.0.3" in said
        assert "3 of 3 nodes are there" in said
        assert codes == [0, 0], second.said() + third.said()
        assert left_s < 10.0
        assert [machine.processes() for machine in (first, second, third)] == [[], [], []]
        assert (second.folder / "logs/node-001.log").stat().st_size > 0
        assert (third.folder / "logs/node-002/raylet.out").stat().st_size > 0
        assert not any(
            "0123456789abcdef" in path.read_text(errors="replace") for path in tmp_path.rglob("*.*") if path.is_file()
        )
