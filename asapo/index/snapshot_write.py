"""Writing `index.snapshot`: one pass over a stream's rows in its SQLite index, in one read transaction."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack
import xxhash

from asapo.errors import StorageError
from asapo.index.database import translated
from asapo.index.deletion import NAMED
from asapo.index.ingest import parse_shape
from asapo.index.schema import SEQ_BITS, SEQ_MASK
from asapo.index.snapshot import ALIGN, COLUMNS, DTYPE, FILE_HEADER, TRAILER
from asapo.models import StreamRef
from asapo.storage.files import FileOps, OpenFile, default_files
from asapo.storage.journal import Kind, read_journal
from asapo.storage.layout import FILES_FOLDER, JOURNAL_SUFFIX, SNAPSHOT_FILE, is_segment

CHUNK_ROWS: Final = 4096
DRAFT_S: Final = 3600.0
"""A draft of this age belongs to nobody."""
_EXPRESSIONS: Final = {"seq": f"key & {SEQ_MASK}"}
"""How the index says a column; the others by their names."""
_STORED: Final = "FROM message WHERE key BETWEEN ? AND ? AND segment > 0"


class NotReady(Exception):
    """The stream has no end yet, or a segment whose journal may hold more than the index."""


@dataclass(slots=True)
class _Section:
    """A part of the file that is being filled."""

    at: int
    size: int
    done: int
    digest: Any

    @property
    def entry(self) -> list[int]:
        return [self.at, self.size, self.digest.intdigest()]


def write_snapshot(
    folder: Path,
    database: Path,
    ref: StreamRef,
    journals: Sequence[Path],
    *,
    rebuilt: bool = False,
    files: FileOps | None = None,
) -> Path:
    """Write the snapshot of a stream into its folder; nobody ever sees half of one.

    Parameters
    ----------
    folder : path
        The stream's folder on a tier.
    database : path
        The beamtime's `index.sqlite`.
    journals : sequence of paths
        All journals of the stream; those beside segments that the index knows are added.
    rebuilt : bool
        The index was made of these journals just now: take it as it is, finished or not.

    Raises
    ------
    NotReady
        If the stream is not finished, or the index does not say that all of its journals are closed and indexed.
    IndexUnavailable
        If the index does not answer.
    StorageError
        If the file cannot be written.
    """
    files = files or default_files()
    _remove_drafts(folder, files)
    draft = folder / f"{SNAPSHOT_FILE}.{uuid.uuid4().hex}"
    with translated(database), _reading(database) as connection:
        marks = _marks({path.name: path for path in [*journals, *_beside_segments(connection, ref)]})
        connection.execute("BEGIN")
        facts, no = _facts(connection, ref, marks, rebuilt=rebuilt)
        file = files.create(draft)
        try:
            _fill(files, file, connection, no, facts)
            # Not synced: that would push the stream's fresh segments to the disk, too, while the next one comes in.
            # What a power loss leaves of a snapshot fails its checksum, and the journals are read.
            files.close(file)
            connection.execute("COMMIT")
            _check_there(connection, ref, no)
            files.rename(draft, folder / SNAPSHOT_FILE)
        except BaseException:
            files.close(file)
            with suppress(StorageError):  # the folder may be gone, with a deleted stream
                files.unlink(draft)
            raise
    return folder / SNAPSHOT_FILE


def _check_there(connection: sqlite3.Connection, ref: StreamRef, no: int) -> None:
    """Raise NotReady when the stream was deleted meanwhile: the folder may be that of a new one."""
    if not connection.execute("SELECT 1 FROM stream WHERE no = ?", (no,)).fetchall():
        raise NotReady(f"{ref} was deleted")


@contextmanager
def _reading(database: Path) -> Iterator[sqlite3.Connection]:
    """Lend a connection of our own."""
    connection = sqlite3.connect(database, timeout=5, isolation_level=None)
    try:
        connection.execute("PRAGMA query_only = 1")
        yield connection
    finally:
        connection.close()


def _remove_drafts(folder: Path, files: FileOps) -> None:
    """Remove what a killed process left behind."""
    for path in folder.glob(f"{SNAPSHOT_FILE}.*"):
        with suppress(OSError, StorageError):
            if path.stat().st_mtime < time.time() - DRAFT_S:
                files.unlink(path)


def _beside_segments(connection: sqlite3.Connection, ref: StreamRef) -> list[Path]:
    """Return the journals of all segments that the index knows, on whichever tier."""
    select = "SELECT path FROM segment WHERE source = ? AND stream = ? AND path NOT LIKE 'memory:%'"
    rows = connection.execute(select, (ref.source, ref.stream)).fetchall()
    return [Path(path).with_suffix(JOURNAL_SUFFIX) for (path,) in rows if is_segment(path)]


def _marks(journals: Mapping[str, Path]) -> dict[Path, int]:
    """Return the sizes of journals before the index is looked at: what is appended later shows that it is younger."""
    try:
        return {path: path.stat().st_size for path in journals.values()}
    except OSError as exc:
        raise NotReady(f"a journal cannot be seen: {exc}") from exc


def _facts(
    connection: sqlite3.Connection, ref: StreamRef, journals: Mapping[Path, int], *, rebuilt: bool
) -> tuple[dict[str, Any], int]:
    """Return what the directory says beside the sections, and the stream's number."""
    names = ("n_messages", "n_bytes", "id_max", "head_seq", "finished", "last_id", "next_stream", "meta")
    select = f"SELECT no, {', '.join(names)} FROM stream WHERE source = ? AND stream = ? AND known = 1"
    rows = connection.execute(select, (ref.source, ref.stream)).fetchall()
    info = dict(zip(names, rows[0][1:], strict=True)) if rows else {}
    if not rows or not (info["finished"] or rebuilt):
        raise NotReady(f"{ref} is not {'finished' if rows else 'known'}")
    no = rows[0][0]
    info |= {"finished": info["finished"] == 1, "meta": json.loads(info["meta"])}
    segments = _segments(connection, ref, () if rebuilt else journals)
    (n_rows,) = connection.execute(f"SELECT count(*) {_STORED}", _span(no)).fetchone()
    lost = info["n_messages"] - n_rows
    if lost:
        (nbytes,) = connection.execute(f"SELECT total(size) {_STORED}", _span(no)).fetchone()
        info |= {"n_messages": n_rows, "n_bytes": int(nbytes)}
    facts = {
        "beamtime": ref.beamtime, "source": ref.source, "stream": ref.stream, "number": no, "info": info,
        "n_rows": n_rows, "lost": lost, "journals": [[path.name, size] for path, size in journals.items()],
        "segments": segments, **_tables(connection, no),
    }  # fmt: skip
    return facts, no


