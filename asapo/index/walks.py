"""SELECTs for a query of a stream whose keys are sorted (`asapo.index.sorting`): one walk along one side of the table.

Every row of a side has the values of all keys, so what is asked of them is tested without a look at messages; only rows
that pass are read, and checked in full. Who wants the first few walks until there are enough: along the side that has
the order, or over the side of the smallest range. These are *tries* as in `asapo.index.plans`: they look up to a place
in the order, and are right whenever they find as many as are wanted, so an estimate that is wrong costs time only.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from asapo.index.ranges import FEW, ID, ID_PATH, MARGIN, UNKNOWN_SHARE, Asked, Params, Range, Statement, ranges
from asapo.index.schema import ROW_SQL, SORTED_COLUMNS
from asapo.index.sorting import BY_ID, SAMPLE, TEXT_CHARS
from asapo.query import MetaKey
from asapo.query.ast import predicates
from asapo.query.sql_order import Term, order_terms
from asapo.query.sql_paths import Path, json_path

MOST: Final = 10 * FEW
"""Up to this limit there are tries."""
FEW_HITS: Final = 2
"""A range that so few rows of the sample are in is counted."""
COUNTED: Final = 8192
"""Up to so many rows."""
SURE_HITS: Final = 4
"""From so many rows of the sample on it tells how ranges go together; else they are taken to be independent."""
MORE: Final = 64
"""Of a page that is not the first: rows of the same value may have been given already."""


@dataclass(frozen=True, slots=True)
class _Order:
    """The first thing that orders what is selected and is not the same for all of it."""

    path: Path
    descending: bool
    at: int
    """Place of its term among those of the query's order."""
    ranked: bool = False
    """Values of several types are ordered by type first: numbers come before all others."""


