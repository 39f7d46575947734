"""The query language: what the text means, and errors that tell where and what to do."""

from __future__ import annotations

import time

import pytest

from asapo.errors import WrongInput
from asapo.query import (
    And,
    Boolean,
    Builtin,
    Comparison,
    In,
    Instant,
    IsNull,
    Like,
    MetaKey,
    Not,
    Number,
    Or,
    Order,
    Query,
    Text,
    parse,
)
from asapo.query.grammar import MAX_DEPTH, MAX_ORDER_KEYS, MAX_TERMS
from asapo.query.parse import MAX_TEXT_BYTES

pytestmark = pytest.mark.needs_server

A = Comparison(MetaKey(("a",)), "=", Number(1))
B = Comparison(MetaKey(("b",)), "=", Number(2))
C = Comparison(MetaKey(("c",)), "=", Number(3))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a=1", A),
        ("meta.a = 1", A),
        ("`a` = +1", A),
        ("a = 1 AND b = 2 OR c = 3", Or((And((A, B)), C))),
        ("a = 1 and (b = 2 or c = 3)", And((A, Or((B, C))))),
        ("a=1 AND b=2 AND c=3", And((A, B, C))),
        ("a=1 AND (b=2 AND c=3)", And((A, And((B, C))))),
        ("(a=1 OR b=2) OR c=3", Or((Or((A, B)), C))),
        ("NOT a=1 AND b=2", And((Not(A), B))),
        ("not not (((a=1)))", Not(Not(A))),
        ("NOT (a=1\n\tOR b=2)", Not(Or((A, B)))),
        ("x.y.z < -1.5e3", Comparison(MetaKey(("x", "y", "z")), "<", Number(-1500.0))),
        ("x <> 'it''s'", Comparison(MetaKey(("x",)), "!=", Text("it's"))),
        ('x != "say ""no"" it\'s"', Comparison(MetaKey(("x",)), "!=", Text('say "no" it\'s'))),
        ("x >= TRUE", Comparison(MetaKey(("x",)), ">=", Boolean(True))),
        ("x <= False", Comparison(MetaKey(("x",)), "<=", Boolean(False))),
        ("x = .5", Comparison(MetaKey(("x",)), "=", Number(0.5))),
        ("x = 9223372036854775807", Comparison(MetaKey(("x",)), "=", Number(2**63 - 1))),
        ("`odd key`.sub > 'é'", Comparison(MetaKey(("odd key", "sub")), ">", Text("é"))),
        ("`tick``s`.`a.b` = ''", Comparison(MetaKey(("tick`s", "a.b")), "=", Text(""))),
        ("meta.`` = ''", Comparison(MetaKey(("",)), "=", Text(""))),
        ("meta.timestamp = 1", Comparison(MetaKey(("timestamp",)), "=", Number(1))),
        ("meta.meta.x = 1", Comparison(MetaKey(("meta", "x")), "=", Number(1))),
        ("timestamp.x = 1", Comparison(MetaKey(("timestamp", "x")), "=", Number(1))),
        ("limit.order = 1", Comparison(MetaKey(("limit", "order")), "=", Number(1))),
        ("meta.limit = 1", Comparison(MetaKey(("limit",)), "=", Number(1))),
        ("android = 1", Comparison(MetaKey(("android",)), "=", Number(1))),
        ("_id >= 5", Comparison(Builtin("_id"), ">=", Number(5))),
        ("_substream = 2", Comparison(Builtin("_substream"), "=", Number(2))),
        ("a in (1, 2.5)", In(MetaKey(("a",)), (Number(1), Number(2.5)))),
        ("a NOT IN ('x')", In(MetaKey(("a",)), (Text("x"),), negated=True)),
        ("timestamp IN (1, '1970-01-01')", In(Builtin("timestamp"), (Instant(10**9), Instant(0)))),
        ("a LIKE 'x%' AND b=2", And((Like(MetaKey(("a",)), "x%"), B))),
        ("NOT a NOT LIKE '_'", Not(Like(MetaKey(("a",)), "_", negated=True))),
        ("a IS NULL OR b=2", Or((IsNull(MetaKey(("a",))), B))),
        ("a IS NOT NULL", Not(IsNull(MetaKey(("a",))))),
        (
            "a BETWEEN 1 AND 2 AND b=2",
            And((And((Comparison(MetaKey(("a",)), ">=", Number(1)), Comparison(MetaKey(("a",)), "<=", Number(2)))), B)),
        ),
        (
            "a NOT BETWEEN 1 AND 2",
            Or((Comparison(MetaKey(("a",)), "<", Number(1)), Comparison(MetaKey(("a",)), ">", Number(2)))),
        ),
        ("_size > 1.5e6", Comparison(Builtin("_size"), ">", Number(1.5e6))),
    ],
)
def test_text_means_this_tree(text: str, where: object) -> None:
    assert parse(text) == Query(where)  # type: ignore[arg-type]


