"""The evaluator is the meaning of a query; SQLite must give the same rows in the same order; text must round-trip."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asapo.errors import WrongInput
from asapo.query import (
    And,
    Boolean,
    Builtin,
    Comparison,
    Expr,
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
    declared_expression,
    parse,
    select,
    to_sql,
)

pytestmark = pytest.mark.needs_server

INTS = [
    0,
    1,
    -1,
    2,
    2**53,
    2**53 + 1,
    -(2**53) - 1,
    2**63 - 1,
    2**63,
    2**63 + 2048,
    -(2**63),
    -(2**63) - 1,
    2**64,
    10**30,
]
BIG = 12345678901234567890
FLOATS = [0.5, -0.0, 1.0, 2.0**53, 2.0**63, -(2.0**63), 2.0**64, 1e30, -1e30, 5e-324, 1e308, float(BIG)]
TEXTS = [
    "",
    "a",
    "A",
    "ab",
    "1",
    "true",
    "é",
    "😀",
    "\uffff",
    "it's",
    'say "x"',
    "back\\slash",
    "100%",
    "\\u0000",
    "\n",
]
PLAIN = ["a", "b", "meta", "timestamp", "x y", "p.q", "it's", "$[0]", "order"]
ODD = ["é", 'q"t', "back\\slash", "", "tab\t"]

numbers = st.sampled_from([*INTS, BIG, *FLOATS]) | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.sampled_from(TEXTS) | st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=4
)
scalars = st.none() | st.booleans() | numbers | texts
parts = st.sampled_from(PLAIN + ODD)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(parts, inner, max_size=3), max_leaves=4
)
metas = st.dictionaries(parts, values, min_size=1, max_size=5)
times_ns = st.sampled_from([0, 1, 1_700_000_000_123_456_789, -5]) | st.integers(-(2**63), 2**63 - 1)


@st.composite
def records(draw: st.DrawFn) -> list[Record]:
    keys = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2)), unique=True, max_size=8))
    return [
        Record(
            id=message_id,
            meta=draw(metas),
            acquired_ns=draw(times_ns),
            stored_ns=draw(times_ns),
            size_bytes=draw(st.integers(0, 3)),
            substream=substream,
        )
        for message_id, substream in keys
    ]


plain_keys = st.lists(st.sampled_from(PLAIN), min_size=1, max_size=2).map(lambda path: MetaKey(tuple(path)))
odd_keys = st.tuples(st.sampled_from(ODD)).map(MetaKey) | st.tuples(parts, st.sampled_from(ODD)).map(MetaKey)
number_keys = st.sampled_from(["_id", "_size", "_substream"]).map(Builtin)
time_keys = st.sampled_from(["timestamp", "_stored"]).map(Builtin)
ops = st.sampled_from(["=", "!=", "<", "<=", ">", ">="])
literals = st.one_of(numbers.map(Number), texts.map(Text), st.booleans().map(Boolean))
small_literals = literals.filter(lambda value: not isinstance(value, Number) or -(2**63) < value.value < 2**63)
comparisons = st.one_of(
    st.builds(Comparison, plain_keys, ops, literals),
    st.builds(Comparison, st.sampled_from([MetaKey(("a",)), MetaKey(("b",))]), ops, literals),
    st.builds(Comparison, odd_keys, ops, small_literals),
    st.builds(Comparison, number_keys, ops, numbers.map(Number)),
    st.builds(Comparison, time_keys, ops, times_ns.map(Instant)),
)


patterns = st.lists(st.sampled_from(["%", "_", "a", "b", "A", "é", "\\\\", "\\%", "*", "["]), max_size=5).map("".join)


def predicates_on(keys: st.SearchStrategy[MetaKey], values: st.SearchStrategy[Number]) -> st.SearchStrategy[Expr]:
    one_type = st.lists(values, min_size=1, max_size=3).map(tuple) | st.lists(
        texts.map(Text), min_size=1, max_size=3
    ).map(tuple)
    return st.one_of(
        st.builds(In, keys, one_type, st.booleans()),
        st.builds(Like, keys, patterns, st.booleans()),
        st.builds(IsNull, keys),
    )


comparisons = st.one_of(
    comparisons,
    predicates_on(plain_keys, numbers.map(Number)),
    predicates_on(odd_keys, st.integers(-3, 3).map(Number)),
    st.builds(In, number_keys, st.lists(numbers.map(Number), min_size=1, max_size=3).map(tuple), st.booleans()),
)


def _deeper(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    several = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return several.map(And) | several.map(Or) | inner.map(Not)


exprs = st.recursive(comparisons, _deeper, max_leaves=8)
orders = st.lists(st.builds(Order, plain_keys | odd_keys | number_keys | time_keys, st.booleans()), max_size=3).map(
    tuple
)
queries = st.builds(Query, st.none() | exprs, orders, st.none() | st.integers(0, 5))


def database(rows: Sequence[Record], *, ensure_ascii: bool) -> sqlite3.Connection:
    """Make a table as the index has it."""
    connection = sqlite3.connect(":memory:")
    connection.execute(
        "CREATE TABLE message "
        "(id INTEGER, substream INTEGER, size INTEGER, t_acq_ns INTEGER, t_ingest_ns INTEGER, meta TEXT)"
    )
    connection.executemany(
        "INSERT INTO message VALUES (?, ?, ?, ?, ?, ?)",
        [
            (r.id, r.substream, r.size_bytes, r.acquired_ns, r.stored_ns,
             json.dumps(r.meta, allow_nan=False, ensure_ascii=ensure_ascii))
            for r in rows
        ],
    )  # fmt: skip
    return connection


def ask(
    connection: sqlite3.Connection, query: Query, *, declared: Sequence[tuple[str, ...]] = ()
) -> list[tuple[int, int]]:
    sql = to_sql(query, declared={path: declared_expression(path) for path in declared})
    text = f"SELECT id, substream FROM message WHERE size >= ? AND ({sql.where}) ORDER BY {sql.order_by} LIMIT ?"
    limit = -1 if sql.limit is None else sql.limit
    return connection.execute(text, (0, *sql.params, *sql.order_params, limit)).fetchall()


@settings(max_examples=150, deadline=None)
@given(records(), queries, st.booleans())
def test_sqlite_and_the_evaluator_agree(rows: list[Record], query: Query, ensure_ascii: bool) -> None:
    connection = database(rows, ensure_ascii=ensure_ascii)
    try:
        expected = [(record.id, record.substream) for record in select(query, rows)]
        assert ask(connection, query) == expected
        assert ask(connection, query, declared=[("a",), ("b",), ("a", "b"), ("x y",)]) == expected
    finally:
        connection.close()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from("ab"), numbers | st.sampled_from(TEXTS + ["a\0", "\0", "a\0b"])), max_size=6
    ),
    exprs,
)
def test_text_with_nul_matches_in_neither(metas: list[dict[str, object]], expr: Expr) -> None:
    rows = [Record(id=n, meta=meta) for n, meta in enumerate(metas, 1)]
    query = Query(And((expr, Comparison(MetaKey(("a",)), ">=", Text("")))), (Order(MetaKey(("b",))),))
    connection = database(rows, ensure_ascii=True)
    try:
        assert ask(connection, query) == [(record.id, 0) for record in select(query, rows)]
    finally:
        connection.close()


def nested(path: Sequence[str], value: object) -> dict[str, object]:
    return {path[0]: nested(path[1:], value) if len(path) > 1 else value}


@st.composite
def rows_with_one_key(draw: st.DrawFn) -> tuple[list[Record], Query]:
    key = draw(plain_keys)
    values_of_key = draw(st.lists(values | literals.map(lambda value: value.value), min_size=1, max_size=8))
    rows = [Record(n, nested(key.path, value)) for n, value in enumerate(values_of_key, 1)]
    one = st.builds(Comparison, st.just(key), ops, literals) | predicates_on(st.just(key), numbers.map(Number))
    where = draw(st.recursive(one, _deeper, max_leaves=4))
    return rows, Query(where, draw(st.sampled_from([(), (Order(key),), (Order(key, descending=True),)])))


@settings(max_examples=150, deadline=None)
@given(rows_with_one_key())
def test_sqlite_and_the_evaluator_agree_on_one_key(case: tuple[list[Record], Query]) -> None:
    rows, query = case
    connection = database(rows, ensure_ascii=True)
    try:
        expected = [(record.id, 0) for record in select(query, rows)]
        assert ask(connection, query) == expected
        path = next(iter(query.keys))
        if not any("'" in part for part in path):
            assert ask(connection, query, declared=[path]) == expected
    finally:
        connection.close()


any_keys = st.lists(
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=6), min_size=1, max_size=4
)
special_keys = st.sampled_from(["_id", "_x", "meta", "timestamp", "ORDER", "by", "`", "a.b"]).map(
    lambda part: MetaKey((part,))
)
any_comparisons = st.builds(Comparison, special_keys | any_keys.map(tuple).map(MetaKey), ops, literals) | comparisons


@settings(max_examples=200, deadline=None)
@given(
    st.builds(
        Query,
        st.none() | st.recursive(any_comparisons, _deeper, max_leaves=10),
        orders,
        st.none() | st.integers(0, 2**63 - 1),
    )
)
def test_the_text_of_a_query_parses_to_that_query(query: Query) -> None:
    again = parse(str(query))
    assert again == query
    assert str(again) == str(query)


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=60)
    | st.lists(
        st.sampled_from(
            ["a", "meta.b", "_id", "timestamp", "=", "<", "'x'", '"', "'", "`", "(", ")", "AND", "or", "NOT", "1",
             "1e5", "-3", "ORDER", "BY", "LIMIT", ",", "DESC", "in", ";", "--", "\0", "é", "2025-01-01"]
        ),
        max_size=14,
    ).map(" ".join)
)  # fmt: skip
def test_any_text_is_a_query_or_wrong_input(text: str) -> None:
    with contextlib.suppress(WrongInput):
        query = parse(text)
        assert parse(str(query)) == query
