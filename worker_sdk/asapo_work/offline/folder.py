"""A beamtime's folder, or those of several tiers: which streams lie there, and the rows of each."""

from __future__ import annotations

import json
import logging
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from asapo.delivery.rows import RowTuple
from asapo.delivery.stream import StreamDelivery
from asapo.errors import AsapoError, OfflineUnsupported, WrongInput
from asapo.index.gaps import Incomplete, incomplete_among
from asapo.index.interface import Explanation, StreamHead, check_object_text
from asapo.index.rebuild import Rebuilt, rebuild_stream, stream_ref
from asapo.index.snapshot import Columns, Snapshot, why_stale
from asapo.index.snapshot_write import NotReady, write_snapshot
from asapo.index.sqlite import SqliteIndex
from asapo.models import MAX_ID, StreamInfo, StreamRef
from asapo.query import Query, Record, sort_key
from asapo.query.rows import record_of, select_rows
from asapo.storage.journal import Damage, Kind
from asapo.storage.layout import SNAPSHOT_FILE
from asapo.storage.recorded import (
    RecordedBeamtime,
    RecordedStream,
    beamtime_in,
    beamtime_of_folder,
    began_ns,
    entries,
    find_recorded,
)

logger = logging.getLogger(__name__)

SNAPSHOT: Final = "snapshot"
QUERY_ROWS: Final = 10_000
"""Rows that are judged at once."""
MAX_LOADED: Final = 128
"""Streams whose rows are kept mapped; those of others are mapped again when they are needed."""


@dataclass(slots=True)
class OpenReport:
    """How a folder was read; what concerns a stream is known once that stream was used."""

    streams: dict[str, str] = field(default_factory=dict)
    """Source/stream to "snapshot", or to why its journals are read instead."""
    damages: list[Damage] = field(default_factory=list)
    """Parts of journals that could not be read; a torn end is what a killed receiver leaves behind."""
    lost: dict[str, int] = field(default_factory=dict)
    """Source/stream to the number of its messages that were in a receiver's memory only (level `memory`)."""


