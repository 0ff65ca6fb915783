"""The YAML of plato.yaml: numbers as in Python, two booleans, a line for every key, and nothing that runs."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from platotk.errors import ProjectError
from platotk.strict_yaml import MAX_BYTES, dump, parse


def value(text: str) -> Any:
    return parse(f"key: {text}\n", "plato.yaml").data["key"]


def refused(text: str | bytes) -> str:
    with pytest.raises(ProjectError) as caught:
        parse(text, "plato.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "7",
        "-7",
        "+7",
        "1_000",
        "0x1F",
        "0o17",
        "0b101",
        "3e-4",
        "1e6",
        "1E6",
        "5.0e6",
        ".5",
        "1.",
        "1_000.5",
        "-2.5e+3",
    ],
)
def test_numbers_are_read_as_python_reads_them(text: str) -> None:
    expected = eval(text)
    assert value(text) == expected
    assert type(value(text)) is type(expected)


def test_infinity_is_written_as_in_yaml() -> None:
    assert value(".inf") == math.inf
    assert value("-.INF") == -math.inf
    assert math.isnan(value(".nan"))


@pytest.mark.parametrize(
    "text",
    [
        "yes",
        "no",
        "on",
        "off",
        "Yes",
        "NO",
        "y",
        "n",
        "1:30",
        "12:30:45",
        "2026-11-22",
        "2026-11-22T10:00:00Z",
        "007",
        "1__0",
        "_1",
        "1_",
        "0x",
        "1.2.3",
        "e5",
        "inf",
        "nan",
        "Infinity",
        "=",
        "a b",
        "sim:SimpleAdder",
        "http://x:80/a",
    ],
)
def test_what_other_loaders_guess_stays_text(text: str) -> None:
    assert value(text) == text


def test_only_true_and_false_are_booleans() -> None:
    assert value("true") is True
    assert value("False") is False


@pytest.mark.parametrize("text", ["", "~", "null"])
def test_nothing_is_null(text: str) -> None:
    assert value(text) is None


def test_quotes_make_text() -> None:
    assert value("'3e-4'") == "3e-4"
    assert value('"true"') == "true"
    assert value("!!str 5") == "5"


def test_every_key_and_element_has_its_line() -> None:
    lines = parse("sim: a\ntraining:\n  lr: 1\n  lists:\n    - 5\n    - {x: 1}\n", "plato.yaml").lines
    assert lines[("training",)] == 2
    assert lines[("training", "lr")] == 3
    assert lines[("training", "lists", "1", "x")] == 6


def test_a_key_set_twice_tells_both_lines() -> None:
    assert refused("sim: a\nseed: 1\nsim: b\n").startswith("plato.yaml:3: 'sim' is set twice (first on line 1)")
    assert "plato.yaml:3: 'lr' is set twice" in refused("training:\n  lr: 1\n  lr: 2\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: !!python/object/apply:os.system [ls]\n", "plato.yaml:1: the tag !!python/object/apply"),
        ("a: !mine 1\n", "the tag !mine is not allowed"),
        ("a: !!int x\n", "'x' is not !!int"),
        ("a: !!binary aGk=\n", "the tag !!binary is not allowed"),
        ("a: 1\n\tb: 2\n", "plato.yaml:2: a tab where YAML wants spaces"),
        ("a: b: c\n", "plato.yaml:1: a second ': ' on one line"),
        ("a: 1\n---\nb: 2\n", "plato.yaml:2: a second document (---)"),
        ("b: &x {c: 1}\na:\n  <<: *x\n", "plato.yaml:3: merge keys (<<) are not supported"),
        ("a: *b\n", "plato.yaml:1: found undefined alias"),
        ("a:\n  ? [1, 2]\n  : 3\n", "plato.yaml:2: a key must be a word or a whole number"),
        ("true: 1\n", "a key must be a word"),
        ("a: [1\n", "plato.yaml:2: "),
        ("a: 1\nb: \x07\n", "plato.yaml:2: a character that is not text"),
        (b"a: 1\nb: \xff\n", "plato.yaml:2: not UTF-8 text"),
        ("a: " + "9" * 5000 + "\n", "plato.yaml:1: a number with too many digits"),
        ("a: " + "[" * 500 + "\n", "plato.yaml:1: more than 40 levels of nesting"),
        ("a: &a [*a]\n", "plato.yaml:1: too much data"),
        ("#" * (MAX_BYTES + 1), "too large for a project file"),
    ],
)
def test_what_is_not_plain_data_is_refused_with_its_line(text: str | bytes, told: str) -> None:
    assert told in refused(text)


def test_a_bomb_of_aliases_is_refused_at_once() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    began = time.monotonic()
    assert "too much data, once its aliases" in refused("\n".join(levels))
    assert time.monotonic() - began < 5


def test_an_alias_is_read_as_what_it_stands_for() -> None:
    assert parse("a: &x {lr: 1e-3}\nb: *x\n", "plato.yaml").data == {"a": {"lr": 1e-3}, "b": {"lr": 1e-3}}


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    assert parse("\ufeffsim: a\n", "plato.yaml").data == {"sim": "a"}
    assert parse(b"\xef\xbb\xbfsim: a\r\nseed: 1\r\n", "plato.yaml").data == {"sim": "a", "seed": 1}


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")))
    | st.sampled_from(
        [
            "yes",
            "no",
            "1:30",
            "3e-4",
            "1e6",
            "1_000",
            ".inf",
            "0x1F",
            "null",
            "~",
            "",
            "2026-11-22",
            "<<",
            "- a",
            "a: b",
            " # x",
        ]
    )
)
DATA = st.dictionaries(
    st.text(min_size=1).filter(str.isidentifier),
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner) | st.dictionaries(st.from_regex(r"\w{1,5}", fullmatch=True), inner),
        max_leaves=10,
    ),
)


@settings(max_examples=40, deadline=None)
@given(DATA)
def test_what_is_dumped_reads_back_the_same(data: dict[str, Any]) -> None:
    text = dump(data)
    assert parse(text, "plato.yaml").data == (data or {})


@settings(deadline=None)
@given(st.lists(st.text() | st.booleans() | st.integers()))
def test_other_yaml_readers_read_the_dump_the_same_way(data: list[Any]) -> None:
    printable = [item for item in data if not isinstance(item, str) or item.isprintable()]
    assert yaml.safe_load(dump(printable)) == printable
