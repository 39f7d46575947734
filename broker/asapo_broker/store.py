"""Cursors on disk: `<state_dir>/<beamtime>/delivery.sqlite`, written by this core only, in batches (R33)."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgpack

from asapo.delivery.leases import GroupState
from asapo.delivery.letters import DeadLetter
from asapo.errors import DamagedFile, IndexUnavailable, StorageError
from asapo.failpoints import failpoint
from asapo.models import StreamRef
from asapo.storage.layout import encode_name
from asapo_broker.saves import Save, Stored, merged, overlay, split

log = logging.getLogger(__name__)

FILE: Final = "delivery.sqlite"
MAGIC: Final = 0x41534444
"""`application_id` of the file: "ASDD" (R37)."""
MAJOR: Final = 2
"""`user_version` of the file; 1, which kept of dead letters only how often they had been given, is brought up to it."""
RETRY_S: Final = 0.5
TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS cursor(source TEXT NOT NULL, stream TEXT NOT NULL, name TEXT NOT NULL, "
    "ordered INTEGER NOT NULL, filter TEXT NOT NULL, floor INTEGER NOT NULL, rest BLOB NOT NULL, "
    "PRIMARY KEY(source, stream, name)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS letter(source TEXT NOT NULL, stream TEXT NOT NULL, name TEXT NOT NULL, "
    "id INTEGER NOT NULL, key INTEGER NOT NULL, attempts INTEGER NOT NULL, reason TEXT NOT NULL, "
    "traceback TEXT NOT NULL, worker TEXT NOT NULL, failed_ns INTEGER NOT NULL, "
    "PRIMARY KEY(source, stream, name, id))",
    "CREATE TABLE IF NOT EXISTS owner(epoch INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS deleted(source TEXT NOT NULL, stream TEXT NOT NULL, no INTEGER NOT NULL, "
    "PRIMARY KEY(source, stream)) WITHOUT ROWID",
)
REST: Final = (
    "done", "acked_ids", "attempts", "seen_seq", "passed", "late",
    "min_parts", "dataset_timeout_s", "aligned", "given_incomplete", "late_parts",
)  # fmt: skip
"""Fields of a GroupState that are kept in one MessagePack map: unknown keys of a newer minor version are ignored."""
HERE: Final = "WHERE source = ? AND stream = ? AND name = ?"
LETTER: Final = "id, key, attempts, reason, traceback, worker, failed_ns"
NO_REASON: Final = "given up by an earlier version, which kept no reason"

Key = tuple[StreamRef, str]


class CursorStore:
    """The stored state of all groups; `save` and `load` may be called from any thread, `run` has its own."""

    def __init__(self, state_dir: Path, *, save_s: float) -> None:
        self._state_dir = state_dir
        self._save_s = save_s
        self._pending: dict[Key, Save] = {}
        self._writing: dict[Key, Save] = {}
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        """Guards the maps of states; held for moments only, because the poll thread calls `save`."""
        self._disk = threading.Lock()
        """Guards the databases; never taken by the poll thread, nor by whoever has `_lock`."""
        self._turn = threading.Lock()
        """Held while what waits is written, and taken before `_disk`; never by the poll thread."""
        self._databases: dict[str, sqlite3.Connection] = {}
        self._epochs: dict[str, int] = {}
        """Beamtime to the epoch under which this core writes (R32), taken with its first write."""
        self.n_saved = 0
        self.n_failed = 0

    def save(self, saves: Mapping[Key, Save]) -> None:
        """Take what is to be written soon; of one group the newest state counts."""
        with self._lock:
            for key, save in saves.items():
                self._pending[key] = merged(self._pending.get(key), save)
        self._changed.set()

    @property
    def busy(self) -> bool:
        """True while states wait to be written: whoever makes them may take its time."""
        return bool(self._pending or self._writing)

    def load(self, ref: StreamRef, group: str) -> Stored | None:
        """Return what is stored of a group, None when nothing is.

        Raises
        ------
        IndexUnavailable, DamagedFile
            If the file cannot be read.
        """
        names = (ref.source, ref.stream, group)
        with self._reading(ref.beamtime) as (database, waiting):
            state, letters = None, []
            if database is not None:
                row = database.execute(f"SELECT ordered, filter, floor, rest FROM cursor {HERE}", names).fetchone()
                state = None if row is None else _unpack(*row)
                found = database.execute(f"SELECT id, key FROM letter {HERE}", names)
                letters = [DeadLetter(one, key, 0, "", "", "", 0) for one, key in found]
            state, dead = overlay(state, letters, waiting.get((ref, group), ()))
        return None if state is None else Stored(state, {one: letter.key for one, letter in dead.items()})

    def groups(self, beamtime: str, source: str, stream: str) -> list[tuple[Key, GroupState, int]]:
        """Return all groups of a stream, a source ("" for all sources) or a beamtime, with their dead letters' number.

        Ordered by source, stream and name. Raises as `load`.
        """
        where = " AND ".join([f"{column} = ?" for column, name in (("source", source), ("stream", stream)) if name])
        found: dict[Key, tuple[GroupState | None, int]] = {}
        with self._reading(beamtime) as (database, waiting):
            if database is not None:
                rows = database.execute(
                    "SELECT source, stream, name, ordered, filter, floor, rest, (SELECT COUNT(*) FROM letter WHERE "
                    "letter.source = cursor.source AND letter.stream = cursor.stream AND letter.name = cursor.name) "
                    f"FROM cursor{' WHERE ' + where if where else ''}",
                    [name for name in (source, stream) if name],
                )
                for row in rows:
                    found[StreamRef(beamtime, row[0], row[1]), row[2]] = (_unpack(*row[3:7]), row[7])
        for key, saves in waiting.items():
            ref = key[0]
            if (ref.beamtime, source or ref.source, stream or ref.stream) == (beamtime, ref.source, ref.stream):
                found[key] = (saves[-1].state, found[key][1] if key in found else 0)
        known = [(key, state, n_dead) for key, (state, n_dead) in found.items() if state is not None]
        return sorted(known, key=lambda entry: (entry[0][0].source, entry[0][0].stream, entry[0][1]))

    def letters(self, ref: StreamRef, group: str, after: int, limit: int) -> list[DeadLetter] | None:
        """Return dead letters with ids above `after`, ascending; None when the group is not known. Raises as `load`."""
        names = (ref.source, ref.stream, group)
        with self._reading(ref.beamtime) as (database, waiting):
            known, letters = False, []
            saves = waiting.get((ref, group), ())
            if database is not None:
                known = database.execute(f"SELECT 1 FROM cursor {HERE}", names).fetchone() is not None
                # What waits to be written may take some of them away.
                most = limit + sum(len(save.letters) for save in saves)
                text = f"SELECT {LETTER} FROM letter {HERE} AND id > ? ORDER BY id LIMIT ?"
                letters = [DeadLetter(*row) for row in database.execute(text, (*names, after, most))]
            _, dead = overlay(None, letters, saves)
        known = saves[-1].state is not None if saves else known
        return [dead[one] for one in sorted(dead) if one > after][:limit] if known else None

    @contextmanager
    def _reading(self, beamtime: str) -> Iterator[tuple[sqlite3.Connection | None, dict[Key, list[Save]]]]:
        """Give the database, None while there is none, and what is not written to it yet, oldest first."""
        with self._disk:
            with self._lock:
                waiting: dict[Key, list[Save]] = {}
                for saves in (self._writing, self._pending):
                    for key, save in saves.items():
                        if key[0].beamtime == beamtime:
                            waiting.setdefault(key, []).append(save)
            if beamtime not in self._databases and not self._path(beamtime).exists():
                yield None, waiting
                return
            with _Translated(self._path(beamtime)):
                yield self._database(beamtime), waiting

    def forget_stream(self, ref: StreamRef, deletion: int) -> None:
        """Forget all groups of a stream that was deleted, unless that was done; the number says which deletion it was.

        Whoever calls sees to it that no group of a newer stream of this name is known yet.

        Raises
        ------
        IndexUnavailable, DamagedFile
            If the file cannot be written.
        """
        names = (ref.source, ref.stream)
        with self._turn, self._disk, _Translated(self._path(ref.beamtime)):
            connection = self._database(ref.beamtime)
            known = connection.execute("SELECT no FROM deleted WHERE source = ? AND stream = ?", names).fetchall()
            if known and known[0][0] >= deletion:
                return
            with self._lock:
                self._pending = {key: save for key, save in self._pending.items() if key[0] != ref}
            failpoint("delete.before-forget")
            connection.execute("BEGIN IMMEDIATE")
            try:
                epoch = _own(connection, self._epochs.get(ref.beamtime), self._path(ref.beamtime))
                for table in ("letter", "cursor"):
                    connection.execute(f"DELETE FROM {table} WHERE source = ? AND stream = ?", names)
                connection.execute("INSERT OR REPLACE INTO deleted VALUES(?, ?, ?)", (*names, deletion))
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            self._epochs[ref.beamtime] = epoch

    def run(self) -> None:
        """Write until `stop`, then write what is left and close."""
        while not self._stopping.is_set():
            self._changed.wait()
            self._stopping.wait(self._save_s)
            self._changed.clear()
            self.flush()
        self.flush()
        with self._disk:
            for connection in self._databases.values():
                connection.close()
            self._databases.clear()

    def stop(self) -> None:
        """End `run` after everything was written."""
        self._stopping.set()
        self._changed.set()

    def flush(self) -> None:
        """Write what waits; what cannot be written waits on."""
        with self._turn:
            self._flush()

    def _flush(self) -> None:
        with self._lock:
            self._writing, self._pending = self._pending, {}
        by_beamtime: dict[str, list[tuple[Key, Save]]] = {}
        for key, save in self._writing.items():
            by_beamtime.setdefault(key[0].beamtime, []).append((key, save))
        for beamtime, saves in by_beamtime.items():
            failpoint("cursor.before-write")
            try:
                self._write(beamtime, saves)
            except StorageError as exc:
                self._keep(beamtime, exc)
            failpoint("cursor.after-write")
        with self._lock:
            self._writing = {}

    def _write(self, beamtime: str, saves: list[tuple[Key, Save]]) -> None:
        with self._disk, _Translated(self._path(beamtime)):
            connection = self._database(beamtime)
            connection.execute("BEGIN IMMEDIATE")
            try:
                epoch = _own(connection, self._epochs.get(beamtime), self._path(beamtime))
                for (ref, group), save in saves:
                    _write_one(connection, (ref.source, ref.stream, group), save)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        self._epochs[beamtime] = epoch
        self.n_saved += len(saves)

    def _keep(self, beamtime: str, error: StorageError) -> None:
        """Put states that could not be written back, behind newer ones."""
        log.warning("cursors of beamtime %s not saved, trying again: %s", beamtime, error)
        with self._lock:
            self.n_failed += 1
            kept = {key: state for key, state in self._writing.items() if key[0].beamtime == beamtime}
            for key, save in self._pending.items():
                kept[key] = merged(kept.get(key), save)
            self._pending = kept
        self._changed.set()
        self._stopping.wait(RETRY_S)

    def _path(self, beamtime: str) -> Path:
        return self._state_dir / encode_name(beamtime) / FILE

    def _database(self, beamtime: str) -> sqlite3.Connection:
        """Return the open database; the caller holds `_disk`."""
        found = self._databases.get(beamtime)
        if found is None:
            path = self._path(beamtime)
            path.parent.mkdir(parents=True, exist_ok=True)
            found = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
            try:
                _prepare(found, path)
            except BaseException:
                found.close()
                raise
            self._databases[beamtime] = found
        return found


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Check, create or bring up the file.

    Killed at any time it is whole (WAL); a power loss may cost the last batches.
    """
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("BEGIN IMMEDIATE")
    (magic,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if magic not in (0, MAGIC) or version not in range(MAJOR + 1):
        raise DamagedFile(
            f"{path}: expected a delivery state of version 1 to {MAJOR}, found application id {magic:#x} version "
            f"{version}",
            path=str(path),
            offset=60,
        )
    for table in TABLES:
        connection.execute(table)
    if version == 1:
        _bring_up(connection)
    connection.execute(f"PRAGMA application_id = {MAGIC}")
    connection.execute(f"PRAGMA user_version = {MAJOR}")
    connection.execute("COMMIT")


def _own(connection: sqlite3.Connection, epoch: int | None, path: Path) -> int:
    """Return the epoch under which we write: the one we have, or, with the first write, the next one of the file."""
    (owner,) = connection.execute("SELECT MAX(epoch) FROM owner").fetchone()
    if epoch is None:
        connection.execute("DELETE FROM owner")
        connection.execute("INSERT INTO owner VALUES(?)", ((owner or 0) + 1,))
        return int(owner or 0) + 1
    if owner != epoch:
        raise IndexUnavailable(
            f"{path} is written by another broker (epoch {owner}, ours is {epoch}); stop one of them", path=str(path)
        )
    return epoch


def _bring_up(connection: sqlite3.Connection) -> None:
    """Give the dead letters of version 1, which are in the rest of each cursor, rows of their own."""
    for source, stream, name, ordered, packed in connection.execute(
        "SELECT source, stream, name, ordered, rest FROM cursor"
    ).fetchall():
        dead = msgpack.unpackb(packed, use_list=False, strict_map_key=False).get("dead", ())
        rows = [
            (source, stream, name, one, one if ordered else 0, attempts, NO_REASON, "", "", 0) for one, attempts in dead
        ]
        connection.executemany("INSERT INTO letter VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


def _write_one(connection: sqlite3.Connection, names: tuple[str, str, str], save: Save) -> None:
    """Write what became of one group."""
    if save.state is None or save.anew:
        connection.execute(f"DELETE FROM letter {HERE}", names)
        connection.execute(f"DELETE FROM cursor {HERE}", names)
    if save.state is not None:
        connection.execute("INSERT OR REPLACE INTO cursor VALUES(?, ?, ?, ?, ?, ?, ?)", (*names, *_pack(save.state)))
    came, explained, gone = split(save.letters)
    connection.executemany(f"DELETE FROM letter {HERE} AND id = ?", [(*names, one) for one in gone])
    connection.executemany(
        "INSERT OR REPLACE INTO letter VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", [(*names, *letter) for letter in came]
    )
    connection.executemany(
        f"UPDATE letter SET reason = ?, traceback = ? {HERE} AND id = ? AND worker = ? AND traceback = ''",
        [(change.reason, change.traceback, *names, one, change.worker) for one, change in explained],
    )


class _Translated:
    """Turns errors of the database into ours."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, (sqlite3.Error, OSError)):
            raise IndexUnavailable(f"delivery state {self._path}: {error}", path=str(self._path)) from error


def _pack(state: GroupState) -> tuple[int, str, int, bytes]:
    rest = msgpack.packb({name: getattr(state, name) for name in REST})
    return int(state.ordered), state.where, state.floor, rest


def _unpack(ordered: int, where: str, floor: int, packed: bytes) -> GroupState:
    rest = msgpack.unpackb(packed, use_list=False, strict_map_key=False)
    known = {name: rest[name] for name in REST if name in rest}
    return GroupState(ordered=bool(ordered), where=where, floor=floor, **known)
