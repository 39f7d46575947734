"""Recorded streams: the segments and journals of a beamline folder, sent again as they were acknowledged."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from asapo.errors import ChecksumMismatch, DamagedFile, WrongInput
from asapo.models import StreamRef
from asapo_produce.detectors.readers.base import Item, StreamEnd, StreamMeta

if TYPE_CHECKING:
    from asapo.storage.withdrawn import Withdrawn

log = logging.getLogger(__name__)
OPEN_FILES: Final = 16
"""Segments kept open while streams are merged."""


def has_journals(folder: Path) -> bool:
    """Whether recorded streams lie in a folder or below."""
    from asapo.storage.layout import find_journals

    return next(find_journals(folder), None) is not None


@dataclass(frozen=True, slots=True)
class _Stream:
    """One recorded stream, from a first pass over its journals."""

    ref: StreamRef
    journals: tuple[Path, ...]
    gone: Withdrawn
    """What was there already, refused, or deleted."""
    end: StreamEnd | None
    meta: str
    """The stream's own metadata as text; empty when none was set."""
    n: int


class RecordedStreams:
    """All streams of one source in a folder, merged by the time at which they were taken in.

    Parameters
    ----------
    folder : path
        A tier, beamtime, source or stream folder.
    source : str
        Which source to read when there are several.
    verify : bool
        Check the checksum of every payload before it is sent.
    """

    ends_itself = True

    def __init__(self, folder: str | Path, *, source: str = "", verify: bool = True) -> None:
        self._folder = Path(folder)
        self._source = source
        self._verify = verify
        self._found: list[_Stream] | None = None
        self.name = self._folder.resolve().name

    def n_frames(self) -> int:
        """Return how many messages are recorded."""
        return sum(each.n for each in self._streams())

    def items(self, stream: str) -> Iterator[Item | StreamMeta | StreamEnd]:
        """Yield metadata of streams, the wire units as they were recorded, then the ends of streams.

        Raises
        ------
        WrongInput
            If there is nothing, more than one source, or a new name for more than one stream.
        DamagedFile, ChecksumMismatch
            If a payload is not there or not what was acknowledged.
        """
        streams = self._streams()
        if stream and len(streams) > 1:
            names = ", ".join(each.ref.stream for each in streams[:10])
            raise WrongInput(f"--stream {stream!r} for {len(streams)} recorded streams ({names}): replay one at a time")
        yield from (StreamMeta(stream or each.ref.stream, each.meta) for each in streams if each.meta)
        with _Segments() as segments:
            units = [self._units(each, path) for each in streams for path in each.journals]
            for _, _, each, path, fields in heapq.merge(*units, key=lambda unit: unit[:2]):
                yield from _items(each, path, fields, segments, stream or each.ref.stream, verify=self._verify)
        for each in streams:
            if each.end is not None:
                yield StreamEnd(stream, "") if stream else each.end

    def _streams(self) -> list[_Stream]:
        if self._found is None:
            self._found = self._scan()
        return self._found

    def _scan(self) -> list[_Stream]:
        from asapo.storage.layout import find_journals

        journals: dict[StreamRef, list[Path]] = {}
        for path in find_journals(self._folder):
            ref = _ref_of(path)
            if ref is not None and self._source in {"", ref.source}:
                journals.setdefault(ref, []).append(path)
        sources = sorted({f"{ref.beamtime}/{ref.source}" for ref in journals})
        if len(sources) != 1:
            state = f"{len(sources)} recorded sources ({', '.join(sources[:10])})" if sources else "no recorded stream"
            raise WrongInput(
                f"{self._folder}: {state}; expected one: give its folder, or name it with --source-name",
                path=str(self._folder),
            )
        return [_scan_stream(ref, paths) for ref, paths in sorted(journals.items())]

    def _units(self, stream: _Stream, path: Path) -> Iterator[tuple[int, str, _Stream, Path, dict[str, Any]]]:
        """Yield (time of arrival, journal, ...) of the units in one journal."""
        for kind, fields in _records(path):
            if kind == "PUT":
                yield fields["t"], str(path), stream, path, fields


def _ref_of(path: Path) -> StreamRef | None:
    """Return the stream a journal belongs to, None for a journal of the whole beamtime or one without a head."""
    for kind, fields in _records(path, report=True):
        named = kind == "HEAD" and fields.get("source") and fields.get("stream")
        return StreamRef(fields["beamtime"], fields["source"], fields["stream"]) if named else None
    return None


