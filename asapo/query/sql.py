r"""Tree to SQL for the SQLite index: same answers as `evaluate`, values and JSON paths always as parameters.

What SQLite (3.38 or newer) does with JSON, and what is made of it here:

* `json_extract` gives integers beyond 64 bits as doubles. Compared with a value inside 64 bits that is still exact; a
  larger value is compared with their digits (`_huge`). An integer with a double is compared exactly by SQLite itself.
* It gives `true` as 1 and objects as text, so each comparison also asks `json_type`.
* Absent keys are NULL. In a condition NULL is as good as false, so only negation needs two-valued logic: NOT is pushed
  down to the comparisons, and there written as `IS NOT TRUE`. Comparisons outside NOT stay bare, so indexes serve them.
* Text is cut at a NUL (before 3.45), so records where that would matter are sorted out: text with NUL never matches.
* Path lookup compares the raw spelling of keys (`\u00e9` is not `é`), and no path can name a key with a double quote.
  Such keys are looked up through `json_each`, which decodes them.
* The SQL parser has a stack of 100: `x AND (y OR (...))` costs three places per level, `((...) OR y) AND x` one. So the
  most deeply nested operand is written first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeGuard

from asapo.errors import WrongInput
from asapo.query.ast import (
    And,
    Boolean,
    Builtin,
    Comparison,
    Expr,
    In,
    Instant,
    IsNull,
    Like,
    MetaKey,
    Not,
    Number,
    Or,
    Predicate,
    Query,
    Regexp,
    Text,
    Value,
)
from asapo.query.regexp import searcher
from asapo.query.sql_order import Term, flat, order_by, order_terms
from asapo.query.sql_paths import (
    COLUMNS,
    NO_NUL,
    NO_NUL_AT_PATH,
    Param,
    Path,
    extract,
    has_json_path,
    json_path,
    odd_key,
)

_FLIPPED: Final = {"=": "=", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_TYPES: Final[dict[type, str]] = {
    Number: "('integer', 'real')",
    Text: "('text')",
    Boolean: "('true', 'false')",
}
_REGEXP_OF: Final = "CAST({} AS BLOB)"
"""What the function of REGEXP is given: bytes, because text with half a surrogate pair cannot become a Python `str`."""


@dataclass(frozen=True, slots=True)
class SqlQuery:
    """Pieces of a SELECT over columns `id, substream, size, t_acq_ns, t_ingest_ns, meta`; values never in the text."""

    where: str
    """Condition with `?` places; `1` when the query selects everything. Put it in parentheses."""
    params: tuple[Param, ...]
    """Values for the places in `where`."""
    order_by: str
    """Terms behind ORDER BY; they always end with id and substream, so the order is total."""
    order_params: tuple[Param, ...]
    """Values for the places in `order_by`."""
    limit: int | None
    """Most rows; None is no limit."""
    terms: tuple[Term, ...]
    """The terms of `order_by` one by one; `behind` makes the condition of them that goes on where an answer ended."""


def regexp_function(pattern: str, text: bytes | None) -> bool | None:
    """Search, as the database calls it for REGEXP: to be registered as `regexp` with two arguments, deterministic."""
    return None if text is None else searcher(pattern)(text)


@dataclass(frozen=True, slots=True)
class _Sql:
    """A condition, its values, and what its place among others depends on."""

    text: str
    params: tuple[Param, ...] = ()
    depth: int = 0
    """Levels of parentheses, for the parser's stack."""


def to_sql(query: Query, dialect: str = "sqlite", *, declared: Mapping[Path, str] | None = None) -> SqlQuery:
    """Translate `query` into parameterised SQL that selects and orders exactly as `evaluate.select` does.

    Parameters
    ----------
    query : Query
        The tree, as `parse` returns it.
    dialect : str
        `sqlite` is the only one so far.
    declared : mapping of metadata path to SQL expression, optional
        Indexed keys and the expression their index is made of, see `declared_expression`; it is trusted as SQL.

    Raises
    ------
    WrongInput
        If the dialect is unknown, or a number beyond 64 bits is compared with a key that has characters other than
        printable ASCII, a quote or a backslash in it: SQLite cannot compare those exactly; or RE2 refuses a pattern.
    ConfigError
        If there is a REGEXP and google-re2 is missing.
    """
    if dialect != "sqlite":
        raise WrongInput(f"SQL dialect {dialect!r}: expected 'sqlite'")
    writer = _Writer(declared or {})
    where = _Sql("1") if query.where is None else writer.condition(query.where, negate=False)
    terms = tuple(order_terms(query, declared or {}))
    return SqlQuery(where.text, where.params, *order_by(terms), query.limit, terms)


