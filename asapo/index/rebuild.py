"""The index made anew from the journals, which are the truth on disk (R20, decision 0010)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from asapo.errors import AsapoError, StorageError, WrongInput
from asapo.hostinfo import boot_id
from asapo.index.interface import MetadataIndex, UnitRecord
from asapo.index.records import own_file, record_from_put, tier_uuid_of
from asapo.models import StreamRef
from asapo.storage.journal import Damage, JournalRecord, Kind, Where
from asapo.storage.layout import SEGMENT_SUFFIX
from asapo.storage.recorded import (
    Entry,
    RecordedBeamtime,
    RecordedStream,
    beamtime_in,
    beamtime_of_folder,
    began_ns,
    entries,
    names_in,
    names_of_folder,
    receiver_of,
)
from asapo.storage.withdrawn import KINDS, Withdrawn
from asapo.wire.codec import decode_put

BATCH_MESSAGES: Final = 32_768
"""Messages in one transaction: nobody waits for it, so it is large."""
PLACES: Final = frozenset({Where.SEGMENT, Where.FILE, Where.NONE})
"""Where payloads may lie for this version to index them."""
Progress = Callable[[int, int], None]
"""Takes messages and journal bytes that are done so far."""


@dataclass(slots=True)
class Rebuilt:
    """What was found in the journals of one beamtime, and what could not be read."""

    beamtime: str = ""
    streams: list[StreamRef] = field(default_factory=list)
    journals: int = 0
    journal_bytes: int = 0
    messages: int = 0
    """Messages that are in the index now; each part of a dataset counts."""
    withdrawn: int = 0
    """Messages in the journals that do not count: there already, refused, or above the end of their stream."""
    damages: list[Damage] = field(default_factory=list)
    """Parts of journals that could not be read; a torn end is what a killed receiver leaves behind."""
    mixed: list[StreamRef] = field(default_factory=list)
    """Streams taken in by several receivers: their arrival numbers may differ from those before."""

    @property
    def damaged(self) -> list[Damage]:
        """Damages other than torn ends."""
        return [damage for damage in self.damages if not damage.torn]


def rebuild(
    index: MetadataIndex, found: RecordedBeamtime, *, beamtime: str = "", progress: Progress = lambda *_: None
) -> Rebuilt:
    """Index everything that the journals of a beamtime hold, into an index that is empty.

    Parameters
    ----------
    beamtime : str
        Its name; the journals tell it when left out.
    progress : callable
        Told how far the work is.

    Raises
    ------
    WrongInput
        If a stream's name can be learned neither from its journals nor from its folder.
    StorageError, UnsupportedVersion, IndexUnavailable
        If a journal cannot be read, or the index not be written.
    """
    report = Rebuilt(beamtime=beamtime or beamtime_in(found) or beamtime_of_folder(found))
    streams = [(stream, stream_ref(report.beamtime, stream)) for stream in found.streams if stream.journals]
    # Streams are numbered in the order in which they were made, which `follow="source"` goes by.
    for stream, ref in sorted(streams, key=lambda pair: (began_ns(pair[0].journals.values()), pair[1])):
        rebuild_stream(index, stream, ref, report, progress)
    for entry in entries(found.own.values(), report.damages.append):
        if entry.record.kind == Kind.META:
            _apply(report, entry, lambda fields: index.set_beamtime_meta(fields["meta"]))
    report.journals += len(found.own)
    return report


def stream_ref(beamtime: str, stream: RecordedStream) -> StreamRef:
    """Return the stream's names: from its journals, else from its folders."""
    ref = names_in(stream.journals.values()) or names_of_folder(beamtime, stream)
    if ref is None:
        raise WrongInput(
            f"{stream.folders[0]}: neither a journal nor the folder's name tells which stream this is; "
            "move the folder away to go on without it",
            path=str(stream.folders[0]),
        )
    return StreamRef(beamtime, ref.source, ref.stream)