class Walker:
    """Writes the statements for one query of a sorted stream.

    Parameters
    ----------
    keys : tuple of metadata paths
        Keys by which the stream is sorted, in the order of their columns.
    """

    def __init__(self, asked: Asked, keys: tuple[Path, ...]) -> None:
        self._asked = asked
        self._keys = keys
        self._sql = asked.checked()
        self._tests: dict[int, dict[Path, Range]] = {}
        self._order = _order(asked, keys, self._ranges(SAMPLE))
        self._sizes: dict[Path, int] = {}
        self._hits: Mapping[Path, int] = {}
        self._all_hits = self._sampled = 0

    @property
    def serves(self) -> bool:
        """Tell whether the keys narrow the rows down, or order them."""
        by_key = self._order is not None and self._order.path != ID_PATH
        return any(path != ID_PATH for path in self._ranges(SAMPLE)) or by_key

    @property
    def narrowed(self) -> bool:
        """Tell whether a key narrows the rows down."""
        return bool(self._sizes)

    def look(self, connection: sqlite3.Connection) -> None:
        """Learn how many rows are in each range."""
        found = self._ranges(SAMPLE)
        if not any(path != ID_PATH for path in found):
            return
        tests = [(part.text, part.params) for part in found.values()]
        everything = (" AND ".join(text for text, _ in tests), tuple(value for _, params in tests for value in params))
        columns = ", ".join(f"total({text})" for text, _ in [*tests, everything])
        params = tuple(value for _, values in [*tests, everything] for value in values)
        counts = connection.execute(f"SELECT count(*), {columns} FROM sorted WHERE {self._side(SAMPLE)}", params)
        self._sampled, *hits, self._all_hits = map(int, counts.fetchall()[0])
        self._hits = dict(zip(found, hits, strict=True))
        for path, n in self._hits.items():
            if path != ID_PATH:
                counted = self._counted(path)
                self._sizes[path] = (
                    int(connection.execute(counted.text, counted.params).fetchall()[0][0])
                    if n <= FEW_HITS
                    else n * self._asked.span.head_seq // self._sampled
                )

    # -- what is asked ----------------------------------------------------------------------------------------------

    def statements(self) -> list[Statement]:
        """Return tries, and at last the statement that finds all, unless no key narrows the rows down."""
        tries = self._tries() if 0 < self._asked.limit <= MOST else []
        return [*tries, *([self._everything()] if self.narrowed else [])]

    def count(self) -> Statement:
        """Return the SELECT of how many rows a query selects."""
        side = self._smallest()
        sql = self._sql
        inside, params = self._inside(side)
        text = f"SELECT count(*) FROM {self._joined('sorted')} WHERE {inside} AND ({sql.where})"
        return Statement(text, (*params, *sql.params))

    def explained(self) -> tuple[str, Statement | None]:
        """Return the key that serves, and the SELECT of how many rows are in its range if it has one."""
        if not self.narrowed:
            assert self._order is not None
            return ".".join(self._order.path), None
        side = self._smallest()
        own = self._ranges(self._number(side))[side]
        text = f"SELECT count(*) FROM sorted WHERE {self._side(self._number(side))} AND {own.text}"
        return ".".join(side), Statement(text, own.params)

    # -- parts ------------------------------------------------------------------------------------------------------

    def _number(self, path: Path) -> int:
        return BY_ID if path == ID_PATH else self._keys.index(path) + 1

    def _side(self, number: int) -> str:
        return f"sorted.of_stream = {self._asked.span.stream_no} AND sorted.side = {number}"

    def _column(self, side: int, path: Path) -> str:
        """Return where the value of a key is found on a side."""
        if path == ID_PATH:
            return "sorted.value" if side == BY_ID else "sorted.of_id"
        return "sorted.value" if side == self._number(path) else f"sorted.{SORTED_COLUMNS[self._keys.index(path)]}"

    def _ranges(self, side: int) -> Mapping[Path, Range]:
        """Return the ranges that are asked for, as tests of the rows of one side."""
        if side not in self._tests:
            columns = {path: self._column(side, path) for path in (ID_PATH, *self._keys)}
            self._tests[side] = ranges(self._asked.query.where, columns, longest_text=TEXT_CHARS)
        return self._tests[side]

    def _smallest(self) -> Path:
        return min(self._sizes, key=lambda path: self._sizes[path])

    def _inside(self, side: Path) -> tuple[str, Params]:
        """Return the condition for the rows of one side that are in all ranges."""
        number = self._number(side)
        found = self._ranges(number).values()
        text = " AND ".join([self._side(number), *(part.text for part in found)])
        return text, tuple(value for part in found for value in part.params)

    def _counted(self, path: Path) -> Statement:
        """Return the SELECT of how many rows are in one range, up to a bound."""
        number = self._number(path)
        own = self._ranges(number)[path]
        text = f"SELECT 1 FROM sorted WHERE {self._side(number)} AND {own.text} LIMIT {COUNTED}"
        return Statement(f"SELECT count(*) FROM ({text})", own.params)

    def _joined(self, source: str) -> str:
        return f"{source} CROSS JOIN message ON message.key = {self._asked.span.low} + sorted.seq"

    def _read(self, source: str, source_params: Params, *tables: str, also: str = "1") -> Statement:
        """Return the SELECT of the messages behind some rows of a side, each checked in full."""
        with_, where, params, values = self._asked.where(self._sql, *tables)
        text = (
            f"{with_}SELECT {ROW_SQL} FROM {self._joined(source)} WHERE {where} AND {also} "
            f"ORDER BY {self._sql.order_by} LIMIT {self._asked.limit}"
        )
        return Statement(text, (*params, *source_params, *values, *self._sql.order_params))

    def _everything(self) -> Statement:
        """Walk over the smallest range."""
        inside, params = self._inside(self._smallest())
        return self._read(f"(SELECT sorted.seq FROM sorted WHERE {inside}) AS sorted", params)

    # -- tries ------------------------------------------------------------------------------------------------------

    def _tries(self) -> list[Statement]:
        """Return what looks at the beginning of the order only: the quickest walk, then one that takes a bit longer."""
        order, n_rows = self._order, self._asked.span.head_seq
        if order is None:
            return []
        if not self._sizes:
            return [self._try(order, order.path, 0)]
        smallest = self._smallest()
        most = self._sizes[smallest]
        together = most * self._share(smallest)
        walks = {
            side: min(self._sizes.get(side, n_rows), self._enough() / self._share(side)) for side in self._in_order()
        }
        best = min(walks, key=lambda side: walks[side], default=smallest)
        # However wrong the estimate was, the first takes no longer than a walk over the smallest range.
        tries = [self._try(order, best, most + 1)] if best != smallest and walks[best] < most else []
        if together > 2 * self._enough() or smallest in walks:
            tries.append(self._try(order, smallest, 0))
        return tries

    def _in_order(self) -> list[Path]:
        """Return the sides on which rows that are in its range come in the order that is asked for."""
        order = self._order
        if order is None:
            return []
        found = self._ranges(SAMPLE)
        same = [path for path in self._sizes if is_one_value(found[path])] if order.path == ID_PATH else []
        several = order.path in found and found[order.path].same
        return [*same, *([] if several else [order.path])]

    def _share(self, side: Path) -> float:
        """Return which part of the rows that are in the range of one key, if it has one, should be in all ranges."""
        if self._all_hits >= SURE_HITS:
            return self._all_hits / self._hits.get(side, self._sampled)
        share, n_rows = 1.0, max(self._asked.span.head_seq, 1)
        for path, size in self._sizes.items():
            share *= 1.0 if path == side else max(size, 1) / n_rows
        return share

    def _enough(self) -> int:
        """Return how many rows that are in all ranges have as many as are wanted among them, most probably."""
        limit = self._asked.limit
        tested = {MetaKey(path) if path else ID for path in self._ranges(SAMPLE)}
        if {part.key for part in predicates(self._asked.query.where)} - tested:
            limit = int(limit * MARGIN / UNKNOWN_SHARE)
        return limit + MORE if self._asked.after else limit

    def _try(self, order: _Order, side: Path, window: int) -> Statement:
        """Read what one side has up to the place at which there are enough, found within some of its rows if asked."""
        number = self._number(side)
        column = self._column(number, order.path)
        tests = dict(self._ranges(number))
        # The range of what orders is where the walk begins and ends; values that are listed are tested.
        bounded = order.path in tests and not tests[order.path].same
        along = tests.pop(order.path) if bounded else Range(column)
        near, near_params, far, far_params = along.sides(descending=order.descending)
        also = "1"
        if order.ranked:
            near, far = (f"{column} < ''", "") if order.descending else ("", f"{column} < ''")
            also = f"json_type(meta, '{json_path(MetaKey(order.path))}') IN ('integer', 'real')"
        if self._asked.after:
            near, near_params = self._behind(order, column), ()
        own = tests.pop(side, Range(column)) if side != order.path else Range(column)
        start = " AND ".join(filter(None, (self._side(number), own.text, near)))
        start_params = (*own.params, *near_params)
        rest = " AND ".join(part.text for part in tests.values()) or "1"
        rest_params = tuple(value for part in tests.values() for value in part.params)
        walk = f"sorted WHERE {start} AND {far or '1'}"
        by = f"ORDER BY {column}{' DESC' if order.descending else ''} LIMIT"
        if window:
            columns = dict.fromkeys([column, "sorted.seq", *(part.expression for part in tests.values())])
            named = ", ".join(f"{name} AS {name.removeprefix('sorted.')}" for name in columns)
            # Rows of an inner SELECT with a LIMIT are handed out in its order, so the outer one may end early.
            walk, by = f"(SELECT {named} FROM {walk} {by} {window}) AS sorted WHERE 1", "LIMIT"
        first = f"SELECT {column}, sorted.seq FROM {walk} AND {rest} {by} {self._enough()}"
        # And all that have the value of the last, between which that may have cut. None if there are too few.
        source = (
            "(SELECT seq FROM first WHERE (SELECT v FROM place) IS NOT NULL UNION SELECT sorted.seq FROM sorted "
            f"WHERE {start} AND {column} = (SELECT v FROM place) AND {rest}) AS sorted"
        )
        return self._read(
            source,
            (*start_params, *far_params, *rest_params, *start_params, *rest_params),
            f"first(v, seq) AS MATERIALIZED ({first})",
            f"place(v) AS MATERIALIZED (SELECT v FROM first LIMIT 1 OFFSET {self._enough() - 1})",
            also=also,
        )

    def _behind(self, order: _Order, column: str) -> str:
        """Return the bound that the row behind which a page begins sets; none of another rank than numbers."""
        value = f"a{order.at}"
        if order.ranked:
            return f"{column} {'<=' if order.descending else '>='} (SELECT a{order.at + 1} FROM last WHERE {value} = 1)"
        cut = f"iif(typeof({value}) = 'text', substr({value}, 1, {TEXT_CHARS}), {value})"
        return f"{column} {'<=' if order.descending else '>='} (SELECT {cut} FROM last)"


def is_one_value(part: Range) -> bool:
    """Tell whether a range holds one value only."""
    return bool(part.same) and part.same.endswith(" = ?")


def _order(asked: Asked, keys: tuple[Path, ...], found: Mapping[Path, Range]) -> _Order | None:
    """Return what orders the selected rows, if it is a side of the table."""
    terms: list[Term] = order_terms(asked.query, {})
    for at, order in enumerate(asked.query.order):
        path = order.key.path if isinstance(order.key, MetaKey) else ID_PATH if order.key == ID else None
        if path is not None and path in found and is_one_value(found[path]):
            continue  # pinned to one value, which makes one term
        if path is None or path and path not in keys:
            return None
        return _Order(path, order.descending, at, terms[at].ranked)
    return _Order(ID_PATH, False, len(asked.query.order))
