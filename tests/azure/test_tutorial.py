"""docs/where/azure-tutorial.md, typed at a shell: every command in order, and what the page shows is what they print.

Azure is the emulator of this machine; its subscription stands in for the page's. Conventions of the page, beside those
of `tests/docs_blocks.py`: a `text` block belongs to the commands above it; each of its lines must be printed, in this
order. `...` stands for anything, columns may be wider, and in a block "prints something like" numbers may be others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.azure_emulator.emulator import SUBSCRIPTION, Emulator
from tests.azure_emulator.fixtures import running
from tests.docs_blocks import ROOT, RUNNABLE, Reader, blocks

pytest.importorskip("azure.ai.ml", reason="needs the extra azure")

PAGE = ROOT / "docs/where/azure-tutorial.md"
EXAMPLE_ID = "01234567-89ab-cdef-0123-456789abcdef"
WITH_A_RUN = ("6. Train", "7. Assess and export", "8. Deploy", "9. Delete the endpoint")
NUMBER, HASH = r"(?:(?<!\w)-)?\d[\d,.:]*", r"\b(?=[a-f]*\d)[0-9a-f]{6,12}\b"


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """A subscription in which nothing is yet."""
    monkeypatch.setenv("COLUMNS", "120")
    with running(tmp_path / "azure") as emulator:
        emulator.state.clear()
        yield emulator


def sections() -> dict[str, str]:
    """The page's sections by their headings."""
    text = PAGE.read_text("utf-8").replace(EXAMPLE_ID, SUBSCRIPTION)
    found = re.split(r"(?m)^## (.+)$", text)
    return dict(zip(found[1::2], found[2::2], strict=True))


def pattern(line: str, *, is_exact: bool) -> str:
    """What one line of a `text` block asks for."""
    varies = rf"\.\.\.|\s+|{HASH}" + ("" if is_exact else rf"|{NUMBER}")
    made = ""
    for piece in re.split(f"({varies})", line.strip()):
        if piece == "...":
            made += ".*"
        elif piece.isspace():
            made += r"\s+"
        elif re.fullmatch(HASH, piece):
            made += r"[0-9a-f]+"
        elif not is_exact and re.fullmatch(NUMBER, piece):
            made += r"-?\d[\d,.:]*"
        else:
            made += re.escape(piece)
    return made


def lacking(text: str, said: str, *, is_exact: bool) -> list[str]:
    """Lines of `text` that were not said, or not in this order."""
    lines, at, missing = said.splitlines(), 0, []
    for line in filter(str.strip, text.splitlines()):
        asked = re.compile(pattern(line, is_exact=is_exact))
        found = next((n for n in range(at, len(lines)) if asked.search(lines[n])), None)
        if found is None:
            missing.append(line)
        else:
            at = found + 1
    return missing


def follow(names: list[str], folder: Path) -> None:
    """Type the sections' commands, one block after the other, and hold what they print to what the page shows."""
    reader = Reader(folder)
    for name in names:
        said = ""
        for block in blocks(sections()[name]):
            where = f"azure-tutorial.md, {name}, line {block.line}"
            assert block.skip is None, where
            if block.language in RUNNABLE:
                said = reader.do(block, where)
            else:
                assert (block.language, said != "") == ("text", True), where
                missing = lacking(block.text, said, is_exact=block.title == "prints")
                assert missing == [], f"{where}: not printed, or in another order; it said:\n{said}"


def test_the_page_up_to_the_job_and_back_to_nothing(azure: Emulator, tmp_path: Path) -> None:
    """All that needs no trained run: quick enough for every day."""
    follow([name for name in sections() if name not in WITH_A_RUN], tmp_path / "reader")
    assert any(method == "PUT" and "/computes/rl-cpu" in path for method, _, path, _, _ in azure.requests)
    assert (azure.state.computes, azure.state.workspaces, azure.state.jobs) == ({}, {}, {})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_page_from_a_fresh_machine_to_an_endpoint_and_back_to_nothing(azure: Emulator, tmp_path: Path) -> None:
    follow(list(sections()), tmp_path / "reader")
    (job,) = azure.runs.values()
    assert job.status() == "Completed"
    assert (azure.state.endpoints, azure.state.computes, azure.state.workspaces) == ({}, {}, {})
    assert "rl" not in azure.state.resource_groups


@pytest.mark.parametrize(
    ("line", "said", "is_exact", "is_there"),
    [
        ("nodes  0 of 4", "  nodes           0 of 4  ", True, True),
        ("nodes  0 of 4", "  nodes           1 of 4  ", True, False),
        ("nodes  0 of 4", "  nodes           1 of 4  ", False, True),
        ("platotk-adder-...", "platotk-adder-f0f400378dfa:1", True, True),
        ("simple-adder-ebe794 answers", "simple-adder-0a1b2c answers", True, True),
        ("as job 20261123-174303-adder-8140bb", "as job 20270101-000000-adder-fedcba", False, True),
        ("return mean  -33.4", "return mean  1,033.4", False, True),
        ("return mean  -33.4", "return mean  nan", False, False),
        ("all done", "nearly all", False, False),
    ],
)
def test_what_is_printed_is_told_from_what_is_not(line: str, said: str, is_exact: bool, is_there: bool) -> None:
    assert (lacking(line, said, is_exact=is_exact) == []) is is_there


def test_lines_in_another_order_are_found() -> None:
    assert lacking("one\ntwo", "two\none", is_exact=True) == ["two"]
