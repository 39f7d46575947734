"""Index rows as a query sees them."""

from __future__ import annotations

import json
from collections.abc import Callable
from operator import itemgetter
from typing import Any, Final

from asapo.errors import WrongInput
from asapo.models import Row
from asapo.query.ast import Query
from asapo.query.evaluate import Record, compile_filter

_columns: Final = itemgetter(
    *(Row._fields.index(name) for name in ("id", "meta", "t_acq_ns", "t_ingest_ns", "size", "substream"))
)


def record_of(row: tuple[Any, ...]) -> Record:
    """Return what a query can see of an index row; its metadata text is decoded."""
    message_id, meta, acquired_ns, stored_ns, size, substream = _columns(row)
    return Record(message_id, json.loads(meta), acquired_ns, stored_ns, size, substream)


def group_filter(query: Query) -> Callable[[tuple[Any, ...]], bool]:
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
