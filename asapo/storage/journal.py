"""The journal beside a segment: the truth on disk about what was acknowledged (R20, decision 0004).

File: 8 bytes `ASJ` + major + minor + 3 zero bytes, then records, the first of kind HEAD.
Record: sync marker, u32 LE length of the body, u64 LE xxh3_64 of (length bytes + body), body.
Body: MessagePack array `[kind, fields]`; a PUT has the wire header, as received or gathered, in its field `put`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, BinaryIO, Final

import msgpack
from xxhash import xxh3_64_intdigest

from asapo.errors import LocalProtocolError, UnsupportedVersion
from asapo.storage.files import FileOps, storage_error

MAJOR: Final = 1
MINOR: Final = 0
MAGIC: Final = b"ASJ"
SYNC: Final = b"\xa5\x5a\xc3\x3c"
LENGTH: Final = struct.Struct("<I")
SUM: Final = struct.Struct("<Q")
PREFIX_BYTES: Final = len(SYNC) + LENGTH.size + SUM.size
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
"""Longest body that is written or believed: four times the longest wire header."""
CHUNK_BYTES: Final = 1024 * 1024


class Kind(StrEnum):
    """Kinds of records; readers keep and skip kinds they do not know."""

    HEAD = "HEAD"
    PUT = "PUT"
    FINISH = "FINISH"
    META = "META"
    SESSION = "SESSION"
    DELETE = "DELETE"
    MOVED = "MOVED"
    SUPERSEDED = "SUPERSEDED"
    REFUSED = "REFUSED"
    CLOSED = "CLOSED"


class Where(StrEnum):
    """Where the payload of a PUT lies."""

    SEGMENT = "segment"
    FILE = "file"
    CACHE = "cache"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class JournalRecord:
    """One whole record."""

    kind: str
    """A `Kind`, or the name of a kind that is newer than this program."""
    fields: dict[str, Any]
    offset: int
    """Where the record begins in the journal, in bytes."""
    size: int
    """Length of the record in bytes."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A part of the journal that could not be read."""

    path: str
    offset: int
    """Where the damage begins, in bytes."""
    size: int
    """Bytes that were skipped."""
    torn: bool
    """True for a last record that was not written to its end: what a killed process or a full disk leaves behind."""
    reason: str


def file_header(major: int, minor: int) -> bytes:
    """Return the first 8 bytes of a journal."""
    return MAGIC + bytes((major, minor, 0, 0, 0))


FILE_HEADER: Final = file_header(MAJOR, MINOR)


def encode_record(kind: str, fields: Mapping[str, Any]) -> bytes:
    """Return the bytes of one record.

    Raises
    ------
    LocalProtocolError
        If the body would be longer than `MAX_BODY_BYTES`.
    """
    body = msgpack.packb([kind, fields])
    if len(body) > MAX_BODY_BYTES:
        raise LocalProtocolError(f"{kind} record of {len(body)} bytes: expected at most {MAX_BODY_BYTES}")
    length = LENGTH.pack(len(body))
    return b"".join((SYNC, length, SUM.pack(xxh3_64_intdigest(length + body)), body))


def decode_body(body: bytes) -> tuple[str, dict[str, Any]] | None:
    """Return kind and fields of a record's body, None when it is not a body."""
    try:
        value = msgpack.unpackb(body, strict_map_key=False)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
        return None
    if type(value) is not list or len(value) != 2:
        return None
    kind, fields = value
    return (kind, fields) if type(kind) is str and type(fields) is dict else None


def body_length(prefix: bytes) -> int:
    """Return the body's length that a record's first 16 bytes announce, -1 when they are no record's."""
    if len(prefix) < PREFIX_BYTES or not prefix.startswith(SYNC):
        return -1
    length: int = LENGTH.unpack_from(prefix, 4)[0]
    return length if length <= MAX_BODY_BYTES else -1


def body_checks(prefix: bytes, body: bytes) -> bool:
    """Say whether `body` is the one that the record's first 16 bytes announce."""
    found: int = SUM.unpack_from(prefix, 8)[0]
    return found == xxh3_64_intdigest(prefix[4:8] + body)


