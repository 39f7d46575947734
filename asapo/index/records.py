"""From a Put, of the wire or of a journal, to the record that the index takes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from asapo.index.interface import SessionMark, UnitRecord
from asapo.models import StreamRef
from asapo.wire.put import Put, unit_offsets, unpack_column


def record_from_put(
    ref: StreamRef, put: Put, *, base: int, segment: int, skip: Collection[int], received_ns: int,
    session: bytes = b"", receiver_id: str = "",
) -> UnitRecord:  # fmt: skip
    """Return the index's record of a Put without the messages whose indices are in `skip`.

    Parameters
    ----------
    base : int
        Where the unit's payloads begin in the segment, in bytes.
    segment : int
        The index's number of the segment.
    received_ns : int
        When the receiver took the unit in, ns since the Unix epoch.
    session : bytes
        The producer's session; empty when nobody waits for this unit any more.
    """
    columns: list[Any] = [
        put.ids,
        [base + start for start in unit_offsets(put.sizes)[:-1]],
        put.sizes,
        unpack_column(put.checksums, signed=True),
        put.metas,
        unpack_column(put.acquired_ns, signed=True),
        put.origins or None,
    ]
    if skip:
        gone = set(skip)
        columns = [c and [value for index, value in enumerate(c) if index not in gone] for c in columns]
    ids, offsets, sizes, checksums, metas, acquired, origins = columns
    return UnitRecord(
        ref=ref, ids=ids, substream=put.substream, dataset_size=put.dataset_size, segment=segment, offsets=offsets,
        sizes=sizes, checksums=checksums, format=put.format, metas=metas, t_acq_ns=acquired, t_ingest_ns=received_ns,
        origins=origins,
        session=SessionMark(session, put.closed_below, receiver_id) if session else None,
    )  # fmt: skip
