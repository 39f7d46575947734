"""The evaluator and the nodes it works on."""

from __future__ import annotations

import math
import time
from typing import Any

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
    Record,
    Text,
    matches,
    select,
    sort_key,
)

A = MetaKey(("a",))


@pytest.mark.parametrize("op", ["=", "!=", "<", "<=", ">", ">="])
@pytest.mark.parametrize("meta", [{}, {"a": None}, {"a": "1"}, {"a": True}, {"a": [1]}, {"a": {"a": 1}}, {"b": 1}])
def test_a_missing_key_or_another_type_is_false_and_its_negation_true(op: str, meta: dict[str, Any]) -> None:
    comparison = Comparison(A, op, Number(1))
    assert matches(comparison, Record(1, meta)) is False
    assert matches(Not(comparison), Record(1, meta)) is True


@pytest.mark.parametrize(
    ("found", "op", "wanted", "answer"),
    [
        (1, "=", Number(1.0), True),
        (2**53 + 1, "=", Number(2.0**53), False),
        (2**53 + 1, ">", Number(2.0**53), True),
        (2**63, ">", Number(2**63 - 1), True),
        (12345678901234567890, "=", Number(12345678901234567891), False),
        (True, "=", Boolean(True), True),
        (True, ">", Boolean(False), True),
        (1, "=", Boolean(True), False),
        ("\uffff", "<", Text("😀"), True),
        ("B", "<", Text("a"), True),
        ("1", "=", Number(1), False),
        ("a\0", ">", Text("a"), False),
    ],
)
def test_comparisons_are_exact_and_typed(found: object, op: str, wanted: Any, answer: bool) -> None:
    assert matches(Comparison(A, op, wanted), Record(1, {"a": found})) is answer


def test_nested_keys_stop_at_what_is_no_object() -> None:
    key = MetaKey(("a", "b", "c"))
    equal = Comparison(key, "=", Number(1))
    assert matches(equal, Record(1, {"a": {"b": {"c": 1}}}))
    for meta in ({"a": {"b": 1}}, {"a": [{"b": 1}]}, {"a": "b"}, {"a.b.c": 1}, {"a": None}):
        assert not matches(equal, Record(1, meta))


def test_boolean_operators() -> None:
    yes, no = Comparison(Builtin("_id"), "=", Number(1)), Comparison(Builtin("_id"), "=", Number(2))
    record = Record(1)
    for operands in ((yes, no), (no, yes), (yes, yes, no), (no, no, yes), (yes, yes, yes), (no, no, no)):
        truths = [operand is yes for operand in operands]
        assert matches(And(operands), record) is all(truths)
        assert matches(Or(operands), record) is any(truths)
        assert matches(Not(And(operands)), record) is not all(truths)
    assert matches(None, record) is True


def test_built_in_keys_read_the_record() -> None:
    record = Record(7, {"timestamp": "x"}, acquired_ns=10, stored_ns=20, size_bytes=30, substream=2)
    for name, value in [("_id", Number(7)), ("_size", Number(30)), ("_substream", Number(2))]:
        assert matches(Comparison(Builtin(name), "=", value), record)
    assert matches(Comparison(Builtin("timestamp"), "=", Instant(10)), record)
    assert matches(Comparison(Builtin("_stored"), "=", Instant(20)), record)
    assert matches(Comparison(MetaKey(("timestamp",)), "=", Text("x")), record)


def test_types_have_one_order_and_descending_turns_values_only() -> None:
    values = [None, True, "b", 2, False, "a", 1.5, [1], 2**70, "a\0"]
    records = [Record(n, {"a": value}) for n, value in enumerate(values)] + [Record(10)]
    rising = select(Query(order=(Order(A),)), records)
    assert [record.id for record in rising] == [6, 3, 8, 5, 2, 4, 1, 0, 7, 9, 10]
    falling = select(Query(order=(Order(A, descending=True),)), records)
    assert [record.id for record in falling] == [8, 3, 6, 2, 5, 1, 4, 0, 7, 9, 10]


