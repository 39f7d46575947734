"""Cursors on disk: `<state_dir>/<beamtime>/delivery.sqlite`, written by this core only, in batches (R33)."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgpack

from asapo.delivery.leases import GroupState
from asapo.errors import DamagedFile, IndexUnavailable, StorageError
from asapo.failpoints import failpoint
from asapo.models import StreamRef
from asapo.storage.layout import encode_name

log = logging.getLogger(__name__)

FILE: Final = "delivery.sqlite"
MAGIC: Final = 0x41534444
"""`application_id` of the file: "ASDD" (R37)."""
MAJOR: Final = 1
RETRY_S: Final = 0.5
TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS cursor(source TEXT NOT NULL, stream TEXT NOT NULL, name TEXT NOT NULL, "
    "ordered INTEGER NOT NULL, filter TEXT NOT NULL, floor INTEGER NOT NULL, rest BLOB NOT NULL, "
    "PRIMARY KEY(source, stream, name)) WITHOUT ROWID"
)
REST: Final = (
    "done", "acked_ids", "attempts", "dead", "seen_seq", "passed", "late",
    "min_parts", "dataset_timeout_s", "aligned", "given_incomplete", "late_parts",
)  # fmt: skip
"""Fields of a GroupState that are kept in one MessagePack map: unknown keys of a newer minor version are ignored."""

Key = tuple[StreamRef, str]


class CursorStore:
    """The stored state of all groups; `save` and `load` may be called from any thread, `run` has its own."""

    def __init__(self, state_dir: Path, *, save_s: float) -> None:
        self._state_dir = state_dir
        self._save_s = save_s
        self._pending: dict[Key, GroupState] = {}
        self._writing: dict[Key, GroupState] = {}
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        """Guards the maps of states; held for moments only, because the poll thread calls `save`."""
        self._disk = threading.Lock()
        """Guards the databases; never taken by the poll thread."""
        self._databases: dict[str, sqlite3.Connection] = {}
        self.n_saved = 0
        self.n_failed = 0

    def save(self, states: Mapping[Key, GroupState]) -> None:
        """Take states to write soon; of one group the newest counts."""
        with self._lock:
            self._pending.update(states)
        self._changed.set()

    @property
    def busy(self) -> bool:
        """True while states wait to be written: whoever makes them may take its time."""
        return bool(self._pending or self._writing)

    def load(self, ref: StreamRef, group: str) -> GroupState | None:
        """Return what is stored of a group, None when nothing is.

        Raises
        ------
        IndexUnavailable, DamagedFile
            If the file cannot be read.
        """
        key = (ref, group)
        with self._lock:
            found = self._pending.get(key) or self._writing.get(key)
        if found is not None:
            return found
        with self._disk:
            if ref.beamtime not in self._databases and not self._path(ref.beamtime).exists():
                return None
            with _Translated(self._path(ref.beamtime)):
                select = "SELECT ordered, filter, floor, rest FROM cursor WHERE source = ? AND stream = ? AND name = ?"
                row = self._database(ref.beamtime).execute(select, (ref.source, ref.stream, group)).fetchone()
        return None if row is None else _unpack(*row)

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
        with self._lock:
            self._writing, self._pending = self._pending, {}
        by_beamtime: dict[str, list[tuple[Any, ...]]] = {}
        for (ref, group), state in self._writing.items():
            by_beamtime.setdefault(ref.beamtime, []).append((ref.source, ref.stream, group, *_pack(state)))
        for beamtime, rows in by_beamtime.items():
            failpoint("cursor.before-write")
            try:
                self._write(beamtime, rows)
            except StorageError as exc:
                self._keep(beamtime, exc)
            failpoint("cursor.after-write")
        with self._lock:
            self._writing = {}

    def _write(self, beamtime: str, rows: list[tuple[Any, ...]]) -> None:
        with self._disk, _Translated(self._path(beamtime)):
            connection = self._database(beamtime)
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.executemany("INSERT OR REPLACE INTO cursor VALUES(?, ?, ?, ?, ?, ?, ?)", rows)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        self.n_saved += len(rows)

    def _keep(self, beamtime: str, error: StorageError) -> None:
        """Put states that could not be written back, behind newer ones."""
        log.warning("cursors of beamtime %s not saved, trying again: %s", beamtime, error)
        with self._lock:
            self.n_failed += 1
            kept = {key: state for key, state in self._writing.items() if key[0].beamtime == beamtime}
            self._pending = kept | self._pending
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
    """Check or create the file. Killed at any time it is whole (WAL); a power loss may cost the last batches."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    (magic,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if magic not in (0, MAGIC) or version not in (0, MAJOR):
        raise DamagedFile(
            f"{path}: expected a delivery state of version {MAJOR}, found application id {magic:#x} version {version}",
            path=str(path),
            offset=60,
        )
    connection.execute(TABLE)
    connection.execute(f"PRAGMA application_id = {MAGIC}")
    connection.execute(f"PRAGMA user_version = {MAJOR}")


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
