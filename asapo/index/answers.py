"""What is answered from the rows of one stream: for the broker, and for offline folders, which have no broker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from asapo.delivery.rows import RowTuple, row_dataset_size, row_id, row_seq
from asapo.errors import AsapoError, Gap, NothingYet, PartialDataset, StreamFinished
from asapo.index.interface import StreamHead
from asapo.models import MAX_ID, StreamInfo


class StreamRows(Protocol):
    """The part of a `MetadataIndex` that gives rows."""

    def rows_after_seq(self, stream_no: int, seq: int, limit: int) -> Sequence[RowTuple]:
        """Return rows that arrived after `seq`, in order of arrival."""

    def rows_from_id(self, stream_no: int, id_from: int, id_below: int, limit: int) -> Sequence[RowTuple]:
        """Return rows with `id_from <= id < id_below`, ordered by id and substream."""


def rows_by_id(index: StreamRows, no: int, id_from: int, id_below: int, limit: int) -> tuple[list[RowTuple], int]:
    """Return rows by id and the id below which all of them are there; datasets whole."""
    while True:
        rows = list(index.rows_from_id(no, id_from, id_below, limit))
        if len(rows) < limit:
            return rows, id_below
        last = row_id(rows[-1])
        if not row_dataset_size(rows[-1]):
            return rows, last + 1
        if row_id(rows[0]) != last:
            # The limit may have cut the last dataset: it is loaded next time.
            return [row for row in rows if row_id(row) != last], last
        limit *= 2


def rows_by_seq(index: StreamRows, no: int, after: int, below: int, limit: int) -> tuple[list[RowTuple], int]:
    """Return rows by arrival and the arrival number below which all of them are there; datasets whole."""
    rows = list(index.rows_after_seq(no, after, min(limit, max(0, below - after - 1))))
    covered = row_seq(rows[-1]) + 1 if len(rows) == limit else below
    parts = {row_id(row) for row in rows if row_dataset_size(row)}
    if parts:
        rows = [row for row in rows if not row_dataset_size(row)] + whole(index, no, parts)
    return rows, covered


def whole(index: StreamRows, no: int, ids: Iterable[int]) -> list[RowTuple]:
    """Return all rows of these ids."""
    return [row for one in ids for row in index.rows_from_id(no, one, one + 1, MAX_ID)]


def parts_of(index: StreamRows, no: int, row: RowTuple) -> list[RowTuple]:
    """Return the message, or all parts of the dataset, that a row belongs to."""
    return whole(index, no, [row_id(row)]) if row_dataset_size(row) else [row]


def enough(rows: Sequence[RowTuple], min_parts: int) -> bool:
    """Tell whether these rows of one id are a message, a complete dataset, or one with at least `min_parts` parts."""
    return bool(rows) and (len(rows) >= row_dataset_size(rows[0]) or 0 < min_parts <= len(rows))


def info_map(info: StreamInfo) -> dict[str, Any]:
    """Return what is known of a stream as a map for an answer."""
    return {
        "source": info.ref.source,
        "stream": info.ref.stream,
        "n_messages": info.n_messages,
        "n_bytes": info.n_bytes,
        "id_max": info.id_max,
        "head_seq": info.head_seq,
        "closed_below": min(info.closed_below, MAX_ID),
        "finished": info.finished,
        "last_id": info.last_id,
        "next_stream": info.next_stream,
        "meta": info.meta,
    }


def absent(head: StreamHead, message_id: int, parts: Sequence[RowTuple]) -> AsapoError:
    """Say why an id is not there (R29)."""
    if parts:
        have, size = len(parts), row_dataset_size(parts[0])
        return PartialDataset(f"dataset {message_id} has {have} of {size} parts", have=have, dataset_size=size)
    if head.finished and message_id > head.last_id:
        return finished(head)
    if message_id < head.watermark:
        return Gap(f"id {message_id} does not exist and will not come", message_id=message_id, id_max=head.id_max)
    return nothing_yet(head)


def finished(head: StreamHead) -> StreamFinished:
    """Answer that the stream has ended."""
    return StreamFinished(
        f"the stream is finished at id {head.last_id}", id_max=head.id_max, next_stream=head.next_stream
    )


def nothing_yet(head: StreamHead) -> NothingYet:
    """Answer that there is nothing to read now."""
    return NothingYet(f"nothing to read yet; highest id is {head.id_max}", id_max=head.id_max)
