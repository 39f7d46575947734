"""The query language: lark grammar, and the actions that build the tree while the text is read.

Everything is LALR with actions run during the parse, so time is linear in the text and nesting costs no Python stack;
the limits on terms and depth are checked while the tree grows, before anything large exists.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NoReturn

from asapo.errors import ConfigError, WrongInput
from asapo.query.ast import (
    BUILTINS,
    KEYWORDS,
    MAX_LIMIT,
    MAX_NUMBER_CHARS,
    NS_PER_S,
    TIME_BUILTINS,
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
    MetaKey,
    Not,
    Number,
    Or,
    Order,
    Predicate,
    Query,
    Regexp,
    Text,
    Value,
)
from asapo.query.names import NAME, split_name
from asapo.query.regexp import searcher

if TYPE_CHECKING:
    from lark import Lark, Token

MAX_TERMS: Final = 256
"""Most comparisons in one query."""
MAX_DEPTH: Final = 64
"""Deepest nesting of parentheses and NOT."""
MAX_ORDER_KEYS: Final = 16
"""Most keys in ORDER BY."""

# Key paths are one token, so that `order.x` is a key although `order` is a keyword, and blanks around dots are errors.
GRAMMAR: Final = (
    r"""
start: where? order? limit?
where: or
?or: and | or _OR and -> or_
?and: not | and _AND not -> and_
?not: atom | NOT not -> not_
?atom: predicate | "(" or ")" -> group
?predicate: NAME OPERATOR value -> comparison
    | NAME NOT? _IN "(" value ("," value)* ")" -> in_
    | NAME NOT? _BETWEEN value _AND value -> between
    | NAME NOT? _LIKE STRING -> like
    | NAME NOT? _REGEXP STRING -> regexp
    | NAME _IS NOT? _NULL -> is_null
?value: NUMBER | STRING | TRUE | FALSE
order: _ORDER _BY order_key ("," order_key)*
order_key: NAME (ASC | DESC)?
limit: _LIMIT NUMBER

