"""The loader thread: reads the index on behalf of the poll thread, which does no I/O (R31)."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from asapo.delivery.admin import NeedEntries
from asapo.delivery.needs import NeedBacklog
from asapo.delivery.rows import row_id, row_seq
from asapo.errors import AsapoError, known
from asapo.index.answers import rows_by_id, rows_by_seq, whole
from asapo.index.interface import MetadataIndex, StreamHead
from asapo.models import MAX_ID, StreamRef
from asapo.query import parse
from asapo.transport import Waiter, Wakeup
from asapo_broker.feed import (
    Feed,
    Filter,
    ForgetGroups,
    Forgotten,
    GroupReady,
    Job,
    LoadParts,
    LoadRows,
    Looked,
    Opened,
    OpenGroup,
    PartsLoaded,
    RowsLoaded,
    Tail,
    Vanished,
)
from asapo_broker.indexes import Indexes
from asapo_broker.store import CursorStore

log = logging.getLogger(__name__)

TAIL_ROWS: Final = 2000
"""Rows handed over at once: bounds how long the poll thread is busy with one batch (about 2 ms)."""
TAILS_AHEAD: Final = 4
"""Batches of one stream the poll thread may have in front of it before we read on."""
LOOK_S: Final = 0.002
"""A stream is looked at no sooner than this after its last look: it costs nobody anything when commits are rarer, and
halves the CPU at 1000 commits a second."""
WHOLE_ROWS: Final = 10_000
"""A stream of at most so many messages is read from its beginning; of a longer one, what is not settled yet."""


class Loader:
    """Looks at streams when asked to, and every `poll_s` at those somebody waits for.

    `post` hands a message to the poll thread.
    """

    def __init__(self, indexes: Indexes, store: CursorStore, post: Callable[[Any], None], *, poll_s: float) -> None:
        self._indexes = indexes
        self._store = store
        self._post = post
        self._poll_s = poll_s
        self._jobs: deque[Job] = deque()
        self._bell = Wakeup()
        self._stopping = False
        self._polled: set[Feed] = set()
        self._deferred: set[Feed] = set()
        """Asked for too soon after their last look."""
        self._poll_due_s = 0.0

    # -- any thread ---------------------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Take a job; a Feed means: look at this stream now."""
        self._jobs.append(job)
        self._bell.ring()

    def stop(self) -> None:
        """End `run`."""
        self._stopping = True
        self._bell.ring()

    # -- the loader's own ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until `stop`."""
        waiter = Waiter(self._bell)
        try:
            self._forget_all()
        except AsapoError as exc:  # done for each stream when it is read
            log.warning("groups of deleted streams are not forgotten yet: %s", exc)
        while not self._stopping:
            if not self._jobs:
                waiter.wait(self._idle_s())
            self._bell.hear()
            try:
                self._turn()
            except Exception:
                log.exception("loader: a turn failed, going on")
        self._bell.close()

    def _idle_s(self) -> float:
        """Return how long nothing is due, in seconds."""
        if self._deferred:
            return LOOK_S
        return max(0.0, self._poll_due_s - time.monotonic()) if self._polled else 3600.0

    def _turn(self) -> None:
        asked, self._deferred = self._deferred, set()
        while self._jobs:
            job = self._jobs.popleft()
            if isinstance(job, Feed):
                asked.add(job)
            else:
                self._do(job)
        now_s = time.monotonic()
        self._deferred = {feed for feed in asked if now_s - feed.looked_s < LOOK_S}
        asked -= self._deferred
        feeds = asked
        if now_s >= self._poll_due_s:
            self._poll_due_s = now_s + self._poll_s
            self._polled = {feed for feed in self._polled if _still_polled(feed)}
            feeds = asked | self._polled
        for feed in asked:
            if feed.watched:
                feed.polled = True
                self._polled.add(feed)
        by_beamtime: dict[str, list[Feed]] = {}
        for feed in feeds:
            if not feed.closed:
                by_beamtime.setdefault(feed.ref.beamtime, []).append(feed)
        for beamtime, group in by_beamtime.items():
            self._look(beamtime, group, now_s)

    def _do(self, job: OpenGroup | LoadRows | LoadParts | ForgetGroups) -> None:
        try:
            if isinstance(job, OpenGroup):
                self._post(self._open_group(job))
            elif isinstance(job, LoadRows):
                self._post(self._load_rows(job))
            elif isinstance(job, ForgetGroups):
                self._forget_groups(job.ref)
                self._post(Forgotten(job.done))
            else:
                self._load_parts(job)
        except Exception as exc:
            error = exc if isinstance(exc, AsapoError) else _defect(exc)
            if isinstance(job, OpenGroup):
                self._post(GroupReady(job, error=error))
            elif isinstance(job, LoadRows):
                self._post(RowsLoaded(job, error=error))
            elif isinstance(job, ForgetGroups):
                self._post(Forgotten(job.done, error))
            else:
                log.warning("parts of datasets of %s not loaded: %s", job.feed.ref, error)
                self._post(PartsLoaded(job.feed, []))

    # -- tails --------------------------------------------------------------------------------------------------

    def _look(self, beamtime: str, feeds: list[Feed], now_s: float) -> None:
        error: AsapoError | None = None
        asked = [feed for feed in feeds if feed.asked]
        for feed in asked:
            feed.asked = False  # before the look: who asks from now on is told of the next one
        try:
            index = self._indexes.open(beamtime)
            if index is not None:
                self._find(index, feeds)
                heads = index.heads([feed.no for feed in feeds if feed.no is not None])
                for feed in feeds:
                    if feed.no is not None and feed.no in heads:
                        self._advance(index, feed, heads[feed.no])
                    elif feed.no is not None:
                        self._post(Vanished(feed))
        except Exception as exc:
            error = exc if isinstance(exc, AsapoError) else _defect(exc)
            log.warning("index of beamtime %s is away: %s", beamtime, error)
        for feed in feeds:
            feed.looked_s = now_s
        for feed in asked:
            self._post(Looked(feed, error))

    def _find(self, index: MetadataIndex, feeds: list[Feed]) -> None:
        for feed in feeds:
            if feed.no is None:
                no = index.stream_no(feed.ref)
                if no is not None:
                    feed.begun_anew = self._forget_groups(feed.ref)
                    feed.no = no  # last: what raised above is tried again

    def _forget_groups(self, ref: StreamRef) -> bool:
        """Forget what is stored of the groups of a stream's deleted namesake; True when there was one."""
        index = self._indexes.open(ref.beamtime)
        last = index.last_deletion(ref) if index is not None else 0
        if last:
            self._store.forget_stream(ref, last)
        return last > 0

    def _forget_all(self) -> None:
        """Forget the groups of all streams that were deleted while no core ran, or while one died."""
        for beamtime in self._indexes.beamtimes():
            index = self._indexes.open(beamtime)
            newest = {one.ref: one.no for one in index.deletions()} if index is not None else {}
            for ref, no in newest.items():
                self._store.forget_stream(ref, no)

    def _advance(self, index: MetadataIndex, feed: Feed, head: StreamHead) -> None:
        """Hand over what is new of one stream; the head follows when everything it speaks of was handed over."""
        if feed.loaded_seq < 0:
            self._open(index, feed, head)
        assert feed.no is not None
        # What receivers told of lies in memory already, and its tables are known.
        feed.loaded_seq = feed.seen_seq
        tables = self._indexes.tables(feed.ref.beamtime)
        feed.behind = True
        while feed.loaded_seq < head.head_seq:
            if feed.given - feed.taken >= TAILS_AHEAD:
                return  # the poll thread asks again when it has taken them in
            rows = index.rows_after_seq(feed.no, feed.loaded_seq, TAIL_ROWS)
            if not rows:
                return
            tables.learn(index, rows)
            for one in feed.filters:
                one.prepare(rows)
            feed.loaded_seq = row_seq(rows[-1])
            feed.given += 1
            done = feed.loaded_seq >= head.head_seq
            if done:
                feed.head = head
            self._post(Tail(feed, rows, head if done else None))
        feed.behind = False
        if head != feed.head:
            feed.head = head
            feed.given += 1
            self._post(Tail(feed, [], head))

    def _open(self, index: MetadataIndex, feed: Feed, head: StreamHead) -> None:
        assert feed.no is not None
        if head.head_seq <= WHOLE_ROWS:
            low, start, rows = 1, 0, []
        else:
            low, start = min(head.watermark, head.id_max + 1), head.head_seq
            found = index.rows_from_id(feed.no, low, MAX_ID, head.head_seq)
            rows = [row for row in found if row_seq(row) <= start]
            self._indexes.tables(feed.ref.beamtime).learn(index, rows)
        feed.loaded_seq = start
        feed.head = head if start else None
        self._post(Opened(feed, low, start, rows, head))

    # -- groups -------------------------------------------------------------------------------------------------

    def _open_group(self, job: OpenGroup) -> GroupReady:
        stored = self._store.load(job.feed.ref, job.group)
        where = stored.state.where if stored is not None else job.new.where if job.new is not None else ""
        matches = None
        if where:
            matches = Filter(parse(where))
            matches.prepare(job.rows())
            job.feed.filters.append(matches)
        return GroupReady(job, matches, stored)

    def _load_rows(self, job: LoadRows) -> RowsLoaded:
        feed, need = job.feed, job.need
        index = self._indexes.opened(feed.ref.beamtime)
        assert feed.no is not None
        if isinstance(need, NeedBacklog) and need.ordered:
            rows, covered = rows_by_id(index, feed.no, need.from_key, need.below, need.limit)
        elif isinstance(need, NeedBacklog):
            rows, covered = rows_by_seq(index, feed.no, need.from_key - 1, need.below, need.limit)
        elif isinstance(need, NeedEntries):
            rows, covered = whole(index, feed.no, need.ids), 0
        else:
            rows, covered = rows_by_seq(index, feed.no, need.after_seq, need.upto_seq + 1, need.limit)
            rows, covered = [row for row in rows if row_id(row) < need.below_id], covered - 1
        self._indexes.tables(feed.ref.beamtime).learn(index, rows)
        if job.matches is not None:
            job.matches.prepare(rows)
        return RowsLoaded(job, rows, covered)

    def _load_parts(self, job: LoadParts) -> None:
        index = self._indexes.opened(job.feed.ref.beamtime)
        assert job.feed.no is not None
        rows = whole(index, job.feed.no, job.ids)
        self._indexes.tables(job.feed.ref.beamtime).learn(index, rows)
        for one in job.feed.filters:
            one.prepare(rows)
        self._post(PartsLoaded(job.feed, rows))


def _still_polled(feed: Feed) -> bool:
    """Tell whether somebody waits for a stream; else say first that it is polled no more, then look once again.

    The poll thread does it the other way round: it notes who waits, then looks whether the stream is polled.
    """
    feed.polled = bool(feed.watched) and not feed.closed
    if not feed.polled and feed.watched and not feed.closed:
        feed.polled = True
    return feed.polled


def _defect(error: Exception) -> AsapoError:
    """Log an error that should not be, and say so to whoever waits."""
    if isinstance(error, MemoryError):
        return known(error, "load this")
    log.error("loader failed", exc_info=error)
    return AsapoError(f"the broker failed on this request ({type(error).__name__}); its log says more")
