"""User-declared metadata keys in the SQLite index, and the queries that use their indexes (R14, R35)."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from asapo.errors import WrongInput
from asapo.index.interface import MAX_DECLARED_KEYS, key_path
from asapo.index.schema import ROW_SQL, RUN_BITS, SEQ_BITS
from asapo.query import Query, SqlQuery, declared_expression, to_sql

Declared = dict[tuple[str, ...], str]
"""Path of a declared key to the expression that its index is made of."""

_RUN: Final = f"key >> {RUN_BITS}"


def declare(connection: sqlite3.Connection, keys: Sequence[str]) -> None:
    """Make these the declared keys; builds an index over what is there already."""
    wanted = {".".join(path): declared_expression(path) for path in map(key_path, keys)}
    if len(wanted) > MAX_DECLARED_KEYS:
        raise WrongInput(
            f"{len(wanted)} declared keys: expected at most {MAX_DECLARED_KEYS}, since each slows every insert; "
            "queries on other keys work, only slower"
        )
    present = dict(connection.execute("SELECT name, no FROM declared_key").fetchall())
    for name, no in present.items():
        if name not in wanted:
            connection.execute(f"DROP INDEX key_{no}")
            connection.execute("DELETE FROM declared_key WHERE no = ?", (no,))
    for name, expression in wanted.items():
        if name not in present:
            cursor = connection.execute("INSERT INTO declared_key(name) VALUES(?)", (name,))
            connection.execute(f"CREATE INDEX key_{cursor.lastrowid} ON message({_RUN}, {expression})")


def declared(connection: sqlite3.Connection) -> Declared:
    """Return the declared keys."""
    names = connection.execute("SELECT name FROM declared_key ORDER BY no").fetchall()
    return {(path := key_path(name)): declared_expression(path) for (name,) in names}


def select(stream_no: int, head_seq: int, query: Query, known: Declared, row_limit: int) -> tuple[str, Sequence[Any]]:
    """Return SELECT and parameters for the rows of one stream that a query selects.

    The index of a declared key is cut into runs of arrivals (`schema.RUN_BITS`). A condition on such a key is therefore
    joined with the list of the stream's runs: one seek in the index for each.
    """
    sql: SqlQuery = to_sql(query, declared=known)
    limit = row_limit if sql.limit is None else min(row_limit, sql.limit)
    low, high = stream_no << SEQ_BITS, (stream_no << SEQ_BITS) | head_seq
    runs = ""
    if any(expression in sql.where for expression in known.values()):
        runs = (
            f"({_RUN}) IN (WITH RECURSIVE run(n) AS (SELECT {low >> RUN_BITS} UNION ALL SELECT n + 1 FROM run "
            f"WHERE n < {high >> RUN_BITS}) SELECT n FROM run) AND "
        )
    text = (
        f"SELECT {ROW_SQL} FROM message WHERE {runs}key BETWEEN {low} AND {high} AND ({sql.where}) "
        f"ORDER BY {sql.order_by} LIMIT {limit}"
    )
    return text, (*sql.params, *sql.order_params)
