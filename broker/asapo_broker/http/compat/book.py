"""What groups of ASAP::O have read and acknowledged, on disk: their marks are not those of our groups.

A group of ASAP::O has a pointer that moves when a message is given, whether it is acknowledged or not, and beside it
the ids that were acknowledged, which nothing depends on but the questions about them. So neither leases nor redelivery
of our groups fit, and the pointer and the ids are kept here, by the front alone.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from asapo.errors import StorageError, UnsupportedVersion, WrongInput
from asapo.index.database import translated
from asapo.models import StreamRef

FILE: Final = "asapo-groups.sqlite"
MAGIC: Final = 0x41534747
"""`application_id` of the file: "ASGG" (R37)."""
MAJOR: Final = 1
MAX_LISTED: Final = 10_000_000
"""Most ids of one answer about what is not acknowledged."""
TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS mark(no INTEGER PRIMARY KEY, beamtime TEXT NOT NULL, source TEXT NOT NULL, "
    "stream TEXT NOT NULL, name TEXT NOT NULL, position INTEGER NOT NULL, last_given INTEGER NOT NULL, "
    "deletion INTEGER NOT NULL, UNIQUE(beamtime, source, stream, name))",
    "CREATE TABLE IF NOT EXISTS done(mark INTEGER NOT NULL, id INTEGER NOT NULL, PRIMARY KEY(mark, id)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS again(mark INTEGER NOT NULL, id INTEGER NOT NULL, due_s REAL NOT NULL, "
    "delay_s REAL NOT NULL, left INTEGER NOT NULL, PRIMARY KEY(mark, id)) WITHOUT ROWID",
)
UNBOUNDED: Final = -1
"""Attempts left of a message that is given again without bound."""


class Mark(NamedTuple):
    """How far a group is in a stream."""

    no: int
    position: int
    """Id that was given last by `next`; 0 before the first."""
    last_given: int
    """Id that was given last by `groupedlast`."""


class GroupBook:
    """Marks of all groups; safe from several threads. One write is one transaction, and survives the process."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / FILE
        self._lock = threading.Lock()
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise StorageError(
                f"state folder {state_dir}: {exc.strerror}; give one that can be written", path=str(state_dir)
            ) from exc
        with translated(self.path):
            self._database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            try:
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = NORMAL")
                self._prepare()
            except BaseException:
                self._database.close()
                raise

    def _prepare(self) -> None:
        """Make the tables of a new file; refuse one that is newer than this program."""
        found = self._database.execute("PRAGMA user_version").fetchone()[0]
        if found > MAJOR:
            raise UnsupportedVersion(
                f"{self.path} has version {found}: this program knows {MAJOR}; use a newer one",
                ours=MAJOR,
                theirs=found,
            )
        for statement in TABLES:
            self._database.execute(statement)
        self._database.execute(f"PRAGMA application_id = {MAGIC}")
        self._database.execute(f"PRAGMA user_version = {MAJOR}")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, translated(self.path):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def mark(self, ref: StreamRef, group: str, deletion: int = 0) -> Mark:
        """Return how far a group is; it begins to exist by being asked for, and anew when its stream was deleted.

        `deletion` is the number of the last deletion of a stream of this name.
        """
        names = (ref.beamtime, ref.source, ref.stream, group)
        where = "WHERE beamtime = ? AND source = ? AND stream = ? AND name = ?"
        select = f"SELECT no, position, last_given, deletion FROM mark {where}"
        with self._lock, translated(self.path):
            row = self._database.execute(select, names).fetchone()
        if row is None or row[3] < deletion:
            with self._writing() as database:
                if row is not None:
                    _forget(database, where, names)
                insert = "INSERT OR IGNORE INTO mark(beamtime, source, stream, name, position, last_given, deletion) "
                database.execute(f"{insert} VALUES(?, ?, ?, ?, 0, 0, ?)", (*names, deletion))
                row = database.execute(select, names).fetchone()
        return Mark(*row[:3])

    def give(self, mark: Mark, message_id: int) -> None:
        """Move the pointer to an id."""
        with self._lock, translated(self.path):
            self._database.execute("UPDATE mark SET position = ? WHERE no = ?", (message_id, mark.no))

    def expect(self, mark: Mark, message_id: int, *, delay_s: float, attempts: int, now_s: float) -> None:
        """Have a message given again after `delay_s`, `attempts` times (0: without bound), until it is acknowledged."""
        with self._lock, translated(self.path):
            self._database.execute(
                "INSERT OR IGNORE INTO again VALUES(?, ?, ?, ?, ?)",
                (mark.no, message_id, now_s + delay_s, delay_s, attempts or UNBOUNDED),
            )

    def give_last(self, mark: Mark, message_id: int) -> None:
        """Note that `groupedlast` gave this id."""
        with self._lock, translated(self.path):
            self._database.execute("UPDATE mark SET last_given = ? WHERE no = ?", (message_id, mark.no))

    def set_position(self, mark: Mark, position: int) -> None:
        """Move the pointer; what is behind it is no longer waited for."""
        with self._writing() as database:
            database.execute("UPDATE mark SET position = ? WHERE no = ?", (position, mark.no))
            database.execute("DELETE FROM again WHERE mark = ? AND id >= ?", (mark.no, position))

    def due(self, mark: Mark, now_s: float) -> int | None:
        """Return the id that is to be given again now, and count the attempt; None when there is none."""
        with self._lock, translated(self.path):
            row = self._database.execute(
                "SELECT id, delay_s, left FROM again WHERE mark = ? AND due_s <= ? ORDER BY due_s, id LIMIT 1",
                (mark.no, now_s),
            ).fetchone()
            if row is None:
                return None
            message_id, delay_s, left = row
            if left == 1:
                self._database.execute("DELETE FROM again WHERE mark = ? AND id = ?", (mark.no, message_id))
            else:
                self._database.execute(
                    "UPDATE again SET due_s = ?, left = ? WHERE mark = ? AND id = ?",
                    (now_s + delay_s, left if left == UNBOUNDED else left - 1, mark.no, message_id),
                )
        return int(message_id)

    def forget(self, mark: Mark, message_id: int) -> None:
        """Give an id no more: it is not there."""
        with self._lock, translated(self.path):
            self._database.execute("DELETE FROM again WHERE mark = ? AND id = ?", (mark.no, message_id))

    def acknowledge(self, mark: Mark, message_id: int) -> None:
        """Note that a message is done.

        Raises
        ------
        WrongInput
            If that was said before.
        """
        with self._writing() as database:
            found = database.execute("INSERT OR IGNORE INTO done VALUES(?, ?)", (mark.no, message_id))
            if not found.rowcount:
                raise WrongInput(f"message {message_id}: already acknowledged by this group", message_id=message_id)
            database.execute("DELETE FROM again WHERE mark = ? AND id = ?", (mark.no, message_id))

    def hand_back(self, mark: Mark, message_id: int, due_s: float) -> None:
        """Have a message given once more, not before `due_s`."""
        with self._lock, translated(self.path):
            self._database.execute("INSERT OR REPLACE INTO again VALUES(?, ?, ?, 0, 1)", (mark.no, message_id, due_s))

    def forget_stream(self, ref: StreamRef) -> None:
        """Let go of what all groups know of a stream."""
        names = (ref.beamtime, ref.source, ref.stream)
        with self._writing() as database:
            _forget(database, "WHERE beamtime = ? AND source = ? AND stream = ?", names)

    def last_done(self, mark: Mark) -> int:
        """Return the highest id that was acknowledged; 0 for none."""
        with self._lock, translated(self.path):
            row = self._database.execute("SELECT MAX(id) FROM done WHERE mark = ?", (mark.no,)).fetchone()
        return row[0] or 0

    def not_done(self, mark: Mark, first: int, last: int) -> list[int]:
        """Return the ids from `first` to `last` that were not acknowledged, whether there are such messages or not.

        Raises
        ------
        WrongInput
            If the range is longer than 10 million.
        """
        if last - first >= MAX_LISTED:
            raise WrongInput(f"ids {first} to {last}: expected at most {MAX_LISTED} at once; ask by from and to")
        with self._lock, translated(self.path):
            rows = self._database.execute(
                "SELECT id FROM done WHERE mark = ? AND id BETWEEN ? AND ?", (mark.no, first, last)
            ).fetchall()
        done = {row[0] for row in rows}
        return [one for one in range(first, last + 1) if one not in done]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()


def _forget(database: sqlite3.Connection, where: str, names: tuple[str, ...]) -> None:
    """Remove marks and what belongs to them."""
    for table in ("done", "again"):
        database.execute(f"DELETE FROM {table} WHERE mark IN (SELECT no FROM mark {where})", names)
    database.execute(f"DELETE FROM mark {where}", names)
