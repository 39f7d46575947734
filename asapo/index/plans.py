"""SELECTs of the SQLite index for a query: which index serves it, and tries that look at part of the rows only.

The index of a declared key is cut into runs of arrivals (`schema.RUN_BITS`), so a query that it serves is joined with
the stream's runs: one seek for each. Who wants the first few in some order should not pay for all that match. A *try*
asks for those on one side of a place in that order, chosen so that there are probably enough; when it finds as many as
are wanted they are the first ones, wherever the place was. The last statement of a plan always finds everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from asapo.index.keys import RUN, Declared
from asapo.index.ranges import FEW, ID, MARGIN, UNKNOWN_SHARE, Asked, Params, Range, Span, Statement
from asapo.index.schema import ROW_SQL, RUN_BITS
from asapo.query import And, Comparison, Expr, In, MetaKey, Or, Query, to_sql
from asapo.query.ast import predicates
from asapo.query.sql_paths import Path

LONG: Final = 4
"""Tries are worth it for streams this many times longer than what they look at."""
LOOKUP: Final = 6
"""Reading a row and its metadata costs as much as this many steps in an index."""


def sample(span: Span, chosen: Range) -> tuple[Statement, int]:
    """Return the SELECT of how many rows of the stream's middle run are in a range, and of how many that is a part."""
    run = (span.low + span.head_seq // 2) >> RUN_BITS
    n_rows = min(span.high, (run + 1 << RUN_BITS) - 1) - max(span.low, run << RUN_BITS)
    return Statement(f"SELECT count(*) FROM message WHERE ({RUN}) = {run} AND {chosen.text}", chosen.params), n_rows


@dataclass(frozen=True, slots=True)
class Planner:
    """Writes the statements for one query."""

    asked: Asked
    known: Declared
    ranges: Mapping[Path, Range]
    shares: Mapping[Path, float]
    """Of each range: which part of all rows is in it, as far as a sample tells."""

    def statements(self) -> list[Statement]:
        """Return tries, each of them right when it finds `limit` rows, and at last the statement that finds all."""
        tries: list[Statement | None] = []
        if self.ranges and 0 < self.asked.limit <= FEW:
            tries = [self._by_id() if not self.asked.query.order else self._by_key()]
        return [*filter(None, tries), self._everything()]

    # -- parts ------------------------------------------------------------------------------------------------------

    def _everything(self) -> Statement:
        if self.ranges and not self._order_key_alone():
            return self._intersection()
        sql = to_sql(self.asked.query, declared=self.known)
        end = f"ORDER BY {sql.order_by} LIMIT {self.asked.limit}"
        if not served(self.asked.query.where, self.known):
            # In the order of ids the id index delivers rows until the limit; for another order one pass is faster.
            tables, where, params, values = self.asked.where(sql)
            place = _place(self.asked.span, by_id=not self.asked.query.order or narrowed_by_id(self.asked.query.where))
            text = f"{tables}SELECT {ROW_SQL} FROM message WHERE {place} AND {where} {end}"
            return Statement(text, (*params, *values, *sql.order_params))
        tables, where, params, values = self.asked.where(sql, self.asked.span.runs)
        start = f"{tables}SELECT {ROW_SQL} FROM run CROSS JOIN message"
        condition = f"({RUN}) = run.n AND {where}"
        if self.asked.limit <= FEW and any(sql.order_by.startswith(expression) for expression in self.known.values()):
            best = f"SELECT key FROM message WHERE {condition} {end}"
            text = f"{start} WHERE key IN ({best}) {end}"
            return Statement(text, (*params, *values, *sql.order_params, *sql.order_params))
        return Statement(f"{start} WHERE {condition} {end}", (*params, *values, *sql.order_params))

    def _order_key_alone(self) -> bool:
        """Tell whether it is best to take from each run its first rows by the key that orders."""
        keys = {order.key.path for order in self.asked.query.order[:1] if isinstance(order.key, MetaKey)}
        return self.asked.limit <= FEW and keys == set(self.ranges)

    def _share(self, *, but: Path = ()) -> float:
        """Return which part of all rows should fulfil the condition, without what it says of one key."""
        share = 1.0
        for path in self.ranges:
            share *= 1.0 if path == but else self.shares[path]
        asked = {part.key for part in predicates(self.asked.query.where)}
        return share if len(asked) == len(self.ranges) else share * UNKNOWN_SHARE

    def _intersection(self) -> Statement:
        sql = self.asked.checked(min(self.ranges, key=lambda path: self.shares[path]))
        tables, where, params, values = self.asked.where(sql, self.asked.span.runs)
        inside, inside_params = intersection(self.ranges, self.shares)
        end = f"ORDER BY {sql.order_by} LIMIT {self.asked.limit}"
        text = (
            f"{tables}SELECT {ROW_SQL} FROM run CROSS JOIN message WHERE ({RUN}) = run.n AND {inside} AND {where} {end}"
        )
        return Statement(text, (*params, *inside_params, *values, *sql.order_params))

    # -- tries ------------------------------------------------------------------------------------------------------

    def _by_id(self) -> Statement | None:
        """Look at the next ids only, through the index of a key where that spares enough rows."""
        share = self._share()
        window = int(MARGIN * self.asked.limit / share) + 1 if share else self.asked.span.head_seq
        if self.asked.span.head_seq < LONG * window:
            return None
        first = min(self.ranges, key=lambda path: self.shares[path])
        stream = f"stream_no = {self.asked.span.stream_no}"
        if self.asked.after:
            stream += " AND id >= (SELECT a0 FROM last)"
        tables = [
            f"last_id(v) AS MATERIALIZED (SELECT id FROM message WHERE {stream} ORDER BY id LIMIT 1 OFFSET {window})"
        ]
        inside, inside_params = stream, ()  # type: str, Params
        source = "message"
        if (window + (1 << RUN_BITS)) * self.shares[first] < window / MARGIN:
            ids = f"{stream} AND id <= (SELECT v FROM last_id)"
            tables.append(f"run(n) AS MATERIALIZED (SELECT DISTINCT {RUN} FROM message WHERE {ids})")
            inside, inside_params = intersection(self.ranges, self.shares)
            inside = f"({RUN}) = run.n AND {inside}"
            source = "run CROSS JOIN message"
        with_, where, params, values = self.asked.where(self.asked.checked(first), *tables)
        text = (
            f"{with_}SELECT {ROW_SQL} FROM {source} WHERE {inside} AND {where} AND id <= (SELECT v FROM last_id) "
            f"ORDER BY id, substream LIMIT {self.asked.limit}"
        )
        return Statement(text, (*params, *inside_params, *values))

    def _by_key(self) -> Statement | None:
        """Look at the values of the key that orders, from its first on to one behind which enough rows lie before."""
        order = self.asked.query.order[0]
        chosen = self.ranges.get(order.key.path) if isinstance(order.key, MetaKey) else None
        if chosen is None or chosen.same or not isinstance(order.key, MetaKey):
            return None
        share = self._share(but=order.key.path)
        wanted = int(MARGIN * self.asked.limit / share) + 1 if share else self.asked.span.head_seq
        if self.asked.span.head_seq < LONG * wanted:
            return None
        down, beyond, nearest = (" DESC", ">=", "max") if order.descending else ("", "<=", "min")
        near, near_params, far, far_params = chosen.sides(descending=order.descending)
        if self.asked.after:
            near, near_params = f"{chosen.expression} {'<=' if order.descending else '>='} (SELECT a0 FROM last)", ()
        inside = " AND ".join(filter(None, (near, far))) or "1"
        inside_params = (*near_params, *far_params)

        def value(run: str, offset: int) -> str:
            return (
                f"(SELECT {chosen.expression} FROM message WHERE ({RUN}) = {run} AND {inside} "
                f"ORDER BY {chosen.expression}{down} LIMIT 1 OFFSET {offset})"
            )

        # Values that are spread over all runs: so many of each run, as far as they go in the middle one. Values that
        # rise or fall with time: as many as are wanted, of the run that has the first. What looks at less is taken.
        of_each = wanted // self.asked.span.n_runs
        each = f"each(n, first, v) AS MATERIALIZED (SELECT n, {value('run.n', 0)}, {value('run.n', of_each)} FROM run)"
        first_run = f"(SELECT n FROM each WHERE first IS NOT NULL ORDER BY first{down} LIMIT 1)"
        middle = f"SELECT v FROM each WHERE v IS NOT NULL ORDER BY v{down} LIMIT 1 OFFSET {self.asked.span.n_runs // 2}"
        best = f"SELECT {value(first_run, wanted)}"
        place = f"place(v) AS MATERIALIZED (SELECT v FROM ({middle}) UNION ALL {best})"
        sql = self.asked.checked(order.key.path)
        with_, where, params, values = self.asked.where(sql, self.asked.span.runs, each, place)
        text = (
            f"{with_}SELECT {ROW_SQL} FROM run CROSS JOIN message WHERE ({RUN}) = run.n AND {near or '1'} "
            f"AND {chosen.expression} {beyond} (SELECT {nearest}(v) FROM place) AND {where} "
            f"ORDER BY {sql.order_by} LIMIT {self.asked.limit}"
        )
        return Statement(text, (*params, *inside_params * 3, *near_params, *values, *sql.order_params))


def intersection(found: Mapping[Path, Range], shares: Mapping[Path, float]) -> tuple[str, Params]:
    """Return the condition by which rows are found in the index of the smallest range, and of others if that pays."""
    first, *others = sorted(found, key=lambda path: shares[path])
    text, params = found[first].text, found[first].params
    for path in others:
        # Its index is read once, for all runs; without it each row of the first range would be looked at.
        if shares[path] < LOOKUP * shares[first] * (1 - shares[path]):
            inner = f"SELECT key FROM run AS r CROSS JOIN message AS other WHERE ({RUN}) = r.n AND {found[path].text}"
            text += f" AND message.key IN ({inner})"
            params = (*params, *found[path].params)
    return text, params


def count(
    span: Span, query: Query, known: Declared, found: Mapping[Path, Range], shares: Mapping[Path, float]
) -> Statement:
    """Return the SELECT of how many rows a query selects."""
    if query.where is None:
        return Statement(f"SELECT count(*) FROM message WHERE stream_no = {span.stream_no}", ())
    start = f"WITH RECURSIVE {span.runs} SELECT count(*) FROM run CROSS JOIN message WHERE ({RUN}) = run.n"
    if found:
        sql = to_sql(Query(query.where))
        inside, params = intersection(found, shares)
        return Statement(f"{start} AND {inside} AND ({sql.where})", (*params, *sql.params))
    sql = to_sql(Query(query.where), declared=known)
    if served(query.where, known):
        return Statement(f"{start} AND ({sql.where})", sql.params)
    place = _place(span, by_id=narrowed_by_id(query.where))
    return Statement(f"SELECT count(*) FROM message WHERE {place} AND ({sql.where})", sql.params)


def _place(span: Span, *, by_id: bool) -> str:
    return f"stream_no = {span.stream_no}" if by_id else f"key BETWEEN {span.low} AND {span.high}"


def served(expr: Expr | None, known: Declared) -> bool:
    """Return True when indexes of declared keys narrow down what `expr` selects."""
    match expr:
        case Comparison(key=MetaKey(path=path), op=op):
            return path in known and op != "!="
        case In(key=MetaKey(path=path), negated=False):
            return path in known
        case And(operands=parts):
            return any(served(part, known) for part in parts)
        case Or(operands=parts):
            return all(served(part, known) for part in parts)
        case _:
            return False


def narrowed_by_id(expr: Expr | None) -> bool:
    """Return True when the index of ids narrows down what `expr` selects."""
    if isinstance(expr, And):
        return any(map(narrowed_by_id, expr.operands))
    if isinstance(expr, Comparison):
        return expr.key == ID and expr.op != "!="
    return isinstance(expr, In) and expr.key == ID and not expr.negated
