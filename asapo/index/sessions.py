"""Producer sessions in the SQLite index: who is there, and the id under which nothing more will come (R7, R8)."""

from __future__ import annotations

import functools
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Final

from asapo.errors import StreamBusy, WrongInput
from asapo.index.interface import OpenedStream, StreamHead
from asapo.index.lookup import MAX_NUMBERS
from asapo.models import MAX_ID, StreamRef

FORGET_AFTER_S: Final = 3600.0
"""A session row is removed when nothing was heard of it for this long."""
LONG_AGO_S: Final = -1e9
"""`seen_s` of sessions from before the last boot: the clock began anew."""
IS_OPEN: Final = "closed = 0 AND seen_s > ?"

_HEADS: Final = (
    "SELECT no, head_seq, id_max, finished, last_id, next_stream, (SELECT min(closed_below) FROM session "
    f"WHERE stream_no = no AND {IS_OPEN}) FROM stream WHERE no IN ({{}})"
)


def shared_clock_s() -> float:
    """Return seconds since boot: one clock for all processes of the host, never set, running on during suspend."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def open_session(
    connection: sqlite3.Connection,
    no: int,
    ref: StreamRef,
    *,
    session_id: bytes,
    substream: int,
    numbering: bool,
    receiver_id: str,
    now_s: float,
    timeout_s: float,
) -> OpenedStream:
    """Note that a session works on a stream, and return what it must know of it."""
    if numbering:
        others = (
            f"SELECT receiver_id FROM session WHERE stream_no = ? AND substream = ? AND numbering = 1 AND {IS_OPEN} "
            "AND session_id <> ?"
        )
        if found := connection.execute(others, (no, substream, now_s - timeout_s, session_id)).fetchall():
            raise StreamBusy(
                f"{ref} (substream {substream}): another live session numbers it (at {found[0][0]!r}); give ids or "
                f"a substream, or try again {timeout_s:g} s after the other one ended without closing",
                receiver_id=found[0][0],
            )
    connection.execute("DELETE FROM session WHERE seen_s < ?", (now_s - max(FORGET_AFTER_S, timeout_s),))
    connection.execute("UPDATE stream SET known = 1 WHERE no = ?", (no,))
    select = "SELECT id_max, finished, last_id, next_stream FROM stream WHERE no = ?"
    id_max, finished, last_id, next_stream = connection.execute(select, (no,)).fetchall()[0]
    if substream:
        # Modules number on their own; the newest entries of the id index hold the answer unless one fell far behind.
        own = "SELECT id FROM message WHERE stream_no = ? AND substream = ? ORDER BY id DESC LIMIT 1"
        id_max = next((row[0] for row in connection.execute(own, (no, substream)).fetchall()), 0)
    closed_below = min(id_max + 1, MAX_ID) if numbering else 0
    upsert = (
        "INSERT INTO session VALUES(?, ?, ?, ?, ?, ?, ?, 0) ON CONFLICT DO UPDATE SET "
        "closed_below = max(closed_below, excluded.closed_below), numbering = max(numbering, excluded.numbering), "
        "receiver_id = excluded.receiver_id, seen_s = excluded.seen_s, closed = 0 RETURNING closed_below"
    )
    values = (no, substream, session_id, closed_below, int(numbering), receiver_id, now_s)
    ((closed_below,),) = connection.execute(upsert, values).fetchall()
    return OpenedStream(id_max, closed_below, bool(finished), last_id, next_stream)


def beat(connection: sqlite3.Connection, session_id: bytes, marks: Mapping[int, int], now_s: float) -> None:
    """Keep a session alive everywhere and raise its marks."""
    connection.execute("UPDATE session SET seen_s = ? WHERE session_id = ? AND closed = 0", (now_s, session_id))
    connection.executemany(
        "UPDATE session SET closed_below = max(closed_below, ?) WHERE stream_no = ? AND session_id = ? AND closed = 0",
        [(mark, no, session_id) for no, mark in marks.items()],
    )


@functools.lru_cache(maxsize=64)
def _heads_text(n: int) -> str:
    return _HEADS.format(",".join("?" * n))


def heads(connection: sqlite3.Connection, nos: Sequence[int], now_s: float, timeout_s: float) -> dict[int, StreamHead]:
    """Return head and watermark of streams, each of one snapshot."""
    rows = []
    for start in range(0, len(nos), MAX_NUMBERS):
        some = nos[start : start + MAX_NUMBERS]
        rows += connection.execute(_heads_text(len(some)), (now_s - timeout_s, *some)).fetchall()
    return {
        # The sum is made here because SQLite would make 2**63 a double. Nobody sends any more: all up to the end is
        # settled, also when the last id that was declared has no message.
        no: StreamHead(
            head, id_max, finished == 1, last_id, next_stream, max(id_max, last_id) + 1 if mark is None else mark
        )
        for no, head, id_max, finished, last_id, next_stream, mark in rows
    }


def end_all_of_earlier_boots(connection: sqlite3.Connection, boot_id: str) -> None:
    """Count sessions as lost that were heard of before the machine was booted: the clock began anew."""
    ((known,),) = connection.execute("SELECT value FROM info WHERE name = 'boot_id'").fetchall()
    if known != boot_id:
        connection.execute("UPDATE session SET seen_s = ?", (LONG_AGO_S,))
        connection.execute("UPDATE info SET value = ? WHERE name = 'boot_id'", (boot_id,))


def finish(connection: sqlite3.Connection, no: int, ref: StreamRef, last_id: int, next_stream: str) -> None:
    """Note the end of a stream once."""
    select = "SELECT finished, last_id, next_stream, id_max FROM stream WHERE no = ?"
    finished, known_id, known_next, id_max = connection.execute(select, (no,)).fetchall()[0]
    if finished and (known_id, known_next) != (last_id, next_stream):
        raise WrongInput(
            f"{ref} is finished with last id {known_id} and next stream {known_next!r}: cannot finish it with "
            f"{last_id} and {next_stream!r}",
            last_id=known_id,
            next_stream=known_next,
        )
    if last_id < id_max:
        raise WrongInput(f"{ref} cannot end at id {last_id}: id {id_max} is there", id_max=id_max)
    update = "UPDATE stream SET known = 1, finished = 1, last_id = ?, next_stream = ? WHERE no = ?"
    connection.execute(update, (last_id, next_stream, no))
