"""The write path of the SQLite index: units in, one transaction, outcomes out (R6, R14, R24)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, repeat
from typing import Any, Final

from asapo.errors import AsapoError, DuplicateFile, DuplicateId, StreamFinished, WrongInput
from asapo.index.interface import OwnFile, UnitOutcome, UnitRecord
from asapo.index.schema import SEQ_BITS
from asapo.models import MAX_ID, Format, Origin, StreamRef
from asapo.storage.layout import client_path_of

INSERT: Final = f"INSERT INTO message VALUES({','.join('?' * 15)})"
GROW: Final = (
    "UPDATE stream SET known = 1, head_seq = head_seq + ?, n_messages = n_messages + ?, n_bytes = n_bytes + ?, "
    "id_max = max(id_max, ?) WHERE no = ?"
)
HEAD: Final = "SELECT head_seq, finished, last_id, next_stream FROM stream WHERE no = ?"
MARK: Final = (
    "INSERT INTO session(stream_no, substream, session_id, closed_below, receiver_id, seen_s) VALUES(?, ?, ?, ?, ?, ?) "
    "ON CONFLICT DO UPDATE SET closed_below = max(closed_below, excluded.closed_below), seen_s = excluded.seen_s, "
    "receiver_id = excluded.receiver_id"
)
FIND: Final = (
    "SELECT key, segment, offset, t_ingest_ns, size, checksum, format, meta FROM message "
    "WHERE stream_no = ? AND id = ? AND substream = ?"
)
STORED: Final = "SELECT segment, t_ingest_ns FROM message WHERE stream_no = ? AND id = ? AND substream = ?"
ADD_STREAM: Final = (
    "INSERT OR IGNORE INTO stream(no, source, stream) SELECT 1 + max(ifnull((SELECT max(no) FROM stream), 0), "
    "ifnull((SELECT max(stream_no) FROM deletion), 0)), ?, ?"
)
"""The number of a stream that was deleted is never given again."""
ADD_FILE: Final = (
    "INSERT INTO segment(path, receiver_id, epoch, tier_uuid, boot_id, source, stream, closed) "
    "VALUES(?, ?, ?, ?, ?, ?, ?, 1)"
)

_NO_ORIGIN: Final[tuple[int, int]] = (0, 0)
_NO_ORIGINS: Final = (repeat(0), repeat(0))


class NotPlain(Exception):
    """The fast path met a row that it cannot simply add; the transaction is rolled back and done again row by row."""


def refused_row(error: Exception) -> bool:
    """Return True when an insert failed because of the row, not because of the database."""
    if isinstance(error, sqlite3.OperationalError):
        # Generic errors come from evaluating CHECKs and key expressions ("malformed JSON"); locks, I/O have own codes.
        return error.sqlite_errorcode == sqlite3.SQLITE_ERROR
    kinds = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, OverflowError, UnicodeEncodeError)
    return isinstance(error, kinds)


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape as it is stored."""
    return ",".join(map(str, shape))


def parse_shape(text: str) -> tuple[int, ...]:
    """Return the shape behind a stored text."""
    return tuple(map(int, text.split(","))) if text else ()