def _segments(connection: sqlite3.Connection, ref: StreamRef, journals: Iterable[Path]) -> list[list[Any]]:
    """Return the stream's segments; NotReady when one may hold what the index does not have yet."""
    select = "SELECT no, path, receiver_id, epoch, tier_uuid, closed FROM segment WHERE source = ? AND stream = ?"
    rows = connection.execute(f"{select} ORDER BY no", (ref.source, ref.stream)).fetchall()
    folders = {str(Path(path).parent) for _, path, *_ in rows if is_segment(path)}
    segments = [[no, _name_below(folders, path), *facts] for no, path, *facts, _ in rows]
    closed = {
        Path(path).with_suffix(JOURNAL_SUFFIX).name for _, path, *_, is_closed in rows if is_closed and is_segment(path)
    }
    for path in journals:
        # One that the index does not know holds no message: what it says is of the stream, or of other segments.
        if path.name not in closed and any(getattr(item, "kind", Kind.PUT) == Kind.PUT for item in read_journal(path)):
            raise NotReady(f"{path} is open")
    return segments


def _name_below(folders: Iterable[str], path: str) -> str:
    """Return the name of a segment, or the path of a message's file below the stream's folder."""
    if not is_segment(path):
        for folder in folders:
            if path.startswith(f"{folder}/{FILES_FOLDER}/"):
                return path[len(folder) + 1 :]
    return Path(path).name


def _span(no: int) -> tuple[int, int]:
    return no << SEQ_BITS, (no << SEQ_BITS) | SEQ_MASK


