"""The writer thread: checks payloads, appends them to segments and headers to journals. It may block on a disk."""

from __future__ import annotations

import logging
import math
import queue
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

from asapo.errors import AsapoError, StorageError, known
from asapo.failpoints import failpoint
from asapo.metrics import Counters
from asapo.models import StreamRef
from asapo.storage.journal import Kind
from asapo.storage.slots import PutRecord, SegmentHandle, Slot
from asapo.storage.store import StreamStore
from asapo.wire.events import FinishStream, SetMeta
from asapo.wire.put import unpack_column
from asapo_receive.quotas import Quotas
from asapo_receive.turns import Item, Turns
from asapo_receive.units import Closing, Note, Request, Unit, meta_error, verify

log = logging.getLogger(__name__)

MEMORY: Final = "memory"
IDLE_CHECK_S: Final = 5.0
IDLE_S: Final = 30.0
"""A segment unused for this long is closed."""
TOGETHER_BYTES: Final = 1024 * 1024
TOGETHER_UNITS: Final = 256
"""Units that wait are stored together up to these bounds: large ones go alone, so that the next stage can begin."""

Stored = list[Unit] | Request | SegmentHandle | Closing | None


class Writer:
    """First of the two stages behind the network thread.

    Everything that was stored is handed to `stored` in the order of arrival; what failed, too, with its errors. Small
    units that wait together are stored together: a write for each costs more than the rest.
    """

    def __init__(
        self,
        store: StreamStore,
        stored: Callable[[Stored], None],
        counters: Counters,
        *,
        is_void: Callable[[SegmentHandle], bool] = lambda _: False,
        beamtime_bytes_per_s: int = 0,
        quotas: Quotas | None = None,
    ) -> None:
        self._store = store
        self._is_void = is_void
        self._stored = stored
        self._counters = counters
        self._inbox: queue.SimpleQueue[Sequence[Item] | None] = queue.SimpleQueue()
        self._held = False
        """Whether what waits may not be stored yet."""
        self._quotas = quotas
        self._turns = Turns(beamtime_bytes_per_s, ready=quotas.ready if quotas else None)
        self._idle_check_due_s = 0.0
        self._ending = False
        self._closed: list[SegmentHandle] = []
        self.submit = self._inbox.put
        """Take Units, Requests, Notes for the journal and Closings in their order; None ends `run`."""

    def is_behind(self) -> bool:
        """Say whether more waits to be stored. Any thread."""
        return (bool(self._turns) and not self._held) or not self._inbox.empty()

    def closed(self, segment: SegmentHandle) -> None:
        """Take note that the store closed a segment; it is told behind the units that lie in it. Writer thread."""
        self._closed.append(segment)

    def run(self) -> None:
        """Serve until None comes; then close all files."""
        while not self._ending or self._turns:
            self._serve(self._next())
        self._store.close()
        self._tell_closed()
        self._stored(None)

    def _tell_closed(self) -> None:
        """Hand on what was closed. A segment that is called closed too early would not be looked at after a kill."""
        closed, self._closed = self._closed, []
        for segment in closed:
            self._stored(segment)

    def _next(self) -> list[Item]:
        """Return what is to be stored next, up to a bound; close segments that nobody writes to, also while busy."""
        now_s = time.monotonic()
        if now_s >= self._idle_check_due_s:
            self._store.close_idle(IDLE_S)
            self._idle_check_due_s = now_s + IDLE_CHECK_S
        self._listen(now_s)
        return self._turns.take(TOGETHER_BYTES, TOGETHER_UNITS, math.inf if self._ending else time.monotonic())

    def _listen(self, now_s: float) -> None:
        """Queue all that came in; wait for something when nothing can be stored now."""
        wait_s = min(IDLE_CHECK_S, self._turns.next_s(now_s))
        self._held = wait_s > 0
        try:
            items = self._inbox.get(wait_s > 0, wait_s) if not self._ending else None
            while items is not None:
                self._turns.add(items)
                items = self._inbox.get_nowait()
            self._ending = True
        except queue.Empty:
            return

    def _serve(self, items: list[Item]) -> None:
        for kind, group in groupby(items, type):
            if kind is Unit:
                units: list[Unit] = list(group)  # type: ignore[arg-type]
                self._take_units(units)
                self._stored(units)
                continue
            for item in group:
                if isinstance(item, Request):
                    self._take_request(item)
                    self._stored(item)
                elif isinstance(item, Note):
                    self._take_note(item)
                elif isinstance(item, Closing):
                    self._stored(item)
        self._tell_closed()

    def _take_units(self, units: list[Unit]) -> None:
        """Store units; those of one segment are neighbours there, and are written together."""
        runs: dict[int, list[Unit]] = {}
        for unit in units:
            slot = self._prepared(unit)
            if slot is None:
                continue
            if unit.put.path:
                # The journal is in the order of arrival: what came before goes first.
                self._write(runs.pop(slot.segment.number, []))
                self._write_file(unit, slot)
            else:
                runs.setdefault(slot.segment.number, []).append(unit)
        for run in runs.values():
            self._write(run)

    def _prepared(self, unit: Unit) -> Slot | None:
        """Check a unit and reserve room for it; None when nothing of it is to be written."""
        try:
            if unit.void and unit.slot is not None:
                self._store.discard(unit.slot.segment)
                unit.begin_anew()
            verify(unit)
            if unit.alive and unit.put.level != MEMORY:
                if self._quotas is not None:
                    self._quotas.take(unit.ref.beamtime, unit.nbytes + len(unit.header))
                unit.slot = self._store.reserve(unit.ref, 0 if unit.put.path else unit.nbytes)
        except Exception as exc:
            self._refuse([unit], exc)
        return unit.slot

    def _write_file(self, unit: Unit, slot: Slot) -> None:
        """Store a message as a file of its own."""
        put = unit.put
        try:
            (checksum,) = unpack_column(put.checksums)
            unit.file = self._store.write_file(slot, put.path, unit.payload, checksum)
            self._store.journal_run([slot], [PutRecord(unit.header, unit.received_ns, in_file=True)])
        except Exception as exc:
            self._store.abort(slot)
            self._refuse([unit], exc)

    def _write(self, units: list[Unit]) -> None:
        slots = [unit.slot for unit in units if unit.slot is not None]
        if not slots:
            return
        try:
            self._store.write_run(slots, [unit.payload for unit in units])
            self._store.journal_run(slots, [PutRecord(unit.header, unit.received_ns, unit.bad()) for unit in units])
        except Exception as exc:
            self._refuse(units, exc)

    def _refuse(self, units: list[Unit], problem: Exception) -> None:
        if isinstance(problem, MemoryError):
            problem = known(problem, "store this")
        if isinstance(problem, AsapoError):
            error = problem
            self._counters.add("asapo_receiver_storage_errors_total", 1, code=error.code)
            log.warning("%d units refused, first of %s: %s", len(units), units[0].ref, error)
        else:
            log.error(
                "%d units refused, first of %s, after an unexpected error", len(units), units[0].ref, exc_info=problem
            )
            error = StorageError(f"unexpected error while storing: {problem!r}; see the receiver's log")
        for unit in units:
            unit.refuse_all(error)

    def _take_request(self, request: Request) -> None:
        """Note in the journal what must survive: the end of a stream, metadata."""
        event = request.event
        try:
            if isinstance(event, FinishStream | SetMeta) and event.stream:
                self._leave_deleted(StreamRef(request.beamtime, request.source, event.stream))
            if isinstance(event, FinishStream):
                ref = StreamRef(request.beamtime, request.source, event.stream)
                fields = {"last_id": event.last_id, "next_stream": event.next_stream}
                self._store.journal(ref, Kind.FINISH, fields)
                self._store.close_stream(ref)
            elif isinstance(event, SetMeta):
                problem = meta_error(event.meta)
                if problem is not None:
                    raise problem
                meta = {"meta": event.meta}
                if event.stream:
                    self._store.journal(StreamRef(request.beamtime, request.source, event.stream), Kind.META, meta)
                else:
                    self._store.journal_beamtime(request.beamtime, Kind.META, meta)
        except (AsapoError, MemoryError) as exc:
            request.error = known(exc, "note this")

    def _leave_deleted(self, ref: StreamRef) -> None:
        """See to it that a record about a stream goes to a journal of this one, not of a deleted one of its name."""
        segment = self._store.opened(ref)
        if segment is not None and self._is_void(segment):
            self._store.discard(segment)

    def _take_note(self, note: Note) -> None:
        failpoint("note.before-write")
        try:
            self._store.journal(note.ref, note.kind, {**note.fields, "segment": Path(note.segment).name})
        except (AsapoError, MemoryError) as exc:
            # The index is right all the same; a rebuild keeps the first of two records with one id.
            log.warning("cannot note %s messages of %s: %s", note.kind.lower(), note.ref, exc)
