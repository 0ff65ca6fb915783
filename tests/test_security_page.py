"""Every promise of the security page names a test that is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_promise_has_its_test() -> None:
    page = (ROOT / "docs/explain/security.md").read_text("utf-8")
    promises = page.split("## What is not promised")[0]
    rows = [row for row in promises.splitlines() if row.startswith("| ")][2:]
    assert len(rows) >= 20
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)`", row)
        assert named, f"no test beside: {row}"
        for path in named:
            assert re.search(r"^def test_", (ROOT / path).read_text("utf-8"), re.MULTILINE), path
