"""What a producer knows of each stream it writes: ids, what is on its way, what is closed below (record 0001)."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from asapo.errors import StreamFinished, WrongInput
from asapo.models import MAX_ID


class Waiting(Protocol):
    """Messages on their way, as far as a book looks at them."""

    first: int
    settled: bool


def _nothing_later(handle: Any, callback: Any) -> None:
    """Stand in until a queue takes the book."""


class StreamBook:
    """The ids of one stream and substream. Not thread-safe: its queue's lock covers it."""

    __slots__ = (
        "_calls",
        "_pending",
        "_ticket",
        "finished",
        "highest",
        "lane",
        "lanes",
        "later",
        "next_stream",
        "numbering",
        "shown_below",
        "stream",
        "substream",
    )

    def __init__(self, stream: str, substream: int) -> None:
        self.stream = stream
        self.substream = substream
        self.numbering: bool | None = None
        """Whether the SDK numbers it; None before the first message."""
        self.highest = 0
        """Highest id sent."""
        self.finished = False
        self.next_stream = ""
        """Where a finished stream goes on."""
        self.shown_below = 0
        """Readers may have every id under this as soon as it is acknowledged, by the marks that units carried and by
        ids that follow each other; 0 when only another mark can tell."""
        self.later: Callable[[Any, Any], None] = _nothing_later
        """Registers a callback for a handle of this book; its queue's."""
        self.lane: Any = None
        """The lane of the message before; its queue's, as `lanes` is."""
        self.lanes: dict[Any, Any] = {}
        self._pending: list[tuple[int, int, Waiting]] = []
        self._calls: list[tuple[int, int, Callable[[Any], None], Any]] = []
        self._ticket = 0

    def check_open(self, *, explicit: bool) -> None:
        """Raise StreamFinished or WrongInput when a message with or without id may not be sent now."""
        if self.finished:
            raise StreamFinished(
                f"stream {self.stream!r} is finished; send to another stream",
                id_max=self.highest,
                next_stream=self.next_stream,
            )
        if self.numbering is explicit:
            given = "numbered by the SDK" if self.numbering else "given by the caller"
            raise WrongInput(f"ids of stream {self.stream!r} are {given} so far: give an id with every message or none")

    def start_numbering(self, id_max: int) -> None:
        """Begin with `id_max` + 1, unless that was settled before."""
        if self.numbering is None:
            self.numbering = True
            self.highest = max(self.highest, id_max)

    def allocate(self, n: int) -> int:
        """Return the first of `n` new ids."""
        first = self.highest + 1
        if first + n - 1 > MAX_ID:
            raise WrongInput(f"stream {self.stream!r} has no ids left")
        return first

    def add(self, item: Waiting, last: int) -> None:
        """Note that the ids of `item`, up to `last`, will be sent."""
        self._ticket += 1
        heapq.heappush(self._pending, (item.first, self._ticket, item))
        if last > self.highest:
            self.highest = last

    def lowest(self) -> int:
        """Return the lowest first id on its way, 0 when there is none."""
        pending = self._pending
        while pending and pending[0][2].settled:
            heapq.heappop(pending)
        return pending[0][0] if pending else 0

    def closed_below(self) -> int:
        """Return the id under which everything is acknowledged to this session or will never be sent by it."""
        return self.lowest() or min(self.highest + 1, MAX_ID)

    def carry(self, ids: Sequence[int]) -> int:
        """Return the mark that a unit with these ids carries; note what readers learn by it."""
        below, first = self.closed_below(), ids[0]
        dense = type(ids) is range and ids.step == 1
        self.shown_below = ids[-1] + 1 if dense and first in (below, self.shown_below) else 0
        return below

    def hold_call(self, first: int, callback: Callable[[Any], None], handle: Any) -> None:
        """Keep a callback of a settled handle until nothing lower is on its way."""
        self._ticket += 1
        heapq.heappush(self._calls, (first, self._ticket, callback, handle))

    def due_calls(self) -> list[tuple[Callable[[Any], None], Any]]:
        """Take the callbacks that may run now, in id order."""
        if not self._calls:
            return []
        lowest = self.lowest()
        due = []
        while self._calls and (not lowest or self._calls[0][0] <= lowest):
            _, _, callback, handle = heapq.heappop(self._calls)
            due.append((callback, handle))
        return due
