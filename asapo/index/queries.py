"""Queries of the SQLite index: carried out within their time, counted, and explained."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from asapo.errors import DeadlineExceeded, WrongInput
from asapo.index.gaps import ABSENT, DENSE, PARTS, Incomplete
from asapo.index.interface import QUERY_ROW_LIMIT, QUERY_TIME_LIMIT_S, Explanation, RowTuple, key_path
from asapo.index.keys import declared
from asapo.index.plans import Planner, count, sample
from asapo.index.ranges import ID, Asked, Range, Span, Statement, ranges
from asapo.index.schema import SEQ_MASK
from asapo.index.sorting import noted
from asapo.index.sqlite_base import SqliteBase
from asapo.index.walks import MOST, Walker
from asapo.query import And, Comparison, Expr, In, MetaKey, Or, Query
from asapo.query.ast import Key
from asapo.query.sql_paths import Path

STEPS_PER_LOOK: Final = 10_000
"""Steps of SQLite's virtual machine between two looks at the clock during a query: about 0.3 ms."""


class SqliteQueries(SqliteBase):
    """The part of the SQLite index that answers queries."""

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
            limit = row_limit if query.limit is None else min(row_limit, query.limit)
            rows: list[RowTuple] = []
            for statement in _statements(connection, Asked(span, query, limit, after)):
                rows = connection.execute(statement.text, statement.params).fetchall()
                if len(rows) >= limit:
                    break
            return rows

    def count(self, stream_no: int, query: Query, *, time_limit_s: float = QUERY_TIME_LIMIT_S) -> int:
        """Return how many rows a query selects, at most its limit; DeadlineExceeded when it ran too long."""
        with self._looking(stream_no, time_limit_s) as (connection, span):
            n = _count(connection, span, query)
            return n if query.limit is None else min(n, query.limit)

    def explain(self, stream_no: int, query: Query, *, time_limit_s: float = QUERY_TIME_LIMIT_S) -> Explanation:
        """Return how a query would be answered; DeadlineExceeded when finding out took too long."""
        with self._looking(stream_no, time_limit_s) as (connection, span):
            return _explained(connection, Asked(span, query, MOST if query.limit is None else query.limit))

    def absent_ids(
        self, stream_no: int, first: int, limit: int, *, time_limit_s: float = QUERY_TIME_LIMIT_S
    ) -> list[tuple[int, int]]:
        """Return the first `limit` closed ranges of ids, from `first` to the highest id, that are not there."""
        with self._looking(stream_no, time_limit_s) as (connection, _):
            if connection.execute(DENSE, (first, stream_no, first)).fetchone()[0]:
                return []
            return connection.execute(ABSENT, (first - 1, stream_no, first, limit)).fetchall()

    def incomplete(
        self, stream_no: int, first: int, limit: int, *, time_limit_s: float = QUERY_TIME_LIMIT_S
    ) -> list[Incomplete]:
        """Return the first `limit` datasets with ids from `first` on that are not complete."""
        with self._looking(stream_no, time_limit_s) as (connection, _):
            return [Incomplete(*row) for row in connection.execute(PARTS, (stream_no, first, limit)).fetchall()]

    @contextmanager
    def _looking(self, stream_no: int, time_limit_s: float) -> Iterator[tuple[sqlite3.Connection, Span]]:
        """Lend a connection on which statements end when the time is over, and the stream's rows."""
        deadline_s = time.monotonic() + time_limit_s
        with self._database.reading() as connection:
            # One snapshot for all statements: between them somebody may begin to sort the stream anew.
            connection.execute("BEGIN")
            connection.set_progress_handler(lambda: time.monotonic() > deadline_s, STEPS_PER_LOOK)
            try:
                found = connection.execute("SELECT head_seq FROM stream WHERE no = ?", (stream_no,)).fetchall()
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
                if connection.in_transaction:  # an I/O error may have ended it
                    connection.execute("COMMIT")


def _shares(connection: sqlite3.Connection, span: Span, found: Mapping[Path, Range]) -> dict[Path, float]:
    """Return which part of the rows is in each range, by a look at some of them."""
    shares: dict[Path, float] = {}
    for path, chosen in found.items():
        statement, n_rows = sample(span, chosen)
        shares[path] = _number(connection, statement) / max(n_rows, 1)
    return shares


def _walker(connection: sqlite3.Connection, asked: Asked) -> Walker | None:
    """Return what answers a query from sorted keys, None when the stream is not sorted by a key that matters."""
    keys = noted(connection, asked.span)
    walker = Walker(asked, keys) if keys else None
    if walker is None or not walker.serves:
        return None
    walker.look(connection)
    return walker


def _statements(connection: sqlite3.Connection, asked: Asked) -> list[Statement]:
    """Return statements of which the first is right that finds as many rows as are wanted, and the last in any case."""
    walker = _walker(connection, asked)
    tries = walker.statements() if walker else []
    return tries if walker and walker.narrowed else [*tries, *_planner(connection, asked).statements()]


def _planner(connection: sqlite3.Connection, asked: Asked) -> Planner:
    known = declared(connection)
    found = ranges(asked.query.where, known)
    return Planner(asked, known, found, _shares(connection, asked.span, found))


def _number(connection: sqlite3.Connection, statement: Statement) -> int:
    ((n,),) = connection.execute(statement.text, statement.params).fetchall()
    return int(n)


def _count(connection: sqlite3.Connection, span: Span, query: Query) -> int:
    walker = _walker(connection, Asked(span, query, 0))
    if walker and walker.narrowed:
        return _number(connection, walker.count())
    known = declared(connection)
    found = ranges(query.where, known)
    return _number(connection, count(span, query, known, found, _shares(connection, span, found)))


def _plan(connection: sqlite3.Connection, statement: Statement) -> tuple[str, ...]:
    lines = connection.execute(f"EXPLAIN QUERY PLAN {statement.text}", statement.params).fetchall()
    return tuple(str(line[3]) for line in lines)


def _explained(connection: sqlite3.Connection, asked: Asked) -> Explanation:
    """Read the database's plan, and count what the index that it uses gives it."""
    span, query = asked.span, asked.query
    total = _count(connection, span, Query())
    if (walker := _walker(connection, asked)) and (statements := walker.statements()):
        name, of_range = walker.explained()
        rows = _number(connection, of_range) if of_range else total
        return Explanation(name, False, rows, total, len(statements) == 1, _plan(connection, statements[0]))
    plan = _plan(connection, _planner(connection, asked).statements()[-1])
    names = dict(connection.execute("SELECT 'key_' || no, name FROM declared_key").fetchall())
    used = next((index for line in plan for index in (*names, "message_id") if f"INDEX {index} " in line), "")
    sorts = any("TEMP B-TREE" in line for line in plan)
    if used in names:
        rows = _count(connection, span, Query(_narrowing(query.where, MetaKey(key_path(names[used])))))
        return Explanation(names[used], False, rows, total, sorts, plan)
    if used and (by_id := _narrowing(query.where, ID)) is not None:
        return Explanation("id", False, _count(connection, span, Query(by_id)), total, sorts, plan)
    return Explanation("", True, total, total, sorts, plan)


def _narrowing(expr: Expr | None, key: Key) -> Expr | None:
    """Return the part of a condition by which the index of one key narrows the rows down."""
    if isinstance(expr, And):
        parts = tuple(found for part in expr.operands if (found := _narrowing(part, key)) is not None)
        return And(parts) if len(parts) > 1 else parts[0] if parts else None
    if isinstance(expr, Or):
        return expr
    return expr if isinstance(expr, Comparison | In) and expr.key == key else None