def _scan_stream(ref: StreamRef, paths: list[Path]) -> _Stream:
    from asapo.storage.withdrawn import KINDS, Withdrawn
    from asapo.wire.codec import decode_put

    gone = Withdrawn()
    n = 0
    end: StreamEnd | None = None
    meta = ""
    for path in paths:
        for kind, fields in _records(path):
            if kind == "PUT":
                n += len(decode_put(fields["put"]).ids) - len(fields.get("skip", ()))
            elif kind in KINDS:
                gone.note(fields)
            elif kind == "FINISH":
                end = StreamEnd(ref.stream, fields.get("next_stream", ""))
            elif kind == "META":
                meta = str(fields.get("meta", ""))
    return _Stream(ref, tuple(paths), gone, end, meta, n - len(gone))


def _records(path: Path, *, report: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    from asapo.storage.journal import Damage, read_journal

    for record in read_journal(path):
        if not isinstance(record, Damage):
            yield record.kind, record.fields
        elif report or not record.torn:
            log.warning("%s: %s at byte %d, %d bytes skipped", record.path, record.reason, record.offset, record.size)


def _items(
    stream: _Stream, journal: Path, fields: dict[str, Any], segments: _Segments, name: str, *, verify: bool
) -> Iterator[Item]:
    """Yield what is left of one wire unit: neighbours together."""
    from asapo.storage.layout import SEGMENT_SUFFIX, message_file
    from asapo.wire.codec import decode_put
    from asapo.wire.put import unit_offsets, unpack_column

    put = decode_put(fields["put"])
    segment = journal.with_suffix(SEGMENT_SUFFIX)
    gone = stream.gone.left_out(segment.name, fields, put.ids)
    kept = [k for k in range(len(put.ids)) if k not in gone]
    if not kept:
        return
    if fields["at"] not in {"segment", "file", "none"}:
        raise WrongInput(
            f"{journal}: payloads lie in {fields['at']!r}; expected segments or files; update this program"
        )
    starts, times = unit_offsets(put.sizes), unpack_column(put.acquired_ns, signed=True)
    sums = unpack_column(put.checksums)
    if fields["at"] == "file":
        payload = segments.read(Path(message_file(journal.parent, put.path)), 0, put.nbytes)
    else:
        payload = segments.read(segment, fields["offset"], put.nbytes)
    views = []
    for k in kept:
        view = payload[starts[k] : starts[k] + put.sizes[k]]
        if verify:
            _check(view, sums[k], segment, put.ids[k])
        views.append(view)
    yield Item(
        stream=name,
        frames=views,
        metas=[put.metas[k] for k in kept],
        ids=[put.ids[k] for k in kept],
        acquired_ns=[times[k] for k in kept],
        due_ns=fields["t"],
        together=True,
        format=put.format,
        origins=[put.origins[k] for k in kept] if put.origins else (),
        substream=put.substream,
        dataset_size=put.dataset_size,
    )


def _check(view: memoryview, expected: int, segment: Path, message_id: int) -> None:
    from xxhash import xxh3_64_intdigest

    found = xxh3_64_intdigest(view)
    if found != expected:
        raise ChecksumMismatch(
            f"{segment}: message {message_id} is not what was acknowledged; "
            "replay without --verify sends it as it is on disk",
            expected=expected,
            found=found,
        )


class _Segments:
    """Segment files, the last few of them open."""

    def __init__(self) -> None:
        self._open: dict[Path, BinaryIO] = {}

    def __enter__(self) -> _Segments:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for file in self._open.values():
            file.close()

    def read(self, path: Path, offset: int, nbytes: int) -> memoryview:
        """Return bytes of a segment; read, not mapped: a file that is cut while it is mapped kills the process."""
        if not nbytes:
            return memoryview(b"")
        buffer = bytearray(nbytes)
        try:
            file = self._file(path)
            file.seek(offset)
            got = file.readinto(buffer)  # type: ignore[attr-defined]
        except OSError as exc:
            raise DamagedFile(f"{path} cannot be read: {exc}", path=str(path), offset=offset) from exc
        if got != nbytes:
            raise DamagedFile(
                f"{path} ends {nbytes - got} bytes too early: copy segment and journal anew",
                path=str(path),
                offset=offset,
            )
        return memoryview(buffer)

    def _file(self, path: Path) -> BinaryIO:
        file = self._open.pop(path, None) or open(path, "rb")  # noqa: SIM115 - kept open, closed on exit
        self._open[path] = file
        while len(self._open) > OPEN_FILES:
            oldest = next(iter(self._open))
            self._open.pop(oldest).close()
        return file