def test_number_types_survive() -> None:
    for text, kind in (("a = 1", int), ("a = 1.0", float), ("a = 1e0", float)):
        where = parse(text).where
        assert isinstance(where, Comparison)
        assert isinstance(where.value, Number)
        assert type(where.value.value) is kind


@pytest.mark.parametrize(
    ("literal", "ns"),
    [
        ("1700000000.123456789", 1_700_000_000_123_456_789),
        ("1.7e9", 1_700_000_000_000_000_000),
        ("-0.5", -500_000_000),
        ("9223372036.854775807", 2**63 - 1),
        ("'1970-01-01'", 0),
        ("'1970-01-01T00:00'", 0),
        ("'1970-01-02 00:00:00Z'", 86_400_000_000_000),
        ("'2025-03-01T12:00:00.123456789+02:00'", 1_740_823_200_123_456_789),
        ("'20250301T120000,5+0200'", 1_740_823_200_500_000_000),
        ("'1969-12-31T23:59:59.75Z'", -250_000_000),
    ],
)
def test_times_are_exact_to_the_nanosecond_and_utc_without_zone(literal: str, ns: int) -> None:
    for key in ("timestamp", "_stored"):
        assert parse(f"{key} >= {literal}").where == Comparison(Builtin(key), ">=", Instant(ns))


@pytest.mark.parametrize(
    "literal",
    ["true", "'yesterday'", "'2025-02-30'", "'2025-03-01+02:00'", "'12:00'", "1e300", "1e999999999", "9223372036.9",
     "'9999-01-01'", "'٢٠٢٥-01-01'"],
)  # fmt: skip
def test_what_is_no_time_is_refused(literal: str) -> None:
    with pytest.raises(WrongInput, match="character 13: found .* expected a time between .*ISO-8601"):
        parse(f"timestamp > {literal}")


def test_order_limit_and_keys() -> None:
    query = parse("x.y = 1 AND NOT (_id = 2 OR z = 'a') ORDER BY score DESC, meta.timestamp asc, _id LIMIT 10")
    assert query.order == (
        Order(MetaKey(("score",)), descending=True),
        Order(MetaKey(("timestamp",))),
        Order(Builtin("_id")),
    )
    assert query.limit == 10
    assert query.keys == {("x", "y"), ("z",), ("score",), ("timestamp",)}


@pytest.mark.parametrize("text", ["", "  \n", "LIMIT 0", "order by a limit 5"])
def test_every_part_is_optional(text: str) -> None:
    assert parse(text).where is None


