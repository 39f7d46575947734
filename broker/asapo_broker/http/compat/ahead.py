"""Messages that were looked up ahead: whoever reads id after id asks the delivery core once for many of them."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from asapo.models import StreamRef

if TYPE_CHECKING:
    from asapo_broker.http.compat.streams import Found

MAX_WIDTH: Final = 64
"""Most ids of one look."""
MAX_BYTES: Final = 16 * 1024 * 1024
"""Documents that are kept; the oldest are forgotten."""
KEPT_S: Final = 1.0
"""What is older is looked up anew: a stream may have been deleted otherwise than through this front."""
MAX_STREAMS: Final = 4096


class Ahead:
    """Keeps what was looked up ahead, and says how far to look. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[tuple[StreamRef, int], tuple[float, Found]] = OrderedDict()
        self._bytes = 0
        self._next: OrderedDict[StreamRef, tuple[int, int]] = OrderedDict()
        """Stream to the id behind the last look, and the width of that look; the stream read last is at the end."""

    def take(self, ref: StreamRef, message_id: int) -> Found | None:
        """Return what was found of an id a moment ago."""
        with self._lock:
            kept = self._found.get((ref, message_id))
        return kept[1] if kept is not None and time.monotonic() - kept[0] < KEPT_S else None

    def width(self, ref: StreamRef, message_id: int) -> int:
        """Return how many ids from this one on to look up: more each time while they are read one behind the other."""
        with self._lock:
            behind, width = self._next.get(ref, (0, 1))
        return min(2 * width, MAX_WIDTH) if behind == message_id else 1

    def keep(self, ref: StreamRef, message_id: int, width: int, found: dict[int, Found]) -> None:
        """Take the outcome of a look at `width` ids; what may still change is not kept."""
        with self._lock:
            self._next.pop(ref, None)
            self._next[ref] = (message_id + width, width) if len(found) == width else (message_id + 1, 1)
            if len(self._next) > MAX_STREAMS:
                self._next.popitem(last=False)
            now_s = time.monotonic()
            for one, entry in found.items():
                if len(entry.rows) >= entry.dataset_size:
                    self._drop((ref, one))
                    self._found[ref, one] = (now_s, entry)
                    self._bytes += entry.nbytes
            while self._bytes > MAX_BYTES:
                self._drop(next(iter(self._found)))

    def forget(self, ref: StreamRef) -> None:
        """Let go of everything of a stream."""
        with self._lock:
            self._next.pop(ref, None)
            for key in [key for key in self._found if key[0] == ref]:
                self._drop(key)

    def _drop(self, key: tuple[StreamRef, int]) -> None:
        kept = self._found.pop(key, None)
        if kept is not None:
            self._bytes -= kept[1].nbytes
