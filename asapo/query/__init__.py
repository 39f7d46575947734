"""Queries over message metadata: text to tree, tree to answer, tree to SQL. Pure: no I/O.

`parse` needs the package lark, REGEXP google-re2 (both in the extra `server`); all else the standard library only.
"""

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
    Order,
    Query,
    Regexp,
    Text,
)
from asapo.query.evaluate import Record, compile_filter, matches, select, sort_key
from asapo.query.parse import parse
from asapo.query.project import projector
from asapo.query.sql import SqlQuery, declared_expression, regexp_function, to_sql
from asapo.query.sql_order import behind, last_columns

__all__ = [
    "And",
    "Boolean",
    "Builtin",
    "Comparison",
    "Expr",
    "In",
    "Instant",
    "IsNull",
    "Like",
    "MetaKey",
    "Not",
    "Number",
    "Or",
    "Order",
    "Query",
    "Record",
    "Regexp",
    "SqlQuery",
    "Text",
    "behind",
    "compile_filter",
    "declared_expression",
    "last_columns",
    "matches",
    "parse",
    "projector",
    "regexp_function",
    "select",
    "sort_key",
    "to_sql",
]
