"""User-declared metadata keys in the SQLite index, and the queries that use their indexes (R14, R35)."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from asapo.errors import WrongInput
from asapo.index.interface import MAX_DECLARED_KEYS, key_path
from asapo.index.schema import ROW_SQL, RUN_BITS, SEQ_BITS
from asapo.query import And, Comparison, Expr, MetaKey, Or, Query, SqlQuery, declared_expression, to_sql

Declared = dict[tuple[str, ...], str]
"""Path of a declared key to the expression that its index is made of."""

FEW: Final = 1000
"""Up to this limit each run is asked for its first rows instead of for all that match."""

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

    The index of a declared key is cut into runs of arrivals (`schema.RUN_BITS`). A query that such an index serves is
    therefore joined with the stream's runs: one seek in the index for each. When it also asks for the first few by that
    key, each run gives its first few and the best of those are the answer.
    """
    sql: SqlQuery = to_sql(query, declared=known)
    limit = row_limit if sql.limit is None else min(row_limit, sql.limit)
    low, high = stream_no << SEQ_BITS, (stream_no << SEQ_BITS) | head_seq
    end = f"ORDER BY {sql.order_by} LIMIT {limit}"
    if not _served(query.where, known):
        # In the order of ids the id index delivers rows until the limit; for another order one pass is faster.
        span = f"stream_no = {stream_no}" if not query.order else f"key BETWEEN {low} AND {high}"
        return f"SELECT {ROW_SQL} FROM message WHERE {span} AND ({sql.where}) {end}", (*sql.params, *sql.order_params)
    runs = (
        f"WITH RECURSIVE run(n) AS (SELECT {low >> RUN_BITS} UNION ALL SELECT n + 1 FROM run "
        f"WHERE n < {high >> RUN_BITS}) SELECT {ROW_SQL} FROM run CROSS JOIN message"
    )
    condition = f"({_RUN}) = run.n AND ({sql.where})"
    if limit <= FEW and any(sql.order_by.startswith(expression) for expression in known.values()):
        best = f"SELECT key FROM message WHERE {condition} {end}"
        return f"{runs} WHERE key IN ({best}) {end}", (*sql.params, *sql.order_params, *sql.order_params)
    return f"{runs} WHERE {condition} {end}", (*sql.params, *sql.order_params)


def _served(expr: Expr | None, known: Declared) -> bool:
    """Return True when indexes of declared keys narrow down what `expr` selects."""
    match expr:
        case Comparison(key=MetaKey(path=path), op=op):
            return path in known and op != "!="
        case And(operands=parts):
            return any(_served(part, known) for part in parts)
        case Or(operands=parts):
            return all(_served(part, known) for part in parts)
        case _:
            return False
