"""Queries of the SQLite index: which index serves them, how they go on where an answer ended, how long they may run."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from asapo.errors import DeadlineExceeded, WrongInput
from asapo.index.database import Database
from asapo.index.interface import QUERY_ROW_LIMIT, QUERY_TIME_LIMIT_S, Explanation, RowTuple, key_path
from asapo.index.keys import RUN, Declared, declared
from asapo.index.schema import ROW_SQL, RUN_BITS, SEQ_BITS, SEQ_MASK
from asapo.query import And, Builtin, Comparison, Expr, In, MetaKey, Or, Query, behind, last_columns, to_sql
from asapo.query.ast import Key

ID: Final = Builtin("_id")
FEW: Final = 1000
"""Up to this limit each run is asked for its first rows instead of for all that match."""
STEPS_PER_LOOK: Final = 10_000
"""Steps of SQLite's virtual machine between two looks at the clock during a query: about 0.3 ms."""


@dataclass(frozen=True, slots=True)
class Span:
    """The rows of one stream, as they are when a query begins."""

    stream_no: int
    head_seq: int

    @property
    def low(self) -> int:
        """Key below every row."""
        return self.stream_no << SEQ_BITS

    @property
    def high(self) -> int:
        """Key of the newest row."""
        return self.low | self.head_seq

    @property
    def runs(self) -> str:
        """The table `run(n)` of the runs that the stream's arrivals fall into, as it stands in a WITH."""
        return (
            f"run(n) AS (SELECT {self.low >> RUN_BITS} UNION ALL SELECT n + 1 FROM run "
            f"WHERE n < {self.high >> RUN_BITS})"
        )


@dataclass(frozen=True, slots=True)
class Statement:
    """A SELECT with its parameters."""

    text: str
    params: tuple[Any, ...]
    key: str | None = None
    """Name of the declared key whose index it was written for; None when it leaves the choice to the database."""


def select(span: Span, query: Query, known: Declared, row_limit: int, *, after: int = 0) -> Statement:
    """Return the SELECT of the rows of one stream that a query selects; with `after`, of those behind that arrival.

    The index of a declared key is cut into runs of arrivals (`schema.RUN_BITS`). A query that such an index serves is
    therefore joined with the stream's runs: one seek in the index for each. When it also asks for the first few by that
    key, each run gives its first few and the best of those are the answer.
    """
    sql = to_sql(query, declared=known)
    limit = row_limit if sql.limit is None else min(row_limit, sql.limit)
    end = f"ORDER BY {sql.order_by} LIMIT {limit}"
    tables: list[str] = []
    params: tuple[Any, ...] = ()
    where, values = f"({sql.where})", sql.params
    if after:
        columns, params = last_columns(sql.terms)
        tables.append(f"last AS MATERIALIZED (SELECT {columns} FROM message WHERE key = {span.low | after})")
        rest, rest_params = behind(sql.terms)
        where, values = f"{where} AND ({rest})", (*values, *rest_params)
    key = _served(query.where, known)
    if key is None:
        # In the order of ids the id index delivers rows until the limit; for another order one pass is faster.
        by_id = not query.order or _narrowed_by_id(query.where)
        place = f"stream_no = {span.stream_no}" if by_id else f"key BETWEEN {span.low} AND {span.high}"
        text = f"{_with(tables)}SELECT {ROW_SQL} FROM message WHERE {place} AND {where} {end}"
        return Statement(text, (*params, *values, *sql.order_params))
    runs = f"{_with([*tables, span.runs])}SELECT {ROW_SQL} FROM run CROSS JOIN message"
    condition = f"({RUN}) = run.n AND {where}"
    if limit <= FEW and any(sql.order_by.startswith(expression) for expression in known.values()):
        best = f"SELECT key FROM message WHERE {condition} {end}"
        text = f"{runs} WHERE key IN ({best}) {end}"
        return Statement(text, (*params, *values, *sql.order_params, *sql.order_params), key)
    return Statement(f"{runs} WHERE {condition} {end}", (*params, *values, *sql.order_params), key)


def count(span: Span, query: Query, known: Declared) -> Statement:
    """Return the SELECT of how many rows a query selects."""
    if query.where is None:
        return Statement(f"SELECT count(*) FROM message WHERE stream_no = {span.stream_no}", ())
    sql = to_sql(Query(query.where), declared=known)
    key = _served(query.where, known)
    if key is None:
        by_id = _narrowed_by_id(query.where)
        place = f"stream_no = {span.stream_no}" if by_id else f"key BETWEEN {span.low} AND {span.high}"
        return Statement(f"SELECT count(*) FROM message WHERE {place} AND ({sql.where})", sql.params)
    text = f"{_with([span.runs])}SELECT count(*) FROM run CROSS JOIN message WHERE ({RUN}) = run.n AND ({sql.where})"
    return Statement(text, sql.params, key)


def _with(tables: list[str]) -> str:
    return f"WITH RECURSIVE {', '.join(tables)} " if tables else ""