NUMBER: /[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?/
STRING: /'(?:[^']|'')*'|"(?:[^"]|"")*"/
OPERATOR: /<=|>=|<>|!=|=|<|>/
%declare _AND _OR NOT _ORDER _BY _LIMIT _IN _BETWEEN _LIKE _REGEXP _IS _NULL ASC DESC TRUE FALSE
%ignore /[ \t\r\n]+/
"""
    + f"NAME: /{NAME}/\n"
)

_KEPT_KEYWORDS: Final = frozenset({"NOT", "ASC", "DESC", "TRUE", "FALSE"})
_INTEGER = re.compile(r"[+-]?[0-9]+\Z")
_ISO = re.compile(
    r"([0-9]{4}-?[0-9]{2}-?[0-9]{2})"
    r"(?:[T ]([0-9]{2}(?::?[0-9]{2}(?::?[0-9]{2}(?:[.,]([0-9]{1,9}))?)?)?)(Z|[+-][0-9]{2}(?::?[0-9]{2})?)?)?\Z"
)


def wrong(position: int, found: str, expected: str, next_step: str) -> NoReturn:
    """Raise the one shape of syntax error: character number from 1, what stands there, what should, what to do."""
    raise WrongInput(
        f"query, character {position}: found {found}, expected {expected}; {next_step}",
        position=position,
        found=found,
        expected=expected,
    )


def at(token: Token) -> int:
    """Return the character number of a token, from 1."""
    return (token.start_pos or 0) + 1


def shown(token: Token) -> str:
    """Return a token as an error shows it."""
    return repr(str(token)) if len(token) <= 40 else f"{str(token)[:40]!r}…"


@dataclass(frozen=True, slots=True)
class _Part:
    """An expression while it is being built, with what the limits need to know."""

    expr: Expr
    terms: int = 1
    depth: int = 0
    grouped: bool = False
    """It stood in parentheses, so a chain around it does not swallow it."""


class Dialect:
    """How the words of a query are read; another language with the same grammar is a subclass."""

    def key(self, token: Token) -> Key:
        """Turn a NAME into a key."""
        return read_key(token)

    def value(self, key: Key, token: Token) -> Value:
        """Turn a literal into the value that `key` can be compared with."""
        return read_value(key, token)

    def predicate(self, node: Predicate) -> Expr:
        """Return what is meant by something that is asked of one key."""
        return node


OURS: Final = Dialect()


class _Actions:
    """Called by the parser with the parts of each rule; stateless, so one parser serves all threads."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    def _part(self, node: Predicate, terms: int = 1) -> _Part:
        expr = self._dialect.predicate(node)
        return _Part(expr, terms, depth=1 if isinstance(expr, Not) else 0)

    def _metadata_key(self, token: Token, predicate: str) -> MetaKey:
        key = self._dialect.key(token)
        if isinstance(key, Builtin):
            wrong(at(token), shown(token), f"a metadata key before {predicate}", f"write meta.{key} for metadata")
        return key

    @staticmethod
    def keyword(token: Token) -> Token:
        """Turn a NAME that is a keyword into that keyword."""
        word = token.upper()
        if word not in KEYWORDS:
            return token
        if word in _KEPT_KEYWORDS:
            return token.update(type=word)
        return token.update(type=f"_{word}")

    def start(self, parts: list[Any]) -> Query:
        where, order, limit = None, (), None
        for kind, content in parts:
            if kind == "where":
                where = content
            elif kind == "order":
                order = content
            else:
                limit = content
        return Query(where, order, limit)

    def where(self, parts: list[_Part]) -> tuple[str, Expr]:
        return "where", parts[0].expr

    def or_(self, parts: list[_Part]) -> _Part:
        return _chain(Or, parts)

    def and_(self, parts: list[_Part]) -> _Part:
        return _chain(And, parts)

    def not_(self, parts: list[Any]) -> _Part:
        part: _Part = parts[1]  # after the NOT
        return _Part(Not(part.expr), part.terms, _deeper(part.depth))

    def group(self, parts: list[_Part]) -> _Part:
        part = parts[0]
        return _Part(part.expr, part.terms, _deeper(part.depth), grouped=True)

    def comparison(self, parts: list[Any]) -> _Part:
        name, op, value = parts
        key = self._dialect.key(name)
        return self._part(Comparison(key, "!=" if op == "<>" else str(op), self._dialect.value(key, value)))

    def in_(self, parts: list[Any]) -> _Part:
        name, negated, values = _split_not(parts)
        if len(values) > MAX_TERMS:
            raise WrongInput(f"query: IN has {len(values)} values, expected at most {MAX_TERMS}; split the query")
        key = self._dialect.key(name)
        return self._part(In(key, tuple(self._dialect.value(key, value) for value in values), negated), len(values))

    def between(self, parts: list[Any]) -> _Part:
        name, negated, (low, high) = _split_not(parts)
        key = self._dialect.key(name)
        lower = Comparison(key, "<" if negated else ">=", self._dialect.value(key, low))
        upper = Comparison(key, ">" if negated else "<=", self._dialect.value(key, high))
        # It is one predicate, so it counts as grouped: a chain around it does not swallow it.
        return _Part(Or((lower, upper)) if negated else And((lower, upper)), 2, grouped=True)

    def like(self, parts: list[Any]) -> _Part:
        name, negated, (pattern,) = _split_not(parts)
        return self._part(Like(self._metadata_key(name, "LIKE"), unquote(pattern), negated))

    def regexp(self, parts: list[Any]) -> _Part:
        name, negated, (token,) = _split_not(parts)
        try:
            node = Regexp(self._metadata_key(name, "REGEXP"), unquote(token), negated)
            searcher(node.pattern)
        except WrongInput as error:
            if "position" in error.fields:
                raise
            reason = error.fields.get("reason", error.message)
            wrong(at(token), f"{shown(token)} ({reason})", "a regular expression of RE2",
                  "correct the pattern; RE2 knows no back-references and no look-around")  # fmt: skip
        return self._part(node)

    def is_null(self, parts: list[Any]) -> _Part:
        name, negated, _ = _split_not(parts)
        node = IsNull(self._metadata_key(name, "IS NULL"))
        return _Part(Not(node), depth=1) if negated else self._part(node)

    def order(self, parts: list[Any]) -> tuple[str, tuple[Order, ...]]:
        if len(parts) > MAX_ORDER_KEYS:
            raise WrongInput(
                f"query: ORDER BY has {len(parts)} keys, expected at most {MAX_ORDER_KEYS}; leave some out"
            )
        return "order", tuple(parts)

    def order_key(self, parts: list[Any]) -> Order:
        return Order(self._dialect.key(parts[0]), descending=len(parts) > 1 and parts[1].type == "DESC")

    def limit(self, parts: list[Any]) -> tuple[str, int]:
        token = parts[0]
        if not _INTEGER.match(token) or len(token) > 19 or not 0 <= int(token) <= MAX_LIMIT:
            wrong(at(token), shown(token), f"an integer from 0 to {MAX_LIMIT}", "write for example LIMIT 100")
        return "limit", int(token)


def _split_not(parts: list[Token]) -> tuple[Token, bool, list[Token]]:
    negated = len(parts) > 1 and parts[1].type == "NOT"
    return parts[0], negated, parts[2 if negated else 1 :]


def _deeper(depth: int) -> int:
    if depth >= MAX_DEPTH:
        raise WrongInput(
            f"query: parentheses and NOT are nested deeper than {MAX_DEPTH}, expected at most {MAX_DEPTH}; "
            "drop parentheses that are not needed, or split the query"
        )
    return depth + 1