class JournalWriter:
    """Appends records to a new journal, each by one write call. Not thread-safe."""

    def __init__(self, path: str, head: Mapping[str, Any], files: FileOps) -> None:
        self._files = files
        self._file = files.create(path, append=True)
        self.path = path
        self.records = 0
        """Records written after HEAD."""
        try:
            files.append(self._file, FILE_HEADER + encode_record(Kind.HEAD, {**head, "version": [MAJOR, MINOR]}))
        except BaseException:
            self.close()
            raise

    def append(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Append one record; raises as `append_all`."""
        self.append_all([(kind, fields)])

    def append_all(self, records: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Append records of (kind, fields), all by one write.

        Raises
        ------
        StorageError
            If they may not be whole on disk; write no more into this journal then.
        """
        self._files.append(self._file, b"".join([encode_record(kind, fields) for kind, fields in records]))
        self.records += len(records)

    def fdatasync(self) -> None:
        """Bring all records to the medium."""
        self._files.fdatasync(self._file)

    def close(self) -> None:
        """Close the file."""
        self._files.close(self._file)


def read_journal(path: str | os.PathLike[str]) -> Iterator[JournalRecord | Damage]:
    """Yield every whole record of a journal, HEAD first, and a `Damage` for whatever lies between.

    The length of the file is taken at the start: records that a live writer appends meanwhile are not seen.

    Raises
    ------
    StorageError
        If the file cannot be read.
    UnsupportedVersion
        If another major version wrote the file; fields `ours`, `theirs`.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            yield from _Scan(name, file, os.fstat(file.fileno()).st_size).run()
    except OSError as exc:
        raise storage_error(exc, "read", name) from exc


class _Scan:
    """One pass over a journal; holds one record at a time and believes no length before it is checked."""

    def __init__(self, path: str, file: BinaryIO, size: int) -> None:
        self.path = path
        self.file = file
        self.size = size

    def run(self) -> Iterator[JournalRecord | Damage]:
        if self.size == 0:
            return  # created, and then killed before the first write
        at = self._start()
        if at == 0:
            after = self._resync(1)
            yield self._damage(0, after, "the file header")
            at = after
        while at < self.size:
            record = self._record(at)
            if record is not None:
                yield record
                at += record.size
                continue
            after = self._resync(at + 1)
            yield self._damage(at, after, "a record")
            at = after

    def _start(self) -> int:
        """Return where records begin: behind the file header, or 0 when the header is damaged."""
        head = self._read(0, len(FILE_HEADER))
        first = self._record(len(FILE_HEADER))
        # HEAD repeats the version under a checksum: a flipped bit in the file header must not hide a journal.
        version = first.fields.get("version") if first is not None and first.kind == Kind.HEAD else None
        if version is None:
            version = list(head[3:5]) if head[:3] == MAGIC and len(head) == len(FILE_HEADER) else [MAJOR, MINOR]
        if version[0] != MAJOR:
            raise UnsupportedVersion(
                f"{self.path}: journal version {version}, this program reads {MAJOR}.x; update it",
                ours=[MAJOR, MINOR],
                theirs=version,
            )
        return len(FILE_HEADER) if head == file_header(*version) else 0

    def _read(self, at: int, n: int) -> bytes:
        self.file.seek(at)
        return self.file.read(n)

    def _record(self, at: int) -> JournalRecord | None:
        """Return the record at `at` when it is whole and checks."""
        prefix = self._read(at, PREFIX_BYTES)
        length = body_length(prefix)
        if length < 0 or at + PREFIX_BYTES + length > self.size:
            return None
        body = self.file.read(length)
        if len(body) != length or not body_checks(prefix, body):
            return None
        decoded = decode_body(body)
        return decoded and JournalRecord(*decoded, at, PREFIX_BYTES + length)

    def _resync(self, at: int) -> int:
        """Return where the next record that checks begins at or after `at`, the end of the file when there is none."""
        while at < self.size:
            chunk = self._read(at, min(CHUNK_BYTES, self.size - at))
            found = chunk.find(SYNC)
            while found >= 0:
                if self._record(at + found) is not None:
                    return at + found
                found = chunk.find(SYNC, found + 1)
            if len(chunk) < len(SYNC):
                break
            at += len(chunk) - len(SYNC) + 1  # a marker may lie across two chunks
        return self.size

    def _damage(self, at: int, after: int, what: str) -> Damage:
        head = self._read(at, PREFIX_BYTES)
        length = body_length(head)
        short = len(head) < PREFIX_BYTES and SYNC.startswith(head[: len(SYNC)])
        unwritten = not any(head) and not any(self._read(at, min(after - at, CHUNK_BYTES)))
        cut = length >= 0 and at + PREFIX_BYTES + length > self.size
        torn = after == self.size and (short or unwritten or cut or at < len(FILE_HEADER) > self.size)
        reason = f"{what} was not written to its end" if torn else f"{what} is damaged"
        return Damage(self.path, at, after - at, torn, reason)
