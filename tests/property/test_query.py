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
    Comparison,
    Expr,
    MetaKey,
    Order,
    Query,
    Record,
    Regexp,
    Text,
    declared_expression,
    parse,
    regexp_function,
    select,
    to_sql,
)
from tests.contract.query_corpus import (
    REGEXPS,
    TEXTS,
    comparisons,
    deeper,
    exprs,
    literals,
    numbers,
    ops,
    orders,
    queries,
    records,
    rows_with_one_key,
)

pytestmark = pytest.mark.needs_server


def database(rows: Sequence[Record], *, ensure_ascii: bool) -> sqlite3.Connection:
    """Make a table as the index has it."""
    connection = sqlite3.connect(":memory:")
    connection.create_function("regexp", 2, regexp_function, deterministic=True)
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


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text(st.sampled_from(["a", "b", "\ud800", "\udc00", "é", "😀", "\n", "\0"]), max_size=5), max_size=6),
    st.sampled_from([*REGEXPS, ".", "^..$"]),
    st.booleans(),
)
def test_half_a_surrogate_pair_and_nul_are_searched_alike(texts: list[str], pattern: str, negated: bool) -> None:
    rows = [Record(id=n, meta=json.loads(json.dumps({"a": text}))) for n, text in enumerate(texts, 1)]
    query = Query(Regexp(MetaKey(("a",)), pattern, negated))
    connection = database(rows, ensure_ascii=True)
    try:
        assert ask(connection, query) == [(record.id, 0) for record in select(query, rows)]
    finally:
        connection.close()


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
        st.none() | st.recursive(any_comparisons, deeper, max_leaves=10),
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
