"""What a query means, as frozen nodes that are valid from birth; `str()` of a node is query text that parses to it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from asapo.errors import WrongInput
from asapo.query.regexp import MAX_PATTERN_CHARS, MAX_REGEXPS

MAX_KEY_PARTS: Final = 32
"""Longest metadata path, in nested keys; SQLite joins at most 64 tables, and odd keys need one per part."""
MAX_KEYS: Final = 64
"""Most keys of a projection."""
MAX_OPERANDS: Final = 256
"""Most operands of one AND or OR."""
MAX_NUMBER_CHARS: Final = 128
"""Longest number literal in characters; keeps every integer literal inside the range of a double."""
MAX_LIMIT: Final = 2**63 - 1
"""Largest LIMIT: a signed 64-bit integer in every store."""
NS_PER_S: Final = 1_000_000_000

COMPARISONS: Final = frozenset({"=", "!=", "<", "<=", ">", ">="})
"""Spelling of the comparison operators in the tree; the text may also say `<>`."""
BUILTINS: Final = frozenset({"_id", "timestamp", "_stored", "_size", "_substream"})
"""Keys that are not metadata: message id, acquisition time, ingest time, payload bytes, substream."""
TIME_BUILTINS: Final = frozenset({"timestamp", "_stored"})
"""Built-in keys that hold a time."""
KEYWORDS: Final = frozenset(
    "AND OR NOT TRUE FALSE ORDER BY ASC DESC LIMIT IN LIKE BETWEEN REGEXP IS NULL".split()  # noqa: SIM905
)
"""Words that are not keys unless they stand in backticks or behind `meta.`; any letter case."""

_PLAIN_PART = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def _is_tuple(found: object, n_min: int, n_max: int) -> bool:
    return isinstance(found, tuple) and n_min <= len(found) <= n_max


def _check_text(what: str, text: object) -> None:
    if not isinstance(text, str):
        raise WrongInput(f"{what} {text!r}: expected text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise WrongInput(f"{what} {text[:40]!r}: expected text that can be written as UTF-8") from None
    if "\0" in text:
        raise WrongInput(f"{what} {text[:40]!r}: expected text without NUL; remove the character")


@dataclass(frozen=True, slots=True)
class MetaKey:
    """A place in the metadata: the nested keys from the outermost to the innermost."""

    path: tuple[str, ...]

    def __post_init__(self) -> None:
        if not _is_tuple(self.path, 1, MAX_KEY_PARTS):
            raise WrongInput(f"metadata key {self.path!r}: expected a tuple of 1 to {MAX_KEY_PARTS} nested keys")
        for part in self.path:
            _check_text("metadata key", part)

    def __str__(self) -> str:
        alone = len(self.path) == 1
        first = self.path[0]
        text = ".".join(part if _PLAIN_PART.match(part) else f"`{part.replace('`', '``')}`" for part in self.path)
        taken = first == "meta" or (alone and (first in BUILTINS or first[:1] == "_" or first.upper() in KEYWORDS))
        return f"meta.{text}" if taken else text


@dataclass(frozen=True, slots=True)
class Builtin:
    """A key that every message has: one of `BUILTINS`."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in BUILTINS:
            raise WrongInput(f"built-in key {self.name!r}: expected one of {', '.join(sorted(BUILTINS))}")

    def __str__(self) -> str:
        return self.name


Key: TypeAlias = MetaKey | Builtin


@dataclass(frozen=True, slots=True)
class Number:
    """A number literal; an `int` stays exact at any size."""

    value: int | float

    def __post_init__(self) -> None:
        # bool is an int to Python, but not to a query.
        if type(self.value) not in (int, float) or not math.isfinite(self.value):
            raise WrongInput(f"number {self.value!r}: expected a finite int or float")
        if isinstance(self.value, int) and abs(self.value) >= 10 ** (MAX_NUMBER_CHARS - 1):
            raise WrongInput(f"number: expected an integer of fewer than {MAX_NUMBER_CHARS} digits")

    def __str__(self) -> str:
        return repr(self.value)


@dataclass(frozen=True, slots=True)
class Text:
    """A text literal."""

    value: str

    def __post_init__(self) -> None:
        _check_text("text", self.value)

    def __str__(self) -> str:
        return "'" + self.value.replace("'", "''") + "'"


@dataclass(frozen=True, slots=True)
class Boolean:
    """`true` or `false`."""

    value: bool

    def __post_init__(self) -> None:
        if type(self.value) is not bool:
            raise WrongInput(f"boolean {self.value!r}: expected True or False")

    def __str__(self) -> str:
        return "true" if self.value else "false"