def test_ties_are_resolved_by_id_then_substream_and_limit_cuts() -> None:
    records = [Record(2, substream=1), Record(1, substream=2), Record(1, substream=1), Record(3)]
    query = Query(order=(Order(A, descending=True),), limit=3)
    assert [(record.id, record.substream) for record in select(query, records)] == [(1, 1), (1, 2), (2, 1)]
    assert [record.id for record in sorted(records, key=sort_key(Query()))] == [1, 1, 2, 3]
    assert select(Query(limit=0), records) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: MetaKey(()),
        lambda: MetaKey(("a",) * 33),
        lambda: MetaKey(["a"]),  # type: ignore[arg-type]
        lambda: MetaKey(("a\0",)),
        lambda: MetaKey((1,)),  # type: ignore[arg-type]
        lambda: Builtin("id"),
        lambda: Number(math.nan),
        lambda: Number(math.inf),
        lambda: Number(True),
        lambda: Number(10**200),
        lambda: Text("\ud800"),
        lambda: Text("\0"),
        lambda: Boolean(1),  # type: ignore[arg-type]
        lambda: Instant(2**63),
        lambda: Instant(1.0),  # type: ignore[arg-type]
        lambda: Comparison(A, "==", Number(1)),
        lambda: Comparison(A, "=", 1),  # type: ignore[arg-type]
        lambda: Comparison(A, "=", Instant(1)),
        lambda: Comparison(Builtin("_id"), "=", Text("1")),
        lambda: Comparison(Builtin("timestamp"), "=", Number(1)),
        lambda: And((Comparison(A, "=", Number(1)),)),
        lambda: Or((Comparison(A, "=", Number(1)),) * 257),
        lambda: In(A, ()),
        lambda: In(A, (Number(1), Text("1"))),
        lambda: In(Builtin("_id"), (Text("1"),)),
        lambda: Like(A, "\\"),
        lambda: Like(A, "\0"),
        lambda: Like(Builtin("_id"), "a"),  # type: ignore[arg-type]
        lambda: IsNull(Builtin("_id")),  # type: ignore[arg-type]
        lambda: Query(limit=-1),
        lambda: Query(limit=True),
    ],
)
def test_a_node_that_means_nothing_cannot_be_made(make: Any) -> None:
    with pytest.raises(WrongInput, match="expected"):
        make()


def test_values_of_different_type_are_different_nodes() -> None:
    assert Comparison(A, "=", Number(1)) != Comparison(A, "=", Boolean(True))
    assert len({Number(1), Boolean(True), Instant(1)}) == 3


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("a", "b"), "a.b"),
        (("timestamp",), "meta.timestamp"),
        (("timestamp", "x"), "timestamp.x"),
        (("_id",), "meta._id"),
        (("_other",), "meta._other"),
        (("meta",), "meta.meta"),
        (("meta", "x"), "meta.meta.x"),
        (("Order",), "meta.Order"),
        (("order", "by"), "order.by"),
        (("odd key", "b`c", ""), "`odd key`.`b``c`.``"),
        (("é",), "`é`"),
        (("1",), "`1`"),
    ],
)
def test_a_key_is_written_so_that_it_means_itself(path: tuple[str, ...], text: str) -> None:
    assert str(MetaKey(path)) == text


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("", [""], ["a"]),
        ("%", ["", "a", "a\nb"], []),
        ("a%", ["a", "ab"], ["A", "ba", ""]),
        ("%a", ["a", "ba", "aa"], ["ab", ""]),
        ("a%a", ["aa", "aba", "aaa"], ["a", "ab"]),
        ("_", ["é", "😀", "\n"], ["", "ab"]),
        ("%b_d%", ["abcd", "bbbd", "xbbdx"], ["bd", "abce"]),
        ("100\\%", ["100%"], ["1000"]),
        ("\\\\_", ["\\x"], ["x\\"]),
        (".*[a]", [".*[a]"], ["xa"]),
        ("%ab%ab%", ["abab", "xabxabx"], ["ab", "aab", "aba"]),
    ],
)
def test_like_patterns(pattern: str, yes: list[str], no: list[str]) -> None:
    for found, answer in [*((text, True) for text in yes), *((text, False) for text in no)]:
        assert matches(Like(A, pattern), Record(1, {"a": found})) is answer
        assert matches(Like(A, pattern, negated=True), Record(1, {"a": found})) is not answer
    assert not matches(Like(A, pattern, negated=True), Record(1, {"a": 1}))


def test_a_hostile_pattern_takes_linear_time() -> None:
    start_s = time.process_time()
    assert not matches(Like(A, "%a" * 4000 + "%b"), Record(1, {"a": "a" * 16_000}))
    assert time.process_time() - start_s < 1
