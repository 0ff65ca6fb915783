"""The documentation is true: its code runs, its generated pages are current, its links lead somewhere."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from tests.docs_blocks import ROOT, RUNNABLE, Block, blocks, follow

DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if path != DOCS / "index.md")  # index.md is README.md
ON_AZURE = DOCS / "where/azure-tutorial.md"  # followed by tests/azure/test_tutorial.py
LONG = (
    "explain/from-rllib.md",
    "learn/assess.md",
    "learn/deploy.md",
    "learn/export.md",
    "learn/guards.md",
    "learn/train.md",
    "learn/tune.md",
    "quickstart.md",
    "reference/run-folder.md",
    "where/ray.md",
)
"""They train for what other pages type too: for `make test-all`."""
SOURCES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", DOCS / "index.md", *PAGES]


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page.read_text("utf-8")) if block.language in RUNNABLE]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if str(page.relative_to(DOCS)) in LONG else ())
        for page in PAGES
        if _runnable(page) and page != ON_AZURE
    ],
    ids=_name,
)
def test_every_block_of_the_page_runs(page: Path, tmp_path: Path) -> None:
    assert follow(page, tmp_path) == sum(block.skip is None for block in _runnable(page))


def test_only_blocks_that_cannot_run_anywhere_are_left_out() -> None:
    skipped = {f"{_name(page)}: {block.skip}" for page in SOURCES for block in _runnable(page) if block.skip}
    assert skipped == {
        "docs/learn/deploy.md: needs Azure",
        "docs/where/azure-ml.md: needs Azure",
        "docs/where/azure-resources.md: needs Azure",
        "docs/where/ray.md: needs a cluster",
        "docs/where/ray.md: needs several machines",
    }


def test_every_fence_says_its_language() -> None:
    assert [
        f"{_name(page)}:{b.line}" for page in SOURCES for b in blocks(page.read_text("utf-8")) if not b.language
    ] == []


@pytest.mark.parametrize("page", SOURCES, ids=_name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", _without_code(page)):
        path, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in _anchors(file)):
            broken.append(target)
    assert broken == []


def test_links_to_this_repository_name_what_is_in_it() -> None:
    ours = re.compile(r"https://github\.com/Azure/plato/(?:tree|blob)/main/([^)#\s]+)")
    missing = {
        target for page in SOURCES for target in ours.findall(page.read_text("utf-8")) if not (ROOT / target).exists()
    }
    assert missing == set()


@pytest.mark.parametrize("script", sorted(path.stem for path in (DOCS / "_scripts").glob("*.py")))
def test_generated_pages_are_current(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{script}.py"])
    before = {page: page.read_text("utf-8") for page in DOCS.rglob("*.md")}
    try:
        runpy.run_path(str(DOCS / "_scripts" / f"{script}.py"), run_name="__main__")
        after = {page: page.read_text("utf-8") for page in DOCS.rglob("*.md")}
    finally:
        for page, text in before.items():
            page.write_text(text, "utf-8")
    assert [_name(page) for page in after if before.get(page) != after[page]] == [], "run: make docs"


def test_every_page_is_in_the_navigation() -> None:
    text = re.sub(r"!!\S+", "", (ROOT / "mkdocs.yml").read_text("utf-8"))
    listed = set(re.findall(r"[\w/-]+\.md", str(yaml.safe_load(text)["nav"])))
    assert listed == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


def test_the_index_keeps_its_headings() -> None:
    index = (DOCS / "index.md").read_text("utf-8")
    assert [h for h in ("## Prerequisites", "## Samples", "## User guides") if h not in index] == []


def test_the_site_loads_nothing_from_elsewhere() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    assert config["theme"]["font"] is False
    assert not {"extra_javascript", "extra_css", "hooks"} & set(config)
    assert [p if isinstance(p, str) else next(iter(p)) for p in config["plugins"]] == [
        "search",
        "mkdocstrings",
    ]


def test_a_failing_block_is_reported_with_its_place(tmp_path: Path) -> None:
    page = ROOT / "docs" / "quickstart.md"
    text = "# A page\n\n```bash\ncd / && true\n```\n\n```bash\nfalse\n```\n"
    copy = tmp_path / "page.md"
    copy.write_text(text, "utf-8")
    assert page.exists()
    with pytest.raises(AssertionError, match=r"page\.md:7: exit code 1, expected 0"):
        follow(copy, tmp_path / "work")


def _without_code(page: Path) -> str:
    return re.sub(r"(?ms)^ *```.*?^ *```$", "", page.read_text("utf-8"))


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"(?m)^#{1,6} (.+)$", _without_code(page))
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}
