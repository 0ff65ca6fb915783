"""Write docs/index.md: the README with its links turned towards docs/, above what stands below the marker.

Given README.md and the present docs/index.md; gives back the new text.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARKER = "<!-- Above: README.md, by docs/_scripts/index.py. Below: written here. -->"
REPOSITORY = "https://github.com/Azure/plato/blob/main/"


def index(readme: str, present: str) -> str:
    """The index page; links into docs/ become relative to it, other links lead to the repository."""
    below = present.partition(MARKER)[2] or "\n"
    return re.sub(r"\]\(([^)#:]+)\)", _turn, readme).rstrip() + f"\n\n{MARKER}{below}"


def _turn(link: re.Match[str]) -> str:
    target = link.group(1)
    if target == "CHANGELOG.md":
        return "](changelog.md)"
    if target.startswith("docs/"):
        return f"]({target.removeprefix('docs/')})"
    return f"]({REPOSITORY}{target})"


if __name__ == "__main__":
    page = ROOT / "docs/index.md"
    text = index((ROOT / "README.md").read_text("utf-8"), page.read_text("utf-8") if page.exists() else MARKER)
    page.write_text(text, "utf-8")
