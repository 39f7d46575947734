"""SELECTs of the SQLite index for a query: which index serves it, and tries that look at part of the rows only.

The index of a declared key is cut into runs of arrivals (`schema.RUN_BITS`), so a query that it serves is joined with
the stream's runs: one seek for each. Who wants the first few in some order should not pay for all that match. A *try*
asks for those on one side of a place in that order, chosen so that there are probably enough; when it finds as many as
are wanted they are the first ones, wherever the place was. The last statement of a plan always finds everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from asapo.index.keys import RUN, Declared
from asapo.index.schema import ROW_SQL, RUN_BITS, SEQ_BITS
from asapo.query import And, Builtin, Comparison, Expr, In, MetaKey, Or, Query, SqlQuery, behind, last_columns, to_sql
from asapo.query.ast import predicates
from asapo.query.sql import bounds
from asapo.query.sql_order import flat
from asapo.query.sql_paths import Path

ID: Final = Builtin("_id")
FEW: Final = 1000
"""Up to this limit there are tries, and each run is asked for its first rows instead of for all that match."""
MARGIN: Final = 1.3
"""A try looks at so many times more rows than should be enough."""
UNKNOWN_SHARE: Final = 0.1
"""Which part of the rows is taken to fulfil what no index tells anything about."""
LONG: Final = 4
"""Tries are worth it for streams this many times longer than what they look at."""
LOOKUP: Final = 6
"""Reading a row and its metadata costs as much as this many steps in an index."""

Params = tuple[Any, ...]


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
    def n_runs(self) -> int:
        """Number of runs that the stream's arrivals fall into."""
        return (self.high >> RUN_BITS) - (self.low >> RUN_BITS) + 1

    @property
    def runs(self) -> str:
        """The table `run(n)` of these runs, as it stands in a WITH."""
        return (
            f"run(n) AS (SELECT {self.low >> RUN_BITS} UNION ALL SELECT n + 1 FROM run "
            f"WHERE n < {self.high >> RUN_BITS})"
        )


@dataclass(frozen=True, slots=True)
class Statement:
    """A SELECT with its parameters."""

    text: str
    params: Params


@dataclass(frozen=True, slots=True)
class Range:
    """What the condition says of one declared key, as its index can seek; the rows it gives are checked again."""

    expression: str
    lower: str = ""
    lower_params: Params = ()
    upper: str = ""
    upper_params: Params = ()
    same: str = ""
    """`=` or IN."""
    same_params: Params = ()

    @property
    def text(self) -> str:
        """The condition."""
        return " AND ".join(filter(None, (self.lower, self.upper, self.same)))

    @property
    def params(self) -> Params:
        """Its values."""
        return (*self.lower_params, *self.upper_params, *self.same_params)

    def sides(self, *, descending: bool) -> tuple[str, Params, str, Params]:
        """Return the bounds with their values: first that at the beginning of an order, then that at its end."""
        lower, upper = (self.lower, self.lower_params), (self.upper, self.upper_params)
        return (*upper, *lower) if descending else (*lower, *upper)


def ranges(where: Expr | None, known: Declared) -> dict[Path, Range]:
    """Return the ranges of declared keys outside of which nothing fulfils the condition."""
    found: dict[Path, Range] = {}
    for part, negated in flat(And, where, negate=False) if where is not None else ():
        if negated or not isinstance(part, Comparison | In) or not isinstance(part.key, MetaKey):
            continue
        path = part.key.path
        if path not in known or path in found and found[path].same:
            continue
        side, text, params = bounds(part, known[path])
        before = found.get(path, Range(known[path]))
        if side == "lower":
            # One of several bounds on a side is enough: the rows are checked again.
            found[path] = Range(before.expression, text, params, before.upper, before.upper_params)
        elif side == "upper":
            found[path] = Range(before.expression, before.lower, before.lower_params, text, params)
        elif side == "same":
            found[path] = Range(before.expression, same=text, same_params=params)
    return found


