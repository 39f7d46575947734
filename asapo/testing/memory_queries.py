"""Queries of the index in memory, by the plain-Python evaluator."""

from __future__ import annotations

import json
from collections.abc import Sequence

from asapo.errors import WrongInput
from asapo.index.gaps import Incomplete, absent_among, incomplete_among
from asapo.index.interface import QUERY_ROW_LIMIT, QUERY_TIME_LIMIT_S, Explanation, RowTuple
from asapo.models import Row
from asapo.query import Query, Record, select


class MemoryQueries:
    """The part of the index in memory that answers queries."""

    def _rows(self, stream_no: int) -> Sequence[Row]:
        """Return the rows of a stream in the order of arrival."""
        raise NotImplementedError

    def query(
        self,
        stream_no: int,
        query: Query,
        *,
        after: int = 0,
        row_limit: int = QUERY_ROW_LIMIT,
        time_limit_s: float = QUERY_TIME_LIMIT_S,  # noqa: ARG002
    ) -> list[RowTuple]:
        """Return the rows that a query selects, by the plain-Python evaluator."""
        rows = {(row.id, row.substream): row for row in self._rows(stream_no)}
        passed = next((_record(row) for row in rows.values() if row.seq == after), None)
        if after and passed is None:
            raise WrongInput(f"no message with arrival number {after} to go on after", after=after)
        found = select(query, map(_record, rows.values()), after=passed)
        return [rows[record.id, record.substream] for record in found[:row_limit]]

    def count(self, stream_no: int, query: Query, *, time_limit_s: float = QUERY_TIME_LIMIT_S) -> int:  # noqa: ARG002
        """Return how many rows a query selects."""
        return len(select(query, map(_record, self._rows(stream_no))))

    def explain(
        self,
        stream_no: int,
        query: Query,
        *,
        time_limit_s: float = QUERY_TIME_LIMIT_S,  # noqa: ARG002
    ) -> Explanation:
        """Say that everything is looked at, as it is."""
        total = len(self._rows(stream_no))
        return Explanation("", True, total, total, bool(query.order))

    def absent_ids(
        self,
        stream_no: int,
        first: int,
        limit: int,
        *,
        time_limit_s: float = QUERY_TIME_LIMIT_S,  # noqa: ARG002
    ) -> list[tuple[int, int]]:
        """Return the first `limit` closed ranges of ids, from `first` to the highest id, that are not there."""
        return absent_among(sorted(row.id for row in self._rows(stream_no)), first, limit)

    def incomplete(
        self,
        stream_no: int,
        first: int,
        limit: int,
        *,
        time_limit_s: float = QUERY_TIME_LIMIT_S,  # noqa: ARG002
    ) -> list[Incomplete]:
        """Return the first `limit` datasets with ids from `first` on that are not complete."""
        return incomplete_among([(row.id, row.dataset_size) for row in self._rows(stream_no)], first, limit)


def _record(row: Row) -> Record:
    return Record(row.id, json.loads(row.meta), row.t_acq_ns, row.t_ingest_ns, row.size, row.substream)
