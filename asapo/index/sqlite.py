"""The embedded index: one SQLite file per beamtime, written by the receivers of one host (R33)."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from asapo.errors import IndexUnavailable, UnknownStream
from asapo.failpoints import failpoint
from asapo.hostinfo import boot_id as boot_id_of_host
from asapo.index import deletion, ingest, schema, sessions
from asapo.index.database import BUSY_TIMEOUT_S, Database
from asapo.index.declaring import SqliteKeys
from asapo.index.interface import (
    SESSION_TIMEOUT_S,
    Clock,
    OpenedStream,
    OpenSegment,
    RowTuple,
    StreamHead,
    UnitOutcome,
    UnitRecord,
    check_object_text,
)
from asapo.index.lookup import Lookup
from asapo.index.queries import SqliteQueries
from asapo.index.schema import ROW_SQL, SEQ_BITS, SEQ_MASK
from asapo.models import MAX_ID, Format, SegmentInfo, StreamInfo, StreamRef, check_id, check_name

_INFO: Final = (
    "SELECT no, source, stream, n_messages, n_bytes, id_max, head_seq, finished, last_id, next_stream, meta "
    "FROM stream WHERE known = 1"
)
_LAST_COMPLETE: Final = (
    "SELECT id FROM message WHERE stream_no = ? GROUP BY id HAVING count(*) >= max(dataset_size) "
    "ORDER BY id DESC LIMIT 1"
)
_BY_ID: Final = f"SELECT {ROW_SQL} FROM message WHERE stream_no = ? AND id "


class SqliteIndex(SqliteQueries, SqliteKeys, deletion.SqliteDeletions):
    """`MetadataIndex` in one SQLite file.

    Parameters
    ----------
    path : path
        The file; its folder is created.
    beamtime : str
        Name of the beamtime.
    session_timeout_s : float, unit s
        A producer session unheard of for longer holds back nobody.
    busy_timeout_s : float, unit s
        How long a write waits for other writers before it raises IndexUnavailable.
    clock_s, boot_id : optional
        Clock of the sessions and the boot it belongs to; for tests.

    Raises
    ------
    ConfigError
        If the folder lies on a network file system.
    UnsupportedVersion, DamagedFile
        If the file is of another major version, or no index.
    WrongInput
        If the file is the index of another beamtime.
    IndexUnavailable
        If the file cannot be opened or written.
    """

    def __init__(
        self,
        path: str | Path,
        beamtime: str,
        *,
        session_timeout_s: float = SESSION_TIMEOUT_S,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        clock_s: Clock = sessions.shared_clock_s,
        boot_id: str | None = None,
    ) -> None:
        self.beamtime = check_name("beamtime", beamtime)
        self.path = Path(path)
        self._session_timeout_s = session_timeout_s
        self._clock_s = clock_s
        self._make_folder()
        self._names = ingest.Names()
        self._database = Database(self.path, busy_timeout_s=busy_timeout_s)
        self._refs = Lookup(self._database, deletion.NAMED, lambda row: StreamRef(beamtime, row[1], row[2]))
        self._formats = Lookup(
            self._database,
            "SELECT no, dtype, shape, codec FROM format",
            lambda row: Format(row[1], ingest.parse_shape(row[2]), row[3]),
        )
        self._segments = Lookup(
            self._database,
            "SELECT no, path, receiver_id, boot_id, tier_uuid FROM segment",
            lambda row: SegmentInfo(*row[1:]),
        )
        try:
            with self._database.writing() as connection:
                schema.prepare(connection, self.path, beamtime)
                sessions.end_all_of_earlier_boots(connection, boot_id_of_host() if boot_id is None else boot_id)
        except BaseException:
            self._database.close()
            raise

    def _make_folder(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise IndexUnavailable(f"index {self.path}: {exc}", path=str(self.path), reason="mkdir") from exc
        schema.refuse_network_file_system(self.path.parent)

    def close(self) -> None:
        """Close the index; using it afterwards raises IndexUnavailable."""
        self._database.close()

    # -- ingest -----------------------------------------------------------------------------------------------------

    def commit(self, units: Sequence[UnitRecord]) -> list[UnitOutcome]:
        """Index the units in one transaction; one bad message refuses only itself; units keep their order."""
        for ref in ingest.by_stream(units):
            self._own(ref)
        try:
            return self._commit(units, ingest.commit_fast)
        except ingest.NotPlain:
            return self._commit(units, ingest.commit_slow)

    def _commit(self, units: Sequence[UnitRecord], how: Callable[..., list[UnitOutcome]]) -> list[UnitOutcome]:
        with self._writing() as connection:
            void = self._names.void(units)
            taken = [unit for at, unit in enumerate(units) if at not in void] if void else units
            outcomes = how(connection, self._names, taken)
            ingest.mark_sessions(connection, self._names, taken, self._clock_s())
            failpoint("index.before-commit")
        if not void:
            return outcomes
        rest = iter(outcomes)
        return [UnitOutcome(0, 0, void=True) if at in void else next(rest) for at in range(len(units))]

    def register_segment(
        self, path: str, receiver_id: str, epoch: int, tier_uuid: str, boot_id: str, ref: StreamRef
    ) -> int:
        """Return the number of a segment, from 1; the same path again returns the same number."""
        self._own(ref)
        values = (path, receiver_id, epoch, tier_uuid, boot_id, ref.source, ref.stream)
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO segment(path, receiver_id, epoch, tier_uuid, boot_id, source, stream) "
                "VALUES(?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                values,
            )
            return int(connection.execute("SELECT no FROM segment WHERE path = ?", (path,)).fetchall()[0][0])

    def close_segment(self, no: int) -> None:
        """Note that the segment is complete and everything in it indexed."""
        with self._writing() as connection:
            connection.execute("UPDATE segment SET closed = 1 WHERE no = ?", (no,))

    def open_segments(self, receiver_id: str) -> list[OpenSegment]:
        """Return the receiver's segments that are not closed, oldest first."""
        select = "SELECT no, path, epoch, source, stream FROM segment WHERE receiver_id = ? AND closed = 0 ORDER BY no"
        return [
            OpenSegment(no, path, epoch, StreamRef(self.beamtime, source, stream))
            for no, path, epoch, source, stream in self._database.read(select, (receiver_id,))
        ]

    def known_segments(self, paths: Sequence[str]) -> set[str]:
        """Return those of these paths that are registered."""
        select = "SELECT path FROM segment WHERE path IN (SELECT value FROM json_each(?))"
        return {path for (path,) in self._database.read(select, (json.dumps(paths),))}

    def open_session(
        self, ref: StreamRef, session_id: bytes, substream: int, numbering: bool, receiver_id: str
    ) -> OpenedStream:
        """Open the stream for a session, creating it if need be; StreamBusy when another live session numbers it."""
        self._own(ref)
        with self._writing() as connection:
            return sessions.open_session(
                connection,
                self._names.stream(connection, ref.source, ref.stream),
                ref,
                session_id=session_id,
                substream=substream,
                numbering=numbering,
                receiver_id=receiver_id,
                now_s=self._clock_s(),
                timeout_s=self._session_timeout_s,
            )

    def beat(self, session_id: bytes, marks: Mapping[StreamRef, int]) -> None:
        """Keep a session alive on all its streams and raise its `closed_below` on those given."""
        with self._writing() as connection:
            numbered = {self._names.stream(connection, ref.source, ref.stream): mark for ref, mark in marks.items()}
            sessions.beat(connection, session_id, numbered, self._clock_s())

    def close_session(self, session_id: bytes) -> None:
        """End a session; it holds back nobody any more."""
        with self._writing() as connection:
            connection.execute("UPDATE session SET closed = 1 WHERE session_id = ?", (session_id,))

    def finish_stream(self, ref: StreamRef, last_id: int, next_stream: str) -> None:
        """Note the end of a stream; again with the same values is fine, else WrongInput."""
        self._own(ref)
        if last_id != 0:
            check_id(last_id)
        with self._writing() as connection:
            no = self._names.stream(connection, ref.source, ref.stream)
            sessions.finish(connection, no, ref, last_id, next_stream)

    def set_stream_meta(self, ref: StreamRef, text: str) -> None:
        """Set the stream's metadata (one JSON object as text), creating the stream if need be."""
        self._own(ref)
        check_object_text(text)
        with self._writing() as connection:
            no = self._names.stream(connection, ref.source, ref.stream)
            connection.execute("UPDATE stream SET known = 1, meta = ? WHERE no = ?", (text, no))

    def set_beamtime_meta(self, text: str) -> None:
        """Set the beamtime's metadata (one JSON object as text)."""
        check_object_text(text)
        with self._writing() as connection:
            connection.execute("UPDATE info SET value = ? WHERE name = 'meta'", (text,))

    # -- reading ----------------------------------------------------------------------------------------------------

    def stream_meta(self, ref: StreamRef) -> str:
        """Return the stream's metadata as text; UnknownStream when there is no such stream."""
        rows = self._named("SELECT meta FROM stream", ref)
        if not rows:
            raise self._unknown(ref)
        return str(rows[0][0])

    def beamtime_meta(self) -> str:
        """Return the beamtime's metadata as text."""
        return str(self._database.read("SELECT value FROM info WHERE name = 'meta'")[0][0])

    def _unknown(self, ref: StreamRef) -> UnknownStream:
        return UnknownStream(f"no stream {ref} yet", source=ref.source, stream=ref.stream)

    def segments(self, nos: Iterable[int]) -> dict[int, SegmentInfo]:
        """Return where these segments lie (without data server address: the core knows that)."""
        return self._segments(nos)

    def formats(self, nos: Iterable[int]) -> dict[int, Format]:
        """Return the payload formats by number."""
        return self._formats(nos)

    def stream_info(self, ref: StreamRef) -> StreamInfo:
        """Return what is known of a stream; UnknownStream when there is no such stream."""
        self._own(ref)
        found = self._infos(f"{_INFO} AND source = ? AND stream = ?", (ref.source, ref.stream))
        if not found:
            raise self._unknown(ref)
        return found[0]

    def streams(self, source: str | None = None, after: StreamRef | None = None, limit: int = 1000) -> list[StreamInfo]:
        """Return streams ordered by source and name, of one source or all, from the first one behind `after`."""
        text, params = _INFO, []
        if source is not None:
            text += " AND source = ?"
            params.append(source)
        if after is not None:
            text += " AND (source, stream) > (?, ?)"
            params += [after.source, after.stream]
        return self._infos(f"{text} ORDER BY source, stream LIMIT {limit}", params)

    def _infos(self, select: str, params: Sequence[str]) -> list[StreamInfo]:
        with self._database.reading() as connection:
            connection.execute("BEGIN")
            try:
                rows = connection.execute(select, params).fetchall()
                marks = self._heads(connection, [row[0] for row in rows])
            finally:
                connection.execute("COMMIT")
        return [
            StreamInfo(
                ref=StreamRef(self.beamtime, source, stream),
                n_messages=n_messages,
                n_bytes=n_bytes,
                id_max=id_max,
                head_seq=head_seq,
                closed_below=marks[no].watermark,
                finished=finished == 1,
                last_id=last_id,
                next_stream=next_stream,
                meta=json.loads(meta),
            )
            for no, source, stream, n_messages, n_bytes, id_max, head_seq, finished, last_id, next_stream, meta in rows
        ]

    def sources(self) -> list[str]:
        """Return the data sources that have a stream, ordered."""
        return [
            source for (source,) in self._database.read("SELECT DISTINCT source FROM stream WHERE known = 1 ORDER BY 1")
        ]

    def heads(self, stream_nos: Sequence[int]) -> dict[int, StreamHead]:
        """Return the heads of these streams in one cheap look."""
        with self._database.reading() as connection:
            return self._heads(connection, stream_nos)

    def _heads(self, connection: sqlite3.Connection, nos: Sequence[int]) -> dict[int, StreamHead]:
        return sessions.heads(connection, nos, self._clock_s(), self._session_timeout_s)

    def watermark(self, stream_no: int) -> int:
        """Return the id under which everything is visible or will never come; 0 for an unknown number."""
        return next((head.watermark for head in self.heads([stream_no]).values()), 0)

    def rows_after_seq(self, stream_no: int, seq: int, limit: int) -> list[RowTuple]:
        """Return rows that arrived after `seq`, in order of arrival."""
        base = stream_no << SEQ_BITS
        select = f"SELECT {ROW_SQL} FROM message WHERE key > ? AND key <= ? ORDER BY key LIMIT ?"
        return self._database.read(select, (base + min(max(seq, 0), SEQ_MASK), base + SEQ_MASK, limit))

    def rows_from_id(self, stream_no: int, id_from: int, id_below: int, limit: int) -> list[RowTuple]:
        """Return rows with `id_from <= id < id_below`, ordered by id and substream."""
        last = min(id_below - 1, MAX_ID)
        if id_from > last:
            return []
        select = f"{_BY_ID}BETWEEN ? AND ? ORDER BY id, substream LIMIT ?"
        return self._database.read(select, (stream_no, max(id_from, 0), max(last, 0), limit))

    def row(self, stream_no: int, message_id: int, substream: int | None = None) -> RowTuple | None:
        """Return one message (of its lowest substream unless one is named), or None."""
        if not 1 <= message_id <= MAX_ID:
            return None
        if substream is None:
            rows = self._database.read(f"{_BY_ID}= ? ORDER BY substream LIMIT 1", (stream_no, message_id))
        else:
            rows = self._database.read(f"{_BY_ID}= ? AND substream = ?", (stream_no, message_id, substream))
        return rows[0] if rows else None

    def last_row(self, stream_no: int) -> RowTuple | None:
        """Return the message with the highest id, of datasets only complete ones (R9), or None."""
        rows = self._database.read(_LAST_COMPLETE, (stream_no,))
        return self.row(stream_no, rows[0][0]) if rows else None