def sample(span: Span, chosen: Range) -> tuple[Statement, int]:
    """Return the SELECT of how many rows of the stream's middle run are in a range, and of how many that is a part."""
    run = (span.low + span.head_seq // 2) >> RUN_BITS
    n_rows = min(span.high, (run + 1 << RUN_BITS) - 1) - max(span.low, run << RUN_BITS)
    return Statement(f"SELECT count(*) FROM message WHERE ({RUN}) = {run} AND {chosen.text}", chosen.params), n_rows


@dataclass(frozen=True, slots=True)
class Planner:
    """Writes the statements for one query."""

    span: Span
    query: Query
    known: Declared
    ranges: Mapping[Path, Range]
    shares: Mapping[Path, float]
    """Of each range: which part of all rows is in it, as far as a sample tells."""
    limit: int
    after: int = 0
    paired: bool = False
    """Both declared keys of the stream are sorted (`asapo.index.pairs`)."""

    def statements(self) -> list[Statement]:
        """Return tries, each of them right when it finds `limit` rows, and at last the statement that finds all."""
        tries: list[Statement | None] = []
        if self.ranges and 0 < self.limit <= FEW:
            if self.query.order and (pairs := self._by_pair()):
                return pairs
            tries = [self._by_id() if not self.query.order else self._by_key()]
        return [*filter(None, tries), self._everything()]

    # -- parts ------------------------------------------------------------------------------------------------------

    def _where(self, sql: SqlQuery, *tables: str) -> tuple[str, str, Params, Params]:
        """Return WITH and condition of a statement, and the values of each, with what `after` adds to them."""
        with_tables, params = list(tables), ()  # type: list[str], Params
        where, values = f"({sql.where})", sql.params
        if self.after:
            columns, params = last_columns(sql.terms)
            place = self.span.low | self.after
            with_tables.insert(0, f"last AS MATERIALIZED (SELECT {columns} FROM message WHERE key = {place})")
            rest, rest_params = behind(sql.terms)
            where, values = f"{where} AND ({rest})", (*values, *rest_params)
        text = f"WITH RECURSIVE {', '.join(with_tables)} " if with_tables else ""
        return text, where, params, values

    def _checked(self, served_by: Path) -> SqlQuery:
        """Return what is asked of each row that the index of one key gives: other keys first, as they may say no.

        Not told of the declared keys, it leaves the choice of the index to the ranges.
        """
        where = self.query.where
        if isinstance(where, And):
            where = And(tuple(sorted(where.operands, key=lambda part: keys_of(part) == {served_by})))
        return to_sql(Query(where, self.query.order))

    def _everything(self) -> Statement:
        if self.ranges and not self._order_key_alone():
            return self._intersection()
        sql = to_sql(self.query, declared=self.known)
        end = f"ORDER BY {sql.order_by} LIMIT {self.limit}"
        if not served(self.query.where, self.known):
            # In the order of ids the id index delivers rows until the limit; for another order one pass is faster.
            tables, where, params, values = self._where(sql)
            place = _place(self.span, by_id=not self.query.order or narrowed_by_id(self.query.where))
            text = f"{tables}SELECT {ROW_SQL} FROM message WHERE {place} AND {where} {end}"
            return Statement(text, (*params, *values, *sql.order_params))
        tables, where, params, values = self._where(sql, self.span.runs)
        start = f"{tables}SELECT {ROW_SQL} FROM run CROSS JOIN message"
        condition = f"({RUN}) = run.n AND {where}"
        if self.limit <= FEW and any(sql.order_by.startswith(expression) for expression in self.known.values()):
            best = f"SELECT key FROM message WHERE {condition} {end}"
            text = f"{start} WHERE key IN ({best}) {end}"
            return Statement(text, (*params, *values, *sql.order_params, *sql.order_params))
        return Statement(f"{start} WHERE {condition} {end}", (*params, *values, *sql.order_params))

    def _order_key_alone(self) -> bool:
        """Tell whether it is best to take from each run its first rows by the key that orders."""
        keys = {order.key.path for order in self.query.order[:1] if isinstance(order.key, MetaKey)}
        return self.limit <= FEW and keys == set(self.ranges)

    def _share(self, *, but: Path = ()) -> float:
        """Return which part of all rows should fulfil the condition, without what it says of one key."""
        share = 1.0
        for path in self.ranges:
            share *= 1.0 if path == but else self.shares[path]
        asked = {part.key for part in predicates(self.query.where)}
        return share if len(asked) == len(self.ranges) else share * UNKNOWN_SHARE

    def _intersection(self) -> Statement:
        sql = self._checked(min(self.ranges, key=lambda path: self.shares[path]))
        tables, where, params, values = self._where(sql, self.span.runs)
        inside, inside_params = intersection(self.ranges, self.shares)
        end = f"ORDER BY {sql.order_by} LIMIT {self.limit}"
        text = (
            f"{tables}SELECT {ROW_SQL} FROM run CROSS JOIN message WHERE ({RUN}) = run.n AND {inside} AND {where} {end}"
        )
        return Statement(text, (*params, *inside_params, *values, *sql.order_params))

    # -- tries ------------------------------------------------------------------------------------------------------

    def _by_id(self) -> Statement | None:
        """Look at the next ids only, through the index of a key where that spares enough rows."""
        share = self._share()
        window = int(MARGIN * self.limit / share) + 1 if share else self.span.head_seq
        if self.span.head_seq < LONG * window:
            return None
        first = min(self.ranges, key=lambda path: self.shares[path])
        stream = f"stream_no = {self.span.stream_no}"
        if self.after:
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
        with_, where, params, values = self._where(self._checked(first), *tables)
        text = (
            f"{with_}SELECT {ROW_SQL} FROM {source} WHERE {inside} AND {where} AND id <= (SELECT v FROM last_id) "
            f"ORDER BY id, substream LIMIT {self.limit}"
        )
        return Statement(text, (*params, *inside_params, *values))

    def _by_key(self) -> Statement | None:
        """Look at the values of the key that orders, from its first on to one behind which enough rows lie before."""
        order = self.query.order[0]
        chosen = self.ranges.get(order.key.path) if isinstance(order.key, MetaKey) else None
        if chosen is None or chosen.same or not isinstance(order.key, MetaKey):
            return None
        share = self._share(but=order.key.path)
        wanted = int(MARGIN * self.limit / share) + 1 if share else self.span.head_seq
        if self.span.head_seq < LONG * wanted:
            return None
        down, beyond, nearest = (" DESC", ">=", "max") if order.descending else ("", "<=", "min")
        near, near_params, far, far_params = chosen.sides(descending=order.descending)
        if self.after:
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
        of_each = wanted // self.span.n_runs
        each = f"each(n, first, v) AS MATERIALIZED (SELECT n, {value('run.n', 0)}, {value('run.n', of_each)} FROM run)"
        first_run = f"(SELECT n FROM each WHERE first IS NOT NULL ORDER BY first{down} LIMIT 1)"
        middle = f"SELECT v FROM each WHERE v IS NOT NULL ORDER BY v{down} LIMIT 1 OFFSET {self.span.n_runs // 2}"
        best = f"SELECT {value(first_run, wanted)}"
        place = f"place(v) AS MATERIALIZED (SELECT v FROM ({middle}) UNION ALL {best})"
        sql = self._checked(order.key.path)
        with_, where, params, values = self._where(sql, self.span.runs, each, place)
        text = (
            f"{with_}SELECT {ROW_SQL} FROM run CROSS JOIN message WHERE ({RUN}) = run.n AND {near or '1'} "
            f"AND {chosen.expression} {beyond} (SELECT {nearest}(v) FROM place) AND {where} "
            f"ORDER BY {sql.order_by} LIMIT {self.limit}"
        )
        return Statement(text, (*params, *inside_params * 3, *near_params, *values, *sql.order_params))

    # -- finished streams -------------------------------------------------------------------------------------------

    def _by_pair(self) -> list[Statement]:
        """Take the rows by one key, sorted, whose other key is in its range, too: the first ones, then all."""
        order = self.query.order[0]
        if not self.paired or len(self.ranges) < 2 or not isinstance(order.key, MetaKey):
            return []
        side = list(self.known).index(order.key.path) if order.key.path in self.known else -1
        columns = {path: "pair.value" if at == side else "pair.other" for at, path in enumerate(self.known)}
        found = ranges(self.query.where, columns)
        chosen = found.pop(order.key.path, None)
        if chosen is None or chosen.same:
            return []
        (other,) = found.values()
        near, near_params, far, far_params = chosen.sides(descending=order.descending)
        if self.after:
            near, near_params = f"pair.value {'<=' if order.descending else '>='} (SELECT a0 FROM last)", ()
        mine = f"pair.of_stream = {self.span.stream_no} AND pair.side = {side} AND {other.text}"
        start = " AND ".join(filter(None, (mine, near)))
        whole, whole_params = " AND ".join(filter(None, (start, far))), (*other.params, *near_params, *far_params)
        down, beyond = (" DESC", ">=") if order.descending else ("", "<=")
        alone = len({part.key for part in predicates(self.query.where)}) == 2 and not self.after
        enough = self.limit if alone else int(self.limit * MARGIN / UNKNOWN_SHARE)
        place = (
            f"place(v) AS MATERIALIZED (SELECT pair.value FROM pair WHERE {whole} "
            f"ORDER BY pair.value{down} LIMIT 1 OFFSET {enough})"
        )
        # One bound on the far side, as of two the index would seek by the first. None is there if there are fewer rows.
        first = f"{start} AND pair.value {beyond} (SELECT v FROM place)"
        first_params = (*whole_params, *other.params, *near_params)
        return [self._joined([place], first, first_params), self._joined([], whole, whole_params)]

    def _joined(self, tables: list[str], inside: str, inside_params: Params) -> Statement:
        """Return the SELECT of the rows behind these pairs, each checked in full."""
        sql = self._checked(())
        with_, where, params, values = self._where(sql, *tables)
        text = (
            f"{with_}SELECT {ROW_SQL} FROM pair CROSS JOIN message ON message.key = pair.row_key "
            f"WHERE {inside} AND {where} ORDER BY {sql.order_by} LIMIT {self.limit}"
        )
        return Statement(text, (*params, *inside_params, *values, *sql.order_params))


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


def keys_of(expr: Expr) -> frozenset[Path]:
    """Return the metadata paths that a condition looks at."""
    return Query(expr).keys


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
