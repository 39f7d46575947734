"""What a `StreamStore` hands out and keeps open: segments, and the room for wire units in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from asapo.models import StreamRef
from asapo.storage.files import Buffer
from asapo.storage.journal import JournalWriter, Where
from asapo.storage.segments import SegmentWriter


@dataclass(slots=True, eq=False)
class SegmentHandle:
    """One segment of this receiver, as others of this process know it."""

    ref: StreamRef
    path: str
    """Absolute path of the `.seg` file; the journal lies beside it."""
    number: int
    """Number in the file name, unique for receiver and epoch."""
    index_no: int | None = None
    """Number under which the index knows the segment; filled in by the index thread."""
    begun: int = 0
    """The last deletion of a stream that was known when the segment was begun; filled in by `on_opening`."""


class OpenSegment:
    """A segment that still takes units, or still owes some."""

    __slots__ = ("handle", "journal", "journal_good", "known", "owed", "sealed", "used_s", "writer")

    def __init__(self, handle: SegmentHandle, writer: SegmentWriter, journal: JournalWriter) -> None:
        self.handle = handle
        self.writer = writer
        self.journal = journal
        self.owed = 0
        """Slots handed out and neither journaled nor aborted."""
        self.sealed = False
        self.journal_good = True
        self.known = False
        """True once its journal has a record."""
        self.used_s = 0.0


class Slot:
    """Room for one wire unit in a segment."""

    __slots__ = ("offset", "opened", "segment", "size")

    def __init__(self, opened: OpenSegment, offset: int, size: int) -> None:
        self.opened: OpenSegment | None = opened
        """None once it was journaled, aborted or lost; for the store only."""
        self.segment = opened.handle
        self.offset = offset
        """Where the unit starts in the segment, in bytes."""
        self.size = size
        """Bytes reserved."""

    def __repr__(self) -> str:
        return f"Slot({self.segment.path!r}, offset={self.offset}, size={self.size})"

    @property
    def end(self) -> int:
        """Where the reserved room ends in the segment, in bytes."""
        return self.offset + self.size


class PutRecord(NamedTuple):
    """What the journal keeps of a unit beside its place."""

    header: bytes
    """The Put header, as received or gathered."""
    ingest_ns: int
    """Time of arrival, ns since the Unix epoch."""
    skip: Sequence[int] = ()
    """Positions (from 0) of the unit's messages that were refused; they do not count as stored."""
    in_file: bool = False
    """The payload is a file of its own, at the path that the header names."""

    def fields(self, slot: Slot) -> dict[str, Any]:
        """Return the fields of the PUT record of the unit in this slot; an empty one is a unit without payload."""
        where = Where.FILE if self.in_file else Where.SEGMENT if slot.size else Where.NONE
        fields: dict[str, Any] = {"at": where, "offset": slot.offset, "t": self.ingest_ns, "put": self.header}
        return {**fields, "skip": list(self.skip)} if self.skip else fields


def with_padding(slots: Sequence[Slot], payloads: Sequence[Buffer]) -> list[Buffer]:
    """Return the payloads of consecutive slots with zeros between them, as they lie in the segment."""
    buffers = [payloads[0]]
    for before, slot, payload in zip(slots, slots[1:], payloads[1:], strict=False):
        if gap := slot.offset - before.end:
            buffers.append(bytes(gap))
        buffers.append(payload)
    return buffers
