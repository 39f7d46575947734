"""Answer a query in plain Python: for live filters, for offline folders, and as the meaning SQL must agree with."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from asapo.query.ast import (
    And,
    Boolean,
    Builtin,
    Comparison,
    Expr,
    In,
    Instant,
    IsNull,
    Key,
    Like,
    Not,
    Number,
    Or,
    Query,
    Regexp,
    Text,
)
from asapo.query.regexp import searcher, utf8

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1

_OPERATORS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
# JSON types by exact Python type: bool is a subclass of int and must not compare with numbers.
_KINDS: Final[dict[type, frozenset[type]]] = {
    Number: frozenset({int, float}),
    Instant: frozenset({int}),
    Text: frozenset({str}),
    Boolean: frozenset({bool}),
}
_RANK_NUMBER, _RANK_TEXT, _RANK_BOOLEAN, _RANK_REST = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class Record:
    """What a query can see of one message."""

    id: int
    """Message id, from 1."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Metadata as decoded from JSON."""
    acquired_ns: int = 0
    """Acquisition time, nanoseconds since 1970 UTC."""
    stored_ns: int = 0
    """Ingest time, nanoseconds since 1970 UTC."""
    size_bytes: int = 0
    """Payload bytes."""
    substream: int = 0
    """Which part of a dataset; 0 for a single message."""


Test = Callable[[Record], bool]
_BUILTIN_FIELDS: Final = {
    "_id": "id",
    "timestamp": "acquired_ns",
    "_stored": "stored_ns",
    "_size": "size_bytes",
    "_substream": "substream",
}


def matches(expr: Expr | None, record: Record) -> bool:
    """Tell whether `record` fulfils `expr`; None is fulfilled by all. For many records use `compile_filter`."""
    return expr is None or compile_filter(expr)(record)


def compile_filter(expr: Expr) -> Test:
    """Turn `expr` into a function of a record, several times faster than walking the tree for each record.

    Raises
    ------
    WrongInput, ConfigError
        If RE2 refuses a pattern, or is missing.
    """
    if isinstance(expr, Not):
        inner = compile_filter(expr.operand)
        return lambda record: not inner(record)
    if isinstance(expr, And | Or):
        return _join([compile_filter(part) for part in expr.operands], stop=isinstance(expr, Or))
    if isinstance(expr, IsNull):
        get = _getter(expr.key)
        return lambda record: get(record) is None
    if isinstance(expr, Like):
        return _like(expr)
    if isinstance(expr, Regexp):
        return _regexp(expr)
    return _in(expr) if isinstance(expr, In) else _comparison(expr)


def _join(tests: list[Test], *, stop: bool) -> Test:
    if len(tests) == 2:
        first, second = tests
        if stop:
            return lambda record: first(record) or second(record)
        return lambda record: first(record) and second(record)

    def test(record: Record) -> bool:
        for part in tests:
            if part(record) is stop:
                return stop
        return not stop

    return test


def _comparison(node: Comparison) -> Test:
    get, kinds, compare = _getter(node.key), _KINDS[type(node.value)], _OPERATORS[node.op]
    wanted = node.value.ns if isinstance(node.value, Instant) else node.value.value
    if isinstance(node.value, Text):

        def test_text(record: Record) -> bool:
            found = get(record)
            # Text with NUL never matches: databases cut it (SQLite) or refuse it (PostgreSQL).
            return type(found) is str and compare(found, wanted) and "\0" not in found

        return test_text

    def test(record: Record) -> bool:
        found = get(record)
        return type(found) in kinds and compare(found, wanted)

    return test


def _in(node: In) -> Test:
    get, kinds, negated = _getter(node.key), _KINDS[type(node.values[0])], node.negated
    # Equal numbers have equal hashes in Python, whatever their type; other types are sorted out before.
    wanted = frozenset(value.ns if isinstance(value, Instant) else value.value for value in node.values)

    def test(record: Record) -> bool:
        found = get(record)
        return type(found) in kinds and (found in wanted) is not negated and not (type(found) is str and "\0" in found)

    return test


