"""Answers to a consumer's requests from the streams of a folder, as a broker would give them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Final

from asapo.delivery.answers import unknown_stream
from asapo.delivery.group import Group
from asapo.delivery.letters import HANDED_BACK, Failure
from asapo.delivery.needs import Granted, NeedBacklog
from asapo.delivery.rows import RowTuple
from asapo.delivery.stream import other_bound
from asapo.delivery.terms import terms_of
from asapo.errors import AsapoError, LeaseLost, NothingYet, OfflineUnsupported, StreamState, WrongInput, to_wire
from asapo.index import asked
from asapo.index.answers import absent, enough, finished, info_map, nothing_yet, rows_by_id, rows_by_seq, whole
from asapo.index.asked import QueryLimits
from asapo.models import StreamRef
from asapo.query import parse
from asapo.query.rows import group_filter
from asapo.wire.events import (
    Acknowledge,
    Describe,
    Done,
    Event,
    GetById,
    GetLast,
    GetNext,
    ListStreams,
    Nack,
    Query,
    Rows,
)
from asapo_work.offline.folder import Folder, OfflineStream
from asapo_work.offline.groups import GroupAnswers

SESSION: Final = b"offline"
"""All threads of this process are one session, as those that share a consumer are."""


class Clock:
    """Time that is skipped instead of waited for: nothing arrives in a folder, so nobody needs to wait.

    Parameters
    ----------
    clock_s : callable
        The time that passes by itself, seconds.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._skipped_s = 0.0

    def now_s(self) -> float:
        """Return the time, seconds."""
        return self._clock_s() + self._skipped_s

    def skip(self, seconds: float) -> None:
        """Let this time be over."""
        self._skipped_s += seconds


