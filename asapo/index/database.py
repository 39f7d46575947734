"""One SQLite file: its connections, its short write transactions, and the border where sqlite3 errors become ours."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from asapo.errors import IndexUnavailable, OutOfMemory, StorageError
from asapo.index import schema
from asapo.query import regexp_function

BUSY_TIMEOUT_S: Final = 5.0
"""How long a write waits for writers in other processes."""
FIRST_WAIT_S: Final = 0.0005
LONGEST_WAIT_S: Final = 0.005
"""SQLite's own busy handler waits up to 100 ms between tries; commits here take 2 ms, so ours tries more often."""
WRITER_CACHE_KIB: Final = 65536
READER_CACHE_KIB: Final = 8192
NO_MEMORY: Final = frozenset({"SQLITE_NOMEM", "SQLITE_IOERR_NOMEM", "SQLITE_IOERR_SHMMAP"})
"""What SQLite says when it gets no memory; the last, when it cannot map what its processes share."""


def is_busy(error: sqlite3.Error) -> bool:
    """Return True when another connection holds the lock."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn every error of sqlite3 into IndexUnavailable: nothing is acknowledged until the index answers again.

    But no memory is this process's trouble, not the index's: nobody waits for it, and other beamtimes go on.
    """
    try:
        yield
    except sqlite3.Error as exc:
        raise unavailable(path, exc) from exc


def unavailable(path: Path, error: sqlite3.Error) -> StorageError:
    """Return our error for one of sqlite3."""
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    if name in NO_MEMORY:
        return OutOfMemory(f"no memory to use index {path} ({name}); give the service more", path=str(path))
    damaged = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    advice = "; the file is damaged: stop the services and run asapo reindex" if damaged else ""
    return IndexUnavailable(f"index {path}: {error} ({name}){advice}", path=str(path), reason=name)


class _Reader:
    """A connection that closes itself when its thread has ended."""

    __slots__ = ("connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def __del__(self) -> None:
        with suppress(sqlite3.Error):
            self.connection.close()


class Database:
    """The writing connection (one, under a lock) and a reading one for each thread."""

    def __init__(self, path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.path = path
        self._busy_timeout_s = busy_timeout_s
        self._lock = threading.Lock()
        self._local = threading.local()
        self._generation = object()
        with translated(path):
            self._writer: sqlite3.Connection | None = self._connect_writer()

    def _connect_writer(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            connection.execute(f"PRAGMA page_size = {schema.PAGE_BYTES}")
            self._patiently(connection, "PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA cache_size = -{WRITER_CACHE_KIB}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {schema.CHECKPOINT_PAGES}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _patiently(self, connection: sqlite3.Connection, statement: str) -> None:
        """Execute a statement that needs a lock; wait with jitter while others hold it."""
        deadline_s = time.monotonic() + self._busy_timeout_s
        wait_s = FIRST_WAIT_S
        while True:
            try:
                connection.execute(statement).fetchall()
            except sqlite3.OperationalError as exc:
                if not is_busy(exc) or time.monotonic() > deadline_s:
                    raise
            else:
                return
            time.sleep(wait_s * random.uniform(0.2, 1))  # noqa: S311
            wait_s = min(wait_s * 2, LONGEST_WAIT_S)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Run the body in one IMMEDIATE transaction; any exception rolls it back."""
        with self._lock, translated(self.path):
            connection = self._writer
            if connection is None:
                raise IndexUnavailable(f"index {self.path} is closed", path=str(self.path), reason="closed")
            self._patiently(connection, "BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # Full disk and I/O errors may have rolled back already; a failed rollback changes nothing.
                if connection.in_transaction:
                    with suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Lend this thread's reading connection to the body."""
        try:
            # The frame holds the reader, so a `close` in another thread cannot close it under a running query.
            reader = self._reader()
            yield reader.connection
        except sqlite3.Error as exc:
            raise unavailable(self.path, exc) from exc

    def _reader(self) -> _Reader:
        held: tuple[object, _Reader] | None = getattr(self._local, "held", None)
        if held is None or held[0] is not self._generation:
            generation = self._generation
            if self._writer is None:
                raise IndexUnavailable(f"index {self.path} is closed", path=str(self.path), reason="closed")
            connection = sqlite3.connect(
                self.path, timeout=1, isolation_level=None, check_same_thread=False, cached_statements=64
            )
            held = (generation, _Reader(connection))
            connection.execute("PRAGMA query_only = 1")
            connection.create_function("regexp", 2, regexp_function, deterministic=True)
            connection.execute(f"PRAGMA cache_size = -{READER_CACHE_KIB}")
            self._local.held = held
        return held[1]

    def read(self, statement: str, params: Any = ()) -> list[Any]:
        """Return all rows of one SELECT, which sees one snapshot."""
        with self.reading() as connection:
            return connection.execute(statement, params).fetchall()

    def close(self) -> None:
        """Close the writer; readers close with their threads or at their next use."""
        with self._lock:
            writer, self._writer = self._writer, None
            self._generation = object()
            self._local = threading.local()
        if writer is not None:
            with translated(self.path):
                writer.close()