def _like(node: Like) -> Test:
    get, negated = _getter(node.key), node.negated
    pieces: list[str] = [""]
    for character, wild in node.tokens():
        if wild and character == "%":
            pieces.append("")
        else:
            pieces[-1] += "." if wild else re.escape(character)
    # Pieces without repetition, each searched from where the last one ended: no pattern makes this slow.
    first, *middle = [re.compile(piece, re.DOTALL) for piece in pieces]
    last_length = sum(1 for _ in _after_last_percent(node))

    def like(found: str) -> bool:
        start = first.match(found)
        if start is None or not middle:
            return start is not None and start.end() == len(found)
        at = start.end()
        for piece in middle[:-1]:
            hit = piece.search(found, at)
            if hit is None:
                return False
            at = hit.end()
        return len(found) - last_length >= at and middle[-1].match(found, len(found) - last_length) is not None

    def test(record: Record) -> bool:
        found = get(record)
        return type(found) is str and "\0" not in found and like(found) is not negated

    return test


def _regexp(node: Regexp) -> Test:
    get, negated, search = _getter(node.key), node.negated, searcher(node.pattern)

    def test(record: Record) -> bool:
        found = get(record)
        return type(found) is str and "\0" not in found and search(utf8(found)) is not negated

    return test


def _after_last_percent(node: Like) -> Iterator[str]:
    for character, wild in reversed(node.tokens()):
        if wild and character == "%":
            return
        yield character


def _getter(key: Key) -> Callable[[Record], Any]:
    """Return a function that reads `key`; missing and null are both None, which nothing matches."""
    if isinstance(key, Builtin):
        return operator.attrgetter(_BUILTIN_FIELDS[key.name])
    first, *rest = key.path
    if not rest:
        return lambda record: record.meta.get(first)

    def get(record: Record) -> Any:
        found: Any = record.meta.get(first)
        for part in rest:
            if not isinstance(found, Mapping):
                return None
            found = found.get(part)
        return found

    return get


class _Descending:
    """Turns the order of one value around, so that one tuple can hold rising and falling keys."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: _Descending) -> bool:
        return bool(other.value < self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Descending) and bool(other.value == self.value)

    __hash__ = None  # type: ignore[assignment]


def _rank(found: Any) -> tuple[int, Any]:
    kind = type(found)
    if kind is int or kind is float:
        return _RANK_NUMBER, found if INT64_MIN <= found <= INT64_MAX else _as_double(found)
    if kind is str and "\0" not in found:
        return _RANK_TEXT, found
    return (_RANK_BOOLEAN, found) if kind is bool else (_RANK_REST, 0)


def _as_double(found: int | float) -> float:
    """Integers beyond 64 bits are ordered (not compared) as doubles, because databases sort them so."""
    try:
        return float(found)
    except OverflowError:
        return float("inf") if found > 0 else float("-inf")


def sort_key(query: Query) -> Callable[[Record], Any]:
    """Return the `key=` function for `sorted` that puts records into the order of `query`."""
    parts = [(_getter(order.key), order.descending) for order in query.order]

    def key(record: Record) -> tuple[Any, ...]:
        values: list[Any] = []
        for get, descending in parts:
            rank, value = _rank(get(record))
            values += (rank, _Descending(value) if descending else value)
        return (*values, record.id, record.substream)

    return key


def select(query: Query, records: Iterable[Record], *, after: Record | None = None) -> list[Record]:
    """Return the records that fulfil `query`, in its order, at most its limit; only those behind `after` if given."""
    test = None if query.where is None else compile_filter(query.where)
    found = [record for record in records if test is None or test(record)]
    place = sort_key(query)
    if after is not None:
        passed = place(after)
        found = [record for record in found if passed < place(record)]
    found.sort(key=place)
    return found if query.limit is None else found[: query.limit]