def _tables(connection: sqlite3.Connection, no: int) -> dict[str, Any]:
    """Return the formats and origins that the rows refer to."""
    used = "IN (SELECT DISTINCT {} FROM message WHERE key BETWEEN ? AND ?)"
    formats = connection.execute(
        f"SELECT no, dtype, shape, codec FROM format WHERE no {used.format('format')}", _span(no)
    ).fetchall()
    origins = connection.execute(f"{NAMED} WHERE no {used.format('origin')}", _span(no)).fetchall()
    return {
        "formats": [[number, dtype, list(parse_shape(shape)), codec] for number, dtype, shape, codec in formats],
        "origins": [list(row) for row in origins],
    }


def _fill(files: FileOps, file: OpenFile, connection: sqlite3.Connection, no: int, facts: dict[str, Any]) -> None:
    """Write header, sections and directory."""
    files.pwrite_all(file, [FILE_HEADER], 0)
    ranges, sections = _layout(connection, no, facts["n_rows"])
    _write_rows(files, file, connection, no, sections)
    if short := [name for name, section in sections.items() if section.done != section.size]:
        raise StorageError(f"{file.path}: section {short[0]} has another size than announced", path=file.path)
    facts["sections"] = {**ranges, **{name: section.entry for name, section in sections.items()}}
    at = max((section.at + section.size for section in sections.values()), default=len(FILE_HEADER))
    text = msgpack.packb(facts)
    digest = xxhash.xxh3_64_intdigest(FILE_HEADER + text)
    files.pwrite_all(file, [text, TRAILER.pack(at, len(text), digest)], at)


def _layout(connection: sqlite3.Connection, no: int, n_rows: int) -> tuple[dict[str, list[int]], dict[str, _Section]]:
    """Return the columns that are a range or one value, as [first, step], and places for the others."""
    names = [*COLUMNS, "meta_end"]
    if not n_rows:
        return {name: [0, 0] for name in names}, {"meta": _Section(ALIGN, 0, 0, xxhash.xxh3_64())}
    texts = "length(CAST(meta AS BLOB))"
    wanted = [_EXPRESSIONS.get(name, name) for name in COLUMNS] + [texts, f"id - (key & {SEQ_MASK})"]
    select = ", ".join(f"min({expression}), max({expression})" for expression in wanted)
    limits = connection.execute(f"SELECT {select}, total({texts}) {_STORED}", _span(no)).fetchone()
    low, high = dict(zip(names, limits[0::2], strict=False)), dict(zip(names, limits[1::2], strict=False))
    ranges = {name: [low[name], 0] for name in COLUMNS if low[name] == high[name]}
    if high["seq"] - low["seq"] + 1 == n_rows:
        ranges["seq"] = [low["seq"], 1]
        if limits[-3] == limits[-2]:
            ranges["id"] = [low["id"], 1]
    if low["meta_end"] == high["meta_end"]:
        ranges["meta_end"] = [low["meta_end"], low["meta_end"]]
    sections, at = {}, ALIGN
    for name in [*(name for name in names if name not in ranges), "meta"]:
        size = int(limits[-1]) if name == "meta" else 8 * n_rows
        sections[name] = _Section(at, size, 0, xxhash.xxh3_64())
        at = (at + size + ALIGN - 1) & -ALIGN
    return ranges, sections


def _write_rows(
    files: FileOps, file: OpenFile, connection: sqlite3.Connection, no: int, sections: dict[str, _Section]
) -> None:
    import numpy as np

    names = [name for name in COLUMNS if name in sections]
    select = ", ".join(_EXPRESSIONS.get(name, name) for name in [*names, "meta"])
    cursor = connection.execute(f"SELECT {select} {_STORED} ORDER BY key", _span(no))
    end = 0
    while rows := cursor.fetchmany(CHUNK_ROWS):
        *columns, metas = zip(*rows, strict=True)
        texts = [text.encode() for text in metas]
        parts: dict[str, Any] = dict(zip(names, columns, strict=True))
        ends = end + np.cumsum([len(text) for text in texts])
        end = int(ends[-1])
        parts["meta_end"] = ends
        for name, section in sections.items():
            data = b"".join(texts) if name == "meta" else np.asarray(parts[name], DTYPE).tobytes()
            section.digest.update(data)
            files.pwrite_all(file, [data], section.at + section.done)
            section.done += len(data)
