"""Every promise of the security page names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_promise_has_its_tests() -> None:
    page = (ROOT / "docs/explain/security.md").read_text("utf-8")
    promises = page.split("## The tricks that were tried")[0]
    rows = [row for row in promises.splitlines() if row.startswith("| ")][2:]
    assert len(rows) >= 28
    for row in rows:
        files = re.findall(r"`(tests/[\w/]+\.py)`: ((?:`test_\w+`(?:, )?)+)", row)
        assert files, f"no test beside: {row}"
        assert len(re.findall(r"`tests/", row)) == len(files), f"a file without a test of it: {row}"
        for path, names in files:
            there = set(re.findall(r"^def (test_\w+)\(", (ROOT / path).read_text("utf-8"), re.MULTILINE))
            assert not set(re.findall(r"test_\w+", names)) - there, f"{path} has no such test: {names}"