def _chain(kind: type[And | Or], parts: list[_Part]) -> _Part:
    left, right = parts
    terms = left.terms + right.terms
    if terms > MAX_TERMS:
        raise WrongInput(f"query: more than {MAX_TERMS} comparisons, expected at most {MAX_TERMS}; split the query")
    goes_on = isinstance(left.expr, kind) and not left.grouped
    operands = left.expr.operands if goes_on and isinstance(left.expr, And | Or) else (left.expr,)
    return _Part(kind((*operands, right.expr)), terms, max(left.depth, right.depth))


def read_key(token: Token) -> Key:
    """Turn a NAME into a built-in key or a metadata path."""
    parts = split_name(token)
    if len(parts) > 1:
        path = tuple(parts[1:] if parts[0] == "meta" else parts)
        try:
            return MetaKey(path)
        except WrongInput as error:
            wrong(at(token), shown(token), error.message, "shorten the key")
    name = parts[0]
    if name in BUILTINS:
        return Builtin(name)
    if name.startswith("_"):
        wrong(at(token), shown(token), f"a built-in key ({', '.join(sorted(BUILTINS))}) or a metadata key",
              f"write meta.{token} for a metadata key of this name")  # fmt: skip
    if name == "meta":
        wrong(at(token), "'meta' alone", "a key in the metadata", "write meta.KEY, or meta.meta for a key called meta")
    return MetaKey((name,))


def read_value(key: Key, token: Token) -> Value:
    """Turn a literal into the value that `key` can be compared with."""
    value: Value
    if isinstance(key, Builtin) and key.name in TIME_BUILTINS:
        value = _time(token)
    elif token.type == "STRING":
        value = Text(unquote(token))
    elif token.type == "NUMBER":
        value = _number(token)
    else:
        value = Boolean(token.type == "TRUE")
    if isinstance(key, Builtin) and not isinstance(value, Number | Instant):
        wrong(
            at(token),
            shown(token),
            f"a number, as {key} is one",
            f"write it without quotes, or meta.{key} for metadata",
        )
    return value


def unquote(token: Token) -> str:
    """Return the text inside a STRING."""
    return token[1:-1].replace(token[0] * 2, token[0])


def _number(token: Token) -> Number:
    if len(token) > MAX_NUMBER_CHARS:
        wrong(at(token), shown(token), f"a number of at most {MAX_NUMBER_CHARS} characters", "shorten it")
    if _INTEGER.match(token):
        return Number(int(token))
    value = float(token)
    if value in (float("inf"), float("-inf")):
        wrong(at(token), shown(token), "a number that a double can hold", "use a smaller exponent")
    return Number(value)


def _time(token: Token) -> Instant:
    """Read seconds since 1970, exact to the nanosecond, or ISO-8601; a time without zone is UTC."""
    expected, step = "a time", "write seconds since 1970 or quoted ISO-8601 such as '2025-03-01T12:00:00Z'"
    ns: int | None = None
    if token.type == "NUMBER" and len(token) <= MAX_NUMBER_CHARS:
        seconds = Decimal(str(token))
        if seconds.adjusted() < 11:  # before scaling: an exponent of 10**9 would take all memory
            ns = round(seconds * NS_PER_S)
    elif token.type == "STRING":
        ns = iso_ns(unquote(token))
    if ns is None or not -(2**63) <= ns < 2**63:
        wrong(at(token), shown(token), f"{expected} between the years 1678 and 2262", step)
    return Instant(ns)


def iso_ns(text: str) -> int | None:
    """Return the nanoseconds since 1970 of an ISO-8601 time, or None when it is none; without zone it is UTC."""
    found = _ISO.match(text.strip())
    if found is None:
        return None
    date, clock, fraction, zone = found.groups()
    whole = re.split("[.,]", clock)[0] if clock else "00"
    try:
        moment = datetime.fromisoformat(f"{date}T{whole}{zone or ''}")
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    # Whole seconds by integers: datetime holds microseconds only, and float seconds lose nanoseconds.
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * NS_PER_S + int((fraction or "").ljust(9, "0") or 0)


@functools.cache
def parser(dialect: Dialect = OURS) -> Lark:
    """Return the one parser of a dialect; building it takes some 10 ms, so it is done at the first query."""
    try:
        import lark
    except ImportError as exc:
        raise ConfigError("query text needs the package lark; install it with: pip install 'asapo[server]'") from exc
    callbacks: dict[str, Callable[[Token], Token]] = {"NAME": _Actions.keyword}
    return lark.Lark(
        GRAMMAR,
        parser="lalr",
        lexer="basic",
        transformer=_Actions(dialect),
        lexer_callbacks=callbacks,
        maybe_placeholders=False,
    )