class OfflineStream:
    """One stream: its facts, its rows, and the groups that read it. Used under the lock of its channel.

    Parameters
    ----------
    recorded : RecordedStream
        Its files.
    snapshot : Snapshot
        Its index: the file beside the segments, or one that was made of the journals.
    load : callable
        Gets the columns when they are needed; may call `take` first.
    """

    def __init__(self, recorded: RecordedStream, snapshot: Snapshot, load: Callable[[OfflineStream], Columns]) -> None:
        self.ref = snapshot.ref
        self.number = 0
        """Grows in the order in which the streams were made."""
        self.recorded = recorded
        self.snapshot = snapshot
        self.lasting = True
        """False when the snapshot's file is gone already: then its columns must be kept."""
        self._load = load
        self._columns: Columns | None = None

    def take(self, snapshot: Snapshot, columns: Columns) -> None:
        """Go on with another snapshot of the same stream, whose file is gone."""
        self.snapshot, self._columns, self.lasting = snapshot, columns, False
        for name in ("head", "tables"):
            self.__dict__.pop(name, None)  # its numbers are others

    def forget(self) -> None:
        """Let go of the columns, until they are needed again."""
        if self.lasting:
            self._columns = None

    @property
    def columns(self) -> Columns:
        """The rows."""
        if self._columns is None:
            self._columns = self._load(self)
        return self._columns

    @property
    def info(self) -> StreamInfo:
        """What is known of the stream; nothing will ever be added."""
        return self.snapshot.info

    @cached_property
    def head(self) -> StreamHead:
        """The end of the stream: nobody sends any more, so every id is settled."""
        info = self.info
        return StreamHead(info.head_seq, info.id_max, info.finished, info.last_id, info.next_stream, info.closed_below)

    @cached_property
    def delivery(self) -> StreamDelivery:
        """Groups; the window begins behind the last message, so everything is backlog, loaded as it is asked for."""
        found = StreamDelivery(low=self.info.id_max + 1, head_seq=self.info.head_seq)
        found.window.id_max = self.info.id_max
        found.window.set_watermark(self.head.watermark)
        if self.info.finished:
            found.window.finish(self.info.last_id, self.info.next_stream)
        return found

    @cached_property
    def tables(self) -> tuple[dict[int, list[Any]], dict[int, list[Any]], dict[int, list[str]]]:
        """Segments, formats and origins by number, as `asapo.wire.events.Rows` has them."""
        segments = {
            number: [str(self._path(mark.name)), mark.receiver_id, "", mark.tier_uuid, ""]
            for number, mark in self.snapshot.segments.items()
        }
        return segments, self.snapshot.formats, self.snapshot.origins

    def _path(self, name: str) -> Path:
        """Return where a segment lies: on the first tier that has it."""
        places = [folder / name for folder in self.recorded.folders]
        return next((path for path in places if path.is_file()), places[0])

    # `asapo.index.answers.StreamRows`; the number of the stream says nothing here

    def rows_after_seq(self, _no: int, seq: int, limit: int) -> list[RowTuple]:
        """Return rows that arrived after `seq`, in order of arrival."""
        return self.columns.after_seq(seq, limit)

    def rows_from_id(self, _no: int, id_from: int, id_below: int, limit: int) -> list[RowTuple]:
        """Return rows with `id_from <= id < id_below`, ordered by id and substream."""
        return self.columns.from_id(min(id_from, MAX_ID), min(id_below - 1, MAX_ID), limit)

    def all_rows(self, chunk: int) -> Iterator[list[RowTuple]]:
        """Yield all rows ordered by id and substream, some at a time."""
        for first in range(0, len(self.columns), chunk):
            yield self.columns.by_id(first, first + chunk)

    # `asapo.index.asked.Queried`

    def query(
        self, stream_no: int, query: Query, *, after: int = 0, row_limit: int, time_limit_s: float
    ) -> list[RowTuple]:
        """Return the rows that a query selects, in its order, behind the one that arrived as number `after`.

        Every row is looked at, however long that takes: nobody else waits for it.
        """
        place = sort_key(query)
        passed = [place(record_of(row)) for row in self.columns.after_seq(after - 1, 1) if after and row[1] == after]
        found: list[tuple[Record, RowTuple]] = []
        for rows in self.all_rows(QUERY_ROWS):
            pairs = select_rows(query, rows)
            found += [pair for pair in pairs if passed[0] < place(pair[0])] if passed else pairs
            if not query.order and len(found) >= row_limit:
                break  # they come in the order of ids
        if query.order:
            found.sort(key=lambda pair: place(pair[0]))
        return [row for _, row in found[:row_limit]]

    def count(self, stream_no: int, query: Query, *, time_limit_s: float) -> int:
        """Return how many rows a query selects."""
        found = sum(len(select_rows(query, rows)) for rows in self.all_rows(QUERY_ROWS))
        return found if query.limit is None else min(found, query.limit)

    def explain(self, stream_no: int, query: Query, *, time_limit_s: float) -> Explanation:
        """Raise OfflineUnsupported: every query looks at every message."""
        raise OfflineUnsupported(
            "explain needs running services: offline there is no index, a query looks at every message",
            feature="explain",
        )

    def absent_ids(self, stream_no: int, first: int, limit: int, *, time_limit_s: float) -> list[tuple[int, int]]:
        """Return the first `limit` closed ranges of ids, from `first` to the highest id, that are not there."""
        import numpy as np

        ids = np.unique(self.columns.ids)
        ids = np.concatenate(([first - 1], ids[ids >= first]))
        ends = np.flatnonzero(np.diff(ids) > 1)[:limit]
        return [(int(ids[end]) + 1, int(ids[end + 1]) - 1) for end in ends]

    def incomplete(self, stream_no: int, first: int, limit: int, *, time_limit_s: float) -> list[Incomplete]:
        """Return the first `limit` datasets with ids from `first` on that are not complete."""
        ids, sizes = self.columns.ids, self.columns.dataset_sizes
        part = sizes > 0
        pairs = zip(ids[part].tolist(), sizes[part].tolist(), strict=True)
        return incomplete_among(pairs, first, limit)

    def last_id(self) -> int:
        """Return the highest id of a message or complete dataset; 0 when there is none."""
        return self.columns.last_complete()