def _served(expr: Expr | None, known: Declared) -> str | None:
    """Return the name of a declared key whose index narrows down what `expr` selects, or None."""
    match expr:
        case Comparison(key=MetaKey(path=path), op=op):
            return ".".join(path) if path in known and op != "!=" else None
        case In(key=MetaKey(path=path), negated=False):
            return ".".join(path) if path in known else None
        case And(operands=parts):
            return next((name for part in parts if (name := _served(part, known)) is not None), None)
        case Or(operands=parts):
            names = [_served(part, known) for part in parts]
            return None if None in names else names[0]
        case _:
            return None


def _narrowed_by_id(expr: Expr | None) -> bool:
    """Return True when the index of ids narrows down what `expr` selects."""
    if isinstance(expr, And):
        return any(map(_narrowed_by_id, expr.operands))
    if isinstance(expr, Comparison):
        return expr.key == ID and expr.op != "!="
    return isinstance(expr, In) and expr.key == ID and not expr.negated


class SqliteQueries:
    """The part of the SQLite index that answers queries."""

    _database: Database

    def query(
        self,
        stream_no: int,
        query: Query,
        *,
        after: int = 0,
        row_limit: int = QUERY_ROW_LIMIT,
        time_limit_s: float = QUERY_TIME_LIMIT_S,
    ) -> list[RowTuple]:
        """Return the rows that a query selects, with `after` those behind that arrival; see `MetadataIndex`."""
        with self._looking(stream_no, time_limit_s) as (connection, span):
            if after and not (
                1 <= after <= SEQ_MASK
                and connection.execute("SELECT 1 FROM message WHERE key = ?", (span.low | after,)).fetchall()
            ):
                raise WrongInput(f"no message with arrival number {after} to go on after", after=after)
            statement = select(span, query, declared(connection), row_limit, after=after)
            return connection.execute(statement.text, statement.params).fetchall()

    def count(self, stream_no: int, query: Query, *, time_limit_s: float = QUERY_TIME_LIMIT_S) -> int:
        """Return how many rows a query selects, at most its limit; DeadlineExceeded when it ran too long."""
        with self._looking(stream_no, time_limit_s) as (connection, span):
            statement = count(span, query, declared(connection))
            ((n,),) = connection.execute(statement.text, statement.params).fetchall()
            return int(n) if query.limit is None else min(int(n), query.limit)

    def explain(self, stream_no: int, query: Query, *, time_limit_s: float = QUERY_TIME_LIMIT_S) -> Explanation:
        """Return how a query would be answered; DeadlineExceeded when finding out took too long."""
        with self._looking(stream_no, time_limit_s) as (connection, span):
            statement = select(span, query, declared(connection), QUERY_ROW_LIMIT)
            lines = connection.execute(f"EXPLAIN QUERY PLAN {statement.text}", statement.params).fetchall()
            plan = tuple(str(line[3]) for line in lines)
            total = _number(connection, count(span, Query(), {}))
            return _explained(connection, span, query, plan, total)

    @contextmanager
    def _looking(self, stream_no: int, time_limit_s: float) -> Iterator[tuple[sqlite3.Connection, Span]]:
        """Lend a connection on which statements end when the time is over, and the stream's rows."""
        deadline_s = time.monotonic() + time_limit_s
        with self._database.reading() as connection:
            found = connection.execute("SELECT head_seq FROM stream WHERE no = ?", (stream_no,)).fetchall()
            connection.set_progress_handler(lambda: time.monotonic() > deadline_s, STEPS_PER_LOOK)
            try:
                yield connection, Span(stream_no, found[0][0] if found else 0)
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                    raise
                raise DeadlineExceeded(
                    f"the query ran longer than {time_limit_s:g} s; narrow it by id or declare its key",
                    after_s=time_limit_s,
                ) from exc
            finally:
                connection.set_progress_handler(None, 0)


def _number(connection: sqlite3.Connection, statement: Statement) -> int:
    ((n,),) = connection.execute(statement.text, statement.params).fetchall()
    return int(n)


def _explained(
    connection: sqlite3.Connection, span: Span, query: Query, plan: tuple[str, ...], total: int
) -> Explanation:
    """Read the database's plan, and count what the index that it uses gives it."""
    known = declared(connection)
    names = dict(connection.execute("SELECT 'key_' || no, name FROM declared_key").fetchall())
    used = next((index for line in plan for index in (*names, "message_id") if f"INDEX {index} " in line), "")
    sorts = any("TEMP B-TREE" in line for line in plan)
    if used in names:
        rows = _number(connection, count(span, Query(_narrowing(query.where, MetaKey(key_path(names[used])))), known))
        return Explanation(names[used], False, rows, total, sorts, plan)
    if used and (by_id := _narrowing(query.where, ID)) is not None:
        return Explanation("id", False, _number(connection, count(span, Query(by_id), known)), total, sorts, plan)
    return Explanation("", True, total, total, sorts, plan)


def _narrowing(expr: Expr | None, key: Key) -> Expr | None:
    """Return the part of a condition by which the index of one key narrows the rows down."""
    if isinstance(expr, And):
        parts = tuple(found for part in expr.operands if (found := _narrowing(part, key)) is not None)
        return And(parts) if len(parts) > 1 else parts[0] if parts else None
    if isinstance(expr, Or):
        return expr
    return expr if isinstance(expr, Comparison | In) and expr.key == key else None