@dataclass(frozen=True, slots=True)
class Instant:
    """A point in time."""

    ns: int
    """Nanoseconds since 1970-01-01T00:00:00Z, a signed 64-bit integer."""

    def __post_init__(self) -> None:
        if type(self.ns) is not int or not -(2**63) <= self.ns < 2**63:
            raise WrongInput(f"time {self.ns!r} ns: expected a time between the years 1678 and 2262")

    def __str__(self) -> str:
        whole, part = divmod(abs(self.ns), NS_PER_S)
        fraction = f".{part:09d}".rstrip("0") if part else ""
        return f"{'-' if self.ns < 0 else ''}{whole}{fraction}"


Value: TypeAlias = Number | Text | Boolean | Instant
_VALUES: Final = (Number, Text, Boolean, Instant)


@dataclass(frozen=True, slots=True)
class Comparison:
    """`key op value`. False when the key is missing, null, or of another type than the value, also for `!=`."""

    key: Key
    op: str
    value: Value

    def __post_init__(self) -> None:
        if self.op not in COMPARISONS:
            raise WrongInput(f"operator {self.op!r}: expected one of {' '.join(sorted(COMPARISONS))}")
        check_value(self.key, self.value)

    def __str__(self) -> str:
        return f"{self.key} {self.op} {self.value}"


@dataclass(frozen=True, slots=True)
class In:
    """`key IN (values)`, or `NOT IN`; all values have one type. Like `!=`, `NOT IN` is false for another type."""

    key: Key
    values: tuple[Value, ...]
    negated: bool = False

    def __post_init__(self) -> None:
        if not _is_tuple(self.values, 1, MAX_OPERANDS):
            raise WrongInput(f"{self.key} IN: expected a tuple of 1 to {MAX_OPERANDS} values")
        for value in self.values:
            check_value(self.key, value)
        if len({type(value) for value in self.values}) > 1:
            raise WrongInput(f"{self.key} IN: found values of several types, expected one; join two INs with OR")

    def __str__(self) -> str:
        return f"{self.key} {'NOT ' if self.negated else ''}IN ({', '.join(map(str, self.values))})"


@dataclass(frozen=True, slots=True)
class Like:
    r"""`key LIKE 'pattern'`, or `NOT LIKE`; letter case counts. False when the key is missing or no text.

    In the pattern `%` stands for any text, `_` for one character (code point), a backslash makes the next one of
    `% _ \` ordinary.
    """

    key: MetaKey
    pattern: str
    negated: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.key, MetaKey):
            raise WrongInput(f"{self.key} LIKE: expected a metadata key, as no built-in key is text")
        _check_text("pattern", self.pattern)
        self.tokens()

    def tokens(self) -> list[tuple[str, bool]]:
        """Return the pattern as characters, each with True when it is a wildcard."""
        if re.sub(r"\\[%_\\]", "", self.pattern).count("\\"):
            raise WrongInput(f"pattern {self.pattern!r}: expected %, _ or a backslash after a backslash; double it")
        found = re.findall(r"\\([%_\\])|([^\\])", self.pattern, re.DOTALL)
        return [(escaped, False) if escaped else (plain, plain in "%_") for escaped, plain in found]

    def __str__(self) -> str:
        return f"{self.key} {'NOT ' if self.negated else ''}LIKE {Text(self.pattern)}"


@dataclass(frozen=True, slots=True)
class Regexp:
    """`key REGEXP 'pattern'`, or `NOT REGEXP`: RE2 finds the pattern anywhere in the text; letter case counts.

    False when the key is missing or no text. Whether RE2 takes the pattern is known once it is compiled.
    """

    key: MetaKey
    pattern: str
    negated: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.key, MetaKey):
            raise WrongInput(f"{self.key} REGEXP: expected a metadata key, as no built-in key is text")
        _check_text("pattern", self.pattern)
        if len(self.pattern) > MAX_PATTERN_CHARS:
            raise WrongInput(
                f"pattern of {len(self.pattern)} characters: expected at most {MAX_PATTERN_CHARS}; shorten it"
            )

    def __str__(self) -> str:
        return f"{self.key} {'NOT ' if self.negated else ''}REGEXP {Text(self.pattern)}"


@dataclass(frozen=True, slots=True)
class IsNull:
    """`key IS NULL`: the key is missing or null. `IS NOT NULL` is the `Not` of it."""

    key: MetaKey

    def __post_init__(self) -> None:
        if not isinstance(self.key, MetaKey):
            raise WrongInput(f"{self.key} IS NULL: expected a metadata key, as every message has {self.key}")

    def __str__(self) -> str:
        return f"{self.key} IS NULL"


