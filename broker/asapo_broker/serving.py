"""Answering one request to a group: with messages, with an error, or not yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from asapo.delivery.admin import NeedEntries
from asapo.delivery.answers import unknown_stream
from asapo.delivery.group import Group
from asapo.delivery.letters import HANDED_BACK, Failure
from asapo.delivery.needs import Again, Granted, NeedBacklog, NeedUnseen
from asapo.delivery.stream import other_bound
from asapo.delivery.terms import terms_of
from asapo.errors import (
    AsapoError,
    NothingYet,
    QueueFull,
    StreamFinished,
    UnknownGroup,
    WrongInput,
    to_wire,
)
from asapo.wire.codec import encode
from asapo.wire.events import Acknowledge, Done, Failed, GetNext, Nack
from asapo.wire.group_events import SettleDeadLetters
from asapo.wire.limits import MAX_HEADER_BYTES, MAX_ROWS
from asapo_broker.administering import Administering
from asapo_broker.checks import check_request
from asapo_broker.feed import Job, LoadRows, OpenGroup
from asapo_broker.registry import Registry
from asapo_broker.sessions import Session
from asapo_broker.settings import CoreSettings
from asapo_broker.streams import NO_BOUND_YET, GroupRequest, StreamState, Waiting
from asapo_broker.tables import Tables
from asapo_broker.tally import Tally

MAX_OUTSTANDING: Final = 500_000
"""Messages of one group that sessions may hold: bounds what a client that never acknowledges makes us keep."""
AHEAD_ROWS: Final = 1000
"""The tail is loaded ahead of its being asked for when fewer messages than this are left."""


class Serving:
    """Answers requests as far as memory allows; asks the loader for what is missing.

    Parameters
    ----------
    load : callable
        Takes a job for the loader.
    reply : callable
        Sends an encoded answer to a session.
    deny : callable
        Answers all reads that wait for a group with an error.
    tables : callable
        Returns the tables of a beamtime.
    """

    def __init__(
        self,
        settings: CoreSettings,
        *,
        load: Callable[[Job], None],
        reply: Callable[[Session, bytes], None],
        deny: Callable[[StreamState, str, UnknownGroup], None],
        tables: Callable[[str], Tables],
        registry: Registry,
        tally: Tally,
    ) -> None:
        self._settings = settings
        self._load = load
        self._reply = reply
        self._tables = tables
        self._registry = registry
        self._tally = tally
        self.n_groups = 0
        self.active: set[StreamState] = set()
        """Streams of which messages are outstanding."""
        self.changed: set[StreamState] = set()
        """Streams whose groups may have something to store."""
        self.admin = Administering(self._look, deny)
        self.again: dict[StreamState, None] = {}
        """Streams whose waiting requests are to be tried again soon."""

    def attempt(self, state: StreamState, waiting: Waiting, now_s: float) -> bool:
        """Answer a request if that is possible now; True when it was answered."""
        try:
            return self._serve(state, waiting, now_s)
        except AsapoError as exc:
            self.fail(waiting, exc)
            return True

    def _serve(self, state: StreamState, waiting: Waiting, now_s: float) -> bool:
        event, session = waiting.event, waiting.session
        if state.delivery is None:
            if waiting.once and waiting.sure:
                raise state.error or unknown_stream(state.feed.ref)
            return False
        group = state.delivery.groups.get(event.group)
        if group is None:
            self._open_group(state, event)
            return False
        group.used_s = now_s
        if isinstance(event, GetNext):
            terms = terms_of(event)
            if group.terms != terms:
                state.delivery.open_group(event.group, **terms._asdict())  # raises
            if group.cursor.max_attempts != event.max_attempts:
                _take_bound(group, event)
            return self._next(state, group, waiting, event, now_s)
        if not isinstance(event, Acknowledge | Nack):
            return self._administer(state, group, waiting)
        if isinstance(event, Nack):
            if not session.gave(event.given_by):
                lost = event.ids
            elif event.unstarted:
                lost = group.cursor.give_back(session.key, event.ids)
            else:
                failure = Failure(event.reason or HANDED_BACK.reason, event.traceback, time.time_ns())
                lost = group.cursor.nack(session.key, event.ids, event.delay_s, now_s, failure, unsure=event.unsure)
            self.again[state] = None
        else:
            self._tally.acked += len(event.ranges)
            lost = group.cursor.ack(session.key, event.ranges)
            if group.cursor.n_suspects:
                self.again[state] = None  # this session may have the next one
        self.changed.add(state)
        self._tally.lease_lost += len(lost)
        self._reply(session, encode(Done(event.request, {"lost": lost})))
        return True

    def _open_group(self, state: StreamState, event: GroupRequest) -> None:
        """Ask the loader for a group that is not in memory."""
        assert state.delivery is not None
        if event.group in state.opening:
            return
        check_request(event)
        if self.n_groups + len(state.opening) >= self._settings.max_groups:
            raise QueueFull(f"{self.n_groups} groups are in memory already", limit=self._settings.max_groups)
        reads = (one.event for one in state.waiting_for(event.group) if isinstance(one.event, GetNext))
        new = event if isinstance(event, GetNext) else next(reads, None)
        window = state.delivery.window
        entries = window.slice_ordered(window.low, len(window)).entries if new is not None and new.where else ()
        state.opening.add(event.group)
        self._load(OpenGroup(state.feed, event.group, new, entries))

    def _administer(self, state: StreamState, group: Group, waiting: Waiting) -> bool:
        name, n_dead = waiting.event.group, len(group.cursor.dead)
        result = self.admin.serve(state, group, waiting)
        if isinstance(result, NeedEntries):
            self._load_rows(state, name, group, result)
        if result is None or isinstance(result, NeedEntries):
            return False
        assert state.delivery is not None
        self.n_groups -= name not in state.delivery.groups
        if isinstance(waiting.event, SettleDeadLetters) and waiting.event.requeue:
            self._tally.requeued += n_dead - len(group.cursor.dead)
        self.active.add(state)
        self.changed.add(state)
        self.again[state] = None
        self._reply(waiting.session, encode(Done(waiting.event.request, result)))
        return True

    def _look(self, state: StreamState, waiting: Waiting) -> None:
        """Have the loader look at a stream once more for one request."""
        if not waiting.asked or waiting.sure:
            waiting.sure = False
            waiting.asked = state.feed.asked = True
            self._load(state.feed)

    def _next(self, state: StreamState, group: Group, waiting: Waiting, event: GetNext, now_s: float) -> bool:
        session, cursor = waiting.session, group.cursor
        if event.done and not waiting.acked:
            waiting.acked = True
            waiting.lost = cursor.ack(session.key, event.done)
            self._tally.acked += len(event.done)
            self._tally.lease_lost += len(waiting.lost)
            self.changed.add(state)
        if group.is_holding(MAX_OUTSTANDING):
            raise QueueFull(
                f"group {event.group!r} holds {MAX_OUTSTANDING} messages; acknowledge some", limit=MAX_OUTSTANDING
            )
        n = max(1, min(event.n, MAX_ROWS))
        answer = group.next_rows(session.key, n, now_s, event.lease_s, worker=session.name)
        if isinstance(answer, Granted):
            self._grant(state, group, waiting, answer, now_s)
        elif isinstance(answer, NeedBacklog | NeedUnseen):
            self._load_rows(state, event.group, group, answer)
            return False
        elif isinstance(answer, Again):
            self.again[state] = None
            return False
        elif isinstance(answer, NothingYet):
            if group.waits_for_time:
                self.active.add(state)  # somebody has to look when that time has come
            if not (waiting.once and waiting.sure) and now_s < waiting.deadline_s:
                return False
            self.fail(waiting, answer)
        elif not (isinstance(answer, StreamFinished) and waiting.once and not waiting.sure):
            self.fail(waiting, answer)
        else:
            return False  # the stream may have been finished anew, with another id
        self.changed.add(state)
        return True

    def _load_rows(
        self, state: StreamState, name: str, group: Group, need: NeedBacklog | NeedUnseen | NeedEntries
    ) -> None:
        if name not in state.loading:
            state.loading.add(name)
            self._load(LoadRows(state.feed, name, need, state.filter_of(name)))

    def _grant(self, state: StreamState, group: Group, waiting: Waiting, granted: Granted, now_s: float) -> None:
        """Send messages that were leased to a session."""
        session, request = waiting.session, waiting.event.request
        rows: Sequence[Any] = granted.rows
        ids = granted.ids
        tables = self._tables(session.beamtime)
        while True:
            header = encode(
                tables.answer(
                    request,
                    rows,
                    self._registry,
                    attempts=granted.attempts,
                    late=granted.late,
                    lost=waiting.lost,
                )
            )
            if len(header) <= MAX_HEADER_BYTES or len(ids) == 1:
                break
            if group.terms.aligned:
                group.cursor.give_back(session.key, ids)
                raise WrongInput(
                    f"the metadata of this chunk of {len(ids)} messages exceed {MAX_HEADER_BYTES} bytes; read in "
                    "shorter chunks, by another group"
                )
            # Long metadata: the second half is given to whoever asks next.
            keep = len(ids) // 2
            group.cursor.give_back(session.key, ids[keep:])
            ids = ids[:keep]
            kept = set(ids)
            rows = [row for row in rows if row[0] in kept]
        tally = self._tally
        tally.delivered += len(ids)
        tally.redelivered += len(granted.attempts)
        tally.late += len(granted.late)
        tally.incomplete += granted.incomplete
        session.readers.add(state)
        session.keep(request, header)
        self.active.add(state)
        self._reply(session, header)
        if granted.need is not None:
            self._load_rows(state, waiting.event.group, group, granted.need)
        self._look_ahead(state, group, now_s)

    def _look_ahead(self, state: StreamState, group: Group, _now_s: float) -> None:
        """Have the tail loaded before the group comes to its end."""
        feed, window = state.feed, group.window
        if feed.announced_seq > feed.seen_seq:
            left = (window.id_max if group.cursor.ordered else window.head_seq) - group.cursor.position
            if left < AHEAD_ROWS:
                self._load(feed)

    def fail(self, waiting: Waiting, error: AsapoError) -> None:
        """Answer with an error or a stream state."""
        self._reply(waiting.session, encode(Failed(waiting.event.request, to_wire(error), waiting.lost)))


def _take_bound(group: Group, event: GetNext) -> None:
    """Take the `max_attempts` of a group's first read; raise GroupMismatch when a later one has another."""
    bound = group.cursor.max_attempts
    if bound != NO_BOUND_YET:
        raise other_bound(event.group, bound, event.max_attempts)
    group.cursor.max_attempts = event.max_attempts
