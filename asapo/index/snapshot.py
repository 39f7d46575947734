"""`index.snapshot`: the index of one finished stream as columns that NumPy maps (decision 0010).

File: 8 bytes `ASN` + major + minor + 3 zero bytes; sections, each at a multiple of 64; a directory in MessagePack; and
24 bytes: u64 LE offset of the directory, u64 LE its length, u64 LE xxh3_64 of file header and directory. The directory
names the sections with their checksums, the stream's facts, and the journals that the snapshot was made of, by which
it is known to be up to date.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgpack
from xxhash import xxh3_64_intdigest

from asapo.errors import DamagedFile, UnsupportedVersion
from asapo.models import Row, StreamInfo, StreamRef
from asapo.storage.journal import Damage, Kind, read_journal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from asapo.delivery.rows import RowTuple

    Numbers = NDArray[np.int64]

MAJOR: Final = 1
MINOR: Final = 0
MAGIC: Final = b"ASN"
FILE_HEADER: Final = MAGIC + bytes((MAJOR, MINOR, 0, 0, 0))
TRAILER: Final = struct.Struct("<QQQ")
ALIGN: Final = 64
COLUMNS: Final = tuple(name for name in Row._fields if name != "meta")
"""Columns of numbers; the metadata texts are one blob, `meta_end` says where each ends."""
META_AT: Final = Row._fields.index("meta")
DTYPE: Final = "<i8"
MAPPED_FROM: Final = 1024 * 1024
"""A map holds a descriptor, and a beamtime may have thousands of short streams."""
HARMLESS: Final = frozenset({Kind.HEAD, Kind.CLOSED, Kind.SUPERSEDED, Kind.REFUSED})
"""Records that change nothing in an index."""


@dataclass(frozen=True, slots=True)
class JournalMark:
    """A journal as it was when the snapshot was made of it."""

    name: str
    size: int
    """Length in bytes: what was appended since is not in the snapshot."""


@dataclass(frozen=True, slots=True)
class SegmentMark:
    """A segment that rows refer to by number."""

    name: str
    """Its path below the stream's folder of some tier: a file name, or that of a message's file in `files`."""
    receiver_id: str
    epoch: int
    tier_uuid: str


class Snapshot:
    """What a snapshot says of its stream; the columns are checked and mapped by `load`. Holds no open file.

    Raises
    ------
    DamagedFile
        If it is no snapshot, was cut, or a checksum is wrong; fields `path`, `offset`.
    UnsupportedVersion
        If another major version wrote it.
    StorageError
        If it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = os.fspath(path)
        try:
            with open(path, "rb") as file:
                self._size = os.fstat(file.fileno()).st_size
                facts = self._directory(file.read(len(FILE_HEADER)), file)
        except OSError as exc:
            raise DamagedFile(f"read {self.path}: {exc.strerror or exc}", path=self.path, offset=0) from exc
        try:
            self._take(facts)
        except (KeyError, TypeError, ValueError, IndexError) as exc:
            raise self._damaged("its directory", self._size) from exc

    def _directory(self, head: bytes, file: Any) -> dict[str, Any]:
        if head[:3] != MAGIC or self._size < len(FILE_HEADER) + TRAILER.size:
            raise self._damaged("the file header", 0)
        if head[3] != MAJOR:
            raise UnsupportedVersion(
                f"{self.path}: snapshot version {head[3]}.{head[4]}, this program reads {MAJOR}.x; update it",
                ours=[MAJOR, MINOR],
                theirs=list(head[3:5]),
            )
        file.seek(self._size - TRAILER.size)
        at, length, digest = TRAILER.unpack(file.read(TRAILER.size))
        if at + length + TRAILER.size != self._size:
            raise self._damaged("its end", self._size)
        file.seek(at)
        text = file.read(length)
        if xxh3_64_intdigest(head + text) != digest:
            raise self._damaged("its directory", at)
        found: dict[str, Any] = msgpack.unpackb(text, strict_map_key=False)
        return found

    def _damaged(self, what: str, offset: int) -> DamagedFile:
        return DamagedFile(f"{self.path}: {what} is damaged or was cut", path=self.path, offset=offset)

    def _take(self, facts: dict[str, Any]) -> None:
        self.ref = StreamRef(facts["beamtime"], facts["source"], facts["stream"])
        self.number: int = facts["number"]
        """Grows in the order in which the streams of the beamtime were made."""
        self.n_rows: int = facts["n_rows"]
        self.lost: int = facts["lost"]
        """Messages of level `memory`, which no file has."""
        self.journals = [JournalMark(*entry) for entry in facts["journals"]]
        self.segments = {number: SegmentMark(*entry) for number, *entry in facts["segments"]}
        if outside := [
            mark.name for mark in self.segments.values() if ".." in mark.name.split("/") or mark.name[:1] == "/"
        ]:
            raise ValueError(f"{outside[0]!r} does not lie in the stream's folder")
        self.formats: dict[int, list[Any]] = {number: entry for number, *entry in facts["formats"]}
        """Number to [dtype, shape, codec]."""
        self.origins: dict[int, list[str]] = {number: entry for number, *entry in facts["origins"]}
        """Number to [source, stream]."""
        info = facts["info"]
        top = max(info["id_max"], info["last_id"])
        self.info = StreamInfo(ref=self.ref, closed_below=top + 1, **info)
        self._sections: dict[str, list[int]] = facts["sections"]

    def load(self) -> Columns:
        """Check every section and return the columns, mapped; the map lives as long as they do.

        Raises
        ------
        DamagedFile
            If one is damaged, or the file was replaced or removed since.
        """
        import numpy as np

        view = self._content()
        columns: dict[str, Numbers] = {}
        n = self.n_rows
        for name in (*COLUMNS, "meta_end"):
            entry = self._sections[name]
            if len(entry) == 2:  # a range: its first value and step
                first, step = entry
                columns[name] = (
                    np.arange(first, first + step * n, step) if step else np.broadcast_to(np.int64(first), (n,))
                )
            else:
                columns[name] = np.frombuffer(self._section(view, name, 8 * n), DTYPE)
        blob = self._section(view, "meta", int(columns["meta_end"][-1]) if n else 0)
        return Columns(columns, blob)

    def _section(self, view: memoryview, name: str, expected: int) -> memoryview:
        at, length, digest = self._sections[name]
        part = view[at : at + length]
        if len(part) != length or length != expected or xxh3_64_intdigest(part) != digest:
            raise self._damaged(f"section {name!r}", at)
        return part

    def _content(self) -> memoryview:
        """Return the whole file: mapped, or read when it is so short that it is not worth a descriptor."""
        try:
            with open(self.path, "rb") as file:
                short = self._size <= MAPPED_FROM
                content = file.read() if short else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as exc:
            raise DamagedFile(f"read {self.path}: {exc}", path=self.path, offset=0) from exc
        return memoryview(content)


