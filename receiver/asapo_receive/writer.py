"""The writer thread: checks payloads, appends them to segments and headers to journals. It may block on a disk."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from asapo.errors import AsapoError, StorageError
from asapo.metrics import Counters
from asapo.models import StreamRef
from asapo.storage.journal import Kind
from asapo.storage.store import StreamStore
from asapo.wire.events import FinishStream, SetMeta
from asapo_receive.units import Note, Request, Unit, meta_error, verify

log = logging.getLogger(__name__)

MEMORY: Final = "memory"
IDLE_CHECK_S: Final = 5.0
IDLE_S: Final = 30.0
"""A segment unused for this long is closed."""


class Writer:
    """First of the two stages behind the network thread.

    Everything that was stored is handed to `stored` in the order of arrival; what failed, too, with its errors.
    """

    def __init__(self, store: StreamStore, stored: Callable[[Unit | Request | None], None], counters: Counters) -> None:
        self._store = store
        self._stored = stored
        self._counters = counters
        self._inbox: queue.SimpleQueue[Unit | Request | Note | None] = queue.SimpleQueue()
        self._idle_check_due_s = 0.0
        self.submit = self._inbox.put
        """Take a Unit, a Request, or a Note for the journal; None ends `run`."""

    def is_behind(self) -> bool:
        """Say whether more waits to be stored. Any thread."""
        return not self._inbox.empty()

    def run(self) -> None:
        """Serve until None comes; then close all files."""
        while (item := self._next()) is not None:
            if type(item) is Unit:
                self._take_unit(item)
                self._stored(item)
            elif type(item) is Request:
                self._take_request(item)
                self._stored(item)
            else:
                self._take_note(item)
        self._store.close()
        self._stored(None)

    def _next(self) -> Any:
        """Return the next item; close segments that nobody writes to, also while others are busy."""
        while True:
            now_s = time.monotonic()
            if now_s >= self._idle_check_due_s:
                self._store.close_idle(IDLE_S)
                self._idle_check_due_s = now_s + IDLE_CHECK_S
            try:
                return self._inbox.get(timeout=IDLE_CHECK_S)
            except queue.Empty:
                continue

    def _take_unit(self, unit: Unit) -> None:
        try:
            verify(unit)
            if unit.alive and unit.put.level != MEMORY:
                self._write(unit)
        except AsapoError as exc:
            self._counters.add("asapo_receiver_storage_errors_total", 1, code=exc.code)
            log.warning("unit of %s refused: %s", unit.ref, exc)
            unit.refuse_all(exc)
        except Exception as exc:
            log.exception("unit of %s refused after an unexpected error", unit.ref)
            unit.refuse_all(StorageError(f"unexpected error while storing: {exc!r}; see the receiver's log"))

    def _write(self, unit: Unit) -> None:
        store = self._store
        slot = store.reserve(unit.ref, unit.nbytes)
        store.write(slot, (unit.payload,))
        store.journal_put(slot, unit.header, unit.received_ns, skip=unit.bad())
        unit.slot = slot

    def _take_request(self, request: Request) -> None:
        """Note in the journal what must survive: the end of a stream, metadata."""
        event = request.event
        try:
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
        except AsapoError as exc:
            request.error = exc

    def _take_note(self, note: Note) -> None:
        try:
            self._store.journal(note.ref, note.kind, {**note.fields, "segment": Path(note.segment).name})
        except AsapoError as exc:
            # The index is right all the same; a rebuild keeps the first of two records with one id.
            log.warning("cannot note %s messages of %s: %s", note.kind.lower(), note.ref, exc)