class Names:
    """Numbers of streams and formats, looked up once; they hold until a stream is deleted: `refresh` notices.

    A transaction that is rolled back may have given numbers that do not last: `forget` after each.
    """

    def __init__(self) -> None:
        self._streams: dict[tuple[str, str], int] = {}
        self._formats: dict[Format, int] = {}
        self._deletions = 0
        self._deleted: dict[tuple[str, str], int] = {}

    def refresh(self, connection: sqlite3.Connection) -> None:
        """Take note of deletions by whichever process; at the begin of each transaction."""
        ((last,),) = connection.execute("SELECT ifnull(max(no), 0) FROM deletion").fetchall()
        if last != self._deletions:
            self.forget()
            found = connection.execute(
                "SELECT source, stream, max(no) FROM deletion GROUP BY source, stream"
            ).fetchall()
            self._deleted = {(source, stream): no for source, stream, no in found}
            self._deletions = last

    def void(self, units: Sequence[UnitRecord]) -> set[int]:
        """Return the positions of units whose segment was begun before their stream was deleted."""
        last = self._deletions
        return {
            at
            for at, unit in enumerate(units)
            if unit.begun is not None
            and unit.begun < last
            and unit.begun < self._deleted.get((unit.ref.source, unit.ref.stream), 0)
        }

    def forget(self) -> None:
        """Drop everything."""
        self._streams.clear()
        self._formats.clear()

    def stream(self, connection: sqlite3.Connection, source: str, stream: str) -> int:
        """Return the number of a stream; give one when it is new."""
        no = self._streams.get((source, stream))
        if no is None:
            names = (source, stream)
            connection.execute(ADD_STREAM, names)
            select = "SELECT no FROM stream WHERE source = ? AND stream = ?"
            no = self._streams[names] = int(connection.execute(select, names).fetchall()[0][0])
        return no

    def format(self, connection: sqlite3.Connection, kind: Format) -> int:
        """Return the number of a format; give one when it is new."""
        no = self._formats.get(kind)
        if no is None:
            values = (kind.dtype, shape_text(kind.shape), kind.codec)
            connection.execute("INSERT OR IGNORE INTO format(dtype, shape, codec) VALUES(?, ?, ?)", values)
            select = "SELECT no FROM format WHERE dtype = ? AND shape = ? AND codec = ?"
            no = self._formats[kind] = int(connection.execute(select, values).fetchall()[0][0])
        return no


def _origin_columns(
    connection: sqlite3.Connection, names: Names, origins: Sequence[Origin | None]
) -> tuple[Iterable[int], Iterable[int]]:
    pairs = [
        _NO_ORIGIN if origin is None else (names.stream(connection, origin.source, origin.stream), origin.message_id)
        for origin in origins
    ]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _rows(
    connection: sqlite3.Connection, names: Names, unit: UnitRecord, stream_no: int, first_seq: int, format_no: int
) -> Iterable[tuple[Any, ...]]:
    """Return a unit's rows as INSERT takes them; the work per row is done by `zip`."""
    key = (stream_no << SEQ_BITS) | first_seq
    origins: tuple[Iterable[int], Iterable[int]] = _NO_ORIGINS
    if unit.origins is not None:
        origins = _origin_columns(connection, names, unit.origins)
    return zip(
        range(key, key + len(unit.ids)),
        repeat(stream_no),
        unit.ids,
        repeat(unit.substream),
        repeat(unit.dataset_size),
        repeat(unit.segment),
        unit.offsets,
        unit.sizes,
        unit.checksums,
        repeat(format_no),
        unit.metas,
        unit.t_acq_ns,
        repeat(unit.t_ingest_ns),
        *origins,
        strict=False,
    )


def _single_row(unit: UnitRecord, stream_no: int, seq: int, format_no: int) -> tuple[Any, ...]:
    """Return the row of a unit of one message without origin: a fifth of the price of `_rows`."""
    return (
        (stream_no << SEQ_BITS) | seq,
        stream_no,
        unit.ids[0],
        unit.substream,
        unit.dataset_size,
        unit.segment,
        unit.offsets[0],
        unit.sizes[0],
        unit.checksums[0],
        format_no,
        unit.metas[0],
        unit.t_acq_ns[0],
        unit.t_ingest_ns,
        0,
        0,
    )


def by_stream(units: Sequence[UnitRecord]) -> dict[StreamRef, list[int]]:
    """Return the positions of each stream's units, in order."""
    found: dict[StreamRef, list[int]] = {}
    ref, places = None, []
    for position, unit in enumerate(units):
        # Neighbours mostly share one record: hashing it costs more than the rest of this loop.
        if unit.ref is not ref:
            ref = unit.ref
            places = found.setdefault(ref, [])
        places.append(position)
    return found