def declared_expression(path: Path) -> str:
    """Return the SQL expression to index for a declared metadata key, with the path as a literal.

    >>> print(declared_expression(("sample", "name")))
    json_extract(meta,'$."sample"."name"')

    Raises
    ------
    WrongInput
        If a part of the path is empty, holds a quote or a backslash, or is not printable ASCII.
    """
    key = MetaKey(tuple(path))
    if not has_json_path(key) or any("'" in part for part in key.path):
        raise WrongInput(
            f"declared key {key}: expected printable ASCII without quotes and backslashes; "
            "rename the key, or query it without declaring it"
        )
    return f"json_extract(meta,'{json_path(key)}')"


def bounds(part: Comparison | In, expression: str) -> tuple[str, str, tuple[Param, ...]]:
    """Return what a predicate on an indexed key says of its value: side (lower, upper, same), condition, and values.

    Every message that fulfils the predicate fulfils the condition, others may, too. The side is empty when it says
    nothing that an index could seek by.
    """
    if isinstance(part, In):
        if part.negated or any(map(_is_huge, part.values)):
            return "", "", ()
        return "same", f"{expression} IN ({', '.join('?' * len(part.values))})", tuple(map(_bound, part.values))
    side = {"<": "upper", "<=": "upper", ">": "lower", ">=": "lower", "=": "same"}.get(part.op, "")
    if not side or _is_huge(part.value):
        return "", "", ()
    return side, f"{expression} {part.op} ?", (_bound(part.value),)


def _nary(word: str, parts: list[_Sql]) -> _Sql:
    parts = sorted(parts, key=lambda part: -part.depth)
    params = tuple(value for part in parts for value in part.params)
    # AND binds tighter than OR, so operands of OR need no parentheses: half the levels. Those of AND get them even
    # around a single comparison: 256 of them, each with ANDs of its own, would otherwise be one too long a chain.
    inside = 1 if word == "AND" else 0
    depth = max(part.depth + inside + (2 if n else 0) for n, part in enumerate(parts))
    return _Sql(f" {word} ".join(f"({part.text})" if inside else part.text for part in parts), params, depth)


class _Writer:
    def __init__(self, declared: Mapping[Path, str]) -> None:
        self._declared = declared

    def condition(self, expr: Expr, *, negate: bool) -> _Sql:
        if isinstance(expr, Not):
            return self.condition(expr.operand, negate=not negate)
        if isinstance(expr, And | Or):
            kind = And if isinstance(expr, And) is not negate else Or
            parts = [self.condition(part, negate=flag) for part, flag in flat(kind, expr, negate=negate)]
            return _nary("AND" if kind is And else "OR", parts)
        wide = _without_huge(expr)
        if wide is not expr:
            return self.condition(wide, negate=negate)
        found = self._predicate(expr)
        return _Sql(f"({found.text}) IS NOT TRUE", found.params) if negate else found

    def _predicate(self, node: Predicate) -> _Sql:
        key = node.key
        if isinstance(key, MetaKey) and isinstance(node, Comparison) and _is_huge(node.value):
            return _huge(key, node.op, node.value)
        if isinstance(node, IsNull):
            return _is_null(node.key)
        kind: type
        values: tuple[Param, ...]
        if isinstance(node, Like):
            kind, test, values = Text, "{} NOT GLOB ?" if node.negated else "{} GLOB ?", (_glob(node),)
        elif isinstance(node, Regexp):
            searcher(node.pattern)  # raises what is wrong with it, which inside of the database nobody could tell
            kind, values = Text, (node.pattern,)
            test = f"{_REGEXP_OF} {'NOT ' if node.negated else ''}REGEXP ?"
        elif isinstance(node, In):
            kind, values = type(node.values[0]), tuple(map(_bound, node.values))
            test = f"{{}} {'NOT IN' if node.negated else 'IN'} ({', '.join('?' * len(values))})"
        else:
            kind, test, values = type(node.value), f"{{}} {node.op} ?", (_bound(node.value),)
        if isinstance(key, Builtin):
            return _Sql(test.format(COLUMNS[key.name]), tuple(map(_int64, values)))
        return self._typed(key, test, values, kind)

    def _typed(self, key: MetaKey, test: str, values: tuple[Param, ...], kind: type) -> _Sql:
        """Write `test` of the value at `key`, true only when the stored value is of `kind`."""
        if not has_json_path(key):
            walk, last, params = odd_key(key)
            text = f"EXISTS (SELECT 1 {walk} AND {last}.type IN {_TYPES[kind]} AND {test.format(last + '.atom')})"
            return _Sql(f"{text} AND {NO_NUL}" if kind is Text else text, (*params, *values))
        path = json_path(key)
        column, params = extract(key, self._declared)
        text = f"{test.format(column)} AND json_type(meta, ?) IN {_TYPES[kind]}"
        if kind is Text:
            return _Sql(f"{text} AND {NO_NUL_AT_PATH}", (*params, *values, path, path))
        return _Sql(text, (*params, *values, path))


