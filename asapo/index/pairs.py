"""Both declared keys of finished streams, in the order of each: for who asks for the first few by one of them (R14).

A plain index on both keys costs too much while data come in (decision 0007). Of a finished stream nothing changes any
more, so the values are sorted once, in the background, and queries read the few rows that they return (decision 0015).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, Final

from asapo.index.database import Database
from asapo.index.keys import declared
from asapo.index.schema import SEQ_BITS, SEQ_MASK
from asapo.query.sql_paths import Path

MIN_ROWS: Final = 10_000
"""Shorter streams are quick without."""
CHUNK_ROWS: Final = 4096
"""Rows in one transaction, for about 10 ms each: that long a commit of a receiver waits."""
ADD: Final = "INSERT INTO pair VALUES(?, ?, ?, ?, ?)"
Declared = Mapping[Path, str]


def names_of(known: Declared) -> str:
    """Return declared keys as they are noted, in their order."""
    return json.dumps([".".join(path) for path in known])


def is_paired(connection: sqlite3.Connection, stream_no: int, head_seq: int, known: Declared) -> bool:
    """Say whether the pairs of a stream are those of all its rows and of the keys that are declared now."""
    if len(known) != 2:
        return False
    select = "SELECT 1 FROM paired WHERE stream_no = ? AND head_seq = ? AND keys = ?"
    return bool(connection.execute(select, (stream_no, head_seq, names_of(known))).fetchall())


def build(database: Database, stream_no: int, stopped: Callable[[], bool]) -> bool:
    """Sort the pairs of a finished stream, in many short transactions; False when there is nothing to do.

    Ended by `stopped`, by a death or by a change of the keys, it leaves rows that no query looks at, and begins anew
    the next time.
    """
    with database.reading() as connection:
        known = declared(connection)
        found = connection.execute("SELECT head_seq, finished FROM stream WHERE no = ?", (stream_no,)).fetchall()
        head_seq, finished = found[0] if found else (0, 0)
        if not finished or head_seq < MIN_ROWS or len(known) != 2 or is_paired(connection, stream_no, head_seq, known):
            return False
    _drop(database, stream_no, stopped)
    with database.reading() as reading:
        rows = _sorted(reading, stream_no, head_seq, known)
        while not stopped() and (some := list(islice(rows, CHUNK_ROWS))):
            with database.writing() as connection:
                connection.executemany(ADD, some)
    if stopped():
        return False
    with database.writing() as connection:
        connection.execute("INSERT INTO paired VALUES(?, ?, ?)", (stream_no, head_seq, names_of(known)))
    return True


def _drop(database: Database, stream_no: int, stopped: Callable[[], bool]) -> None:
    """Remove what an earlier call left behind, or made for other keys."""
    with database.writing() as connection:
        connection.execute("DELETE FROM paired WHERE stream_no = ?", (stream_no,))
    gone = (
        "DELETE FROM pair WHERE of_stream = :no AND (side, value, row_key) IN "
        "(SELECT side, value, row_key FROM pair WHERE of_stream = :no LIMIT :n)"
    )
    while not stopped():
        with database.writing() as connection:
            if not connection.execute(gone, {"no": stream_no, "n": CHUNK_ROWS}).rowcount:
                return


def _sorted(connection: sqlite3.Connection, stream_no: int, head_seq: int, known: Declared) -> Iterator[Any]:
    """Return the rows of the table in its order, so that each is appended behind the one before."""
    span = (stream_no << SEQ_BITS, (stream_no << SEQ_BITS) | min(head_seq, SEQ_MASK))
    first, second = known.values()
    selects = [
        # Materialized: what an alias stands for would be worked out wherever it is named.
        f"WITH found AS MATERIALIZED (SELECT {one} AS a, key, {other} AS b FROM message WHERE key BETWEEN ? AND ?) "
        f"SELECT {stream_no}, {side}, a, key, b FROM found WHERE a IS NOT NULL AND b IS NOT NULL ORDER BY a, key"
        for side, one, other in ((0, first, second), (1, second, first))
    ]
    return chain.from_iterable(connection.execute(select, span) for select in selects)