def check_value(key: Key, value: Value) -> None:
    """Raise WrongInput when `value` can never be compared with `key`: a slip of the writer, not an empty result."""
    if not isinstance(value, _VALUES):
        raise WrongInput(f"value {value!r}: expected Number, Text, Boolean or Instant")
    wants_time = isinstance(key, Builtin) and key.name in TIME_BUILTINS
    if wants_time and not isinstance(value, Instant):
        raise WrongInput(f"{key}: found {value}, expected a time; give seconds since 1970 or quoted ISO-8601")
    if isinstance(value, Instant) and not wants_time:
        raise WrongInput(f"{key}: found a time, expected a number, text or boolean")
    if isinstance(key, Builtin) and not wants_time and not isinstance(value, Number):
        raise WrongInput(
            f"{key}: found {value}, expected a number; write it without quotes, or meta.{key} for metadata"
        )


@dataclass(frozen=True, slots=True)
class And:
    """True when every operand is."""

    operands: tuple[Expr, ...]

    def __post_init__(self) -> None:
        _check_operands(self.operands)

    def __str__(self) -> str:
        return " AND ".join(f"({part})" if isinstance(part, And | Or) else str(part) for part in self.operands)


@dataclass(frozen=True, slots=True)
class Or:
    """True when at least one operand is."""

    operands: tuple[Expr, ...]

    def __post_init__(self) -> None:
        _check_operands(self.operands)

    def __str__(self) -> str:
        return " OR ".join(f"({part})" if isinstance(part, Or) else str(part) for part in self.operands)


@dataclass(frozen=True, slots=True)
class Not:
    """True when the operand is false: also for a message in which the compared key is missing."""

    operand: Expr

    def __str__(self) -> str:
        return f"NOT ({self.operand})" if isinstance(self.operand, And | Or) else f"NOT {self.operand}"


Predicate: TypeAlias = Comparison | In | Like | Regexp | IsNull
"""What is asked of one key. A new one joins this union, `evaluate.compile_filter`, `sql` and the grammar."""
Expr: TypeAlias = Predicate | And | Or | Not
"""Anything that is true or false of a message."""


def _check_operands(operands: tuple[Expr, ...]) -> None:
    if not _is_tuple(operands, 2, MAX_OPERANDS):
        raise WrongInput(f"operands: expected a tuple of 2 to {MAX_OPERANDS}, found {operands!r}")


@dataclass(frozen=True, slots=True)
class Order:
    """One key of ORDER BY.

    Numbers come first, then text by code point, then false, true, then everything else and missing keys;
    `descending` turns the order inside a type, not the order of the types. Integers beyond 64 bits are placed by the
    double nearest to them, as the database rounds it; comparing them in a condition is exact.
    """

    key: Key
    descending: bool = False

    def __str__(self) -> str:
        return f"{self.key} DESC" if self.descending else str(self.key)


@dataclass(frozen=True, slots=True)
class Query:
    """A whole query: which messages, in which order, how many at most."""

    where: Expr | None = None
    """None selects every message."""
    order: tuple[Order, ...] = ()
    """Empty is ascending id. Ties are resolved by ascending id, then substream."""
    limit: int | None = None
    """Most messages to return; None is no limit."""

    def __post_init__(self) -> None:
        if self.limit is not None and (type(self.limit) is not int or not 0 <= self.limit <= MAX_LIMIT):
            raise WrongInput(f"LIMIT {self.limit!r}: expected an integer from 0 to {MAX_LIMIT}")
        n_patterns = sum(isinstance(part, Regexp) for part in predicates(self.where))
        if n_patterns > MAX_REGEXPS:
            raise WrongInput(
                f"query: {n_patterns} times REGEXP, expected at most {MAX_REGEXPS}; join patterns as 'one|other'"
            )

    @property
    def keys(self) -> frozenset[tuple[str, ...]]:
        """Metadata paths that the query looks at, in its condition or its order."""
        used = [*predicates(self.where), *self.order]
        return frozenset(part.key.path for part in used if isinstance(part.key, MetaKey))

    def __str__(self) -> str:
        parts = [] if self.where is None else [str(self.where)]
        if self.order:
            parts.append("ORDER BY " + ", ".join(map(str, self.order)))
        if self.limit is not None:
            parts.append(f"LIMIT {self.limit}")
        return " ".join(parts)


def predicates(expr: Expr | None) -> Iterator[Predicate]:
    """Yield everything that is asked of single keys in `expr`."""
    if isinstance(expr, And | Or):
        for part in expr.operands:
            yield from predicates(part)
    elif isinstance(expr, Not):
        yield from predicates(expr.operand)
    elif expr is not None:
        yield expr
