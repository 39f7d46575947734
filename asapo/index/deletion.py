"""Streams that were deleted (decision 0017): forgotten in one transaction, their files moved away in a second one.

What is left of the rows then belongs to a number that nobody finds any more; it is removed in the background.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Final

from asapo.errors import StreamBusy, UnknownStream
from asapo.failpoints import failpoint
from asapo.index.interface import Clock, Deletion
from asapo.index.schema import SEQ_BITS, SEQ_MASK
from asapo.index.sessions import IS_OPEN
from asapo.index.sqlite_base import SqliteBase
from asapo.models import StreamRef
from asapo.storage.layout import SEGMENT_SUFFIX, is_segment
from asapo.storage.trash import move_away

NAMED: Final = (
    "SELECT no, source, stream FROM (SELECT no, source, stream FROM stream "
    "UNION ALL SELECT stream_no, source, stream FROM deletion)"
)
"""Names by number, those of deleted streams among them: a message may say that it was made of one of theirs."""
CHUNK_ROWS: Final = 4096
"""Rows in one transaction of the cleaning, for some 10 ms each: that long a commit of a receiver waits."""
PAUSE_S: Final = 0.002
"""Between two transactions, so that writers in other processes get their turn."""
_COLUMNS: Final = "SELECT no, source, stream, folders, moved FROM deletion"
_OF_STREAM: Final = "source = ? AND stream = ? AND path NOT LIKE 'memory:%'"
"""The memory of a receiver is registered once, with whichever stream came first, and serves all."""
_ROWS: Final = (
    "DELETE FROM message WHERE key IN (SELECT key FROM message WHERE key BETWEEN :low AND :high LIMIT :n)",
    "DELETE FROM sorted_stream WHERE stream_no = :no",
    *(
        f"DELETE FROM {table} WHERE of_stream = :no AND ({key}) IN "
        f"(SELECT {key} FROM {table} WHERE of_stream = :no LIMIT :n)"
        for table, key in (("sorted", "side, value, of_id, seq"), ("pair", "side, value, row_key"))
    ),
    "DELETE FROM paired WHERE stream_no = :no",
)


class SqliteDeletions(SqliteBase):
    """The part of the SQLite index that deletes streams."""

    _session_timeout_s: float
    _clock_s: Clock

    def delete_stream(
        self, ref: StreamRef, *, force: bool = False, number: int = 0, folders: Sequence[str] = ()
    ) -> Deletion:
        """Forget a stream; see `MetadataIndex.delete_stream`."""
        self._own(ref)
        with self._writing() as connection:
            open_since_s = self._clock_s() - self._session_timeout_s
            found = _delete(connection, ref, number, folders, force=force, open_since_s=open_since_s)
            failpoint("delete.before-commit")
        return found

    def last_deletion(self, ref: StreamRef | None = None) -> int:
        """Return the number of the newest deletion (of a stream of this name), 0 when there was none."""
        select = "SELECT ifnull(max(no), 0) FROM deletion"
        if ref is None:
            return int(self._database.read(select)[0][0])
        return int(self._database.read(f"{select} WHERE source = ? AND stream = ?", (ref.source, ref.stream))[0][0])

    def deletions(self, after: int = 0) -> list[Deletion]:
        """Return the deletions with higher numbers, in their order."""
        return [
            _deletion(self.beamtime, row)
            for row in self._database.read(f"{_COLUMNS} WHERE no > ? ORDER BY no", (after,))
        ]

    def finish_deletion(self, no: int, move: Callable[[Deletion], None]) -> None:
        """Forget a deleted stream's segments and have its files moved, while nobody commits; once for each deletion."""
        select = f"{_COLUMNS} WHERE no = ? AND moved = 0"
        for row in self._database.read(select, (no,)):
            self._forget_segments(no, _deletion(self.beamtime, row).ref)
        with self._writing() as connection:
            rows = connection.execute(select, (no,)).fetchall()
            if not rows:
                return  # somebody else was quicker
            found = _deletion(self.beamtime, rows[0])
            connection.execute(f"DELETE FROM segment WHERE {_OF_STREAM}", (found.ref.source, found.ref.stream))
            move(found)
            connection.execute("UPDATE deletion SET moved = 1 WHERE no = ?", (no,))
            failpoint("delete.after-move")

    def _forget_segments(self, no: int, ref: StreamRef) -> None:
        """Remove most entries of a stream with very many files, in short transactions; a few are left for the last."""
        names, last = (ref.source, ref.stream), 0
        select = f"SELECT no FROM segment WHERE no > ? AND {_OF_STREAM} ORDER BY no LIMIT {CHUNK_ROWS}"
        while len(found := self._database.read(select, (last, *names))) == CHUNK_ROWS:
            first, last = last, found[-1][0]
            time.sleep(PAUSE_S)
            with self._database.writing() as connection:
                if not connection.execute("SELECT 1 FROM deletion WHERE no = ? AND moved = 0", (no,)).fetchall():
                    return  # somebody else was quicker: those of this name may be a new stream's
                some = f"DELETE FROM segment WHERE no > ? AND no <= ? AND {_OF_STREAM}"
                connection.execute(some, (first, last, *names))

    def clean_deleted(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Remove what nobody can see any more of deleted streams, in short transactions; `stopped` ends it early."""
        for no, stream_no in self._database.read("SELECT no, stream_no FROM deletion WHERE cleaned = 0"):
            low = stream_no << SEQ_BITS
            places = {"no": stream_no, "low": low, "high": low | SEQ_MASK, "n": CHUNK_ROWS}
            for statement in _ROWS:
                while not stopped():
                    time.sleep(PAUSE_S)
                    with self._database.writing() as connection:
                        if connection.execute(statement, places).rowcount < CHUNK_ROWS:
                            break
            if stopped():
                return
            with self._database.writing() as connection:
                connection.execute("UPDATE deletion SET cleaned = 1 WHERE no = ?", (no,))

    def keep_deletions(self, deletions: Sequence[Deletion]) -> None:
        """Take over what an index of before knows of deletions, into one that was made anew."""
        add = "INSERT INTO deletion(no, stream_no, source, stream, folders, moved, cleaned) VALUES(?, ?, ?, ?, ?, 1, 1)"
        with self._writing() as connection:
            for one in deletions:  # numbers of streams are others now
                values = (one.no, -one.no, one.ref.source, one.ref.stream, json.dumps(one.folders))
                connection.execute(add, values)

    def withdraw_segment(self, no: int) -> None:
        """Forget a segment that no message lies in."""
        with self._writing() as connection:
            connection.execute("DELETE FROM segment WHERE no = ?", (no,))


def move_files(deletion: Deletion) -> None:
    """Move the files of a deleted stream out of the way; to be called by `finish_deletion`."""
    failpoint("delete.before-rename")
    move_away(deletion.folders)


def _delete(
    connection: sqlite3.Connection,
    ref: StreamRef,
    number: int,
    folders: Sequence[str],
    *,
    force: bool,
    open_since_s: float,
) -> Deletion:
    """Forget a stream and note where its files lie; raises UnknownStream, StreamBusy."""
    names = (ref.source, ref.stream)
    select = "SELECT no, finished FROM stream WHERE source = ? AND stream = ? AND known = 1"
    found = connection.execute(select, names).fetchall()
    if not found or number not in (0, found[0][0]):
        raise UnknownStream(f"no stream {ref}: nothing was deleted", source=ref.source, stream=ref.stream)
    stream_no, finished = found[0]
    live = connection.execute(
        f"SELECT count(DISTINCT session_id) FROM session WHERE stream_no = ? AND {IS_OPEN}", (stream_no, open_since_s)
    ).fetchall()[0][0]
    if live and not (finished or force):
        raise busy(ref, live)
    select = f"SELECT path FROM segment WHERE {_OF_STREAM} AND path LIKE '%{SEGMENT_SUFFIX}'"
    paths = connection.execute(select, names).fetchall()
    places = sorted({*folders, *(os.path.dirname(path) for (path,) in paths if is_segment(path))})
    (last,) = connection.execute("SELECT ifnull(max(no), 0) FROM deletion").fetchone()
    # The time only keeps the numbers of an index that was made anew apart from those of the one before.
    no = max(last + 1, time.time_ns())
    add = "INSERT INTO deletion(no, stream_no, source, stream, folders) VALUES(?, ?, ?, ?, ?)"
    connection.execute(add, (no, stream_no, *names, json.dumps(places)))
    connection.execute("DELETE FROM stream WHERE no = ?", (stream_no,))
    connection.execute("DELETE FROM session WHERE stream_no = ?", (stream_no,))
    return Deletion(no, ref, tuple(places), moved=False)


def busy(ref: StreamRef, sessions: int) -> StreamBusy:
    """Return the error for a stream that somebody writes to."""
    return StreamBusy(
        f"{ref} is not finished, and {sessions} live producer session(s) write to it: call finish_stream first, or "
        "stop the producer; force deletes it all the same",
        sessions=sessions,
    )


def _deletion(beamtime: str, row: Sequence[str | int]) -> Deletion:
    no, source, stream, folders, moved = row
    ref = StreamRef(beamtime, str(source), str(stream))
    return Deletion(int(no), ref, tuple(json.loads(str(folders))), moved=bool(moved))
