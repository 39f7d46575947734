"""get_next, acknowledge and nack on the poll thread: no I/O, the loader is asked by jobs and answers by messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any, Final

from asapo.delivery.answers import deleted_stream
from asapo.errors import AsapoError, DeadlineExceeded, LeaseLost, QueueFull, UnknownGroup
from asapo.failpoints import failpoint
from asapo.models import MAX_ID, StreamRef
from asapo.wire.events import Acknowledge, GetNext, Nack
from asapo_broker import bookkeeping
from asapo_broker.administering import unknown_group
from asapo_broker.announced import AnnouncedUnit, announced, announced_head
from asapo_broker.checks import check_request, check_values
from asapo_broker.feed import (
    Feed,
    GroupReady,
    Job,
    LoadParts,
    Looked,
    Opened,
    PartsLoaded,
    RowsLoaded,
    Tail,
    Vanished,
)  # fmt: skip
from asapo_broker.registry import Registry
from asapo_broker.saves import Save
from asapo_broker.serving import Serving
from asapo_broker.sessions import Session
from asapo_broker.settings import CoreSettings
from asapo_broker.streams import GroupRequest, StreamState, Waiting
from asapo_broker.tables import Tables
from asapo_broker.tally import Tally

TICK_S: Final = 0.1
"""Leases that ran out and nacks whose delay is over are looked for this often."""
MIN_WINDOW_BYTES: Final = 1024 * 1024
"""What the rows of a stream may take however many streams are read."""
FILTERED_BYTES: Final = 4096
"""Longer announced units of streams with filtered groups are left to the loader: it judges rows on its own thread."""
Name = tuple[str, str, str]


class Delivery:
    """All streams somebody reads. Everything here runs on the poll thread.

    Parameters
    ----------
    load : callable
        Takes a job for the loader.
    reply : callable
        Sends an encoded answer to a session.
    tables : callable
        Returns the tables of a beamtime.
    """

    def __init__(
        self,
        settings: CoreSettings,
        *,
        load: Callable[[Job], None],
        reply: Callable[[Session, bytes], None],
        tables: Callable[[str], Tables],
        registry: Registry,
        tally: Tally,
    ) -> None:
        self._settings = settings
        self._load = load
        self._reply = reply
        self._tally = tally
        self._tables = tables
        self._serving = Serving(
            settings, load=load, reply=reply, deny=self._deny, tables=tables, registry=registry, tally=tally
        )
        self.streams: dict[Name, StreamState] = {}
        self._parked: dict[Waiting, StreamState] = {}
        self._deadline_s = inf
        self._tick_s = 0.0

    @property
    def n_waiting(self) -> int:
        """Requests that wait."""
        return len(self._parked)

    @property
    def _window_bytes(self) -> int:
        """Memory that the rows of one stream may take now, in bytes."""
        settings = self._settings
        return min(settings.window_bytes, max(MIN_WINDOW_BYTES, settings.windows_bytes // max(1, len(self.streams))))

    @property
    def has_changes(self) -> bool:
        """True when groups may have something to store."""
        return bool(self._serving.changed)

    # -- requests -----------------------------------------------------------------------------------------------

    def request(self, session: Session, event: GroupRequest, now_s: float) -> None:
        """Answer a request, now or when there is something to answer.

        Raises
        ------
        WrongInput, QueueFull
            The request is not acceptable, or too many wait already.
        """
        kept = session.replies.get(event.request)
        if kept is not None:
            self._tally.replies_repeated += 1
            self._reply(session, kept)
            return
        if event.request in session.waiting:
            return  # it came again over a new link: the answer goes there
        check_values(event)
        state = self._state(session.beamtime, event, now_s)
        once = not isinstance(event, GetNext) or event.wait_s <= 0
        wait_s = self._settings.request_limit_s if once else event.wait_s  # type: ignore[union-attr]
        waiting = Waiting(session, event, now_s + wait_s, once)
        if not self._serving.attempt(state, waiting, now_s):
            self._park(state, waiting, now_s)

    def _state(self, beamtime: str, event: GroupRequest, now_s: float) -> StreamState:
        """Return the stream, having asked the loader for it if it is new here."""
        name = (beamtime, event.source, event.stream)
        state = self.streams.get(name)
        if state is None:
            check_request(event)
            if len(self.streams) >= self._settings.max_streams:
                raise QueueFull(f"{len(self.streams)} streams are being read already", limit=self._settings.max_streams)
            state = self.streams[name] = StreamState(Feed(StreamRef(*name)), now_s)
            self._load(state.feed)
        state.used_s = now_s
        return state

    def _park(self, state: StreamState, waiting: Waiting, now_s: float) -> None:
        session = waiting.session
        if len(session.waiting) >= self._settings.max_waiting:
            raise QueueFull(
                f"{len(session.waiting)} requests of this session wait already", limit=self._settings.max_waiting
            )
        session.waiting[waiting.event.request] = waiting
        state.waiting[waiting] = None
        state.feed.watched = len(state.waiting)
        self._parked[waiting] = state
        self._deadline_s = min(self._deadline_s, waiting.deadline_s)
        feed = state.feed
        stale = now_s - feed.looked_s > self._settings.poll_s or feed.announced_seq > feed.seen_seq
        if waiting.once or stale or not feed.polled:
            waiting.asked = feed.asked = True
            self._load(feed)

    def _unpark(self, waiting: Waiting) -> None:
        state = self._parked.pop(waiting, None)
        if state is None:
            return
        waiting.session.waiting.pop(waiting.event.request, None)
        state.waiting.pop(waiting, None)
        state.feed.watched = len(state.waiting)
        if state.delivery is None and not state.waiting:
            self._forget(state)

    def _forget(self, state: StreamState) -> None:
        """Let go of a stream; what its groups are done with was stored."""
        ref = state.feed.ref
        state.feed.closed = True
        self.streams.pop((ref.beamtime, ref.source, ref.stream), None)
        self._serving.again.pop(state, None)
        self._serving.changed.discard(state)
        if state.delivery is not None:
            self._serving.n_groups -= len(state.delivery.groups)

    def forget(self, ref: StreamRef) -> None:
        """Let go of a stream that was deleted, or may have been: what is asked of it next, the index answers."""
        state = self.streams.get((ref.beamtime, ref.source, ref.stream))
        if state is not None:
            self._fail_all(list(state.waiting), deleted_stream(ref))
            self._forget(state)
            self._serving.active.discard(state)

    # -- answering ----------------------------------------------------------------------------------------------

    def wake(self, state: StreamState, now_s: float) -> None:
        """Try again to answer those who wait for a stream."""
        dry: set[str] = set()
        finished = state.delivery is not None and state.delivery.window.complete
        for waiting in list(state.waiting):
            if waiting not in state.waiting:
                continue  # answered by what another one asked for
            event = waiting.event
            if event.group in dry and not waiting.once:
                continue  # a neighbour in the group was just told that there is nothing
            if self._serving.attempt(state, waiting, now_s):
                self._unpark(waiting)
            elif isinstance(event, GetNext) and not finished:
                dry.add(event.group)

    # -- what the loader and the receivers say ------------------------------------------------------------------

    def take(self, message: Any, now_s: float) -> None:
        """Take a message of the loader."""
        feed = (
            message.feed if isinstance(message, Looked | Opened | Tail | PartsLoaded | Vanished) else message.job.feed
        )
        ref = feed.ref
        state = self.streams.get((ref.beamtime, ref.source, ref.stream))
        if state is None or state.feed is not feed:
            return  # nobody reads it any more
        if isinstance(message, Tail):
            self._take_tail(state, message, now_s)
        elif isinstance(message, Vanished):
            self.forget(ref)
        elif isinstance(message, Opened):
            state.open(message, now_s)
        elif isinstance(message, Looked):
            state.error = message.error
            for waiting in state.waiting:
                waiting.sure = waiting.sure or waiting.asked
        elif isinstance(message, GroupReady):
            self._take_group(state, message, now_s)
        elif isinstance(message, RowsLoaded):
            state.take_rows(message)
            if message.error is not None:
                self._fail_all(state.waiting_for(message.job.group), message.error)
        else:
            state.take_parts(message, now_s)
        if state.waiting:
            self.wake(state, now_s)

    def _take_tail(self, state: StreamState, tail: Tail, now_s: float) -> None:
        feed = state.feed
        self._tally.rows_loaded += len(tail.rows)
        orphans = state.take(tail, now_s, limit_rows=self._settings.window_rows, limit_bytes=self._window_bytes)
        self._tally.late_parts += state.new_late_parts()
        if orphans:
            self._load(LoadParts(feed, orphans))
        if tail.head is None and feed.taken == feed.given:
            self._load(feed)  # the loader stopped because we were behind
        if tail.rows:
            self._serving.changed.add(state)

    def _take_group(self, state: StreamState, found: GroupReady, now_s: float) -> None:
        assert state.delivery is not None
        before = len(state.delivery.groups)
        error = found.error
        try:
            state.take_group(found)
        except AsapoError as exc:
            error = exc
        self._serving.n_groups += len(state.delivery.groups) - before
        waiting = state.waiting_for(found.job.group)
        if error is not None:
            new = found.job.new
            same = [one for one in waiting if new is None or getattr(one.event, "where", new.where) == new.where]
            self._fail_all(same, error)
        elif found.job.group in state.delivery.groups:
            # What the core before gave out and is done is not to be given again: acknowledgements go first.
            for one in waiting:
                if isinstance(one.event, Acknowledge | Nack) and self._serving.attempt(state, one, now_s):
                    self._unpark(one)
        elif not any(isinstance(one.event, GetNext) for one in waiting):
            # Nothing is stored of this group, and nobody who reads it says how: it cannot be made.
            lost = LeaseLost(f"group {found.job.group!r} has given no messages; they will be given again")
            unknown = unknown_group(state.feed.ref, found.job.group)
            for one in waiting:
                self._fail_all([one], lost if isinstance(one.event, Acknowledge | Nack) else unknown)
        self._serving.changed.add(state)

    def _fail_all(self, waiting: Iterable[Waiting], error: AsapoError) -> None:
        for one in waiting:
            self._serving.fail(one, error)
            self._unpark(one)

    def _deny(self, state: StreamState, group: str, error: UnknownGroup) -> None:
        """Answer all reads that wait for a group with an error."""
        self._fail_all([one for one in state.waiting_for(group) if isinstance(one.event, GetNext)], error)

    def announce(self, beamtime: str, heads: Sequence[Any], units: Sequence[Any], now_s: float) -> None:
        """Take hints that streams grew, and units that follow what is here; look at the rest if somebody waits for it.

        Raises
        ------
        WrongInput, RemoteProtocolError
            If an entry is none.
        """
        grown: set[StreamState] = set()
        for unit in map(announced, units):
            state = self.streams.get((beamtime, unit.source, unit.stream))
            if state is not None and state.follows(unit) and self._push(state, unit, now_s):
                grown.add(state)
        for head in heads:
            source, stream, seq = announced_head(head)
            state = self.streams.get((beamtime, source, stream))
            self._tally.announcements += 1
            if state is None:
                continue
            feed = state.feed
            feed.announced_seq = max(feed.announced_seq, min(seq, MAX_ID))
            if state in grown:
                self.wake(state, now_s)
            if state.waiting and (seq <= 0 or seq > feed.pushed_seq or state.unsettled):
                self._load(feed)

    def _push(self, state: StreamState, unit: AnnouncedUnit, now_s: float) -> bool:
        """Take in a unit without asking the index; False when that takes more than is known here."""
        feed = state.feed
        if feed.filters and len(unit.header) > FILTERED_BYTES:
            return False
        if not self._tables(feed.ref.beamtime).know(unit.segment, unit.format):
            return False
        rows = unit.rows()
        self._tally.rows_announced += len(rows)
        orphans = state.push(rows, now_s, limit_rows=self._settings.window_rows, limit_bytes=self._window_bytes)
        self._tally.late_parts += state.new_late_parts()
        if orphans:
            self._load(LoadParts(feed, orphans))
        self._serving.changed.add(state)
        return True

    # -- sessions and time --------------------------------------------------------------------------------------

    def renew(self, session: Session, now_s: float) -> None:
        """Renew the leases of a session that is alive."""
        for state in list(session.readers):
            if state.feed.closed:
                session.readers.discard(state)
            elif state.delivery is not None:
                state.delivery.renew(session.key, now_s)

    def end(self, session: Session, now_s: float) -> None:
        """Give what a session held to others."""
        for waiting in list(session.waiting.values()):
            self._unpark(waiting)
        for state in session.readers:
            if state.feed.closed or state.delivery is None:
                continue
            if state.delivery.drop_session(session.key, now_s, time.time_ns()):
                self._serving.changed.add(state)
                self.wake(state, now_s)
        session.readers.clear()

    def turn(self, now_s: float) -> float:
        """Do what is due; return when to come again at the latest."""
        if self._serving.again:
            again, self._serving.again = self._serving.again, {}
            for state in again:
                self.wake(state, now_s)
        if now_s >= self._deadline_s:
            self._expire_waiting(now_s)
        if now_s >= self._tick_s:
            self._tick_s = now_s + TICK_S
            self._expire_leases(now_s)
        return 0.0 if self._serving.again else min(self._deadline_s, self._tick_s if self._serving.active else inf)

    def _expire_waiting(self, now_s: float) -> None:
        for waiting, state in [item for item in self._parked.items() if item[0].deadline_s <= now_s]:
            waiting.sure = waiting.once = True
            if not self._serving.attempt(state, waiting, now_s):
                limit_s = self._settings.request_limit_s
                self._serving.fail(waiting, DeadlineExceeded("the index did not answer in time", after_s=limit_s))
            self._unpark(waiting)
        self._deadline_s = min((waiting.deadline_s for waiting in self._parked), default=inf)

    def _expire_leases(self, now_s: float) -> None:
        for state in list(self._serving.active):
            assert state.delivery is not None
            if expired := state.delivery.expire(now_s, time.time_ns()):
                self._tally.leases_expired += sum(map(len, expired.values()))
                self._serving.changed.add(state)
                failpoint("lease.after-expiry")
            if state.waiting:
                self.wake(state, now_s)
            if not state.n_outstanding and not (state.waiting and state.waits_for_time):
                self._serving.active.discard(state)

    def changes(self) -> dict[tuple[StreamRef, str], Save]:
        """Return the groups that changed since the last call, as they are to be stored."""
        return bookkeeping.changes(self._serving, self._tally)

    def facts(self, beamtime: str, source: str, stream: str, now_s: float) -> bookkeeping.Facts:
        """Return how far the groups are that are in memory; see `bookkeeping.facts`."""
        return bookkeeping.facts(self.streams.values(), beamtime, source, stream, now_s)

    def drop_idle(self, now_s: float) -> None:
        """Let go of streams and groups that nobody read for long and of which nothing is outstanding."""
        settings = self._settings
        for state in list(self.streams.values()):
            if state in self._serving.changed or state.opening or state.loading:
                continue
            if state.used_s < now_s - settings.idle_stream_s and not state.waiting and not state.n_outstanding:
                self._forget(state)
            else:
                self._serving.n_groups -= state.drop_groups(now_s, unused_s=settings.idle_group_s)

    def numbers(self) -> dict[str, int]:
        """Return how much is in memory."""
        return bookkeeping.numbers(self.streams.values(), self._serving, len(self._parked))