def commit_fast(connection: sqlite3.Connection, names: Names, units: Sequence[UnitRecord]) -> list[UnitOutcome]:
    """Add all rows of all units, all of them new.

    Raises
    ------
    NotPlain
        If any row is not new or not acceptable, or any unit has a file of its own; what was done must be rolled back.
    """
    if any(unit.file is not None for unit in units):
        raise NotPlain
    outcomes: dict[int, UnitOutcome] = {}
    for ref, positions in by_stream(units).items():
        no = names.stream(connection, ref.source, ref.stream)
        head, finished, last_id, _ = connection.execute(HEAD, (no,)).fetchall()[0]
        added = _Added(head)
        for position in positions:
            outcomes[position] = added.unit(connection, names, units[position], no)
        if not 0 <= added.top <= (last_id if finished else MAX_ID):
            raise NotPlain
        try:
            connection.executemany(INSERT, chain.from_iterable(added.rows))
        except (sqlite3.Error, OverflowError, UnicodeEncodeError) as exc:
            if refused_row(exc):
                raise NotPlain from exc
            raise
        n = added.seq - head
        connection.execute(GROW, (n, n, added.n_bytes, added.top, no))
    return [outcomes[position] for position in range(len(units))]


class _Added:
    """Rows and sums of the units of one stream that are about to be added."""

    __slots__ = ("_format", "_format_no", "n_bytes", "rows", "seq", "top")

    def __init__(self, head_seq: int) -> None:
        self.seq = head_seq
        self.top = 0
        self.n_bytes = 0
        self.rows: list[Iterable[tuple[Any, ...]]] = []
        self._format: Format | None = None
        self._format_no = 0

    def unit(self, connection: sqlite3.Connection, names: Names, unit: UnitRecord, stream_no: int) -> UnitOutcome:
        """Take a unit up."""
        if unit.format is not self._format:
            self._format, self._format_no = unit.format, names.format(connection, unit.format)
        first, count = self.seq + 1, len(unit.ids)
        if count == 1 and unit.origins is None:
            self.rows.append((_single_row(unit, stream_no, first, self._format_no),))
            top = unit.ids[0]
            self.n_bytes += unit.sizes[0]
        elif count:
            self.rows.append(_rows(connection, names, unit, stream_no, first, self._format_no))
            top = max(unit.ids)
            self.n_bytes += sum(unit.sizes)
        else:
            return UnitOutcome(0, self.seq, format_no=self._format_no)
        if top > self.top:
            self.top = top
        self.seq += count
        return UnitOutcome(first, self.seq, format_no=self._format_no)


def commit_slow(connection: sqlite3.Connection, names: Names, units: Sequence[UnitRecord]) -> list[UnitOutcome]:
    """Add the rows one by one, so that a refused one takes no arrival number and refuses only itself."""
    return [_commit_unit(connection, names, unit) for unit in units]


def _commit_unit(connection: sqlite3.Connection, names: Names, unit: UnitRecord) -> UnitOutcome:
    if unit.file is not None and unit.ids:
        return _commit_file(connection, names, unit, unit.file)
    return _commit_messages(connection, names, unit)


def _commit_file(connection: sqlite3.Connection, names: Names, unit: UnitRecord, file: OwnFile) -> UnitOutcome:
    """Add a message with a file of its own, which is registered only if the message is taken."""
    no = names.stream(connection, unit.ref.source, unit.ref.stream)
    place = (no, unit.ids[0], unit.substream)
    known = connection.execute("SELECT no FROM segment WHERE path = ?", (file.path,)).fetchall()
    if known:
        # A file is registered together with its message, so it has one.
        number = int(known[0][0])
        if not connection.execute(f"{STORED} AND segment > 0", place).fetchall():
            path = client_path_of(file.path, unit.ref.source, unit.ref.stream)
            what = f"{unit.ref} id {unit.ids[0]}: another message has the file {path!r}; choose another path"
            head = connection.execute(HEAD, (no,)).fetchall()[0][0]
            return UnitOutcome(0, head, ((0, DuplicateFile(what, path=path, message_id=unit.ids[0])),))
    else:
        facts = (file.path, file.receiver_id, file.epoch, file.tier_uuid, file.boot_id)
        number = int(connection.execute(ADD_FILE, (*facts, unit.ref.source, unit.ref.stream)).lastrowid or 0)
    outcome = _commit_messages(connection, names, replace(unit, segment=number, file=None))
    found = connection.execute(STORED, place).fetchall()
    if found and found[0][0] == number:
        # Of two PUTs with one file the time tells whether this is the one that counts, replayed, or was sent again.
        spare = () if found[0][1] == unit.t_ingest_ns else (0,)
        return outcome._replace(segment=number, superseded=spare)
    if not known:
        connection.execute("DELETE FROM segment WHERE no = ?", (number,))
    return outcome


