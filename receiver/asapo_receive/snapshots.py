"""When a stream is finished its index is written beside its segments, for who opens the folder without services.

On a thread of its own: nobody waits for it, and a stream of a million messages takes seconds.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from asapo.errors import AsapoError
from asapo.index import IndexDirectory
from asapo.index.snapshot_write import NotReady, write_snapshot
from asapo.models import StreamRef
from asapo.storage.layout import stream_dir
from asapo.storage.recorded import journals_in
from asapo.wire.events import FinishStream
from asapo_receive.units import Request

log = logging.getLogger(__name__)

RETRY_S: Final = 5.0
"""Another receiver may have the stream's segment open: it closes idle ones after half a minute."""
GIVE_UP_S: Final = 180.0


class Snapshots:
    """Writes `index.snapshot` for the streams of one tier. What fails is logged: the journals have everything, too."""

    def __init__(self, directory: IndexDirectory, tier_root: Path) -> None:
        self._directory = directory
        self._root = tier_root
        self._inbox: queue.SimpleQueue[StreamRef | None] = queue.SimpleQueue()
        self._waiting: dict[StreamRef, float] = {}
        """Stream to when it is given up."""
        self._stopping = threading.Event()

    def note(self, served: Sequence[Any]) -> None:
        """Take note of requests that were served; those that finished a stream are of interest. Never blocks."""
        for item in served:
            if not isinstance(item, Request):
                return  # units: they come by themselves
            if item.error is None and isinstance(item.event, FinishStream):
                self._inbox.put(StreamRef(item.beamtime, item.source, item.event.stream))

    def stop(self) -> None:
        """End `run` after one more try at what waits."""
        self._stopping.set()
        self._inbox.put(None)

    def run(self) -> None:
        """Serve until `stop`."""
        while True:
            try:
                ref = self._inbox.get(timeout=RETRY_S if self._waiting else None)
            except queue.Empty:
                self._try_waiting()
                continue
            if ref is None:
                self._try_waiting()
                return
            self._waiting[ref] = time.monotonic() + GIVE_UP_S
            self._try(ref)
            self._sort(ref)

    def _try_waiting(self) -> None:
        for ref in list(self._waiting):
            self._try(ref)

    def _sort(self, ref: StreamRef) -> None:
        """Prepare the finished stream for queries; whoever asks before just waits a little longer for the answer."""
        try:
            if self._directory.open(ref.beamtime).sort_finished(ref, self._stopping.is_set):
                log.info("declared keys of %s are sorted", ref)
        except AsapoError as exc:
            log.warning("declared keys of %s are not sorted: %s", ref, exc)

    def _try(self, ref: StreamRef) -> None:
        folder = stream_dir(self._root, ref)
        try:
            write_snapshot(folder, self._directory.path(ref.beamtime), ref, list(journals_in(folder).values()))
        except NotReady as exc:
            if time.monotonic() < self._waiting[ref]:
                return
            log.info("no snapshot of %s: %s", ref, exc)
        except AsapoError as exc:
            log.warning("no snapshot of %s: %s", ref, exc)
        except Exception:
            log.exception("no snapshot of %s after an unexpected error", ref)
        del self._waiting[ref]
