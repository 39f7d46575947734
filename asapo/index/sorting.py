"""Declared keys of finished streams, sorted once in the background, for queries to walk along (R14, decision 0018).

Table `sorted` holds a stream's rows several times, on *sides*: in the order of ids, and of the values of each key. Each
row has the values of all keys, so that a walk along one side tests the others without looking at messages. A last side
has some rows only: a sample, by which a query chooses its side (`asapo.index.walks`).

Nothing of a finished stream changes any more, so what is sorted stays right; `sorted_stream` says for which keys and up
to which arrival number it was done, and rows that it does not speak of are looked at by nobody.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Final

from asapo.index.database import Database
from asapo.index.interface import key_path
from asapo.index.keys import declared, sorted_keys
from asapo.index.ranges import Span
from asapo.index.schema import SORTED_COLUMNS
from asapo.query import declared_expression
from asapo.query.sql_paths import Path

MIN_ROWS: Final = 2000
"""Shorter streams are quick without."""
CHUNK_ROWS: Final = 4096
"""Rows in one transaction, for about 10 ms each: that long a commit of a receiver waits."""
PAUSE_S: Final = 0.002
"""Between two transactions, so that writers in other processes get their turn."""
SAMPLE_ROWS: Final = 512
SAMPLE: Final = -1
"""The side that has a sample only, by arrival number."""
BY_ID: Final = 0
"""The side in the order of ids; behind it follow those of the keys, from 1."""
TEXT_CHARS: Final = 128
"""Texts are cut to this length, as each is stored once for every side."""

_REST: Final = "stream_no = :no AND (id, substream) > (:id, :part) AND key <= :high ORDER BY id, substream"


def noted(connection: sqlite3.Connection, span: Span) -> tuple[Path, ...]:
    """Return the keys for which all rows of a stream are sorted, in the order of their columns."""
    select = "SELECT keys FROM sorted_stream WHERE stream_no = ? AND head_seq = ? AND maker = ''"
    found = connection.execute(select, (span.stream_no, span.head_seq)).fetchall()
    return tuple(map(key_path, json.loads(found[0][0]))) if found and span.head_seq else ()


def wanted(connection: sqlite3.Connection) -> list[str]:
    """Return the keys by which finished streams are to be sorted."""
    return list(dict.fromkeys([".".join(path) for path in declared(connection)] + sorted_keys(connection)))


def waiting(connection: sqlite3.Connection) -> list[int]:
    """Return the numbers of finished streams that are not sorted by all keys."""
    names = set(wanted(connection))
    select = (
        "SELECT no, coalesce((SELECT keys FROM sorted_stream WHERE stream_no = no AND head_seq = stream.head_seq AND "
        "maker = ''), '[]') FROM stream WHERE finished = 1 AND head_seq >= ?"
    )
    found = connection.execute(select, (MIN_ROWS,)).fetchall()
    return [no for no, keys in found if not names <= set(json.loads(keys))]


def build(database: Database, stream_no: int, stopped: Callable[[], bool]) -> bool:
    """Sort a finished stream by all declared keys, in many short transactions; False when nothing was (left) to do.

    Ended by `stopped`, by a death, or by somebody else who begins with the same stream, it leaves rows that no query
    looks at, and that the next one removes.
    """
    with database.reading() as connection:
        if stream_no not in waiting(connection):
            return False
        names = wanted(connection)
        heads = connection.execute("SELECT head_seq FROM stream WHERE no = ?", (stream_no,)).fetchall()
    if not heads:
        return False  # deleted meanwhile
    work = _Work(database, Span(stream_no, heads[0][0]), names, stopped)
    try:
        work.begin()
        work.by_id()
        for side in range(1, len(names) + 1):
            work.by_key(side)
        work.end()
    except _Ended:
        return False
    return True


class _Ended(Exception):
    """The work was stopped, or another one works on the same stream."""


class _Work:
    """The sides of one stream in the making."""

    def __init__(self, database: Database, span: Span, names: Sequence[str], stopped: Callable[[], bool]) -> None:
        self._database = database
        self._span = span
        self._names = names
        self._stopped = stopped
        self._maker = uuid.uuid4().hex
        self._columns = SORTED_COLUMNS[: len(names)]
        self._places = {"no": span.stream_no, "low": span.low, "high": span.high, "n": CHUNK_ROWS}

    @contextmanager
    def _step(self) -> Iterator[sqlite3.Connection]:
        """Open the next transaction, when it is still ours to go on."""
        time.sleep(PAUSE_S)
        if self._stopped():
            raise _Ended
        with self._database.writing() as connection:
            mine = "SELECT 1 FROM sorted_stream WHERE stream_no = ? AND maker = ?"
            if not connection.execute(mine, (self._span.stream_no, self._maker)).fetchall():
                raise _Ended
            yield connection

    def begin(self) -> None:
        """Say that we are at it, and remove what is there of earlier keys, rows or versions."""
        with self._database.writing() as connection:
            connection.execute("DELETE FROM paired WHERE stream_no = ?", (self._span.stream_no,))
            note = (self._maker, self._span.stream_no)  # nothing when the stream was deleted meanwhile: we end then
            connection.execute(
                "INSERT OR REPLACE INTO sorted_stream SELECT no, 0, '[]', ? FROM stream WHERE no = ?", note
            )
        for table, place in (("sorted", "side, value, of_id, seq"), ("pair", "side, value, row_key")):
            some = f"SELECT {place} FROM {table} WHERE of_stream = :no LIMIT :n"
            left = True
            while left:
                with self._step() as connection:
                    gone = f"DELETE FROM {table} WHERE of_stream = :no AND ({place}) IN ({some})"
                    left = connection.execute(gone, self._places).rowcount > 0

    def by_id(self) -> None:
        """Take the values out of the metadata, once."""
        values = ", ".join(
            f"{declared_expression(key_path(name))} AS {column}"
            for name, column in zip(self._names, self._columns, strict=True)
        )
        cut = ", ".join(
            f"iif(typeof({name}) = 'text', substr({name}, 1, {TEXT_CHARS}), {name})" for name in self._columns
        )
        # The LIMIT keeps SQLite from working a value out wherever its name stands.
        some = f"SELECT id, key, {values} FROM message WHERE {_REST} LIMIT :n"
        insert = f"INSERT INTO sorted(of_stream, side, value, of_id, seq, {', '.join(self._columns)})"
        rows = f"{insert} SELECT :no, {BY_ID}, id, id, key - :low, {cut} FROM ({some})"
        sample = (
            f"{insert} SELECT of_stream, {SAMPLE}, seq, of_id, seq, {', '.join(self._columns)} FROM sorted WHERE "
            f"of_stream = :no AND side = {BY_ID} AND value BETWEEN :id AND :last AND seq % :every = 0 "
            "ON CONFLICT DO NOTHING"
        )
        places = {**self._places, "every": max(1, self._span.head_seq // SAMPLE_ROWS), "id": 0, "part": -1}
        while True:
            with self._step() as connection:
                if not connection.execute(rows, places).rowcount:
                    return
                ends = f"SELECT id, substream FROM (SELECT id, substream FROM message WHERE {_REST} LIMIT :n)"
                last, part = connection.execute(f"{ends} ORDER BY id DESC, substream DESC LIMIT 1", places).fetchall()[
                    0
                ]
                connection.execute(sample, {**places, "last": last})
            places |= {"id": last, "part": part}

    def by_key(self, side: int) -> None:
        """Take the rows in the order of one key, so that each is appended behind the one before.

        Only numbers pass through Python: it has no place for half a surrogate pair.
        """
        value = self._columns[side - 1]
        others = ["NULL" if name == value else name for name in self._columns]
        place = f"of_stream = {self._span.stream_no} AND side = {BY_ID}"
        columns = f"of_stream, side, value, of_id, seq, {', '.join(self._columns)}"
        add = (
            f"INSERT INTO sorted({columns}) SELECT of_stream, {side}, {value}, of_id, seq, {', '.join(others)} "
            f"FROM json_each(?) AS j CROSS JOIN sorted WHERE {place} AND sorted.value = j.value ->> 0 "
            "AND of_id = j.value ->> 0 AND seq = j.value ->> 1"
        )
        with self._database.reading() as reading:
            rows = reading.execute(
                f"SELECT of_id, seq FROM sorted WHERE {place} AND {value} IS NOT NULL ORDER BY {value}, of_id"
            )
            while some := list(islice(rows, CHUNK_ROWS)):
                with self._step() as connection:
                    connection.execute(add, (json.dumps(some),))

    def end(self) -> None:
        """Say that all is there."""
        with self._step() as connection:
            note = (self._span.head_seq, json.dumps(self._names), self._span.stream_no)
            connection.execute("UPDATE sorted_stream SET head_seq = ?, keys = ?, maker = '' WHERE stream_no = ?", note)