def _commit_messages(connection: sqlite3.Connection, names: Names, unit: UnitRecord) -> UnitOutcome:
    no = names.stream(connection, unit.ref.source, unit.ref.stream)
    head, finished, last_id, next_stream = connection.execute(HEAD, (no,)).fetchall()[0]
    first, n_bytes, top = head + 1, 0, 0
    errors: list[tuple[int, AsapoError]] = []
    superseded: list[int] = []
    format_no = names.format(connection, unit.format)
    for index, row in enumerate(_rows(connection, names, unit, no, 0, format_no)):
        message_id, size = row[2], row[7]
        if finished and message_id > last_id:
            known = {"message_id": message_id, "id_max": last_id, "next_stream": next_stream}
            errors.append((index, StreamFinished(f"{unit.ref} is finished at id {last_id}", **known)))
            continue
        try:
            connection.execute(INSERT, ((no << SEQ_BITS) | (head + 1), *row[1:]))
        except (sqlite3.Error, OverflowError, UnicodeEncodeError) as exc:
            if not refused_row(exc):
                raise
            _look_at(connection, unit, index, row, exc, errors, superseded)
            continue
        head += 1
        n_bytes += size
        top = max(top, message_id)
    n = head - first + 1
    connection.execute(GROW, (n, n, n_bytes, top, no))
    return UnitOutcome(first if n else 0, head, tuple(errors), tuple(superseded), format_no)


def _look_at(
    connection: sqlite3.Connection,
    unit: UnitRecord,
    index: int,
    row: tuple[Any, ...],
    error: Exception,
    errors: list[tuple[int, AsapoError]],
    superseded: list[int],
) -> None:
    """Say what is the matter with a refused row: there already, there with other content, or not acceptable."""
    try:
        found = connection.execute(FIND, row[1:4]).fetchall()
    except (OverflowError, sqlite3.InterfaceError):
        found = []
    if not found:
        what = f"{unit.ref} id {row[2]!r}: the index refuses this row ({error}); see the limits of ids and metadata"
        errors.append((index, WrongInput(what, message_id=row[2])))
        return
    key, segment, offset, ingest_ns, *fingerprint = found[0]
    if fingerprint != [row[7], row[8], row[9], row[10]]:
        what = f"{unit.ref} has id {row[2]} with other content; the first content stays"
        errors.append((index, DuplicateId(what, message_id=row[2], substream=row[3])))
    elif (segment, offset, ingest_ns) == (row[5], row[6], row[12]):
        # The very same record: a journal replayed, or a commit repeated because its answer was lost. The place alone
        # does not tell: payloads of no bytes take no room, and lie where the next one begins.
        return
    elif segment <= 0:
        # Only a memory held it; this copy is newer, or even lies on disk.
        move = "UPDATE message SET segment = ?, offset = ?, t_ingest_ns = ? WHERE key = ?"
        connection.execute(move, (row[5], row[6], row[12], key))
    else:
        superseded.append(index)


def mark_sessions(connection: sqlite3.Connection, names: Names, units: Sequence[UnitRecord], now_s: float) -> None:
    """Note what the producer sessions of these units said of themselves."""
    marks: dict[tuple[int, int, bytes], tuple[int, str]] = {}
    ref, no = None, 0
    for unit in units:
        session = unit.session
        if session is None:
            continue
        if unit.ref is not ref:
            ref = unit.ref
            no = names.stream(connection, ref.source, ref.stream)
        place = (no, unit.substream, session.session_id)
        known = marks.get(place)
        if known is None or session.closed_below > known[0]:
            marks[place] = (session.closed_below, session.receiver_id)
    if marks:
        connection.executemany(MARK, [(*place, *mark, now_s) for place, mark in marks.items()])