def _bound(value: Value) -> Param:
    if isinstance(value, Instant):
        return value.ns
    return int(value.value) if isinstance(value, Boolean) else value.value


def _int64(bound: Param) -> Param:
    """Return the value for an integer column; integers that SQLite cannot bind lie beyond every row."""
    if isinstance(bound, int) and not -(2**63) <= bound < 2**63:
        return math.inf if bound > 0 else -math.inf
    return bound


def _is_null(key: MetaKey) -> _Sql:
    if not has_json_path(key):
        walk, last, params = odd_key(key)
        return _Sql(f"NOT EXISTS (SELECT 1 {walk} AND {last}.type <> 'null')", params)
    return _Sql("COALESCE(json_type(meta, ?), 'null') = 'null'", (json_path(key),))


def _glob(node: Like) -> str:
    """Return the pattern for GLOB: SQLite's LIKE ignores the case of ASCII letters, and its mode is per connection."""
    wild, plain = {"%": "*", "_": "?"}, {"*": "[*]", "?": "[?]", "[": "[[]"}
    return "".join(wild[text] if is_wild else plain.get(text, text) for text, is_wild in node.tokens())


def _is_huge(value: Value) -> TypeGuard[Number]:
    return isinstance(value, Number) and (value.value >= 2**63 or value.value <= -(2**63))


def _without_huge(node: Predicate) -> Expr:
    """Return IN over numbers beyond 64 bits as single comparisons, which are exact; anything else as it is."""
    if not isinstance(node, In) or not isinstance(node.key, MetaKey) or not any(map(_is_huge, node.values)):
        return node
    parts = tuple(Comparison(node.key, "!=" if node.negated else "=", value) for value in node.values)
    if len(parts) == 1:
        return parts[0]
    return And(parts) if node.negated else Or(parts)


def _huge(key: MetaKey, op: str, number: Number) -> _Sql:
    """Compare exactly with a number beyond 64 bits: doubles as doubles, 64-bit integers by sign, others by digits."""
    if not has_json_path(key):
        raise WrongInput(
            f"{key} {op} {number}: a number beyond 64 bits can only be compared with keys of printable ASCII without "
            "quotes and backslashes; use a smaller number or rename the key"
        )
    path, value = json_path(key), number.value
    whole = int(value)  # a double of this size has no fraction
    double_op, double = _nearest_double(op, value)
    digits, sign = str(abs(whole)), -1 if whole < 0 else 1
    small = whole if whole == -(2**63) else math.inf * sign
    raw = "(meta -> ?)"
    magnitude = f"CASE WHEN length({raw}) <> ? THEN length({raw}) - ? WHEN {raw} < ? THEN -1 ELSE {raw} > ? END"
    text_value = digits if sign > 0 else f"-{digits}"
    sizes: tuple[Param, ...] = (path, len(text_value), path, len(text_value), path, text_value, path, text_value)
    other_sign = f"substr({raw}, 1, 1) {'=' if sign > 0 else '<>'} '-'"
    size_op = op if sign > 0 else _FLIPPED[op]
    text = (
        f"CASE json_type(meta, ?) WHEN 'real' THEN json_extract(meta, ?) {double_op} ? WHEN 'integer' THEN "
        f"CASE WHEN typeof(json_extract(meta, ?)) = 'integer' THEN json_extract(meta, ?) {op} ? "
        f"WHEN {other_sign} THEN {-sign} {op} 0 ELSE ({magnitude}) {size_op} 0 END END"
    )
    return _Sql(text, (path, path, double, path, path, small, path, *sizes))


def _nearest_double(op: str, value: int | float) -> tuple[str, float]:
    """Return operator and double that order all doubles as `op value` does, also when no double equals `value`."""
    near = float(value)
    if near == value:
        return op, near
    if op in {"=", "!="}:
        return ("<", -math.inf) if op == "=" else (">=", -math.inf)  # never, always
    below = near if near < value else math.nextafter(near, -math.inf)
    return ("<=", below) if op in {"<", "<="} else (">=", math.nextafter(below, math.inf))
