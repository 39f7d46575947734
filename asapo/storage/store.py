"""The way of a wire unit to one tier: reserve room, write the payloads, journal the unit (R15, R24).

One `StreamStore` belongs to one writer thread. It keeps a segment and its journal open for each stream that is busy.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from asapo.errors import AsapoError, LocalProtocolError, StorageError
from asapo.failpoints import failpoint
from asapo.models import StreamRef
from asapo.storage.files import Buffer, FileOps, default_files
from asapo.storage.journal import JournalWriter, Kind
from asapo.storage.layout import beamtime_journal, encode_name, journal_path, segment_name, stream_dir
from asapo.storage.message_files import write_message_file
from asapo.storage.segments import MIB, Housekeeper, SegmentWriter, alignment
from asapo.storage.slots import OpenSegment, PutRecord, SegmentHandle, Slot, with_padding
from asapo.storage.tier import Tier

logger = logging.getLogger(__name__)

SEGMENT_BYTES: Final = 1024 * MIB
OPEN_SEGMENTS: Final = 64
CLOSE_TIMEOUT_S: Final = 10.0

__all__ = ["SegmentHandle", "Slot", "StreamStore"]


class StreamStore:
    """Writes the wire units of many streams to one tier. Not thread-safe: it belongs to its writer thread.

    Parameters
    ----------
    tier : Tier
        Where to write.
    receiver_id : str
        Name of this receiver.
    epoch : int
        Number of this life of the receiver; with it, file names are never used twice.
    files : FileOps or None
        How files are written; None takes the default of the process.
    segment_bytes : int
        A segment that would grow beyond this is closed and followed by a new one; a longer unit gets its own segment.
    open_segments : int
        Segments kept open; the one that was unused for longest is closed first.
    on_opening, on_closed : callable taking a SegmentHandle
        Called on the writer thread: `on_opening` before the files of a segment are made, which are not if it raises a
        StorageError, and `on_closed` when nothing will be added any more. A segment without records is removed, and
        `on_closed` is not called.
    """

    def __init__(
        self,
        tier: Tier,
        receiver_id: str,
        epoch: int,
        *,
        files: FileOps | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        open_segments: int = OPEN_SEGMENTS,
        on_opening: Callable[[SegmentHandle], None] | None = None,
        on_closed: Callable[[SegmentHandle], None] | None = None,
    ) -> None:
        self.tier = tier
        self.receiver_id = receiver_id
        self.epoch = epoch
        self._files = files or default_files()
        self._segment_bytes = segment_bytes
        self._open_limit = open_segments
        self._on_opening = on_opening
        self._on_closed = on_closed
        self._number = 0
        self._open: OrderedDict[StreamRef, OpenSegment] = OrderedDict()
        self._latest: OpenSegment | None = None
        """The segment last used by `reserve`, while it takes units: last in `_open`."""
        self._beamtimes: dict[str, JournalWriter] = {}
        self._housekeeper = Housekeeper()
        self._closed = False

    @property
    def open_segments(self) -> int:
        """Segments open now."""
        return len(self._open)

    def reserve(self, ref: StreamRef, nbytes: int) -> Slot:
        """Return room for a unit of `nbytes` in the stream's segment; open one, or the next, when needed.

        Raises
        ------
        DiskFull, StorageError
            If a segment had to be opened and could not.
        """
        opened = self._latest
        if opened is None or opened.handle.ref is not ref:  # the same stream again is the common case
            opened = self._open.get(ref)
            if opened is not None:
                self._open.move_to_end(ref)
        align = alignment(nbytes)
        if opened is None:
            opened = self._start(ref, 0)
        elif opened.writer.end and ((opened.writer.end + align - 1) & -align) + nbytes > self._segment_bytes:
            ahead = opened.writer.ahead_bytes
            self._retire(opened)
            opened = self._start(ref, ahead)
        self._latest = opened
        opened.owed += 1
        opened.used_s = time.monotonic()
        return Slot(opened, opened.writer.reserve(nbytes, align), nbytes)

    def write(self, slot: Slot, buffers: Sequence[Buffer]) -> None:
        """Write the unit's payload; buffers are C-contiguous and together no longer than the slot.

        Raises
        ------
        DiskFull, StorageError
            If the bytes could not be written; the slot is given up, and the stream goes on in a new segment.
        """
        self._write([slot], buffers, slot.size)

    def write_run(self, slots: Sequence[Slot], payloads: Sequence[Buffer]) -> None:
        """Write the payloads of units that were reserved one after the other in one segment, by one call.

        Each payload is as long as its slot. Raises as `write`; all slots are given up then.
        """
        self._write(slots, with_padding(slots, payloads), slots[-1].end - slots[0].offset)

    def write_file(self, slot: Slot, client_path: str, payload: Buffer, checksum: int) -> str:
        """Write the payload of an empty slot as a file of its own and return its path; see `write_message_file`.

        Raises
        ------
        DuplicateFile, UnsafePath, DiskFull, StorageError
            If the file is not there then; the slot is given back.
        """
        self._owner([slot])
        try:
            return write_message_file(self._files, self.tier.root, slot.segment.path, client_path, payload, checksum)
        except AsapoError:
            self.abort(slot)
            raise

    def _write(self, slots: Sequence[Slot], buffers: Sequence[Buffer], reserved: int) -> None:
        opened = self._owner(slots)
        failpoint("ingest.before-payload")
        try:
            opened.writer.write(slots[0].offset, buffers, reserved)
        except StorageError:
            self._give_up(slots, opened)
            raise
        failpoint("ingest.after-payload")

    def journal_put(self, slot: Slot, put_header: bytes, ingest_ns: int, *, skip: Sequence[int] = ()) -> None:
        """Append the unit's PUT record; see `journal_run`."""
        self.journal_run([slot], [PutRecord(put_header, ingest_ns, skip)])

    def journal_run(self, slots: Sequence[Slot], records: Sequence[PutRecord]) -> None:
        """Append the PUT records of units in one segment, by one write; after this they survive our death.

        Raises
        ------
        DiskFull, StorageError
            If the records may not be whole; the slots are given up, and the stream goes on in a new segment.
        """
        opened = self._owner(slots)
        try:
            puts = [(Kind.PUT, record.fields(slot)) for slot, record in zip(slots, records, strict=True)]
            self._append(opened, puts)
        except StorageError:
            self._give_up(slots, opened)
            raise
        failpoint("ingest.after-journal")
        self._release(slots, opened)

    def abort(self, slot: Slot) -> None:
        """Give a slot back that will not be journaled; nothing happens when a failed write has done so already."""
        opened = slot.opened
        if opened is not None:
            opened.writer.give_back(slot.offset, slot.size)
            self._release([slot], opened)

    def journal(self, ref: StreamRef, kind: str, fields: Mapping[str, Any], *, slot: Slot | None = None) -> None:
        """Append a record about the stream (FINISH, META, SUPERSEDED, ...) to the journal that is open for it.

        `slot` is the unit that the record is about: the field `segment` then names its file, which may be an older one.

        Raises
        ------
        DiskFull, StorageError
            If the record may not be whole; the next one goes to a new journal.
        """
        if slot is not None:
            fields = {**fields, "segment": Path(slot.segment.path).name}
        fields = _dated(kind, fields)
        opened = self._open.get(ref) or self._start(ref, 0)
        self._latest = None
        opened.used_s = time.monotonic()
        try:
            self._append(opened, [(kind, fields)])
        except StorageError:
            self._retire(opened)
            raise

    def journal_beamtime(self, beamtime: str, kind: str, fields: Mapping[str, Any]) -> None:
        """Append a record about a whole beamtime to its own journal in the beamtime's folder.

        Raises
        ------
        DiskFull, StorageError
            If the record may not be whole; the next one goes to a new journal.
        """
        journal = self._beamtimes.get(beamtime) or self._start_beamtime(beamtime)
        try:
            journal.append(kind, _dated(kind, fields))
        except StorageError:
            del self._beamtimes[beamtime]
            self._quietly(journal.close)
            raise

    def close_stream(self, ref: StreamRef) -> None:
        """Close the stream's segment, for example because the stream is finished; it may be opened again."""
        opened = self._open.get(ref)
        if opened is not None:
            self._retire(opened)

    def opened(self, ref: StreamRef) -> SegmentHandle | None:
        """Return the segment that is open for a stream."""
        opened = self._open.get(ref)
        return None if opened is None else opened.handle

    def discard(self, segment: SegmentHandle) -> None:
        """Close a segment in which nothing counts, since its stream was deleted, and remove what is left of it."""
        opened = self._open.get(segment.ref)
        if opened is not None and opened.handle is segment:
            self._retire(opened)
        self._remove(segment.path)

    def close_idle(self, idle_s: float) -> int:
        """Close segments that were unused for `idle_s` seconds, or whose files are gone; return how many."""
        before = time.monotonic() - idle_s
        at_rest = [opened for opened in self._open.values() if not opened.owed]
        idle = [opened for opened in at_rest if opened.used_s <= before or opened.writer.is_removed]
        for opened in idle:
            self._retire(opened)
        return len(idle)

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> bool:
        """Close everything; False when the file system did not finish within `timeout_s`. Slots still out are lost."""
        self._closed = True
        for opened in list(self._open.values()):
            opened.owed = 0
            self._retire(opened)
        for journal in self._beamtimes.values():
            self._quietly(journal.close)
        self._beamtimes.clear()
        return self._housekeeper.close(timeout_s)

    @staticmethod
    def _owner(slots: Sequence[Slot]) -> OpenSegment:
        opened = slots[0].opened
        if opened is None or any(slot.opened is not opened for slot in slots):
            raise LocalProtocolError(f"{slots!r:.300}: journaled, aborted or lost already, or not of one segment")
        return opened

    def _append(self, opened: OpenSegment, records: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        if not opened.journal_good:
            raise StorageError(f"{opened.journal.path} had a write error before", path=opened.journal.path, errno=0)
        try:
            opened.journal.append_all(records)
        except StorageError:
            opened.journal_good = False
            raise
        opened.known = True

    def _give_up(self, slots: Sequence[Slot], opened: OpenSegment) -> None:
        """Drop slots whose write failed, and take no more units into their segment."""
        self._release(slots, opened)
        self._retire(opened)

    def _release(self, slots: Sequence[Slot], opened: OpenSegment) -> None:
        for slot in slots:
            slot.opened = None
        opened.owed -= len(slots)
        if opened.sealed and opened.owed == 0:
            self._finish(opened)

    def _start(self, ref: StreamRef, ahead_bytes: int) -> OpenSegment:
        """Open a new segment and its journal for a stream."""
        if self._closed:
            raise LocalProtocolError("this store is closed")
        while len(self._open) >= self._open_limit:
            idle = next((opened for opened in self._open.values() if not opened.owed), None)
            if idle is None:
                break
            self._retire(idle)
        self._number += 1
        name = segment_name(self.receiver_id, self.epoch, self._number)
        handle = SegmentHandle(ref, str(stream_dir(self.tier.root, ref) / name), self._number)
        if self._on_opening is not None:
            self._on_opening(handle)
        try:
            opened = self._create(handle, ahead_bytes)
        except StorageError as exc:
            if exc.fields.get("errno") != errno.ENOENT:
                raise
            opened = self._create(handle, ahead_bytes)  # a stream of this name was deleted just now, with its folder
        self._open[ref] = opened
        return opened

    def _create(self, handle: SegmentHandle, ahead_bytes: int) -> OpenSegment:
        path = handle.path
        with self._files.folder_below(self.tier.root, Path(path).parent.relative_to(self.tier.root).parts):
            pass  # made, and no link leads elsewhere
        writer = SegmentWriter(
            path,
            self._files,
            housekeeper=self._housekeeper if self.tier.allocates else None,
            limit_bytes=self._segment_bytes,
            ahead_bytes=ahead_bytes,
        )
        failpoint("rotate.between-files")
        try:
            journal = JournalWriter(journal_path(path), self._head(handle.ref, Path(path).name), self._files)
        except StorageError:
            self._quietly(writer.close)
            self._remove(path)
            raise
        return OpenSegment(handle, writer, journal)

    def _head(self, ref: StreamRef | None, segment: str) -> dict[str, Any]:
        names = (ref.beamtime, ref.source, ref.stream) if ref else ("", "", "")
        head = dict(zip(("beamtime", "source", "stream"), names, strict=True))
        facts = {"receiver": self.receiver_id, "epoch": self.epoch, "number": self._number, "segment": segment}
        return {**head, **facts, "created_ns": time.time_ns()}

    def _start_beamtime(self, beamtime: str) -> JournalWriter:
        if self._closed:
            raise LocalProtocolError("this store is closed")
        while len(self._beamtimes) >= self._open_limit:
            self._quietly(self._beamtimes.pop(next(iter(self._beamtimes))).close)
        self._number += 1
        with self._files.folder_below(self.tier.root, [encode_name(beamtime)]):
            pass
        path = beamtime_journal(
            self.tier.root, beamtime, receiver=self.receiver_id, epoch=self.epoch, number=self._number
        )
        journal = JournalWriter(str(path), {**self._head(None, ""), "beamtime": beamtime}, self._files)
        self._beamtimes[beamtime] = journal
        return journal

    def _retire(self, opened: OpenSegment) -> None:
        """Take no more units into this segment; close it when the last slot is back."""
        if opened.sealed:
            return
        opened.sealed = True
        if self._latest is opened:
            self._latest = None
        if self._open.get(opened.handle.ref) is opened:
            del self._open[opened.handle.ref]
        if opened.owed == 0:
            self._finish(opened)

    def _finish(self, opened: OpenSegment) -> None:
        """Close segment and journal. What fails here was acknowledged before or never, so it is logged, not raised."""
        failpoint("rotate.before-close")
        if opened.known and opened.journal_good:
            self._quietly(lambda: opened.journal.append(Kind.CLOSED, {"bytes": opened.writer.written_end}))
        self._quietly(opened.writer.close)
        self._quietly(opened.journal.close)
        failpoint("rotate.after-close")
        if not opened.known:
            self._remove(opened.handle.path)
        elif self._on_closed is not None:
            self._on_closed(opened.handle)

    def _remove(self, segment_path: str) -> None:
        """Remove a segment in which nothing was committed, and its journal."""
        for path in (journal_path(segment_path), segment_path):
            if Path(path).exists():
                self._quietly(lambda path=path: self._files.unlink(path))  # type: ignore[misc]

    def _quietly(self, action: Callable[[], None]) -> None:
        try:
            action()
        except AsapoError as exc:
            logger.warning("closing a segment: %s", exc)


def _dated(kind: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields, those of a state that the next one replaces with the time: it orders several receivers."""
    return {"t": time.time_ns(), **fields} if kind in (Kind.FINISH, Kind.META) else fields