def why_stale(snapshot: Snapshot, journals: Mapping[str, Path]) -> str:
    """Return what the journals have beyond a snapshot, "" when it is up to date.

    Only what was appended since is read: notes about messages that do not count, and closing, change nothing.
    """
    sizes = {mark.name: mark.size for mark in snapshot.journals}
    for name, path in journals.items():
        since = sizes.get(name, 0)
        if path.stat().st_size <= since:
            continue
        for item in read_journal(path, since=since):
            if isinstance(item, Damage):
                if not item.torn:
                    return f"{path} is damaged at byte {item.offset}, behind what the snapshot knows"
            elif item.kind not in HARMLESS:
                return f"{path} has a {item.kind} record behind what the snapshot knows"
    return ""


class Columns:
    """The rows of one stream in the order of arrival.

    Parameters
    ----------
    columns : dict of str to int64 array, shape (n_rows,)
        One for each name of `COLUMNS`, and `meta_end`: where each metadata text ends in the blob, in bytes.
    blob : memoryview of bytes
        All metadata texts, UTF-8, one after the other.
    """

    def __init__(self, columns: dict[str, Numbers], blob: memoryview) -> None:
        self.ids = columns["id"]
        self.seqs = columns["seq"]
        self.dataset_sizes = columns["dataset_size"]
        self._substreams = columns["substream"]
        self._columns = [columns[name] for name in COLUMNS]
        self._ends = columns["meta_end"]
        self._blob = blob

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _by_id(self) -> Numbers | None:
        """Places of the rows ordered by id and substream; None when they arrived so."""
        import numpy as np

        ids, parts = self.ids, self._substreams
        same = ids[1:] == ids[:-1]
        if bool(np.all((ids[1:] > ids[:-1]) | (same & (parts[1:] > parts[:-1])))):
            return None
        return np.lexsort((parts, ids))

    @cached_property
    def _ids_by_id(self) -> Numbers:
        return self.ids if self._by_id is None else self.ids[self._by_id]

    def from_id(self, id_from: int, id_to: int, limit: int) -> list[RowTuple]:
        """Return rows with `id_from <= id <= id_to`, ordered by id and substream."""
        first = int(self._ids_by_id.searchsorted(id_from))
        end = int(self._ids_by_id.searchsorted(id_to, side="right"))
        return self._rows(self._by_id, first, min(end, first + limit))

    def by_id(self, first: int, end: int) -> list[RowTuple]:
        """Return the rows from place `first` to before `end` of all rows ordered by id and substream."""
        return self._rows(self._by_id, first, min(len(self), end))

    def after_seq(self, seq: int, limit: int) -> list[RowTuple]:
        """Return rows that arrived after `seq`, in order of arrival."""
        first = int(self.seqs.searchsorted(seq, side="right"))
        return self._rows(None, first, min(len(self), first + limit))

    def last_complete(self) -> int:
        """Return the highest id of a message or complete dataset; 0 when there is none."""
        ids = self._ids_by_id
        end = len(ids)
        while end:
            first = int(ids.searchsorted(ids[end - 1]))
            place = first if self._by_id is None else int(self._by_id[first])
            if end - first >= int(self.dataset_sizes[place]):
                return int(ids[first])
            end = first
        return 0

    def _rows(self, order: Numbers | None, first: int, end: int) -> list[RowTuple]:
        """Return rows as the index would select them."""
        if end <= first:
            return []
        places: Any = slice(first, end) if order is None else order[first:end]
        lists: list[Sequence[Any]] = [column[places].tolist() for column in self._columns]
        lists.insert(META_AT, self._metas(places, first, end, in_order=order is None))
        return list(zip(*lists, strict=True))

    def _metas(self, places: Any, first: int, end: int, *, in_order: bool) -> list[str]:
        ends = self._ends
        if in_order:
            at = int(ends[first - 1]) if first else 0
            stops = [stop - at for stop in ends[first:end].tolist()]
            raw = bytes(self._blob[at : at + stops[-1]])
            if raw.isascii():  # one decoding for all: bytes are characters
                text = raw.decode("ascii")
                return [text[a:b] for a, b in zip([0, *stops], stops, strict=False)]
            return [raw[a:b].decode() for a, b in zip([0, *stops], stops, strict=False)]
        starts = [int(ends[place - 1]) if place else 0 for place in places.tolist()]
        return [str(self._blob[a:b], "utf-8") for a, b in zip(starts, ends[places].tolist(), strict=True)]
