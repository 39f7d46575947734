"""What the statements of a query are made of: the rows of its stream, the ranges it asks for, and its condition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from asapo.index.schema import RUN_BITS, SEQ_BITS
from asapo.query import And, Builtin, Comparison, Expr, In, MetaKey, Query, SqlQuery, behind, last_columns, to_sql
from asapo.query.ast import Text, Value
from asapo.query.sql import bounds
from asapo.query.sql_order import flat
from asapo.query.sql_paths import Path

ID: Final = Builtin("_id")
ID_PATH: Final[Path] = ()
"""Stands for the id where paths of metadata keys are asked for: no key has an empty one."""
FEW: Final = 1000
"""Up to this limit there are tries, and each run is asked for its first rows instead of for all that match."""
MARGIN: Final = 1.3
"""A try looks at so many times more rows than should be enough."""
UNKNOWN_SHARE: Final = 0.1
"""Which part of the rows is taken to fulfil what no index tells anything about."""

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


def ranges(where: Expr | None, known: Mapping[Path, str], *, longest_text: int | None = None) -> dict[Path, Range]:
    """Return the ranges outside of which nothing fulfils the condition.

    Parameters
    ----------
    known : mapping of metadata path to SQL expression
        Where the value of a key is found; that of the id at `ID_PATH`.
    longest_text : int, optional, unit characters
        Texts are cut to this length where they are found.
    """
    found: dict[Path, Range] = {}
    for part, negated in flat(And, where, negate=False) if where is not None else ():
        if negated or not isinstance(part, Comparison | In) or not (isinstance(part.key, MetaKey) or part.key == ID):
            continue
        path = part.key.path if isinstance(part.key, MetaKey) else ID_PATH
        if path not in known or path in found and found[path].same:
            continue
        side, text, params = bounds(part if longest_text is None else _shortened(part, longest_text), known[path])
        before = found.get(path, Range(known[path]))
        if side == "lower":
            # One of several bounds on a side is enough: the rows are checked again.
            found[path] = Range(before.expression, text, params, before.upper, before.upper_params)
        elif side == "upper":
            found[path] = Range(before.expression, before.lower, before.lower_params, text, params)
        elif side == "same":
            found[path] = Range(before.expression, same=text, same_params=params)
    return found


def _shortened(part: Comparison | In, longest: int) -> Comparison | In:
    """Return what a predicate says of texts that were cut: everything that fulfils it fulfils this, once it is cut."""

    def cut(value: Value) -> Value:
        return Text(value.value[:longest]) if isinstance(value, Text) else value

    if isinstance(part, In):
        return In(part.key, tuple(map(cut, part.values)), part.negated)
    if isinstance(part.value, Text) and len(part.value.value) >= longest:
        return Comparison(part.key, {"<": "<=", ">": ">="}.get(part.op, part.op), cut(part.value))
    return part


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a stream."""

    span: Span
    query: Query
    limit: int
    after: int = 0
    """Arrival number of the row behind which the answer begins; 0 for its beginning."""

    def where(self, sql: SqlQuery, *tables: str) -> tuple[str, str, Params, Params]:
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

    def checked(self, served_by: Path = ()) -> SqlQuery:
        """Return what is asked of each row that the index of one key gives: other keys first, as they may say no.

        Not told of the declared keys, it leaves the choice of the index to the ranges.
        """
        where = self.query.where
        if isinstance(where, And):
            where = And(tuple(sorted(where.operands, key=lambda part: keys_of(part) == {served_by})))
        return to_sql(Query(where, self.query.order))


def keys_of(expr: Expr) -> frozenset[Path]:
    """Return the metadata paths that a condition looks at."""
    return Query(expr).keys
