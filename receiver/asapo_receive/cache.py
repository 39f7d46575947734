"""Recent payloads by reference: what remote readers ask for next, and all that level `memory` has."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict, deque
from typing import Any

Segment = tuple[str, int]


class RecentUnits:
    """The last units of each segment, bounded in bytes; the oldest are forgotten first.

    A segment is named by beamtime and number, because every beamtime has numbers of its own.

    A unit's payload is kept as the object that came from the link, so keeping it copies nothing. Any thread.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._order: deque[tuple[Segment, int]] = deque()
        self._segments: OrderedDict[Segment, tuple[list[int], list[Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, segment: Segment, offset: int, payload: Any) -> None:
        """Keep the payload of the unit that begins at `offset`; offsets of a segment ascend."""
        nbytes = len(payload)
        if not nbytes or nbytes > self._limit_bytes:
            return
        with self._lock:
            starts, payloads = self._segments.setdefault(segment, ([], []))
            if starts and offset <= starts[-1]:
                return
            starts.append(offset)
            payloads.append(payload)
            self._order.append((segment, nbytes))
            self._held_bytes += nbytes
            while self._held_bytes > self._limit_bytes:
                self._forget_oldest()

    def _forget_oldest(self) -> None:
        segment, nbytes = self._order.popleft()
        starts, payloads = self._segments[segment]
        del starts[0], payloads[0]
        if not starts:
            del self._segments[segment]
        self._held_bytes -= nbytes

    def find(self, segment: Segment, offset: int, size: int) -> memoryview | None:
        """Return the bytes [offset, offset + size) of a segment when they are still here."""
        with self._lock:
            starts, payloads = self._segments.get(segment, ([], []))
            at = bisect_right(starts, offset) - 1
            if at < 0:
                return None
            begin, payload = starts[at], payloads[at]
        view = memoryview(payload)
        return view[offset - begin : offset - begin + size] if offset + size <= begin + len(view) else None

    @property
    def held_bytes(self) -> int:
        """Bytes kept now."""
        return self._held_bytes
