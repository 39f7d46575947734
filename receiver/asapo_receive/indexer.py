"""The index thread: one transaction for all that was stored during the one before, then the outcomes go back."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from asapo.errors import AsapoError, IndexUnavailable, StorageError, known
from asapo.failpoints import failpoint
from asapo.index import IndexDirectory
from asapo.index.interface import MetadataIndex, OwnFile, UnitOutcome, UnitRecord
from asapo.metrics import Counters
from asapo.models import StreamRef
from asapo.storage.store import SegmentHandle
from asapo.wire.events import Bye, FinishStream, OpenStream, SetMeta
from asapo.wire.put import aligned
from asapo_receive.cache import RecentUnits
from asapo_receive.units import Closing, Note, Request, Unit, announcements, notes_of, record_of

log = logging.getLogger(__name__)

MEMORY_PREFIX: Final = "memory:"
"""Begins the name under which the index knows the memory of one life of a receiver: no path begins so."""
MEMORY_BASE: Final = 64
"""Payloads of level `memory` have offsets in one space that only grows; 0 stands for none."""
GATHER_S: Final = 0.02
"""Longest that a stored unit waits for others to share its transaction, and only while more are queued."""
BATCH_MESSAGES: Final = 4096
"""Most messages in one transaction: bounds how long the first of them waits."""


class _BeatsWait:
    """Stands in the queue for all heartbeats that were not taken up yet."""


_BEATS_WAIT: Final = _BeatsWait()


class Indexer:
    """Second stage: index, then hand the outcomes to `finished` and the new heads to `announce`."""

    def __init__(
        self,
        directory: IndexDirectory,
        receiver_id: str,
        epoch: int,
        *,
        register: Callable[[MetadataIndex, str, StreamRef], int],
        own_file: Callable[[str], OwnFile],
        finished: Callable[[list[Unit] | list[Request]], None],
        note: Callable[[Note | Closing], None],
        again: Callable[[list[Unit]], None],
        announce: Callable[..., None],
        more_coming: Callable[[], bool],
        gather_bytes: int,
        recent: RecentUnits,
        memory: RecentUnits,
        counters: Counters,
    ) -> None:
        self._directory = directory
        self._receiver_id = receiver_id
        self._register = register
        self._own_file = own_file
        self._finished, self._note, self._announce = finished, note, announce
        self._more_coming = more_coming
        self._gather_bytes = gather_bytes
        self._again = again
        self._recent, self._memory, self._counters = recent, memory, counters
        self._inbox: queue.SimpleQueue[list[Unit] | Request | SegmentHandle | Closing | _BeatsWait | None] = (
            queue.SimpleQueue()
        )
        self._submitted = self._taken = self._served = 0
        """Items handed in (writer thread); of those, begun and wholly served (index thread)."""
        self.abandon = False
        """Set to give up on an index that is away, when the receiver must stop."""
        self._memory_offset = MEMORY_BASE
        self._memory_name = f"{MEMORY_PREFIX}{receiver_id}-{epoch}"
        self._memory_segments: dict[str, int] = {}
        self._noted: set[int] = set()
        """Numbers of segments with units on which notes were handed to the writer."""
        self._beats: dict[tuple[str, str, bytes], dict[str, int]] = {}
        self._beats_lock = threading.Lock()

    def submit(self, item: list[Unit] | Request | SegmentHandle | Closing | None) -> None:
        """Take units that were stored, a closed segment, or a request; None ends `run`. Writer thread.

        While nothing waits on either side units are indexed here and now, which saves a switch of threads; under load
        both stages work side by side.
        """
        if isinstance(item, list) and self._served == self._submitted and not self._more_coming():
            self._commit(item)
            return
        self._submitted += 1
        self._inbox.put(item)

    def beat(self, beamtime: str, source: str, session: bytes, marks: Mapping[str, int]) -> None:
        """Keep a session alive and raise its marks. Any thread, never blocks.

        Beats do not follow units through the writer: a stuck disk must not end sessions, and a mark says nothing of
        units on their way. What comes in before the index takes it up becomes one write for each session.
        """
        with self._beats_lock:
            first = not self._beats
            waiting = self._beats.setdefault((beamtime, source, session), {})
            for stream, mark in marks.items():
                waiting[stream] = max(mark, waiting.get(stream, 0))
        if first:
            self._inbox.put(_BEATS_WAIT)

    def _take_beats(self) -> None:
        with self._beats_lock:
            beats, self._beats = self._beats, {}
        for (beamtime, source, session), named in beats.items():
            marks = {StreamRef(beamtime, source, stream): mark for stream, mark in named.items()}
            try:
                self._patiently(lambda b=beamtime, s=session, m=marks: self._directory.open(b).beat(s, m))  # type: ignore[misc]
            except (AsapoError, MemoryError) as exc:
                log.warning("heartbeat of a session in beamtime %s is lost: %s", beamtime, exc)
            except Exception:
                log.exception("heartbeat of a session in beamtime %s failed", beamtime)
            if marks:
                self._announce(beamtime, [(ref.source, ref.stream, 0) for ref in marks])

    def run(self) -> None:
        """Serve until None comes."""
        item = self._inbox.get()
        while item is not None:
            if isinstance(item, list):
                batch, behind = self._gather(item)
                self._commit(batch)
                self._served = self._taken
                item = behind[0] if behind else self._inbox.get()
            else:
                self._control(item)
                item = self._inbox.get()

    def _gather(
        self, units: list[Unit]
    ) -> tuple[list[Unit], list[Request | SegmentHandle | Closing | _BeatsWait | None]]:
        """Return the units for one transaction, and what came behind them when it is no unit.

        Whatever is there goes in. While the writer is behind, units wait in its queue for much longer than
        `GATHER_S`, so waiting that long for the next ones costs no latency, but saves commits, acks and wake-ups.
        """
        batch: list[Unit] = []
        messages = nbytes = 0
        until_s = time.monotonic() + GATHER_S
        while True:
            batch += units
            messages += sum([len(unit.put.ids) for unit in units])
            nbytes += sum([unit.nbytes for unit in units])
            self._taken += 1
            if messages >= BATCH_MESSAGES:
                return batch, []
            patient = nbytes < self._gather_bytes and self._more_coming()
            patience_s = until_s - time.monotonic() if patient else 0.0
            try:
                item = self._inbox.get(patience_s > 0, max(0.0, patience_s))
            except queue.Empty:
                return batch, []
            if not isinstance(item, list):
                return batch, [item]
            units = item

    def _commit(self, batch: list[Unit]) -> None:
        by_beamtime: dict[str, list[Unit]] = {}
        for unit in batch:
            by_beamtime.setdefault(unit.ref.beamtime, []).append(unit)
        for beamtime, units in by_beamtime.items():
            try:
                self._patiently(lambda b=beamtime, u=units: self._commit_one(b, u))  # type: ignore[misc]
            except (AsapoError, MemoryError) as exc:
                error = known(exc, "index this")
                log.warning("%d units of beamtime %s refused: %s", len(units), beamtime, error)
                _refuse(units, error)
            except Exception as exc:
                log.exception("%d units of beamtime %s refused after an unexpected error", len(units), beamtime)
                _refuse(units, StorageError(f"unexpected error while indexing: {exc!r}; see the receiver's log"))
            if void := [unit for unit in units if unit.void and unit.alive]:
                units = [unit for unit in units if not (unit.void and unit.alive)]
                self._again(void)
            self._finished(units)

    def _commit_one(self, beamtime: str, units: list[Unit]) -> None:
        index = self._directory.open(beamtime)
        alive = [unit for unit in units if unit.alive]
        started_s = time.monotonic()
        records = [self._record(index, unit) for unit in alive]
        outcomes = index.commit(records)
        failpoint("ingest.after-index")
        if any(out.void for out in outcomes):
            alive, records, outcomes = self._without_void(index, alive, records, outcomes)
        heads = {(unit.ref.source, unit.ref.stream): out.head_seq for unit, out in zip(alive, outcomes, strict=True)}
        self._announce(
            beamtime,
            [(source, stream, head) for (source, stream), head in heads.items()],
            announcements(alive, records, outcomes),
        )
        for unit, outcome in zip(alive, outcomes, strict=True):
            self._settle(unit, outcome)
        counters = self._counters
        counters.add("asapo_receiver_messages_total", sum(len(unit.put.ids) for unit in alive))
        counters.add("asapo_receiver_index_commits_total")
        counters.add("asapo_receiver_index_commit_seconds_total", time.monotonic() - started_s)

    def _without_void(
        self, index: MetadataIndex, units: list[Unit], records: list[UnitRecord], outcomes: list[UnitOutcome]
    ) -> tuple[list[Unit], list[UnitRecord], list[UnitOutcome]]:
        """Mark the units that lie in segments of deleted streams, and return the others."""
        kept: list[tuple[Unit, UnitRecord, UnitOutcome]] = []
        for unit, record, out in zip(units, records, outcomes, strict=True):
            if not out.void:
                kept.append((unit, record, out))
                continue
            unit.void = True
            segment = unit.slot.segment if unit.slot is not None else None
            if segment is not None and segment.index_no is not None:
                index.withdraw_segment(segment.index_no)
                segment.index_no = None
        return [one[0] for one in kept], [one[1] for one in kept], [one[2] for one in kept]

    def _record(self, index: MetadataIndex, unit: Unit) -> UnitRecord:
        if unit.slot is None:
            if not unit.memory_offset:
                unit.memory_offset = self._memory_offset
                self._memory_offset += aligned(unit.nbytes)
            return record_of(unit, -self._memory_segment(index, unit), self._receiver_id)
        segment = unit.slot.segment
        if segment.index_no is None:
            segment.index_no = self._register(index, segment.path, segment.ref)
        file = self._own_file(unit.file) if unit.file else None
        return record_of(unit, segment.index_no, self._receiver_id, file)

    def _memory_segment(self, index: MetadataIndex, unit: Unit) -> int:
        """Return the number under which this life's memory is known: readers must find the one that has the bytes."""
        beamtime = unit.ref.beamtime
        number = self._memory_segments.get(beamtime)
        if number is None:
            number = self._register(index, self._memory_name, unit.ref)
            index.close_segment(number)  # there is no journal to be replayed
            self._memory_segments[beamtime] = number
        return number

    def _settle(self, unit: Unit, outcome: UnitOutcome) -> None:
        """Note the outcome, keep the payload for remote readers, let go of it otherwise."""
        if outcome.errors or outcome.superseded:
            bad = set(unit.bad())
            if (slot := unit.slot) is not None:
                where = {"ref": unit.ref, "segment": slot.segment.path, "offset": slot.offset}
                for note in notes_of(unit.put, outcome, **where, ingest_ns=unit.received_ns, skip=bad):  # type: ignore[arg-type]
                    self._note(note)
                    self._noted.add(slot.segment.number)
            asked = [index for index in range(len(unit.put.ids)) if index not in bad]
            unit.errors += [(asked[at], error) for at, error in outcome.errors]
        if unit.slot is None:
            if (number := self._memory_segments.get(unit.ref.beamtime)) is not None:
                self._memory.add((unit.ref.beamtime, -number), unit.memory_offset, unit.payload)
        elif unit.file:
            if outcome.segment:
                self._recent.add((unit.ref.beamtime, outcome.segment), 0, unit.payload)
        elif unit.slot.segment.index_no is not None:
            self._recent.add((unit.ref.beamtime, unit.slot.segment.index_no), unit.slot.offset, unit.payload)
        unit.payload = None

    def _patiently(self, step: Callable[[], None]) -> None:
        """Repeat while the index is away: nothing is acknowledged meanwhile, credits run out, nothing is lost."""
        pause_s = 0.01
        while True:
            try:
                return step()
            except IndexUnavailable as exc:
                self._counters.add("asapo_receiver_index_retries_total")
                log.warning("index is away, retrying in %.2f s: %s", pause_s, exc)
                if self.abandon:
                    raise
                time.sleep(pause_s * random.uniform(0.5, 1.5))
                pause_s = min(1.0, pause_s * 2)

    def _control(self, item: Request | SegmentHandle | Closing | _BeatsWait) -> None:
        if isinstance(item, _BeatsWait):
            self._take_beats()
            return
        self._taken += 1
        self._serve(item)
        self._served = self._taken

    def _close(self, item: Closing) -> None:
        try:
            self._patiently(lambda: self._directory.open(item.beamtime).close_segment(item.index_no))
        except (AsapoError, MemoryError) as exc:
            log.warning(
                "segment %d of %s stays open; the next start looks at it: %s", item.index_no, item.beamtime, exc
            )

    def _serve(self, item: Request | SegmentHandle | Closing) -> None:
        if isinstance(item, SegmentHandle):
            self._segment_is_full(item)
            return
        if isinstance(item, Closing):
            self._close(item)
            return
        if item.error is None:
            try:
                self._patiently(lambda: self._request(item))
            except (AsapoError, MemoryError) as exc:
                item.error = known(exc, f"serve {type(item.event).__name__}")
            except Exception as exc:
                log.exception("request %s failed", type(item.event).__name__)
                item.error = StorageError(f"unexpected error: {exc!r}; see the receiver's log")
        self._finished([item])

    def _segment_is_full(self, segment: SegmentHandle) -> None:
        """Mark it closed: at once, or when the notes on its units are written.

        A writer that has ended takes none of them: the segment stays open then, and the next life looks at it.
        """
        if segment.index_no is None:
            return
        closing = Closing(segment.ref.beamtime, segment.index_no)
        if segment.number in self._noted:
            self._noted.remove(segment.number)
            self._note(closing)
        else:
            self._serve(closing)

    def _request(self, request: Request) -> None:
        index = self._directory.open(request.beamtime)
        event, session = request.event, request.session
        if isinstance(event, Bye):
            index.close_session(session)
            self._announce(request.beamtime, [])
        elif isinstance(event, OpenStream):
            ref = StreamRef(request.beamtime, request.source, event.stream)
            opened = index.open_session(ref, session, event.substream, event.numbering, self._receiver_id)
            request.answer = {
                "id_max": opened.id_max, "closed_below": opened.closed_below, "finished": opened.finished,
                "last_id": opened.last_id, "next_stream": opened.next_stream,
            }  # fmt: skip
        elif isinstance(event, FinishStream):
            ref = StreamRef(request.beamtime, request.source, event.stream)
            index.finish_stream(ref, event.last_id, event.next_stream)
            self._announce(request.beamtime, [(ref.source, ref.stream, 0)])
        elif isinstance(event, SetMeta):
            if event.stream:
                index.set_stream_meta(StreamRef(request.beamtime, request.source, event.stream), event.meta)
            else:
                index.set_beamtime_meta(event.meta)


def _refuse(units: list[Unit], error: AsapoError) -> None:
    """Refuse what has no outcome yet; what is in the index all the same will be known when it comes again."""
    for unit in units:
        if unit.payload is not None:
            unit.refuse_all(error)
            unit.payload = None
