"""From a Put, of the wire or of a journal, to the record that the index takes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from asapo.client_path import check_client_path
from asapo.hostinfo import boot_id
from asapo.index.interface import OwnFile, SessionMark, UnitRecord
from asapo.models import StreamRef
from asapo.storage.layout import TIER_FILE, decode_name, message_file, parse_segment_name
from asapo.storage.tier import read_tier_uuid
from asapo.wire.put import Put, unit_offsets, unpack_column


def own_file(segment: str | Path, client_path: str) -> OwnFile:
    """Return what a PUT of the journal beside `segment` says of the file that its message has.

    Raises
    ------
    WrongInput
        If it names a path that no message can have.
    """
    segment = Path(segment)
    name = parse_segment_name(segment.name)
    receiver, epoch = ("", 0) if name is None else (decode_name(name.receiver) or name.receiver, name.epoch)
    path = message_file(segment.parent, check_client_path(client_path))
    return OwnFile(path, receiver, epoch, tier_uuid_of(segment), boot_id())


def tier_uuid_of(segment: Path) -> str:
    """Return the uuid of the tier that a segment lies on, "" for a folder that was copied without it."""
    root = segment.parents[3] if len(segment.parents) > 3 else segment.parent
    return read_tier_uuid(root) if (root / TIER_FILE).exists() else ""


def record_from_put(
    ref: StreamRef, put: Put, *, base: int, segment: int, skip: Collection[int], received_ns: int,
    session: bytes = b"", receiver_id: str = "", file: OwnFile | None = None, begun: int | None = None,
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
    file : OwnFile, optional
        The file that holds the payload, instead of a segment.
    begun : int, optional
        See `UnitRecord.begun`.
    """
    if file is not None:
        base = segment = 0
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
        origins=origins, file=file, begun=begun,
        session=SessionMark(session, put.closed_below, receiver_id) if session else None,
    )  # fmt: skip