@pytest.mark.parametrize(
    ("text", "position", "found", "expected", "step"),
    [
        ("a == 1", 4, "'='", "a number", "compare as KEY OPERATOR VALUE"),
        ("a = b", 5, "'b'", "quoted text", "single quotes"),
        ("5 < a", 1, "'5'", "a key", "the key on the left"),
        ("(a = 1", 7, "the end of the query", "')'", "close the parenthesis"),
        ("a = 1 b = 2", 7, "'b'", "AND", "join comparisons"),
        ("a 1", 3, "'1'", "an operator", "KEY OPERATOR VALUE"),
        ("a = 'x", 5, "never closed", "a closing '", "end the text"),
        ("`x = 1", 1, "never closed", "a closing `", "end the key"),
        ("a = 1; DROP TABLE x", 6, "';'", "a key", "backticks"),
        ("é = 1", 1, "'é'", "a key", "backticks"),
        ("in = 1", 1, "'in'", "a key", "meta.in"),
        ("a = 1 OR regexp = 1", 10, "'regexp'", "a key", "meta.regexp"),
        ("a IN ()", 7, "')'", "a number", "KEY OPERATOR VALUE"),
        ("a BETWEEN 1", 12, "the end of the query", "AND", "KEY OPERATOR VALUE"),
        ("a LIKE 5", 8, "'5'", "quoted text", "KEY OPERATOR VALUE"),
        ("_id LIKE 'a'", 1, "'_id'", "a metadata key before LIKE", "meta._id"),
        ("_id IS NULL", 1, "'_id'", "a metadata key before IS NULL", "meta._id"),
        ("order = 1", 7, "'='", "BY", "meta.order"),
        ("a = 1 AND", 10, "the end of the query", "a key", "KEY OPERATOR VALUE"),
        ("a. b = 1", 2, "'.'", "a key", "backticks"),
        ("_foo = 1", 1, "'_foo'", "_substream", "meta._foo"),
        ("meta = 1", 1, "'meta' alone", "a key in the metadata", "meta.meta"),
        ("_id = '5'", 7, "\"'5'\"", "a number", "without quotes"),
        ("_size = true", 9, "'true'", "a number", "without quotes"),
        ("a = 1e999", 5, "'1e999'", "a double can hold", "smaller exponent"),
        ("a = " + "9" * 129, 5, "999", "at most 128 characters", "shorten"),
        ("a = 1 LIMIT -1", 13, "'-1'", "an integer from 0", "LIMIT 100"),
        ("a = 1 LIMIT 1.5", 13, "'1.5'", "an integer from 0", "LIMIT 100"),
        ("LIMIT 99999999999999999999", 7, "'9999", "an integer from 0", "LIMIT 100"),
        (".".join("a" * 33) + " = 1", 1, "'a.a", "1 to 32 nested keys", "shorten the key"),
        ("a = '\0'", 6, "NUL", "without NUL", "remove"),
        ("a = '\ud800'", 6, "'\\ud800'", "UTF-8", "remove"),
    ],
)  # fmt: skip
def test_an_error_names_position_found_expected_and_next_step(
    text: str, position: int, found: str, expected: str, step: str
) -> None:
    with pytest.raises(WrongInput) as caught:
        parse(text)
    error = caught.value
    assert error.position == position
    assert found in error.found
    assert expected in error.expected
    assert step in error.message
    assert len(error.message) < 400


def test_the_limits_are_where_they_say() -> None:
    parse(" OR ".join(["a=1"] * MAX_TERMS))
    parse("(" * MAX_DEPTH + "a=1" + ")" * MAX_DEPTH)
    parse("NOT " * MAX_DEPTH + "a=1")
    parse("a = '" + "x" * (MAX_TEXT_BYTES - 6) + "'")
    parse("ORDER BY " + ",".join(["a"] * MAX_ORDER_KEYS))
    for text, limit in [
        (" OR ".join(["a=1"] * (MAX_TERMS + 1)), f"at most {MAX_TERMS}"),
        ("(" * (MAX_DEPTH + 1) + "a=1" + ")" * (MAX_DEPTH + 1), f"at most {MAX_DEPTH}"),
        ("NOT " * (MAX_DEPTH + 1) + "a=1", f"at most {MAX_DEPTH}"),
        ("a = '" + "x" * (MAX_TEXT_BYTES - 5) + "'", f"at most {MAX_TEXT_BYTES}"),
        ("a = '" + "é" * (MAX_TEXT_BYTES // 2) + "'", f"at most {MAX_TEXT_BYTES}"),
        ("ORDER BY " + ",".join(["a"] * (MAX_ORDER_KEYS + 1)), f"at most {MAX_ORDER_KEYS}"),
    ]:
        with pytest.raises(WrongInput, match=limit):
            parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 16_000,
        "(" * 8_000 + "a=1" + ")" * 8_000,
        "NOT " * 4_000 + "a=1",
        "a=1 OR " * 10_000 + "a=1",
        "a=1OR " * 2_500 + "a=1",
        "(a=1 AND " * 1_700,
        "a=" + "1" * 16_000,
        "a=1e" + "9" * 16_000,
        "timestamp=1e" + "9" * 16_000,
        "a='" + "''" * 8_000,
        "`" * 16_001 + "=1",
        "a." * 8_000 + "a=1",
        " " * 16_000 + "=",
        "x" * 10_000_000,
    ],
    ids=lambda text: text[:8],
)
def test_hostile_text_is_refused_quickly(text: str) -> None:
    parse("a=1")  # builds the parser
    start_s = time.process_time()
    with pytest.raises(WrongInput):
        parse(text)
    assert time.process_time() - start_s < 1


@pytest.mark.parametrize("text", ["a IN (1, 'x')", "a LIKE 'x\\'", "a LIKE '\\d'", "a IN (" + "1," * 256 + "1)"])
def test_predicates_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(WrongInput, match="expected"):
        parse(text)


def test_only_text_is_a_query() -> None:
    with pytest.raises(WrongInput, match="found bytes, expected text"):
        parse(b"a=1")  # type: ignore[arg-type]
