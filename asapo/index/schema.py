"""The SQLite file of an index: tables, version, and the check that its place can keep the promises of a database."""

from __future__ import annotations

import os
import re
import sqlite3
import sys
from pathlib import Path
from typing import Final

from asapo.errors import ConfigError, DamagedFile, UnsupportedVersion, WrongInput

MAGIC: Final = 0x41534150
"""`application_id` of the file: "ASAP" (R37)."""
MAJOR: Final = 1
MINOR: Final = 2
SEQ_BITS: Final = 40
"""A message's key is stream number << 40 | seq: rows of a stream lie together in the order of arrival."""
SEQ_MASK: Final = (1 << SEQ_BITS) - 1
RUN_BITS: Final = 13
"""User-key indexes are cut into runs of 8192 arrivals.

An index over a random key alone touches one page per row once it has grown (45 us a row at 1e6 rows and two keys). Led
by the run number it touches the pages of the newest run only (10 us), and a query pays one seek for each run.
"""
ROW_SQL: Final = (
    f"id, key & {SEQ_MASK}, substream, dataset_size, segment, offset, size, checksum, format, meta, t_acq_ns, "
    "t_ingest_ns, origin, origin_id"
)
"""Selects a `models.Row`."""
PAGE_BYTES: Final = 4096
CHECKPOINT_PAGES: Final = 4000
"""The write-ahead log is copied back every 16 MB: pauses of 20 to 40 ms (18 at 1000 pages, 90 to 190 at 16000)."""

TABLES: Final = f"""
CREATE TABLE info(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE stream(
  no INTEGER PRIMARY KEY CHECK(no < 1 << 23),
  source TEXT NOT NULL, stream TEXT NOT NULL,
  known INTEGER NOT NULL DEFAULT 0,
  head_seq INTEGER NOT NULL DEFAULT 0 CHECK(head_seq <= {SEQ_MASK}),
  n_messages INTEGER NOT NULL DEFAULT 0, n_bytes INTEGER NOT NULL DEFAULT 0, id_max INTEGER NOT NULL DEFAULT 0,
  finished INTEGER NOT NULL DEFAULT 0, last_id INTEGER NOT NULL DEFAULT 0, next_stream TEXT NOT NULL DEFAULT '',
  meta TEXT NOT NULL DEFAULT '{{}}',
  UNIQUE(source, stream));
CREATE TABLE message(
  key INTEGER PRIMARY KEY,
  stream_no INTEGER NOT NULL, id INTEGER NOT NULL CHECK(id > 0), substream INTEGER NOT NULL,
  dataset_size INTEGER NOT NULL, segment INTEGER NOT NULL, offset INTEGER NOT NULL, size INTEGER NOT NULL,
  checksum INTEGER NOT NULL, format INTEGER NOT NULL, meta TEXT NOT NULL,
  t_acq_ns INTEGER NOT NULL, t_ingest_ns INTEGER NOT NULL, origin INTEGER NOT NULL, origin_id INTEGER NOT NULL);
CREATE UNIQUE INDEX message_id ON message(stream_no, id, substream);
CREATE TABLE segment(
  no INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT NOT NULL UNIQUE, receiver_id TEXT NOT NULL, epoch INTEGER NOT NULL,
  tier_uuid TEXT NOT NULL, boot_id TEXT NOT NULL, source TEXT NOT NULL, stream TEXT NOT NULL,
  closed INTEGER NOT NULL DEFAULT 0);
CREATE INDEX segment_open ON segment(receiver_id, no) WHERE closed = 0;
CREATE TABLE format(
  no INTEGER PRIMARY KEY AUTOINCREMENT, dtype TEXT NOT NULL, shape TEXT NOT NULL, codec TEXT NOT NULL,
  UNIQUE(dtype, shape, codec));
CREATE TABLE session(
  stream_no INTEGER NOT NULL, substream INTEGER NOT NULL, session_id BLOB NOT NULL,
  closed_below INTEGER NOT NULL, numbering INTEGER NOT NULL DEFAULT 0, receiver_id TEXT NOT NULL DEFAULT '',
  seen_s REAL NOT NULL, closed INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY(stream_no, substream, session_id)) WITHOUT ROWID;
CREATE TABLE declared_key(no INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
"""
SORTED_COLUMNS: Final = ("v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8")
"""Where table `sorted` has the values of the keys of a stream: as many as can be declared."""
LATER_TABLES: Final = f"""
CREATE TABLE IF NOT EXISTS pair(
  of_stream INTEGER NOT NULL, side INTEGER NOT NULL, value NOT NULL, row_key INTEGER NOT NULL, other NOT NULL,
  PRIMARY KEY(of_stream, side, value, row_key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS paired(stream_no INTEGER PRIMARY KEY, head_seq INTEGER NOT NULL, keys TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sorted_key(no INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS sorted(
  of_stream INTEGER NOT NULL, side INTEGER NOT NULL, value NOT NULL, of_id INTEGER NOT NULL, seq INTEGER NOT NULL,
  {", ".join(SORTED_COLUMNS)}, PRIMARY KEY(of_stream, side, value, of_id, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sorted_stream(
  stream_no INTEGER PRIMARY KEY, head_seq INTEGER NOT NULL, keys TEXT NOT NULL, maker TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS deletion(
  no INTEGER PRIMARY KEY, stream_no INTEGER NOT NULL, source TEXT NOT NULL, stream TEXT NOT NULL,
  folders TEXT NOT NULL, moved INTEGER NOT NULL DEFAULT 0, cleaned INTEGER NOT NULL DEFAULT 0);
CREATE UNIQUE INDEX IF NOT EXISTS deletion_stream ON deletion(stream_no);
"""
"""What minor versions added: a file of an older one gets it when it is opened.

1: `pair`, `paired`, which are only read by programs of that version since 2 has `sorted` (`asapo.index.sorting`).
2: those for sorted keys, and `deletion` (`asapo.index.deletion`).
"""

