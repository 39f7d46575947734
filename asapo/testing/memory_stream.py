"""Streams of the in-memory index."""

from __future__ import annotations

from dataclasses import dataclass, field

from asapo.errors import AsapoError, DuplicateId, StreamFinished, WrongInput
from asapo.index.interface import UnitRecord, check_object_text
from asapo.models import Row, StreamRef, check_id


@dataclass(slots=True)
class MemorySession:
    """What is known of one session on one stream and substream."""

    closed_below: int
    seen_s: float
    receiver_id: str
    numbering: bool = False
    closed: bool = False


@dataclass(slots=True)
class MemoryStream:
    """One stream: its rows in order of arrival, its sessions, its end."""

    ref: StreamRef
    known: bool = False
    deleted: bool = False
    rows: list[Row] = field(default_factory=list)
    by_id: dict[tuple[int, int], int] = field(default_factory=dict)
    """(id, substream) to place in `rows`."""
    sessions: dict[tuple[int, bytes], MemorySession] = field(default_factory=dict)
    finished: bool = False
    last_id: int = 0
    next_stream: str = ""
    meta: str = "{}"

    @property
    def id_max(self) -> int:
        """Highest id, 0 when there is none."""
        return max((row.id for row in self.rows), default=0)

    def mark(self, unit: UnitRecord, now_s: float) -> None:
        """Note what the producer session of a unit said of itself."""
        if (session := unit.session) is not None:
            mark = self.sessions.setdefault((unit.substream, session.session_id), MemorySession(0, 0.0, ""))
            mark.closed_below = max(mark.closed_below, session.closed_below)
            mark.seen_s, mark.receiver_id = now_s, session.receiver_id

    def add(self, row: Row) -> tuple[AsapoError | None, bool]:
        """Return the error that refuses the row, and whether its bytes are spare."""
        if self.finished and row.id > self.last_id:
            known = {"message_id": row.id, "id_max": self.last_id, "next_stream": self.next_stream}
            return StreamFinished(f"{self.ref} is finished at id {self.last_id}", **known), False
        place = self.by_id.get((row.id, row.substream))
        if place is None:
            try:
                check_id(row.id)
                check_object_text(row.meta).encode()
            except (WrongInput, UnicodeEncodeError) as exc:
                return WrongInput(f"{self.ref} id {row.id!r}: {exc}", message_id=row.id), False
            self.by_id[row.id, row.substream] = len(self.rows)
            self.rows.append(row)
            return None, False
        found = self.rows[place]
        if (found.size, found.checksum, found.format, found.meta) != (row.size, row.checksum, row.format, row.meta):
            what = f"{self.ref} has id {row.id} with other content; the first content stays"
            return DuplicateId(what, message_id=row.id, substream=row.substream), False
        if (found.segment, found.offset, found.t_ingest_ns) == (row.segment, row.offset, row.t_ingest_ns):
            return None, False
        if found.segment <= 0:
            self.rows[place] = found._replace(segment=row.segment, offset=row.offset, t_ingest_ns=row.t_ingest_ns)
            return None, False
        return None, True


def row_of(unit: UnitRecord, index: int, seq: int, *, format_no: int, origin_no: int) -> Row:
    """Return the row of one message of a unit."""
    origin = None if unit.origins is None else unit.origins[index]
    return Row(
        id=unit.ids[index],
        seq=seq,
        substream=unit.substream,
        dataset_size=unit.dataset_size,
        segment=unit.segment,
        offset=unit.offsets[index],
        size=unit.sizes[index],
        checksum=unit.checksums[index],
        format=format_no,
        meta=unit.metas[index],
        t_acq_ns=unit.t_acq_ns[index],
        t_ingest_ns=unit.t_ingest_ns,
        origin=origin_no,
        origin_id=0 if origin is None else origin.message_id,
    )