class Answers:
    """Answers requests one at a time; whoever calls holds a lock."""

    def __init__(self, folder: Folder, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._table: dict[type[Event], Callable[[Any], Event]] = {
            GetNext: self._get_next,
            Acknowledge: self._acknowledge,
            Nack: self._nack,
            GetLast: self._get_last,
            GetById: self._get_by_id,
            Query: self._query,
            Describe: self._describe,
            ListStreams: self._list_streams,
            **GroupAnswers(folder, clock.now_s).table,
        }

    def answer(self, request: Any) -> Event:
        """Return the answer to a request, or raise the error that a broker would answer with."""
        how = self._table.get(type(request))
        if how is None:
            name = type(request).__name__
            raise OfflineUnsupported(
                f"{name} needs running services: a folder has none; connect a Consumer to the broker for it",
                feature=name,
            )
        return how(request)

    def _stream(self, request: Any) -> OfflineStream:
        found = self._folder.stream(request.source, request.stream)
        if found is None:
            raise unknown_stream(StreamRef(self._folder.beamtime, request.source, request.stream))
        return found

    @staticmethod
    def _rows(request: int, stream: OfflineStream, rows: Sequence[RowTuple], **extra: Any) -> Rows:
        segments, formats, origins = stream.tables
        return Rows(request, rows, segments, formats, origins, **extra)  # type: ignore[arg-type]

    # -- groups -----------------------------------------------------------------------------------------------------

    def _get_next(self, request: GetNext) -> Event:
        try:
            stream = self._stream(request)
        except StreamState:
            self._clock.skip(request.wait_s)
            raise
        group = self._group(stream, request)
        lost = group.cursor.ack(SESSION, request.done) if request.done else []
        until_s = self._clock.now_s() + request.wait_s
        while True:
            found = self._next(stream, group, request.n)
            if isinstance(found, Granted):
                more = {"attempts": found.attempts, "late": found.late, "lost": lost}
                return self._rows(request.request, stream, found.rows, **more)
            due_s = group.next_event_s()  # of what was nacked, and of datasets: leases end never
            if not isinstance(found, NothingYet) or due_s > until_s:
                if isinstance(found, NothingYet):
                    self._clock.skip(max(0.0, until_s - self._clock.now_s()))
                raise found
            self._clock.skip(max(0.0, due_s - self._clock.now_s()))

    def _next(self, stream: OfflineStream, group: Group, n: int) -> Granted | StreamState:
        """Return what the group gets, having loaded what that takes."""
        while True:
            answer = group.next_rows(SESSION, n, self._clock.now_s(), inf)
            if isinstance(answer, Granted | StreamState):
                return answer
            if isinstance(answer, NeedBacklog):
                load = rows_by_id if answer.ordered else rows_by_seq
                from_key = answer.from_key if answer.ordered else answer.from_key - 1
                rows, covered = load(stream, 0, from_key, answer.below, answer.limit)
                group.add_backlog(rows, from_key=answer.from_key, covered_below=covered)
            # The rest: a filter wants to look on (Again). Nothing arrives, so nothing arrives unseen (NeedUnseen).

    @staticmethod
    def _group(stream: OfflineStream, request: GetNext) -> Group:
        delivery = stream.delivery
        known = delivery.groups.get(request.group)
        group = delivery.open_group(
            request.group,
            **terms_of(request)._asdict(),
            matches=group_filter(parse(request.where)) if known is None and request.where else None,
            max_attempts=request.max_attempts,
        )
        if group.cursor.max_attempts != request.max_attempts:
            raise other_bound(request.group, group.cursor.max_attempts, request.max_attempts)
        return group

    def _known_group(self, request: Acknowledge | Nack) -> Group:
        group = self._stream(request).delivery.groups.get(request.group)
        if group is None:
            raise LeaseLost(f"group {request.group!r} has given no messages")
        return group

    def _acknowledge(self, request: Acknowledge) -> Event:
        return Done(request.request, {"lost": self._known_group(request).cursor.ack(SESSION, request.ranges)})

    def _nack(self, request: Nack) -> Event:
        cursor = self._known_group(request).cursor
        if request.unstarted:
            lost = cursor.give_back(SESSION, request.ids)
        else:
            failure = Failure(request.reason or HANDED_BACK.reason, request.traceback, time.time_ns())
            now_s = self._clock.now_s()
            lost = cursor.nack(SESSION, request.ids, request.delay_s, now_s, failure, unsure=request.unsure)
        return Done(request.request, {"lost": lost})

    # -- without a group --------------------------------------------------------------------------------------------

    def _get_last(self, request: GetLast) -> Event:
        stream = self._stream(request)
        last = stream.last_id()
        if last <= request.after:
            raise finished(stream.head) if stream.head.finished else nothing_yet(stream.head)
        return self._rows(request.request, stream, whole(stream, 0, [last]))

    def _get_by_id(self, request: GetById) -> Event:
        stream = self._stream(request)
        rows: list[RowTuple] = []
        missing: dict[int, Any] = {}
        error: AsapoError | None = None
        for message_id in request.ids:
            found = whole(stream, 0, [message_id])
            if enough(found, request.min_parts):
                rows += found
            else:
                error = absent(stream.head, message_id, found)
                missing[message_id] = to_wire(error)
        if error is not None and not rows:
            raise error
        return self._rows(request.request, stream, rows, missing=missing)

    def _query(self, request: Query) -> Event:
        stream = self._stream(request)

        def rows_of(number: int, rows: Sequence[RowTuple], **extra: Any) -> Rows:
            return self._rows(number, stream, rows, **extra)

        return asked.answer(stream, stream.ref, 0, request, QueryLimits(), rows_of)

    def _describe(self, request: Describe) -> Event:
        if request.beamtime:
            return Done(request.request, {"beamtime": self._folder.beamtime, "meta": self._folder.beamtime_meta})
        if not (request.source or request.stream):
            raise OfflineUnsupported(
                "stages need running services: nobody tells a folder what it does; connect a Consumer to the broker",
                feature="stages",
            )
        return Done(request.request, {**_facts(self._stream(request)), "declared_keys": [], "sorted_keys": []})

    def _list_streams(self, request: ListStreams) -> Event:
        if request.limit < 1:
            raise WrongInput(f"limit {request.limit}: expected at least 1")
        found = self._folder.streams(request.source)
        if request.after:
            source, _, stream = request.after.rpartition("\0")
            after = (source or request.source, stream)
            found = [one for one in found if (one.ref.source, one.ref.stream) > after]
        return Done(request.request, {"streams": [_facts(one) for one in found[: request.limit]]})


def _facts(stream: OfflineStream) -> dict[str, Any]:
    return {**info_map(stream.info), "number": stream.number}
