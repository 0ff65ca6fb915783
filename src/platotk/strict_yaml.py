"""YAML as plato.yaml has it: data only, numbers as Python reads them, and a line for every key.

Given text; gives back plain dicts, lists, strings and numbers, with the line on which each key stands. There
are no tags, no merge keys and no code; what YAML 1.1 guesses (`yes`, `1:30`, dates) stays text; a duplicate
key is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

from .errors import ProjectError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 40
MAX_NODES = 20_000  # counted after aliases are expanded, so that a few lines cannot grow into gigabytes

_TAG = "tag:yaml.org,2002:"
_DIGITS = r"[0-9](?:_?[0-9])*"
_PATTERNS = {
    "null": re.compile(r"~|null|Null|NULL|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    # Python's own literals: 7, 1_000, 0x1F; not 007.
    "int": re.compile(r"[-+]?(?:0|[1-9](?:_?[0-9])*|0[xX](?:_?[0-9a-fA-F])+|0[oO](?:_?[0-7])+|0[bB](?:_?[01])+)"),
    # Python's own literals: 1.5, .5, 3e-4, 1_000.0; and YAML's .inf and .nan, for which Python has none.
    "float": re.compile(
        rf"[-+]?(?:(?:{_DIGITS}\.(?:{_DIGITS})?|\.{_DIGITS})(?:[eE][-+]?{_DIGITS})?|{_DIGITS}[eE][-+]?{_DIGITS}"
        r"|\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN"
    ),
}


@dataclass(frozen=True)
class Document:
    """What a file says, and where.

    Attributes:
        data: Plain data.
        lines: Line of every key and list element, by its path such as `("training", "lr")`; from 1.
    """

    data: Any
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)


def parse(content: str | bytes, name: str) -> Document:
    """Read one document.

    Args:
        content: Its text, or UTF-8 bytes.
        name: The file's name, for messages.

    Raises:
        ProjectError: Not such a document, with `name:line`.
    """
    if len(content) > MAX_BYTES:
        raise ProjectError(
            f"{name}: {len(content):,} bytes is too large for a project file",
            hint=f"At most {MAX_BYTES:,} bytes. Data belongs in files of its own, named in sim_config.",
        )
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content.removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ProjectError(f"{name}:{line}: not UTF-8 text", hint="Save the file as UTF-8.") from None
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, name) from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise ProjectError(f"{name}:{line}: a character that is not text ({error.reason})") from None
    if node is None:
        return Document(None)
    reader = _Reader(name)
    return Document(reader.read(node, ()), reader.lines)


def dump(data: Any) -> str:
    """YAML that `parse` reads back as the same data, keys in their own order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=110)


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with our reading of plain scalars; its constructors are not used."""

    depth = 0

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0]:
            return _TAG + next((kind for kind, pattern in _PATTERNS.items() if pattern.fullmatch(value)), "str")
        if kind is yaml.ScalarNode:
            return f"{_TAG}str"
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_DEPTH} levels of nesting", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Reader:
    """From PyYAML's nodes to plain data."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[tuple[str, ...], int] = {}
        self.num_nodes = 0

    def read(self, node: yaml.Node, path: tuple[str, ...]) -> Any:
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise self.error(node, "too much data, once its aliases (*name) are written out")
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            values = []
            for index, item in enumerate(node.value):
                here = (*path, str(index))
                self.lines.setdefault(here, item.start_mark.line + 1)
                values.append(self.read(item, here))
            return values
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        raise self.error(node, f"the tag {_shown(node.tag)} is not allowed", "The project file is plain data.")

    def mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if key == "<<" and key_node.style is None:
                raise self.error(key_node, "merge keys (<<) are not supported", "Write the keys out.")
            if isinstance(key, bool) or not isinstance(key, (str, int)):
                raise self.error(key_node, "a key must be a word or a whole number", "Put quotes around it.")
            here = (*path, str(key))
            if key in values:
                first = self.lines[here]
                raise self.error(key_node, f"{key!r} is set twice (first on line {first})", "Keep one of them.")
            self.lines[here] = key_node.start_mark.line + 1
            values[key] = self.read(value_node, here)
        return values

    def scalar(self, node: yaml.ScalarNode) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        if kind == "str":
            return text
        if kind not in _PATTERNS:
            raise self.error(node, f"the tag {_shown(node.tag)} is not allowed", "The project file is plain data.")
        if not _PATTERNS[kind].fullmatch(text):
            raise self.error(node, f"{text!r} is not {_shown(node.tag)}")
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if text.lower().endswith((".inf", ".nan")):
            return float(text.replace(".", ""))
        try:
            return int(text, 0) if kind == "int" else float(text)
        except ValueError:  # Python refuses integers of thousands of digits
            raise self.error(node, "a number with too many digits") from None

    def error(self, node: yaml.Node, what: str, hint: str | None = None) -> ProjectError:
        return ProjectError(f"{self.name}:{node.start_mark.line + 1}: {what}", hint=hint)


def _shown(tag: str) -> str:
    return "!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag


def _syntax_error(error: yaml.MarkedYAMLError, name: str) -> ProjectError:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or str(error)
    hint = None
    if "'\\t'" in problem:
        problem, hint = "a tab where YAML wants spaces", "Indent with spaces."
    elif "mapping values are not allowed" in problem:
        problem, hint = "a second ': ' on one line", "Put quotes around a value that holds ': '."
    elif "another document" in problem or "single document" in (error.context or ""):
        problem, hint = "a second document (---)", "One file holds one project."
    return ProjectError(f"{name}:{mark.line + 1 if mark else 1}: {problem}", hint=hint)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1, or `parse`, would not read back as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: yaml.SafeDumper, data: Iterable[Any]) -> yaml.Node:
    return dumper.represent_sequence(f"{_TAG}seq", data, flow_style=True)


_Dumper.add_representer(list, _represent_list)
for _kind in ("int", "float"):
    _Dumper.add_implicit_resolver(_TAG + _kind, re.compile(rf"^(?:{_PATTERNS[_kind].pattern})$"), list("-+.0123456789"))
