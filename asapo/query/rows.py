"""Index rows as a query sees them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Final

from asapo.errors import WrongInput
from asapo.models import Row
from asapo.query.ast import Query
from asapo.query.evaluate import Record, compile_filter

IndexRow = tuple[Any, ...]
"""The columns of `models.Row`."""
_meta: Final = itemgetter(Row._fields.index("meta"))
_columns: Final = itemgetter(
    *(Row._fields.index(name) for name in ("id", "meta", "t_acq_ns", "t_ingest_ns", "size", "substream"))
)


def record_of(row: IndexRow) -> Record:
    """Return what a query can see of an index row; its metadata text is decoded."""
    message_id, meta, acquired_ns, stored_ns, size, substream = _columns(row)
    return Record(message_id, json.loads(meta), acquired_ns, stored_ns, size, substream)


class _Probe:
    """A `Record` that is filled anew for every row: making one costs more than most tests of it."""

    __slots__ = ("acquired_ns", "id", "meta", "size_bytes", "stored_ns", "substream")
    id: int
    meta: dict[str, Any]
    acquired_ns: int
    stored_ns: int
    size_bytes: int
    substream: int


def select_rows(query: Query, rows: Sequence[IndexRow]) -> list[tuple[Record, IndexRow]]:
    """Return those of many rows that fulfil the condition of a query, each with its record, in their order."""
    if query.where is None:
        return [(record_of(row), row) for row in rows]
    test, probe = compile_filter(query.where), _Probe()
    record: Any = probe
    found = []
    # All metadata at once: one call of the decoder instead of one for each.
    metas = json.loads(f"[{','.join(map(_meta, rows))}]")
    for row, meta in zip(rows, metas, strict=True):
        probe.id, _, probe.acquired_ns, probe.stored_ns, probe.size_bytes, probe.substream = _columns(row)
        probe.meta = meta
        if test(record):
            found.append((record_of(row), row))
    return found


def group_filter(query: Query) -> Callable[[IndexRow], bool]:
    """Return the test of a group's filter on one row.

    Raises
    ------
    WrongInput
        If the query has an order or a limit, which a group cannot have.
    """
    if query.order or query.limit is not None or query.where is None:
        raise WrongInput(f"group filter {str(query)!r}: expected a condition only, without ORDER BY and LIMIT")
    test = compile_filter(query.where)
    return lambda row: test(record_of(row))
