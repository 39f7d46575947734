"""Queries as ASAP::O writes them, turned into ours: the same grammar, other keys, and what is negative means more.

The original turns its text into a query of MongoDB (broker/src/asapo_broker/database/mongodb_query.go, release 21.12),
where `!=`, `not in` and `not regexp` also find messages that do not have the key. Keys begin with `meta.`, or are
fields of the message's document. What ours has beside that (LIKE, IS NULL, NOT, LIMIT) may be used, too.
"""

from __future__ import annotations

import dataclasses
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Final

from asapo.errors import WrongInput
from asapo.query.ast import (
    TIME_BUILTINS,
    Builtin,
    Comparison,
    Expr,
    Instant,
    IsNull,
    Key,
    MetaKey,
    Not,
    Predicate,
    Query,
    Value,
)
from asapo.query.grammar import Dialect, at, read_value, shown, unquote, wrong
from asapo.query.names import split_name
from asapo.query.parse import parse

if TYPE_CHECKING:
    from lark import Token

FIELDS: Final = {
    "_id": "_id",
    "timestamp": "_stored",
    "size": "_size",
    "dataset_substream": "_substream",
}
"""Field of a message's document to our built-in key. Its other fields are not searched."""
MAX_TIME_CHARS: Final = 40
_NS_DIGITS: Final = 19


def parse_query(text: str) -> Query:
    """Read a query such as ``meta.score > 0.5 and meta.sample regexp '^lyso' order by meta.score desc``.

    Returns
    -------
    Query
        One of ours: `str()` of it can be sent to the delivery core. `timestamp` is nanoseconds since 1970, as in the
        documents of messages, and becomes our `_stored`.

    Raises
    ------
    WrongInput
        If it is not a query, has no condition, orders by several keys, or exceeds a limit.

    >>> str(parse_query("meta.a.b != 1 order by timestamp desc"))
    'NOT a.b = 1 ORDER BY _stored DESC'
    """
    query = parse(text, DIALECT)
    if query.where is None:
        raise WrongInput(f"query {text[:40]!r}: expected a condition, for example _id > 0")
    if len(query.order) > 1:
        raise WrongInput(f"query: ORDER BY has {len(query.order)} keys, expected one; leave the others out")
    return query


class AsapoDialect(Dialect):
    """What is different from our own language."""

    def key(self, token: Token) -> Key:
        """Turn a NAME into a key: fields by their names, metadata behind `meta.` only."""
        parts = split_name(token)
        if parts[0] == "meta" and len(parts) > 1:
            try:
                return MetaKey(tuple(parts[1:]))
            except WrongInput as error:
                wrong(at(token), shown(token), error.message, "shorten the key")
        if len(parts) > 1 or parts[0] not in FIELDS:
            expected = f"{', '.join(FIELDS)}, or a key of the metadata"
            wrong(at(token), shown(token), expected, f"write meta.{token} for metadata; other fields are not searched")
        return Builtin(FIELDS[parts[0]])

    def value(self, key: Key, token: Token) -> Value:
        """Turn a literal into a value: times are nanoseconds."""
        if isinstance(key, Builtin) and key.name in TIME_BUILTINS:
            return _nanoseconds(token)
        return read_value(key, token)

    def predicate(self, node: Predicate) -> Expr:
        """Let what is negative be true of messages without the key, too."""
        if isinstance(node, Comparison):
            return Not(dataclasses.replace(node, op="=")) if node.op == "!=" else node
        if isinstance(node, IsNull) or not node.negated:
            return node
        return Not(dataclasses.replace(node, negated=False))


DIALECT: Final = AsapoDialect()


def _nanoseconds(token: Token) -> Instant:
    """Read nanoseconds since 1970. Scripts compute them as a float, too, and write `1.7952539034613936e+18`."""
    text = unquote(token) if token.type == "STRING" else str(token)
    ns = None
    try:
        number = Decimal(text[: MAX_TIME_CHARS + 1])
        # Looked at before any arithmetic: an exponent of 10**9 would take all memory.
        if len(text) <= MAX_TIME_CHARS and number.is_finite() and number.adjusted() < _NS_DIGITS:
            ns = int(number)
    except InvalidOperation:
        pass
    if ns is None or not -(2**63) <= ns < 2**63:
        wrong(
            at(token), shown(token), "nanoseconds since 1970", "write them as the field timestamp of messages has them"
        )
    return Instant(ns)
