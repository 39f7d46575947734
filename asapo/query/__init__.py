"""Queries over message metadata: text to tree, tree to answer, tree to SQL. Pure: no I/O.

`parse` needs the package lark (extra `server`); trees, evaluator and SQL need the standard library only.
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
    Text,
)
from asapo.query.evaluate import Record, compile_filter, matches, select, sort_key
from asapo.query.parse import parse
from asapo.query.sql import SqlQuery, declared_expression, to_sql

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
    "SqlQuery",
    "Text",
    "compile_filter",
    "declared_expression",
    "matches",
    "parse",
    "select",
    "sort_key",
    "to_sql",
]
