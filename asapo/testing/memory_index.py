"""A metadata index in plain Python: keeps nothing, passes the same contract suite as the real ones."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from asapo.errors import AsapoError, DuplicateFile, IndexUnavailable, StreamBusy, UnknownStream, WrongInput
from asapo.index.interface import (
    SESSION_TIMEOUT_S,
    Clock,
    OpenedStream,
    OpenSegment,
    OwnFile,
    RowTuple,
    StreamHead,
    UnitOutcome,
    UnitRecord,
    check_object_text,
)
from asapo.index.keys import checked_live, checked_sorted
from asapo.models import MAX_ID, Format, Row, SegmentInfo, StreamInfo, StreamRef, check_name
from asapo.storage.layout import client_path_of
from asapo.testing.memory_deletions import MemoryDeletions
from asapo.testing.memory_queries import MemoryQueries
from asapo.testing.memory_stream import MemorySession, MemoryStream, row_of


class MemoryIndex(MemoryQueries, MemoryDeletions):
    """`MetadataIndex` for tests: same answers, no file, one process."""

    def __init__(
        self, beamtime: str, *, session_timeout_s: float = SESSION_TIMEOUT_S, clock_s: Clock = time.monotonic
    ) -> None:
        super().__init__()
        self.beamtime = check_name("beamtime", beamtime)
        self._session_timeout_s = session_timeout_s
        self._clock_s = clock_s
        self._lock = threading.RLock()
        self._streams: list[MemoryStream] = []
        self._numbers: dict[StreamRef, int] = {}
        self._formats: list[Format] = []
        self._segments: dict[str, int] = {}
        self._segment_infos: list[tuple[SegmentInfo, OpenSegment]] = []
        self._closed_segments: set[int] = set()
        self._meta = "{}"
        self._keys: list[str] = []
        self._sorted_keys: list[str] = []
        self._closed = False

    def close(self) -> None:
        """Close the index; using it afterwards raises IndexUnavailable."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise IndexUnavailable("the index is closed", path="", reason="closed")

    def _number(self, ref: StreamRef) -> int:
        self._check_open()
        if ref.beamtime != self.beamtime:
            raise WrongInput(f"{ref} is not of beamtime {self.beamtime!r}")
        if ref not in self._numbers:
            self._streams.append(MemoryStream(ref))
            self._numbers[ref] = len(self._streams)
        return self._numbers[ref]

    def _stream(self, ref: StreamRef) -> MemoryStream:
        stream = self._streams[self._number(ref) - 1]
        stream.known = True
        return stream

    def _at(self, no: int) -> MemoryStream | None:
        self._check_open()
        return self._streams[no - 1] if 1 <= no <= len(self._streams) else None

    # -- ingest -----------------------------------------------------------------------------------------------------

    def commit(self, units: Sequence[UnitRecord]) -> list[UnitOutcome]:
        """Index the units; one bad message refuses only itself."""
        with self._lock:
            self._check_open()
            for unit in units:
                self._number(unit.ref)
            return [UnitOutcome(0, 0, void=True) if self._void(unit) else self._commit_unit(unit) for unit in units]

    def _commit_unit(self, unit: UnitRecord) -> UnitOutcome:
        return self._commit_file(unit, unit.file) if unit.file is not None and unit.ids else self._commit_messages(unit)

    def _commit_file(self, unit: UnitRecord, file: OwnFile) -> UnitOutcome:
        stream, place, known = self._stream(unit.ref), (unit.ids[0], unit.substream), file.path in self._segments
        if known and ((at := stream.by_id.get(place)) is None or stream.rows[at].segment <= 0):
            path = client_path_of(file.path, unit.ref.source, unit.ref.stream)
            error = DuplicateFile(f"another message has the file {path!r}", path=path, message_id=unit.ids[0])
            return UnitOutcome(0, len(stream.rows), ((0, error),))
        number = self.register_segment(file.path, file.receiver_id, file.epoch, file.tier_uuid, file.boot_id, unit.ref)
        self.close_segment(number)
        outcome = self._commit_messages(replace(unit, segment=number, file=None))
        at = stream.by_id.get(place)
        if at is not None and stream.rows[at].segment == number:
            spare = () if stream.rows[at].t_ingest_ns == unit.t_ingest_ns else (0,)
            return outcome._replace(segment=number, superseded=spare)
        if not known:
            del self._segments[file.path], self._segment_infos[-1]
        return outcome

    def _commit_messages(self, unit: UnitRecord) -> UnitOutcome:
        stream = self._stream(unit.ref)
        if unit.format not in self._formats:
            self._formats.append(unit.format)
        first = len(stream.rows) + 1
        errors: list[tuple[int, AsapoError]] = []
        superseded: list[int] = []
        for index in range(len(unit.ids)):
            row = self._row(unit, index, len(stream.rows) + 1)
            error, spare = stream.add(row)
            if error is not None:
                errors.append((index, error))
            if spare:
                superseded.append(index)
        stream.mark(unit, self._clock_s())
        head, format_no = len(stream.rows), self._formats.index(unit.format) + 1
        return UnitOutcome(first if head >= first else 0, head, tuple(errors), tuple(superseded), format_no)

    def _row(self, unit: UnitRecord, index: int, seq: int) -> Row:
        origin = None if unit.origins is None else unit.origins[index]
        number = 0 if origin is None else self._number(StreamRef(self.beamtime, origin.source, origin.stream))
        return row_of(unit, index, seq, format_no=self._formats.index(unit.format) + 1, origin_no=number)

    def register_segment(
        self, path: str, receiver_id: str, epoch: int, tier_uuid: str, boot_id: str, ref: StreamRef
    ) -> int:
        """Return the number of a segment, from 1; the same path again returns the same number."""
        with self._lock:
            self._check_open()
            if path not in self._segments:
                no = self._segments[path] = len(self._segment_infos) + 1
                info = SegmentInfo(path, receiver_id, boot_id, tier_uuid)
                self._segment_infos.append((info, OpenSegment(no, path, epoch, ref)))
            return self._segments[path]

    def close_segment(self, no: int) -> None:
        """Note that the segment is complete and everything in it indexed."""
        self._closed_segments.add(no)

    def open_segments(self, receiver_id: str) -> list[OpenSegment]:
        """Return the receiver's segments that are not closed, oldest first."""
        return [
            opened
            for info, opened in self._segment_infos
            if info.receiver_id == receiver_id and opened.no not in self._closed_segments and self._at_path(opened)
        ]

    def known_segments(self, paths: Sequence[str]) -> set[str]:
        """Return those of these paths that are registered."""
        return self._segments.keys() & set(paths)

    def _at_path(self, opened: OpenSegment) -> bool:
        return self._segments.get(opened.path) == opened.no

    def _is_open(self, session: MemorySession) -> bool:
        return not session.closed and session.seen_s > self._clock_s() - self._session_timeout_s

    def open_session(
        self, ref: StreamRef, session_id: bytes, substream: int, numbering: bool, receiver_id: str
    ) -> OpenedStream:
        """Open the stream for a session, creating it if need be; StreamBusy when another live session numbers it."""
        with self._lock:
            stream = self._streams[self._number(ref) - 1]
            others = [
                session
                for (part, other), session in stream.sessions.items()
                if part == substream and other != session_id and session.numbering and self._is_open(session)
            ]
            if numbering and others:
                raise StreamBusy(f"{ref}: another live session numbers it", receiver_id=others[0].receiver_id)
            stream.known = True
            ids = (row.id for row in stream.rows if not substream or row.substream == substream)
            id_max = max(ids, default=0)
            mark = stream.sessions.setdefault((substream, session_id), MemorySession(0, 0.0, ""))
            mark.closed_below = max(mark.closed_below, min(id_max + 1, MAX_ID) if numbering else 0)
            mark.numbering, mark.closed = mark.numbering or numbering, False
            mark.seen_s, mark.receiver_id = self._clock_s(), receiver_id
            return OpenedStream(id_max, mark.closed_below, stream.finished, stream.last_id, stream.next_stream)

    def beat(self, session_id: bytes, marks: Mapping[StreamRef, int]) -> None:
        """Keep a session alive on all its streams and raise its `closed_below` on those given."""
        with self._lock:
            self._check_open()
            for stream in self._streams:
                for (_, other), session in stream.sessions.items():
                    if other == session_id and not session.closed:
                        session.seen_s = self._clock_s()
                        session.closed_below = max(session.closed_below, marks.get(stream.ref, 0))

    def close_session(self, session_id: bytes) -> None:
        """End a session; it holds back nobody any more."""
        with self._lock:
            for stream in self._streams:
                for (_, other), session in stream.sessions.items():
                    session.closed = session.closed or other == session_id

    def finish_stream(self, ref: StreamRef, last_id: int, next_stream: str) -> None:
        """Note the end of a stream; again with the same values is fine, else WrongInput."""
        with self._lock:
            stream = self._streams[self._number(ref) - 1]
            if stream.finished and (stream.last_id, stream.next_stream) != (last_id, next_stream):
                facts = {"last_id": stream.last_id, "next_stream": stream.next_stream}
                raise WrongInput(f"{ref} is finished otherwise", **facts)
            if last_id < stream.id_max or last_id > MAX_ID:
                raise WrongInput(f"{ref} cannot end at id {last_id}", id_max=stream.id_max)
            stream.known, stream.finished, stream.last_id, stream.next_stream = True, True, last_id, next_stream

    def set_stream_meta(self, ref: StreamRef, text: str) -> None:
        """Set the stream's metadata (one JSON object as text), creating the stream if need be."""
        check_object_text(text)
        with self._lock:
            self._stream(ref).meta = text

    def set_beamtime_meta(self, text: str) -> None:
        """Set the beamtime's metadata (one JSON object as text)."""
        self._check_open()
        self._meta = check_object_text(text)

    def declare_keys(self, keys: Sequence[str]) -> None:
        """Say which metadata keys are indexed; here that changes nothing but the list."""
        self._keys = list(checked_live(keys))

    def declare_sorted_keys(self, keys: Sequence[str]) -> None:
        """Say by which further keys finished streams are sorted; here that changes nothing but the list."""
        self._sorted_keys = list(checked_sorted(keys))

    def sort_finished(self, ref: StreamRef, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Do nothing: every query looks at everything here."""
        self._known(ref)
        return False

    def unsorted(self) -> list[StreamRef]:
        """Return nothing: there is nothing to sort here."""
        return []

    # -- reading ----------------------------------------------------------------------------------------------------

    def declared_keys(self) -> list[str]:
        """Return the keys that have a live index elsewhere."""
        return list(self._keys)

    def sorted_keys(self) -> list[str]:
        """Return the further keys by which finished streams are sorted elsewhere."""
        return list(self._sorted_keys)

    def stream_meta(self, ref: StreamRef) -> str:
        """Return the stream's metadata as text; UnknownStream when there is no such stream."""
        return self._known(ref).meta

    def beamtime_meta(self) -> str:
        """Return the beamtime's metadata as text."""
        self._check_open()
        return self._meta

    def _known(self, ref: StreamRef) -> MemoryStream:
        no = self.stream_no(ref)
        if no is None:
            raise UnknownStream(f"no stream {ref} yet", source=ref.source, stream=ref.stream)
        return self._streams[no - 1]

    def stream_no(self, ref: StreamRef) -> int | None:
        """Return the number of a stream, None when there is no such stream."""
        self._check_open()
        if ref.beamtime != self.beamtime:
            raise WrongInput(f"{ref} is not of beamtime {self.beamtime!r}")
        no = self._numbers.get(ref)
        return no if no is not None and self._streams[no - 1].known else None

    def stream_refs(self, nos: Iterable[int]) -> dict[int, StreamRef]:
        """Return the names of streams by number, also of such that are known only as an origin."""
        return {no: stream.ref for no in nos if (stream := self._at(no)) is not None}

    def segments(self, nos: Iterable[int]) -> dict[int, SegmentInfo]:
        """Return where these segments lie."""
        known = {no: self._segment_infos[no - 1] for no in nos if 1 <= no <= len(self._segment_infos)}
        return {no: info for no, (info, opened) in known.items() if self._at_path(opened)}

    def formats(self, nos: Iterable[int]) -> dict[int, Format]:
        """Return the payload formats by number."""
        return {no: self._formats[no - 1] for no in nos if 1 <= no <= len(self._formats)}

    def stream_info(self, ref: StreamRef) -> StreamInfo:
        """Return what is known of a stream; UnknownStream when there is no such stream."""
        return self._info(self._known(ref))

    def _info(self, stream: MemoryStream) -> StreamInfo:
        with self._lock:
            return StreamInfo(
                ref=stream.ref,
                n_messages=len(stream.rows),
                n_bytes=sum(row.size for row in stream.rows),
                id_max=stream.id_max,
                head_seq=len(stream.rows),
                closed_below=self._watermark(stream),
                finished=stream.finished,
                last_id=stream.last_id,
                next_stream=stream.next_stream,
                meta=json.loads(stream.meta),
            )

    def streams(self, source: str | None = None, after: StreamRef | None = None, limit: int = 1000) -> list[StreamInfo]:
        """Return streams ordered by source and name, of one source or all, from the first one behind `after`."""
        self._check_open()
        found = [
            stream
            for stream in sorted(self._streams, key=lambda stream: _utf8(stream.ref))
            if stream.known
            and (source is None or stream.ref.source == source)
            and (after is None or _utf8(stream.ref) > _utf8(after))
        ]
        return [self._info(stream) for stream in found[:limit]]

    def sources(self) -> list[str]:
        """Return the data sources that have a stream, ordered."""
        return sorted({stream.ref.source for stream in self._streams if stream.known}, key=str.encode)

    def heads(self, stream_nos: Sequence[int]) -> dict[int, StreamHead]:
        """Return the heads of these streams."""
        with self._lock:
            found = {no: stream for no in stream_nos if (stream := self._at(no)) is not None}
            return {no: self._head(stream) for no, stream in found.items() if not stream.deleted}

    def _head(self, stream: MemoryStream) -> StreamHead:
        end = (stream.finished, stream.last_id, stream.next_stream)
        return StreamHead(len(stream.rows), stream.id_max, *end, self._watermark(stream))

    def _watermark(self, stream: MemoryStream) -> int:
        marks = [session.closed_below for session in stream.sessions.values() if self._is_open(session)]
        return min(marks, default=max(stream.id_max, stream.last_id) + 1)

    def watermark(self, stream_no: int) -> int:
        """Return the id under which everything is visible or will never come; 0 for an unknown number."""
        head = self.heads([stream_no]).get(stream_no)
        return 0 if head is None else head.watermark

    def _rows(self, stream_no: int) -> list[Row]:
        stream = self._at(stream_no)
        return [] if stream is None else list(stream.rows)

    def rows_after_seq(self, stream_no: int, seq: int, limit: int) -> list[RowTuple]:
        """Return rows that arrived after `seq`, in order of arrival."""
        rows: list[RowTuple] = [*self._rows(stream_no)]
        return rows[max(seq, 0) :][:limit]

    def rows_from_id(self, stream_no: int, id_from: int, id_below: int, limit: int) -> list[RowTuple]:
        """Return rows with `id_from <= id < id_below`, ordered by id and substream."""
        rows = sorted(self._rows(stream_no), key=lambda row: (row.id, row.substream))
        found: list[RowTuple] = [row for row in rows if id_from <= row.id < id_below]
        return found[:limit]

    def row(self, stream_no: int, message_id: int, substream: int | None = None) -> RowTuple | None:
        """Return one message (of its lowest substream unless one is named), or None."""
        rows = self.rows_from_id(stream_no, message_id, message_id + 1, MAX_ID)
        return next((row for row in rows if substream is None or row[2] == substream), None)

    def last_row(self, stream_no: int) -> RowTuple | None:
        """Return the message with the highest id, of datasets only complete ones, or None."""
        rows = self._rows(stream_no)
        for message_id in sorted({row.id for row in rows}, reverse=True):
            parts = [row for row in rows if row.id == message_id]
            if len(parts) >= max(row.dataset_size for row in parts):
                return self.row(stream_no, message_id)
        return None


def _utf8(ref: StreamRef) -> tuple[bytes, bytes]:
    """Databases order names by their bytes."""
    return ref.source.encode(), ref.stream.encode()
