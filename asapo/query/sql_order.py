"""The order of a query as SQL, and the condition for all that comes behind one row in that order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from asapo.query.ast import And, Builtin, Comparison, Expr, In, Key, Like, MetaKey, Not, Or, Query, Regexp
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


@dataclass(frozen=True, slots=True)
class Term:
    """One expression of ORDER BY with its values."""

    text: str
    params: tuple[Param, ...] = ()
    descending: bool = False
    ranked: bool = False
    """It is the value behind the rank of its type, or that rank: an index on the plain value is of no use to it."""


def order_terms(query: Query, declared: Mapping[Path, str]) -> list[Term]:
    """Return the terms of ORDER BY; they end with id and substream, so the order is total."""
    terms: list[Term] = []
    pinned = _pinned(query.where)
    for order in query.order:
        down = order.descending
        if isinstance(order.key, Builtin):
            terms.append(Term(COLUMNS[order.key.name], descending=down))
        elif order.key in pinned and has_json_path(order.key):
            # One type only: the plain expression sorts right, and an index on it can deliver the order.
            terms.append(Term(*extract(order.key, declared), descending=down))
        else:
            terms += _sort_terms(order.key, descending=down)
    return [*terms, Term("id"), Term("substream")]


def order_by(terms: Sequence[Term]) -> tuple[str, tuple[Param, ...]]:
    """Return the terms as text behind ORDER BY, and their values."""
    text = ", ".join(term.text + (" DESC" if term.descending else "") for term in terms)
    return text, tuple(value for term in terms for value in term.params)


def behind(terms: Sequence[Term]) -> tuple[str, tuple[Param, ...]]:
    """Return the condition for rows behind the row that the table `last` holds (columns a0, a1, ...: its terms).

    `IS` finds null equal to null: null stands for everything of the last rank, where only id and substream order.
    """
    text, params = "0", ()  # type: str, tuple[Param, ...]
    for at in reversed(range(len(terms))):
        term, last = terms[at], f"(SELECT a{at} FROM last)"
        beyond = f"{term.text} {'<' if term.descending else '>'} {last}"
        # The nested part comes first, as the SQL parser's stack wants it (see `sql`).
        text, params = f"({text}) AND {term.text} IS {last} OR {beyond}", (*params, *term.params, *term.params)
    first = terms[0]
    if not first.ranked:
        # Says nothing new, but an index can seek by it.
        bound = f"{first.text} {'<=' if first.descending else '>='} (SELECT a0 FROM last)"
        text, params = f"({text}) AND {bound}", (*params, *first.params)
    return text, params


def last_columns(terms: Sequence[Term]) -> tuple[str, tuple[Param, ...]]:
    """Return what is selected from a row to make the table `last` of it, and the values."""
    text = ", ".join(f"{term.text} AS a{at}" for at, term in enumerate(terms))
    return text, tuple(value for term in terms for value in term.params)


def flat(kind: type[And | Or], expr: Expr, *, negate: bool) -> list[tuple[Expr, bool]]:
    """Return the operands of `expr` as one chain of `kind`, each with whether it is negated (De Morgan)."""
    if isinstance(expr, Not):
        return flat(kind, expr.operand, negate=not negate)
    wanted = kind if not negate else (Or if kind is And else And)
    if isinstance(expr, And | Or) and isinstance(expr, wanted):
        return [found for part in expr.operands for found in flat(kind, part, negate=negate)]
    return [(expr, negate)]


def _sort_terms(key: MetaKey, *, descending: bool) -> tuple[Term, Term]:
    """Return rank of the type and value inside the type (see `ast.Order`)."""
    if has_json_path(key):
        path = json_path(key)
        kind, extract, guard = "json_type(meta, ?)", "json_extract(meta, ?)", NO_NUL_AT_PATH
        at: tuple[Param, ...] = (path,)
        guard_at = at
    else:
        walk, last, at = odd_key(key)
        kind, extract, guard = f"(SELECT {last}.type {walk})", f"(SELECT {last}.atom {walk})", NO_NUL
        guard_at = ()
    rank = (
        f"CASE {kind} WHEN 'integer' THEN 1 WHEN 'real' THEN 1 WHEN 'text' THEN CASE WHEN {guard} THEN 2 ELSE 4 END "
        "WHEN 'true' THEN 3 WHEN 'false' THEN 3 ELSE 4 END"
    )
    value = (
        f"CASE {kind} WHEN 'text' THEN CASE WHEN {guard} THEN {extract} END "
        f"WHEN 'object' THEN NULL WHEN 'array' THEN NULL ELSE {extract} END"
    )
    return (
        Term(rank, (*at, *guard_at), ranked=True),
        Term(value, (*at, *guard_at, *at, *at), descending, ranked=True),
    )


def _pinned(where: Expr | None) -> set[Key]:
    """Return the keys whose type the condition fixes for every selected row."""
    parts = [part for part, negated in flat(And, where, negate=False) if not negated] if where is not None else []
    return {part.key for part in parts if isinstance(part, Comparison | In | Like | Regexp)}