NETWORK_FILE_SYSTEMS: Final = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.rclone", "fuse.sshfs",
    "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "orangefs", "panfs", "pvfs2", "smb2", "smb3", "smbfs",
})  # fmt: skip
"""File systems on which SQLite's locks and shared memory do not hold between hosts."""


def mount_of(path: Path, mountinfo: str) -> tuple[str, str]:
    """Return mount point and file system type of `path` by the text of /proc/self/mountinfo; empty when unknown."""
    best, kind = "", ""
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields = left.split()
        if not separator or len(fields) < 5:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[4])
        # Of mounts on one point the last one counts.
        if len(point) >= len(best) and path.is_relative_to(point):
            best, kind = point, right.split()[0]
    return best, kind


def refuse_network_file_system(folder: Path, mountinfo: str | None = None) -> None:
    """Raise ConfigError when `folder` lies on a network file system (R33)."""
    if mountinfo is None:
        if not sys.platform.startswith("linux"):
            return
        try:
            mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return
    point, kind = mount_of(Path(os.path.realpath(folder)), mountinfo)
    if kind in NETWORK_FILE_SYSTEMS:
        raise ConfigError(
            f"state_dir {str(folder)!r} lies on {kind} (mounted at {point}): expected a local file system, because "
            "SQLite's locks do not hold over the network; set state_dir to a folder on a local disk",
            key="state_dir",
            value=str(folder),
        )


def check_version(connection: sqlite3.Connection, path: Path) -> bool:
    """Return True when the file holds an index that we can read, False when it is empty."""
    (magic,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if not magic and not version:
        (n_tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not n_tables:
            return False
    if magic != MAGIC:
        raise DamagedFile(
            f"{path} is not an index of asapo: its application id is {magic:#x}", path=str(path), offset=68
        )
    if version >> 16 != MAJOR:
        raise UnsupportedVersion(
            f"{path} has index format {version >> 16}.{version & 0xFFFF}, this program knows {MAJOR}.{MINOR}; use the "
            "program version that wrote it or rebuild the index from the journals",
            ours=f"{MAJOR}.{MINOR}",
            theirs=f"{version >> 16}.{version & 0xFFFF}",
        )
    return True


def create(connection: sqlite3.Connection, beamtime: str) -> None:
    """Create the tables; runs inside a transaction that holds the write lock."""
    _execute(connection, TABLES)
    connection.execute("INSERT INTO info VALUES('beamtime', ?), ('meta', '{}'), ('boot_id', '')", (beamtime,))
    connection.execute(f"PRAGMA application_id = {MAGIC}")


def _execute(connection: sqlite3.Connection, statements: str) -> None:
    """Execute statements one by one: a script would end the transaction."""
    for statement in statements.split(";"):
        if statement.strip():
            connection.execute(statement)


def _bring_up_to_date(connection: sqlite3.Connection) -> None:
    """Add what a file of an older minor version lacks; one of a newer version stays as it is."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version < MAJOR << 16 | MINOR:
        _execute(connection, LATER_TABLES)
        connection.execute(f"PRAGMA user_version = {MAJOR << 16 | MINOR}")


def prepare(connection: sqlite3.Connection, path: Path, beamtime: str) -> None:
    """Create the tables in an empty file, or check that the file is the index of this beamtime."""
    if not check_version(connection, path):
        create(connection, beamtime)
    _bring_up_to_date(connection)
    ((name,),) = connection.execute("SELECT value FROM info WHERE name = 'beamtime'").fetchall()
    if name != beamtime:
        raise WrongInput(f"{path} is the index of beamtime {name!r}, not of {beamtime!r}")


def read_beamtime(path: Path) -> str:
    """Return the beamtime that a file is the index of; empty when there is none (yet)."""
    if not path.is_file():
        return ""
    connection = sqlite3.connect(path, timeout=1, isolation_level=None)
    try:
        rows = connection.execute("SELECT value FROM info WHERE name = 'beamtime'").fetchall()
    except sqlite3.Error:
        # Being created at this moment, or no index at all: whoever opens it learns what is the matter.
        return ""
    finally:
        connection.close()
    return str(rows[0][0]) if rows else ""