class Folder:
    """All streams of one beamtime, each opened when it is first asked for.

    Raises
    ------
    WrongInput
        If the folders hold no beamtime, or not the one that is asked for.
    """

    def __init__(self, folders: Sequence[Path], beamtime: str) -> None:
        found = find_recorded(folders)
        self.report = OpenReport()
        self.beamtime = _checked(found, beamtime)
        for folder in folders if len(folders) > 1 else ():
            _checked(find_recorded([folder]), self.beamtime)
        self._own = found.own
        self._recorded: dict[tuple[str, str], tuple[StreamRef, RecordedStream, Snapshot | None]] = {}
        self._opened: dict[tuple[str, str], OfflineStream | None] = {}
        self._loaded: OrderedDict[OfflineStream, None] = OrderedDict()
        began: dict[tuple[str, str], int] = {}
        for stream in found.streams:
            snapshot = self._snapshot(stream)
            ref = snapshot.ref if snapshot is not None else stream_ref(self.beamtime, stream)
            self._recorded[ref.source, ref.stream] = ref, stream, snapshot
            began[ref.source, ref.stream] = began_ns(stream.journals.values())
        order = sorted(began, key=lambda names: (began[names], names))
        self._numbers = {names: number for number, names in enumerate(order, 1)}

    def _snapshot(self, stream: RecordedStream) -> Snapshot | None:
        """Return the stream's snapshot when it is there, whole and up to date."""
        what, why = f"{stream.source}/{stream.stream}", "it has no snapshot"
        for folder in stream.folders:
            if not (folder / SNAPSHOT_FILE).is_file():
                continue
            try:
                found = Snapshot(folder / SNAPSHOT_FILE)
                why = why_stale(found, stream.journals)
            except AsapoError as exc:
                why = exc.message
                continue
            if found.ref.beamtime != self.beamtime:
                why = f"its snapshot is of beamtime {found.ref.beamtime!r}"
            if not why:
                self.report.streams[what] = SNAPSHOT
                if found.lost:
                    self.report.lost[what] = found.lost
                return found
        self._to_journals(what, why)
        return None

    def _to_journals(self, what: str, why: str) -> None:
        self.report.streams[what] = f"journals: {why}"
        logger.info("%s is read from its journals: %s", what, why)

    def stream(self, source: str, stream: str) -> OfflineStream | None:
        """Return a stream, None when there is none."""
        names = (source, stream)
        if names not in self._opened:
            place = self._recorded.get(names)
            opened = None if place is None else self._open(*place)
            if opened is not None:
                opened.number = self._numbers[names]
            self._opened[names] = opened
        return self._opened[names]

    def streams(self, source: str = "") -> list[OfflineStream]:
        """Return all streams, of one source or of all, ordered by source and name."""
        names = sorted(names for names in self._recorded if source in ("", names[0]))
        return [found for found in (self.stream(*each) for each in names) if found is not None]

    def _open(self, ref: StreamRef, stream: RecordedStream, snapshot: Snapshot | None) -> OfflineStream | None:
        if snapshot is not None:
            return OfflineStream(stream, snapshot, self._load)
        made = self._from_journals(ref, stream)
        if made is None:
            return None
        opened = OfflineStream(stream, made[0], self._load)
        opened.take(*made)
        return opened

    def _load(self, stream: OfflineStream) -> Columns:
        """Return the rows of a stream: of its snapshot, or of its journals when that is damaged."""
        try:
            columns = stream.snapshot.load()
        except AsapoError as exc:
            logger.warning("%s", exc.message)
            self._to_journals(f"{stream.recorded.source}/{stream.recorded.stream}", exc.message)
            made = self._from_journals(stream.ref, stream.recorded)
            if made is None:
                raise
            stream.take(*made)
            return made[1]
        self._loaded[stream] = None
        if len(self._loaded) > MAX_LOADED:
            self._loaded.popitem(last=False)[0].forget()
        return columns

    def _from_journals(self, ref: StreamRef, stream: RecordedStream) -> tuple[Snapshot, Columns] | None:
        """Index the stream anew, in a folder of its own for temporary files; None when its journals hold nothing."""
        rebuilt = Rebuilt(beamtime=ref.beamtime)
        with tempfile.TemporaryDirectory(prefix="asapo-open-", ignore_cleanup_errors=True) as name:
            index = SqliteIndex(Path(name, "index.sqlite"), ref.beamtime)
            try:
                rebuild_stream(index, stream, ref, rebuilt)
                path = write_snapshot(Path(name), index.path, ref, list(stream.journals.values()), rebuilt=True)
            except NotReady:
                return None
            finally:
                index.close()
                self._note(rebuilt.damages)
            snapshot = Snapshot(path)
            return snapshot, snapshot.load()

    def _note(self, damages: Sequence[Damage]) -> None:
        for damage in damages:
            self.report.damages.append(damage)
            level = logging.INFO if damage.torn else logging.WARNING
            logger.log(level, "%s: %s at byte %d (%d bytes)", damage.path, damage.reason, damage.offset, damage.size)

    @cached_property
    def beamtime_meta(self) -> dict[str, Any]:
        """The metadata of the beamtime; {} when none was set."""
        text = "{}"
        damages: list[Damage] = []
        for entry in entries(self._own.values(), damages.append):
            if entry.record.kind == Kind.META:
                text = check_object_text(str(entry.record.fields.get("meta", "{}")))
        self._note(damages)
        found: dict[str, Any] = json.loads(text)
        return found

    def close(self) -> None:
        """Let go of all files."""
        self._opened.clear()
        self._recorded.clear()
        self._loaded.clear()


def _checked(found: RecordedBeamtime, wanted: str) -> str:
    """Return the beamtime's name."""
    where = ", ".join(map(str, found.folders))
    if not found.streams and not found.own:
        raise WrongInput(
            f"{where}: no recorded stream found; expected the folder of a beamtime, with SOURCE/STREAM/*.idx in it",
            path=where,
        )
    name = beamtime_in(found) or _named_by_snapshot(found) or beamtime_of_folder(found)
    if wanted and name and name != wanted:
        raise WrongInput(f"{where} holds beamtime {name!r}, not {wanted!r}", path=where)
    if not (name or wanted):
        raise WrongInput(f"{where}: nothing tells the beamtime's name; give `beamtime=`", path=where)
    return name or wanted


def _named_by_snapshot(found: RecordedBeamtime) -> str:
    """Return the beamtime that a snapshot names: of a folder that was copied without its journals."""
    for stream in found.streams:
        for folder in stream.folders:
            try:
                return Snapshot(folder / SNAPSHOT_FILE).ref.beamtime
            except AsapoError:
                continue
    return ""
