"""Two processes that make the same thing in one place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ADD_ONE = """
import sys, time
from pathlib import Path
from tests.one_at_a_time import one_at_a_time
count = Path(sys.argv[1])
for _ in range(5):
    with one_at_a_time(count.with_name("deep") / "lock"):
        before = int(count.read_text())
        time.sleep(0.02)
        count.write_text(str(before + 1))
"""


def test_nobody_enters_while_another_is_inside(tmp_path: Path) -> None:
    count = tmp_path / "count"
    count.write_text("0")
    root = Path(__file__).resolve().parents[1]
    workers = [subprocess.Popen([sys.executable, "-c", ADD_ONE, count], cwd=root) for _ in range(3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    assert count.read_text() == "15"