def rebuild_stream(
    index: MetadataIndex,
    stream: RecordedStream,
    ref: StreamRef,
    report: Rebuilt,
    progress: Progress = lambda *_: None,
) -> None:
    """Index one stream; raises as `rebuild`."""
    paths = list(stream.journals.values())
    gone = _survey(paths, report)
    work = _Work(index, ref, gone, report)
    for entry in entries(paths, _ignore):
        report.journal_bytes += entry.record.size
        if entry.record.kind == Kind.PUT:
            _apply(report, entry, lambda fields, entry=entry: work.put(entry))  # type: ignore[misc]
            progress(report.messages, report.journal_bytes)
        elif entry.record.kind == Kind.FINISH:
            work.flush()
            _apply(report, entry, work.finish)
        elif entry.record.kind == Kind.META:
            _apply(report, entry, lambda fields: index.set_stream_meta(ref, fields["meta"]))
    work.flush()
    for number in work.segments.values():
        index.close_segment(number)
    report.journals += len(paths)
    report.streams.append(ref)
    if len({receiver_of(path)[0] for path in work.segments}) > 1:
        report.mixed.append(ref)
    progress(report.messages, report.journal_bytes)


def _ignore(damage: Damage) -> None:
    """Damages are noted by the first pass."""


def _survey(paths: Iterable[Path], report: Rebuilt) -> Withdrawn:
    """Return what the journals withdraw; it may stand in a later one than what it speaks of."""
    gone = Withdrawn()
    for entry in entries(paths, report.damages.append):
        if entry.record.kind in KINDS:
            _apply(report, entry, gone.note)
    return gone


def _apply(report: Rebuilt, entry: Entry, action: Callable[[dict[str, Any]], None]) -> None:
    """Do what a record says; one whose fields make no sense is reported like one that cannot be read."""
    try:
        action(entry.record.fields)
    except StorageError:
        raise  # of the index
    except (AsapoError, KeyError, TypeError, ValueError) as exc:
        report.damages.append(_senseless(entry.path, entry.record, exc))


def _senseless(path: Path, record: JournalRecord, error: Exception) -> Damage:
    reason = f"a {record.kind} record that cannot be used ({type(error).__name__}: {error})"
    return Damage(os.fspath(path), record.offset, record.size, torn=False, reason=reason)


class _Work:
    """Units of one stream on their way into the index."""

    def __init__(self, index: MetadataIndex, ref: StreamRef, gone: Withdrawn, report: Rebuilt) -> None:
        self._index = index
        self._ref = ref
        self._gone = gone
        self._report = report
        self._units: list[UnitRecord] = []
        self._n = 0
        self.segments: dict[Path, int] = {}
        """Journal to the number of its segment."""

    def put(self, entry: Entry) -> None:
        """Take a unit up."""
        fields = entry.record.fields
        if fields["at"] not in PLACES:
            raise WrongInput(f"payload in {fields['at']!r}: this version reads {', '.join(sorted(PLACES))} only")
        put = decode_put(fields["put"])
        name = entry.path.with_suffix(SEGMENT_SUFFIX).name
        left_out = self._gone.left_out(name, fields, put.ids)
        self._report.withdrawn += len(left_out)
        if len(fields.get("skip", ())) < len(put.ids):
            segment = self._segment(entry.path)
            if len(left_out) < len(put.ids):
                file = (
                    own_file(entry.path.with_suffix(SEGMENT_SUFFIX), put.path) if fields["at"] == Where.FILE else None
                )
                self._units.append(
                    record_from_put(
                        self._ref,
                        put,
                        base=fields["offset"],
                        segment=segment,
                        skip=left_out,
                        received_ns=fields["t"],
                        file=file,
                    )  # fmt: skip
                )
                self._n += len(put.ids)
        if self._n >= BATCH_MESSAGES:
            self.flush()

    def _segment(self, journal: Path) -> int:
        number = self.segments.get(journal)
        if number is None:
            path = journal.with_suffix(SEGMENT_SUFFIX)
            receiver, epoch = receiver_of(journal)
            number = self.segments[journal] = self._index.register_segment(
                str(path), receiver, epoch, tier_uuid_of(path), boot_id(), self._ref
            )
        return number

    def flush(self) -> None:
        """Index what was taken up."""
        units, self._units, self._n = self._units, [], 0
        for unit, outcome in zip(units, self._index.commit(units) if units else (), strict=True):
            new = outcome.head_seq - outcome.first_seq + 1 if outcome.first_seq else 0
            self._report.messages += new
            self._report.withdrawn += len(unit.ids) - new

    def finish(self, fields: dict[str, Any]) -> None:
        """Note the end of the stream, unless the index refuses it, as it did when the record was written."""
        try:
            self._index.finish_stream(self._ref, fields["last_id"], fields["next_stream"])
        except WrongInput:
            return


def journals_of(found: RecordedBeamtime) -> Iterator[Path]:
    """Yield all journals of a beamtime."""
    yield from found.own.values()
    for stream in found.streams:
        yield from stream.journals.values()
