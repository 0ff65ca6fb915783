"""Reads the fenced blocks of a Markdown page and does with them what a reader would, in order, in one folder.

`blocks(text)` gives the blocks; `follow(page, folder)` runs them, and raises with page, line and output when
one fails. Conventions:

- `bash` runs in one shell per block, from where the last block left off (folder and exported variables).
  `bash exit=2` expects that exit code of the block's last command.
- `python` runs as a script. With `title="sim.py"` it is saved under that name instead.
- `yaml` must load as a project file. With a title it is saved as well.
- `<!-- skip: reason -->` on the line before a block leaves it out.
- Everything else (`text`, `json`, `mermaid`) is shown, not run.

Training is cut to two iterations without MLflow, and `make` only says what it would do; all else is real.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.uncovered import uncovered

ROOT = Path(__file__).resolve().parents[1]
RUNNABLE = ("bash", "shell", "sh", "console", "python", "yaml")
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`\n]*)$")
SKIP = re.compile(r"<!--\s*skip:\s*(?P<reason>.+?)\s*-->")

# What a reader's shell has, plus the cuts that keep the tests short.
PRELUDE = """
set -euo pipefail
[ -f "$STATE" ] && . "$STATE"
keep() { export -p | grep -vE " (STATE|SHLVL)="; printf "cd %q\\n" "$PWD"; }
trap 'code=$?; keep > "$STATE"; exit $code' EXIT
make() { command make -n -C "$CHECKOUT" "$@"; }
plato() {
  if [ "$1" = train ]; then
    [[ "$*" == *stop.iterations* ]] || set -- "$@" --set stop.iterations=2
    [[ "$*" == *tracking.mlflow* ]] || set -- "$@" --set tracking.mlflow=false
  fi
  command plato "$@"
}
"""


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, and what stands around it."""

    language: str
    text: str
    line: int
    title: str | None = None
    exit_code: int = 0
    skip: str | None = None


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found: list[Block] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        number += 1
        if opening is None:
            continue
        start, indent, closing = number, len(opening["indent"]), opening["indent"] + opening["ticks"]
        while number < len(lines) and lines[number].rstrip() != closing:
            number += 1
        above = lines[start - 2] if start >= 2 else ""
        found.append(_block(opening["info"].strip(), [row[indent:] for row in lines[start:number]], start, above))
        number += 1
    return found


def _block(info: str, rows: list[str], line: int, above: str) -> Block:
    language, _, attributes = info.partition(" ")
    title = re.search(r'title="([^"]+)"', attributes)
    exit_code = re.search(r"exit=(\d+)", attributes)
    skip = SKIP.search(above)
    return Block(
        language=language,
        text="\n".join(rows) + "\n",
        line=line,
        title=title[1] if title else None,
        exit_code=int(exit_code[1]) if exit_code else 0,
        skip=skip["reason"] if skip else None,
    )


def follow(page: Path, folder: Path) -> int:
    """Do what `page` says in a copy of the checkout below `folder`; gives back how many blocks were done."""
    reader = Reader(folder)
    done = 0
    for block in blocks(page.read_text("utf-8")):
        if block.language in RUNNABLE and block.skip is None:
            reader.do(block, f"{page.name}:{block.line}")
            done += 1
    return done


class Reader:
    """Somebody at a shell, in a copy of the checkout below `folder`, who types what the page says."""

    def __init__(self, folder: Path) -> None:
        checkout = folder / "checkout"
        checkout.mkdir(parents=True)
        (checkout / ".venv").symlink_to(ROOT / ".venv")
        if (ROOT / "examples").exists():
            ignored = shutil.ignore_patterns("runs", "__pycache__")
            shutil.copytree(ROOT / "examples", checkout / "examples", ignore=ignored)
        self.state = folder / "state.sh"
        self.start = checkout
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        self.env = {
            **uncovered(),
            "PATH": path,
            "HOME": str(folder / "home"),
            "STATE": str(self.state),
            "CHECKOUT": str(ROOT),
            "NO_COLOR": "1",
        }
        (folder / "home").mkdir()

    def do(self, block: Block, where: str) -> str:
        """One block; gives back what it printed, and raises when it ends otherwise than it should."""
        said = ""
        if block.title is not None:
            target = self._here() / block.title
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, "utf-8")
            if block.language == "yaml":
                self._load(target, where)
        elif block.language == "yaml":
            target = self._here() / f".{where.rpartition(':')[2]}.yaml"
            target.write_text(block.text, "utf-8")
            self._load(target, where)
            target.unlink()
        elif block.language == "python":
            said = self._run([sys.executable, "-c", block.text], block, where)
        else:
            said = self._run(["bash", "-c", PRELUDE + block.text], block, where)
        return said

    def _here(self) -> Path:
        if not self.state.exists():
            return self.start
        last = self.state.read_text("utf-8").rstrip().splitlines()[-1]
        return Path(subprocess.check_output(["bash", "-c", f"{last} && pwd"], text=True).strip())

    def _load(self, path: Path, where: str) -> None:
        self._run(
            [sys.executable, "-c", f"import platotk; platotk.Project.load({str(path)!r})"],
            Block("yaml", path.read_text("utf-8"), 0),
            where,
        )

    def _run(self, command: list[str], block: Block, where: str) -> str:
        done = subprocess.run(
            command,
            cwd=self._here(),
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=280,
            check=False,
        )
        if done.returncode != block.exit_code:
            raise AssertionError(
                f"{where}: exit code {done.returncode}, expected {block.exit_code}\n"
                f"{block.text}\n--- it said:\n{done.stdout}"
            )
        return done.stdout
