"""The request pool: everything a client asks that needs the index but no group (R31). Answers leave encoded."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

from asapo.delivery.rows import RowTuple, row_id
from asapo.errors import AsapoError, QueueFull, WrongInput, known, to_wire
from asapo.index import MetadataIndex, asked
from asapo.index.answers import absent, enough, finished, info_map, nothing_yet, parts_of
from asapo.index.asked import REPLY_BYTES, QueryLimits
from asapo.models import MAX_ID, StreamRef, check_id
from asapo.wire.codec import encode
from asapo.wire.events import Describe, Done, Event, Failed, GetById, GetLast, ListReceivers, ListStreams, Query, Rows
from asapo.wire.limits import MAX_ROWS
from asapo_broker.feed import Reply
from asapo_broker.indexes import Indexes
from asapo_broker.listings import Listing
from asapo_broker.registry import Registry
from asapo_broker.store import CursorStore
from asapo_broker.turns import TurnQueue

log = logging.getLogger(__name__)

Request = GetById | GetLast | Query | Describe | ListStreams | ListReceivers | Listing


class RequestPool:
    """Runs requests on a few threads; `post` takes the replies.

    Queries have threads of their own, so that everything else is answered while slow ones run, and take turns by
    session: one session's queries leave a thread for those of others.
    """

    def __init__(
        self,
        indexes: Indexes,
        store: CursorStore,
        registry: Registry,
        post: Callable[[Reply], None],
        *,
        threads: int,
        query_threads: int,
        limits: QueryLimits,
        max_queued: int,
    ) -> None:
        self._indexes = indexes
        self._store = store
        self._registry = registry
        self._post = post
        self._limits = limits
        self._max_queued = max_queued
        self._quick = TurnQueue(threads)
        self._slow = TurnQueue(max(1, query_threads - 1))
        self._threads = [
            threading.Thread(target=self._run, args=(queued,), name=f"asapo-{name}-{n}", daemon=True)
            for queued, name, count in ((self._quick, "request", threads), (self._slow, "query", query_threads))
            for n in range(count)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads after what they are at; what is queued is not answered."""
        self._quick.close()
        self._slow.close()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads to end."""
        for thread in self._threads:
            thread.join(timeout_s)

    def submit(self, session: Any, request: Request) -> None:
        """Take a request of a session.

        Raises
        ------
        QueueFull
            If too many requests wait already.
        """
        queued = len(self._quick) + len(self._slow)
        if queued >= self._max_queued:
            raise QueueFull(f"{queued} requests wait already; try again later", queued=queued, limit=self._max_queued)
        (self._slow if isinstance(request, Query) else self._quick).put(session, request)

    def _run(self, queued: TurnQueue) -> None:
        while (item := queued.take()) is not None:
            session, request = item
            try:
                answer = self._answer(session.beamtime, request)
            except (AsapoError, MemoryError) as exc:
                answer = Failed(request.request, to_wire(known(exc, "answer this")))
            except Exception as exc:
                log.exception("request %s failed", type(request).__name__)
                text = f"the broker failed on this request ({type(exc).__name__}); its log says more"
                answer = Failed(request.request, to_wire(AsapoError(text)))
            queued.done(session)
            self._post(Reply(session, encode(answer), len(answer.rows) if isinstance(answer, Rows) else 0))

    def _answer(self, beamtime: str, request: Request) -> Event:
        if isinstance(request, ListReceivers):
            listing = {"receivers": self._registry.listing(), "beamtimes": self._indexes.beamtimes()}
            return Done(request.request, listing)
        if isinstance(request, Listing):
            return request.answer(beamtime, self._store, self._indexes.open(beamtime))
        if isinstance(request, ListStreams):
            return self._list(beamtime, request)
        if isinstance(request, Describe) and request.beamtime:
            return self._beamtime(beamtime, request)
        index = self._indexes.opened(beamtime)
        ref = StreamRef(beamtime, request.source, request.stream)
        if isinstance(request, Describe):
            info = info_map(index.stream_info(ref))
            keys = {"declared_keys": index.declared_keys(), "sorted_keys": index.sorted_keys()}
            return Done(
                request.request, {**info, "number": index.stream_no(ref), **keys, "deleted": index.last_deletion(ref)}
            )
        no = index.stream_no(ref)
        if no is None:
            index.stream_info(ref)  # raises UnknownStream, with its text
            no = index.stream_no(ref)
        assert no is not None
        if isinstance(request, GetLast):
            return self._last(index, no, beamtime, request)
        if isinstance(request, GetById):
            return self._by_id(index, no, beamtime, request)

        def make_rows(number: int, rows: Any, **extra: Any) -> Rows:
            return self._rows(index, beamtime, number, rows, **extra)

        return asked.answer(index, ref, no, request, self._limits, make_rows)

    # -- one for each kind --------------------------------------------------------------------------------------

    def _beamtime(self, beamtime: str, request: Describe) -> Done:
        """Tell about the beamtime; one that no receiver has written to has no metadata."""
        if request.source or request.stream:
            raise WrongInput("Describe of the beamtime names no source and no stream")
        index = self._indexes.open(beamtime)
        meta = json.loads(index.beamtime_meta()) if index is not None else {}
        return Done(request.request, {"beamtime": beamtime, "meta": meta})

    def _list(self, beamtime: str, request: ListStreams) -> Done:
        index = self._indexes.open(beamtime)
        if index is None:
            return Done(request.request, {"streams": []})
        after = None
        if request.after:
            if not request.source:
                source, mark, stream = request.after.partition("\0")
                if not mark:
                    raise WrongInput(f"after {request.after!r}: expected source, NUL, stream when no source is given")
                after = StreamRef(beamtime, source, stream)
            else:
                after = StreamRef(beamtime, request.source, request.after)
        limit = max(1, min(request.limit, MAX_ROWS))
        found = index.streams(request.source or None, after, limit)
        streams = [{**info_map(info), "number": index.stream_no(info.ref)} for info in found]
        return Done(request.request, {"streams": streams})

    def _last(self, index: MetadataIndex, no: int, beamtime: str, request: GetLast) -> Event:
        row = index.last_row(no)
        if row is None or row_id(row) <= request.after:
            head = index.heads([no])[no]
            raise finished(head) if head.finished else nothing_yet(head)
        rows = parts_of(index, no, row)
        return self._rows(index, beamtime, request.request, rows)

    def _by_id(self, index: MetadataIndex, no: int, beamtime: str, request: GetById) -> Event:
        if not 1 <= len(request.ids) <= MAX_ROWS:
            raise WrongInput(f"{len(request.ids)} ids: expected 1 to {MAX_ROWS} in one request")
        rows: list[RowTuple] = []
        missing: dict[int, Any] = {}
        last: AsapoError | None = None
        size = 0
        for message_id in map(check_id, request.ids):
            found = index.rows_from_id(no, message_id, message_id + 1, MAX_ID)
            if enough(found, request.min_parts):
                size += sum(len(row[9]) for row in found)
                if size > REPLY_BYTES:
                    raise WrongInput(f"the metadata exceed {REPLY_BYTES} bytes; ask for fewer at once")
                rows += found
            else:
                last = absent(index.heads([no])[no], message_id, found)
                missing[message_id] = to_wire(last)
        if last is not None and not rows:
            raise last
        return self._rows(index, beamtime, request.request, rows, missing=missing)

    def _rows(self, index: MetadataIndex, beamtime: str, request: int, rows: Any, **extra: Any) -> Rows:
        tables = self._indexes.tables(beamtime)
        tables.learn(index, rows)
        return tables.answer(request, rows, self._registry, **extra)
