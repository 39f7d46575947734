"""When a stream is finished its index is written beside its segments, for who opens the folder without services.

Its messages are sorted by the declared keys, too, for queries. On a thread of its own: nobody waits for it, and a
stream of a million messages takes seconds.
"""

from __future__ import annotations

import logging
import queue
import random
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
    """Writes `index.snapshot` for the streams of one tier, and sorts finished streams by the declared keys.

    What fails is logged: the journals have everything, too, and no answer depends on what is sorted.
    """

    def __init__(self, directory: IndexDirectory, tier_root: Path) -> None:
        self._directory = directory
        self._root = tier_root
        self._inbox: queue.SimpleQueue[StreamRef | None] = queue.SimpleQueue()
        self._waiting: dict[StreamRef, float] = {}
        """Stream to when it is given up."""
        self._unsorted: list[StreamRef] = []
        """Streams that were finished in an earlier life, or before a key was declared."""
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
        self._unsorted = self._find_unsorted()
        tried_s = time.monotonic()
        while True:
            try:
                ref = self._inbox.get(timeout=0 if self._unsorted else RETRY_S if self._waiting else None)
            except queue.Empty:
                if self._unsorted:
                    self._sort(self._unsorted.pop())
                if time.monotonic() >= tried_s + RETRY_S:
                    self._try_waiting()
                    tried_s = time.monotonic()
                continue
            if ref is None:
                self._try_waiting()
                return
            self._waiting[ref] = time.monotonic() + GIVE_UP_S
            self._try(ref)
            self._sort(ref)

    def _find_unsorted(self) -> list[StreamRef]:
        """Return the streams that were left unsorted; each receiver of a host takes them in another order."""
        found = []
        for beamtime in self._directory.beamtimes():
            try:
                found += self._directory.open(beamtime).unsorted()
            except (AsapoError, MemoryError) as exc:
                log.warning("finished streams of beamtime %s are not sorted: %s", beamtime, exc)
        random.shuffle(found)
        return found

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
        except Exception:
            log.exception("declared keys of %s are not sorted after an unexpected error", ref)

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
