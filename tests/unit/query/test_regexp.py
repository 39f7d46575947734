"""REGEXP: what RE2 is given and what it may cost, and what is said when it refuses or is missing."""

from __future__ import annotations

import sys
import time

import pytest

from asapo.errors import ConfigError, WrongInput
from asapo.query import MetaKey, Query, Record, Regexp, matches, parse, to_sql
from asapo.query.ast import And, Builtin
from asapo.query.regexp import MAX_PATTERN_CHARS, MAX_REGEXPS, searcher

pytestmark = pytest.mark.needs_server

NAME = MetaKey(("name",))


def hit(pattern: str, text: object) -> bool:
    return matches(Regexp(NAME, pattern), Record(1, {"name": text}))


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("so", "lysozyme", True), ("^so", "lysozyme", False), ("", "", True), ("^$", "", True), ("A", "a", False),
        ("(?i)A", "a", True), ("^.$", "é", True), ("^.$", "😀", True), (r"^\pL+$", "été", True),
        (r"\d{3}", "run 42", False),
        ("a.b", "a\nb", False), ("(?s)a.b", "a\nb", True), ("^b", "a\nb", False), ("(?m)^b", "a\nb", True),
        ("x|z", "zyme", True), ("5", 5, False), (".", None, False), (".", ["a"], False), (".", True, False),
        (".", "a\0", False),
    ],
)  # fmt: skip
def test_the_pattern_is_found_anywhere_in_text_and_in_nothing_else(pattern: str, text: object, expected: bool) -> None:
    assert hit(pattern, text) is expected
    is_text = isinstance(text, str) and "\0" not in text
    assert matches(Regexp(NAME, pattern, negated=True), Record(1, {"name": text})) is (is_text and not expected)


def test_a_missing_key_matches_neither_the_pattern_nor_its_negation() -> None:
    assert not matches(Regexp(NAME, ""), Record(1))
    assert not matches(Regexp(NAME, "", negated=True), Record(1))


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("a REGEXP 'x(y'", 10, "missing )"),
        ("b = 1 OR a NOT REGEXP '[z-a]'", 23, "invalid character class range"),
        (r"a regexp '(x)\1'", 10, "invalid escape sequence"),
        ("a regexp '(?=x)'", 10, "invalid perl operator"),
        ("a regexp 'x{1001}'", 10, "invalid repetition size"),
        (r"a regexp '(\pL{9}){50}'", 10, "pattern too large"),
        (f"a regexp '{'x' * (MAX_PATTERN_CHARS + 1)}'", 10, f"at most {MAX_PATTERN_CHARS}"),
        ("_id REGEXP 'x'", 1, "a metadata key before REGEXP"),
        ("a REGEXP 5", 10, "quoted text"),
    ],
)
def test_a_bad_pattern_is_refused_where_it_stands(text: str, position: int, reason: str) -> None:
    with pytest.raises(WrongInput) as caught:
        parse(text)
    assert caught.value.position == position
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_bad_pattern_in_a_tree_is_refused_before_the_database_sees_it() -> None:
    with pytest.raises(WrongInput, match="RE2 refuses it: missing"):
        to_sql(Query(Regexp(NAME, "(")))
    with pytest.raises(WrongInput, match="no built-in key is text"):
        Regexp(Builtin("_id"), "x")  # type: ignore[arg-type]


def test_a_query_has_only_so_many_patterns() -> None:
    allowed = tuple(Regexp(NAME, str(n)) for n in range(MAX_REGEXPS))
    assert Query(And(allowed)).where is not None
    with pytest.raises(WrongInput, match=f"{MAX_REGEXPS + 1} times REGEXP"):
        Query(And((*allowed, Regexp(NAME, "x"))))


def test_no_pattern_takes_more_than_linear_time() -> None:
    began_s = time.process_time()
    assert not hit(r"(a*)*b|(a|aa)+$c|(.*a){20}d", "a" * 100_000)
    assert time.process_time() - began_s < 20


def test_without_re2_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    searcher.cache_clear()
    monkeypatch.setitem(sys.modules, "re2", None)
    for ask in (lambda: parse("a REGEXP 'x'"), lambda: hit("x", "x"), lambda: to_sql(Query(Regexp(NAME, "x")))):
        with pytest.raises(ConfigError, match=r"google-re2.*asapo\[server\]"):
            ask()
    assert parse("a LIKE 'x'").where is not None
