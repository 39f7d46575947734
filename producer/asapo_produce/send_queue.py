"""The bounded queue between callers and the I/O thread: budget in bytes, lanes to pack from, outcomes. No socket."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from asapo.errors import AsapoError, DeadlineExceeded, QueueFull, WrongInput
from asapo.models import MAX_ID, Format, check_name
from asapo.wire.limits import PACK_BELOW_BYTES
from asapo.wire.put import aligned
from asapo_produce.handles import BatchHandle
from asapo_produce.streams import StreamBook
from asapo_produce.units import Item, Lane, Single, Unit, fits, unit_of

NO_ERRORS: Final[dict[int, AsapoError]] = {}
IDLE_BEATS: Final = 30
"""Heartbeats that repeat the mark of a stream on which nothing is sent, before it is left out."""
MAX_MARKS: Final = 10_000
"""Most streams named in one heartbeat."""
MAX_LANES: Final = 256
"""Most formats of a stream that are remembered."""


class SendQueue:
    """Messages from `send` until their outcome. Thread-safe.

    `call_back` hands a user callback to the callback thread.
    """

    def __init__(
        self, limit_bytes: int, call_back: Callable[[Callable[[Any], None], Any], None], *, pack: bool = True
    ) -> None:
        self._pack = pack
        self._lock = threading.Lock()
        self.settled = threading.Condition(self._lock)
        """Notified whenever messages have their outcome, so that there is room again, too."""
        self._limit_bytes = limit_bytes
        self._call_back = call_back
        self._books: dict[tuple[str, int], StreamBook] = {}
        self._of_stream: dict[str, list[StreamBook]] = {}
        self._marked: dict[StreamBook, int] = {}
        self._went_idle: set[StreamBook] = set()
        self._ready: deque[Lane] = deque()
        """Lanes in which something waits; they take turns."""
        self._generation = 0
        self._outstanding: Counter[int] = Counter()
        self._stopped: AsapoError | None = None
        self.queued_bytes = 0
        self.sent = 0
        self.acked = 0
        self.failed = 0

    # -- callers ----------------------------------------------------------------------------------------------------

    def book(self, stream: str, substream: int) -> StreamBook:
        """Return the book of a stream and substream; WrongInput when they cannot be named so."""
        book = self._books.get((stream, substream))
        return book if book is not None else self._new_book(stream, substream)

    def _new_book(self, stream: str, substream: int) -> StreamBook:
        check_name("stream", stream)
        if type(substream) is not int or not 0 <= substream <= MAX_ID:
            raise WrongInput(f"substream {substream!r}: expected an integer from 1, or 0 for a message of its own")
        with self._lock:
            book = self._books.get((stream, substream))
            if book is None:
                book = self._books[stream, substream] = StreamBook(stream, substream)
                book.later = partial(self._add_callback, book)
                siblings = self._of_stream.setdefault(stream, [])
                book.finished = any(other.finished for other in siblings)
                siblings.append(book)
            return book

    def lane(self, book: StreamBook, dataset_size: int, form: Format, level: str) -> Lane:
        """Return the one lane of these; nearly always that of the message before."""
        lane: Lane | None = book.lane
        if lane is not None and lane.format is form and lane.dataset_size == dataset_size and lane.level == level:
            return lane
        key = (dataset_size, form, level)
        with self._lock:
            lane = book.lanes.get(key)
            if lane is None:
                if len(book.lanes) >= MAX_LANES:
                    book.lanes.clear()  # those in which something waits are in `_ready`
                lane = book.lanes[key] = Lane(book.stream, book.substream, dataset_size, form, level)
            book.lane = lane
            return lane

    def put(self, book: StreamBook, items: Sequence[Item], *, explicit: bool, timeout_s: float | None) -> None:
        """Queue the items of one call, numbering them unless ids are `explicit`.

        Raises
        ------
        QueueFull
            If there is no room within `timeout_s` (None: wait for ever).
        StreamFinished, WrongInput
            See `StreamBook.check_open`.
        """
        cost = items[0].cost if len(items) == 1 else sum(item.cost for item in items)
        with self._lock:
            if self.queued_bytes and self.queued_bytes + cost > self._limit_bytes:
                self._wait_for_room(cost, timeout_s)
            if self._stopped is not None:
                raise self._stopped
            if book.finished or book.numbering is explicit:
                book.check_open(explicit=explicit)
            book.numbering = not explicit
            self._marked[book] = 0
            for item in items:
                self._add(book, item, explicit=explicit)
            handle = items[0].handle
            if type(handle) is BatchHandle and not explicit:
                handle.ids = range(items[0].first, items[-1].first + items[-1].n)
            self.queued_bytes += cost

    def _wait_for_room(self, cost: int, timeout_s: float | None) -> None:
        def room() -> bool:
            stopped = self._stopped is not None
            return stopped or not self.queued_bytes or self.queued_bytes + cost <= self._limit_bytes

        if not self.settled.wait_for(room, timeout_s):
            raise QueueFull(
                f"no room for {cost} bytes within {timeout_s} s: {self.queued_bytes} of {self._limit_bytes} bytes are "
                "waiting for acknowledgement",
                queued_bytes=self.queued_bytes,
                limit_bytes=self._limit_bytes,
            )

    def _add(self, book: StreamBook, item: Item, *, explicit: bool) -> None:
        if not explicit:
            item.number(book.allocate(item.n))
        book.add(item, item.first if type(item) is Single else item.ids[-1])  # type: ignore[union-attr]
        item.generation = self._generation
        self._outstanding[self._generation] += 1
        lane = item.lane
        if not lane.waiting:
            self._ready.append(lane)
        lane.waiting.append(item)
        self.sent += item.n

    def _add_callback(self, book: StreamBook, handle: Any, callback: Callable[[Any], None]) -> None:
        """Call `callback(handle)` once the handle is done and nothing lower is on its way in its stream."""
        with self._lock:
            if not handle.done():
                handle.callbacks = [*(handle.callbacks or ()), callback]
                return
            book.hold_call(handle.first, callback, handle)
            self._call_due(book)

    def _call_due(self, book: StreamBook) -> None:
        for callback, handle in book.due_calls():
            self._call_back(callback, handle)

    def wait_flushed(self, timeout_s: float | None) -> None:
        """Wait until everything queued before this call has its outcome."""
        with self._lock:
            generation = self._generation
            self._generation += 1
            if not self.settled.wait_for(lambda: not any(g <= generation for g in self._outstanding), timeout_s):
                raise DeadlineExceeded(
                    f"{self.sent - self.acked - self.failed} messages without outcome after {timeout_s} s",
                    after_s=timeout_s,
                )
            self._raise_stopped()

    def _raise_stopped(self) -> None:
        if self._stopped is not None:
            raise self._stopped

    def close_stream(self, stream: str, timeout_s: float) -> int:
        """Refuse further messages of a stream, wait until all have their outcome, return its highest id.

        When that takes longer than `timeout_s` the stream is open again and DeadlineExceeded is raised.
        """
        self.book(stream, 0)
        with self._lock:
            books = self._of_stream[stream]
            before = any(book.finished for book in books)
            for book in books:
                book.finished = True
            if not self.settled.wait_for(lambda: not any(book.lowest() for book in books), timeout_s):
                for book in books:
                    book.finished = before
                raise DeadlineExceeded(
                    f"stream {stream!r} has unacknowledged messages after {timeout_s} s; it stays open",
                    after_s=timeout_s,
                )
            self._raise_stopped()
            return max(book.highest for book in books)

    def learn(self, book: StreamBook, id_max: int, *, numbering: bool, finished: bool, next_stream: str = "") -> None:
        """Take note of what a receiver says about a stream before anything was sent to it."""
        with self._lock:
            if numbering and not finished:
                book.start_numbering(id_max)
            book.highest = max(book.highest, id_max)
            if finished:
                for other in self._of_stream[book.stream]:
                    other.finished, other.next_stream = True, next_stream
            self._went_idle.add(book)

    @property
    def idle(self) -> bool:
        """Whether everything has its outcome."""
        return not self._outstanding

    # -- I/O thread -------------------------------------------------------------------------------------------------

    def take(self) -> Unit | None:
        """Return the next unit: a block, or what is there of one lane; None when nothing waits."""
        if not self._ready:
            return None
        with self._lock:
            if not self._ready:
                return None
            lane = self._ready.popleft()
            waiting = lane.waiting
            items = [waiting.popleft()]
            if waiting and self._pack:
                _pack(items, waiting)
            if waiting:
                self._ready.append(lane)
        unit = unit_of(items)
        with self._lock:
            unit.closed_below = unit.book.carry(unit.ids)
        return unit

    def closed_below(self, book: StreamBook) -> int:
        """Return what a unit of this book carries as watermark when it is sent again."""
        with self._lock:
            book.shown_below = 0
            return book.closed_below()

    def settle(self, unit: Unit, errors: Sequence[tuple[int, AsapoError]] = ()) -> None:
        """Give the messages of a unit their outcome; `errors` are (index in the unit, error)."""
        found = unit.errors_of_items(errors) if errors else None
        with self._lock:
            self._settle(unit.items, found, tuple(unit.trackers))
            self.failed += len(errors)
            self.acked += unit.n - len(errors)
            if errors:
                unit.book.shown_below = 0
            self._settled_in(unit.book)

    def _settle(
        self, items: Sequence[Item], errors: Sequence[dict[int, AsapoError]] | None, trackers: tuple[Any, ...]
    ) -> None:
        outstanding = self._outstanding
        for index, item in enumerate(items):
            item.settled = True
            self.queued_bytes -= item.cost
            outstanding[item.generation] -= 1
            if not outstanding[item.generation]:
                del outstanding[item.generation]
            handle = item.handle
            if handle.complete(errors[index] if errors else NO_ERRORS, trackers) and handle.callbacks:
                for callback in handle.callbacks:
                    item.book.hold_call(handle.first, callback, handle)
                handle.callbacks = None

    def _settled_in(self, *books: StreamBook) -> None:
        for book in books:
            if not book.lowest():
                self._went_idle.add(book)
            self._call_due(book)
        self.settled.notify_all()

    def marks_of_idle(self) -> dict[str, int]:
        """Return `closed_below` of the streams whose last message was settled since the last call.

        Left out are those of which readers know everything without it.
        """
        if not self._went_idle:
            return {}
        with self._lock:
            streams = {book.stream for book in self._went_idle if not self._is_shown(book)}
            self._went_idle.clear()
            return self._marks([book for stream in streams for book in self._of_stream[stream]])

    def _is_shown(self, book: StreamBook) -> bool:
        return book.shown_below == book.highest + 1 and len(self._of_stream[book.stream]) == 1

    def marks(self) -> dict[str, int]:
        """Return `closed_below` of the streams in use, for a heartbeat."""
        with self._lock:
            for book, beats in list(self._marked.items()):
                self._marked[book] = 0 if book.lowest() else beats + 1
                if beats > IDLE_BEATS:
                    del self._marked[book]
            return self._marks(list(self._marked)[-MAX_MARKS:])

    @staticmethod
    def _marks(books: Sequence[StreamBook]) -> dict[str, int]:
        # The mark of a stream covers its substreams, so it is the lowest of theirs.
        marks: dict[str, int] = {}
        for book in books:
            below = book.closed_below()
            marks[book.stream] = min(below, marks.get(book.stream, below))
        return marks

    def stop(self, error: AsapoError) -> None:
        """Refuse all further calls with `error` and fail what was not taken yet."""
        with self._lock:
            if self._stopped is None:
                self._stopped = error
            waiting = [item for lane in self._ready for item in lane.waiting]
            for lane in self._ready:
                lane.waiting.clear()
            self._ready.clear()
            found = [dict.fromkeys([item.first] if type(item) is Single else item.ids, error) for item in waiting]  # type: ignore[union-attr]
            self._settle(waiting, found, ())
            self.failed += sum(item.n for item in waiting)
            self._settled_in(*{item.book for item in waiting})


def _pack(items: list[Item], waiting: deque[Item]) -> None:
    """Move from `waiting` to `items` what may share their unit."""
    head = items[0]
    if head.nbytes >= PACK_BELOW_BYTES or type(head) is not Single:
        return
    nbytes, chars = head.nbytes, len(head.meta)
    while waiting and fits(items, waiting[0], nbytes, chars):
        item: Any = waiting.popleft()
        nbytes = aligned(nbytes) + item.nbytes
        chars += len(item.meta)
        items.append(item)


def remaining_s(deadline_s: float | None) -> float | None:
    """Return what is left until a deadline on the monotonic clock, at least 0; None stays None."""
    return None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
