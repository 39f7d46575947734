"""get_next, acknowledge and nack on the poll thread: no I/O, the loader is asked by jobs and answers by messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any, Final

from asapo.delivery.answers import unknown_stream
from asapo.delivery.group import Again, Granted, Group, NeedBacklog, NeedUnseen
from asapo.delivery.leases import GroupState
from asapo.errors import (
    AsapoError,
    DeadlineExceeded,
    LeaseLost,
    NothingYet,
    QueueFull,
    StreamFinished,
    WrongInput,
    to_wire,
)
from asapo.models import MAX_ID, StreamRef, check_id, check_name
from asapo.wire.codec import encode
from asapo.wire.events import Done, Failed, GetNext, Nack
from asapo.wire.limits import MAX_HEADER_BYTES, MAX_RANGES, MAX_ROWS
from asapo_broker.feed import (
    Feed,
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
)
from asapo_broker.registry import Registry
from asapo_broker.sessions import Session
from asapo_broker.settings import CoreSettings
from asapo_broker.streams import GroupRequest, StreamState, Waiting
from asapo_broker.tables import Tables
from asapo_broker.tally import Tally

MAX_OUTSTANDING: Final = 500_000
"""Messages of one group that sessions may hold: bounds what a client that never acknowledges makes us keep."""
TICK_S: Final = 0.1
"""Leases that ran out and nacks whose delay is over are looked for this often."""
AHEAD_ROWS: Final = 1000
"""The tail is loaded ahead of its being asked for when fewer messages than this are left."""

Name = tuple[str, str, str]
Reply = Callable[[Session, bytes], None]


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
        reply: Reply,
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
        self.streams: dict[Name, StreamState] = {}
        self.n_groups = 0
        self._parked: dict[Waiting, StreamState] = {}
        self._active: set[StreamState] = set()
        """Streams of which messages are outstanding."""
        self._changed: set[StreamState] = set()
        """Streams whose groups may have something to store."""
        self._again: dict[StreamState, None] = {}
        self._deadline_s = inf
        self._tick_s = 0.0

    @property
    def n_waiting(self) -> int:
        """Requests that wait."""
        return len(self._parked)

    @property
    def has_changes(self) -> bool:
        """True when groups may have something to store."""
        return bool(self._changed)

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
        if not self._try(state, waiting, now_s):
            self._park(state, waiting, now_s)

    def _state(self, beamtime: str, event: GroupRequest, now_s: float) -> StreamState:
        """Return the stream, having asked the loader for it if it is new here."""
        name = (beamtime, event.source, event.stream)
        state = self.streams.get(name)
        if state is None:
            check_request(event)
            ref = StreamRef(*name)
            if len(self.streams) >= self._settings.max_streams:
                raise QueueFull(f"{len(self.streams)} streams are being read already", limit=self._settings.max_streams)
            state = self.streams[name] = StreamState(Feed(ref), now_s)
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
        stale = now_s - feed.looked_s > self._settings.poll_s or feed.announced_seq > feed.loaded_seq
        if waiting.once or stale:
            waiting.asked = True
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
        self._again.pop(state, None)
        self._changed.discard(state)
        if state.delivery is not None:
            self.n_groups -= len(state.delivery.groups)

    # -- answering ----------------------------------------------------------------------------------------------

    def _try(self, state: StreamState, waiting: Waiting, now_s: float) -> bool:
        """Answer a request if that is possible now; True when it was answered."""
        try:
            return self._serve(state, waiting, now_s)
        except AsapoError as exc:
            self._fail(waiting, exc)
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
        if isinstance(event, GetNext):
            if group.cursor.ordered != event.ordered or group.where != event.where:
                state.delivery.open_group(event.group, ordered=event.ordered, where=event.where)  # raises
            return self._next(state, group, waiting, event, now_s)
        if isinstance(event, Nack):
            if event.unstarted:
                lost = group.cursor.give_back(session.key, event.ids)
            else:
                lost = group.cursor.nack(session.key, event.ids, event.delay_s, now_s)
            self._again[state] = None
        else:
            self._tally.acked += len(event.ranges)
            lost = group.cursor.ack(session.key, event.ranges)
        self._changed.add(state)
        self._tally.lease_lost += len(lost)
        self._reply(session, encode(Done(event.request, {"lost": lost})))
        return True

    def _open_group(self, state: StreamState, event: GroupRequest) -> None:
        """Ask the loader for a group that is not in memory."""
        assert state.delivery is not None  # noqa: S101 - the caller looked
        if event.group in state.opening:
            return
        check_request(event)
        if self.n_groups + len(state.opening) >= self._settings.max_groups:
            raise QueueFull(f"{self.n_groups} groups are in memory already", limit=self._settings.max_groups)
        new = event if isinstance(event, GetNext) else None
        window = state.delivery.window
        entries = window.slice_ordered(window.low, len(window)).entries if new is not None and new.where else ()
        state.opening.add(event.group)
        self._load(OpenGroup(state.feed, event.group, new, entries))

    def _next(self, state: StreamState, group: Group, waiting: Waiting, event: GetNext, now_s: float) -> bool:
        session, cursor = waiting.session, group.cursor
        if event.done and not waiting.acked:
            waiting.acked = True
            waiting.lost = cursor.ack(session.key, event.done)
            self._tally.acked += len(event.done)
            self._tally.lease_lost += len(waiting.lost)
            self._changed.add(state)
        if cursor.n_outstanding >= MAX_OUTSTANDING:
            raise QueueFull(
                f"group {event.group!r} holds {MAX_OUTSTANDING} messages; acknowledge some", limit=MAX_OUTSTANDING
            )
        n = max(1, min(event.n, MAX_ROWS))
        answer = group.next_rows(session.key, n, now_s, event.lease_s)
        if isinstance(answer, Granted):
            self._grant(state, group, waiting, answer, now_s)
        elif isinstance(answer, NeedBacklog | NeedUnseen):
            self._load_rows(state, event.group, group, answer)
            return False
        elif isinstance(answer, Again):
            self._again[state] = None
            return False
        elif isinstance(answer, NothingYet):
            if not (waiting.once and waiting.sure) and now_s < waiting.deadline_s:
                return False
            self._fail(waiting, answer)
        elif not (isinstance(answer, StreamFinished) and waiting.once and not waiting.sure):
            self._fail(waiting, answer)
        else:
            return False  # the stream may have been finished anew, with another id
        self._changed.add(state)
        return True

    def _load_rows(self, state: StreamState, name: str, group: Group, need: NeedBacklog | NeedUnseen) -> None:
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
                    self._registry.data_address,
                    attempts=granted.attempts,
                    late=granted.late,
                    lost=waiting.lost,
                )
            )
            if len(header) <= MAX_HEADER_BYTES or len(ids) == 1:
                break
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
        session.readers.add(state)
        session.keep(request, header)
        self._active.add(state)
        self._reply(session, header)
        if granted.need is not None:
            self._load_rows(state, waiting.event.group, group, granted.need)
        self._look_ahead(state, group, now_s)

    def _look_ahead(self, state: StreamState, group: Group, _now_s: float) -> None:
        """Have the tail loaded before the group comes to its end."""
        feed, window = state.feed, group.window
        if feed.announced_seq > feed.loaded_seq:
            left = (window.id_max if group.cursor.ordered else window.head_seq) - group.cursor.position
            if left < AHEAD_ROWS:
                self._load(feed)

    def _fail(self, waiting: Waiting, error: AsapoError) -> None:
        self._reply(waiting.session, encode(Failed(waiting.event.request, to_wire(error), waiting.lost)))

    def wake(self, state: StreamState, now_s: float) -> None:
        """Try again to answer those who wait for a stream."""
        dry: set[str] = set()
        finished = state.delivery is not None and state.delivery.window.complete
        for waiting in list(state.waiting):
            event = waiting.event
            if event.group in dry and not waiting.once:
                continue  # a neighbour in the group was just told that there is nothing
            if self._try(state, waiting, now_s):
                self._unpark(waiting)
            elif isinstance(event, GetNext) and not finished:
                dry.add(event.group)

    # -- what the loader and the receivers say ------------------------------------------------------------------

    def take(self, message: Any, now_s: float) -> None:
        """Take a message of the loader."""
        feed = message.feed if isinstance(message, Looked | Opened | Tail | PartsLoaded) else message.job.feed
        ref = feed.ref
        state = self.streams.get((ref.beamtime, ref.source, ref.stream))
        if state is None or state.feed is not feed:
            return  # nobody reads it any more
        if isinstance(message, Tail):
            self._take_tail(state, message)
        elif isinstance(message, Opened):
            state.open(message)
        elif isinstance(message, Looked):
            state.error = message.error
            for waiting in state.waiting:
                waiting.sure = waiting.sure or waiting.asked
        elif isinstance(message, GroupReady):
            self._take_group(state, message)
        elif isinstance(message, RowsLoaded):
            state.take_rows(message)
            if message.error is not None:
                self._fail_all(state.waiting_for(message.job.group), message.error)
        else:
            state.take_parts(message)
        if state.waiting:
            self.wake(state, now_s)

    def _take_tail(self, state: StreamState, tail: Tail) -> None:
        settings, feed = self._settings, state.feed
        self._tally.rows_loaded += len(tail.rows)
        orphans = state.take(tail, limit_rows=settings.window_rows, limit_bytes=settings.window_bytes)
        if orphans:
            self._load(LoadParts(feed, orphans))
        if tail.head is None and feed.taken == feed.given:
            self._load(feed)  # the loader stopped because we were behind
        if tail.rows:
            self._changed.add(state)

    def _take_group(self, state: StreamState, found: GroupReady) -> None:
        assert state.delivery is not None  # noqa: S101 - a group is opened on an open stream
        before = len(state.delivery.groups)
        error = found.error
        try:
            state.take_group(found)
        except AsapoError as exc:
            error = exc
        self.n_groups += len(state.delivery.groups) - before
        waiting = state.waiting_for(found.job.group)
        if error is not None:
            new = found.job.new
            same = [one for one in waiting if new is None or getattr(one.event, "where", new.where) == new.where]
            self._fail_all(same, error)
        elif found.job.group not in state.delivery.groups:
            # Nothing is stored of this group, so nobody can have been given its messages for long.
            lost = LeaseLost(f"group {found.job.group!r} has given no messages; they will be given again")
            self._fail_all([one for one in waiting if not isinstance(one.event, GetNext)], lost)
        self._changed.add(state)

    def _fail_all(self, waiting: Iterable[Waiting], error: AsapoError) -> None:
        for one in waiting:
            self._fail(one, error)
            self._unpark(one)

    def announce(self, beamtime: str, heads: Sequence[Any]) -> None:
        """Take hints that streams grew; look at those somebody waits for."""
        for head in heads:
            try:
                source, stream, seq = head
                state = self.streams.get((beamtime, source, stream))
            except (TypeError, ValueError):
                raise WrongInput(f"announced head {head!r:.80}: expected [source, stream, head_seq]") from None
            self._tally.announcements += 1
            if state is None or type(seq) is not int:
                continue
            state.feed.announced_seq = max(state.feed.announced_seq, min(seq, MAX_ID))
            if state.waiting:
                self._load(state.feed)

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
            if state.delivery is not None and state.delivery.drop_session(session.key):
                self._changed.add(state)
                self.wake(state, now_s)
        session.readers.clear()

    def turn(self, now_s: float) -> float:
        """Do what is due; return when to come again at the latest."""
        if self._again:
            again, self._again = self._again, {}
            for state in again:
                self.wake(state, now_s)
        if now_s >= self._deadline_s:
            self._expire_waiting(now_s)
        if now_s >= self._tick_s:
            self._tick_s = now_s + TICK_S
            self._expire_leases(now_s)
        return 0.0 if self._again else min(self._deadline_s, self._tick_s if self._active else inf)

    def _expire_waiting(self, now_s: float) -> None:
        for waiting, state in [item for item in self._parked.items() if item[0].deadline_s <= now_s]:
            waiting.sure = waiting.once = True
            if not self._try(state, waiting, now_s):
                limit_s = self._settings.request_limit_s
                self._fail(waiting, DeadlineExceeded("the index did not answer in time", after_s=limit_s))
            self._unpark(waiting)
        self._deadline_s = min((waiting.deadline_s for waiting in self._parked), default=inf)

    def _expire_leases(self, now_s: float) -> None:
        for state in list(self._active):
            assert state.delivery is not None  # noqa: S101 - active streams are open
            expired = state.delivery.expire(now_s)
            if expired:
                self._tally.leases_expired += sum(map(len, expired.values()))
                self._changed.add(state)
            if state.waiting:
                self.wake(state, now_s)
            if not state.n_outstanding:
                self._active.discard(state)

    def changes(self) -> dict[tuple[StreamRef, str], GroupState]:
        """Return the groups that changed since the last call, as they are to be stored."""
        found: dict[tuple[StreamRef, str], GroupState] = {}
        for state in self._changed:
            if state.delivery is not None:
                for name, stored in state.delivery.snapshot().items():
                    found[state.feed.ref, name] = stored
        self._changed.clear()
        return found

    def drop_idle(self, now_s: float) -> None:
        """Let go of streams that nobody read for long and of which nothing is outstanding."""
        limit_s = now_s - self._settings.idle_stream_s
        for state in list(self.streams.values()):
            idle = state.used_s < limit_s and not state.waiting and not state.n_outstanding
            if idle and state not in self._changed and not state.opening and not state.loading:
                self._forget(state)

    def numbers(self) -> dict[str, int]:
        """Return how much is in memory."""
        windows = [state.delivery.window for state in self.streams.values() if state.delivery is not None]
        return {
            "streams": len(self.streams),
            "groups": self.n_groups,
            "waiters": len(self._parked),
            "outstanding": sum(state.n_outstanding for state in self._active),
            "window_rows": sum(window.n_rows for window in windows),
            "window_bytes": sum(window.n_bytes for window in windows),
        }


def check_request(event: GroupRequest) -> None:
    """Check the names.

    Raises
    ------
    WrongInput
        Names the thing, the value, and what was expected.
    """
    check_name("source", event.source)
    check_name("stream", event.stream)
    check_name("group", event.group)


def check_values(event: GroupRequest) -> None:
    """Check ids and ranges, which the event itself cannot know; raise WrongInput."""
    if isinstance(event, Nack):
        if len(event.ids) > MAX_RANGES:
            raise WrongInput(f"{len(event.ids)} ids: expected at most {MAX_RANGES}")
        for one in event.ids:
            check_id(one)
    else:
        check_ranges(event.done if isinstance(event, GetNext) else event.ranges)


def check_ranges(ranges: Sequence[Any]) -> None:
    """Raise WrongInput unless these are pairs [lo, hi] of ids with lo <= hi, not too many."""
    if len(ranges) > MAX_RANGES:
        raise WrongInput(f"{len(ranges)} ranges: expected at most {MAX_RANGES}")
    for one in ranges:
        if type(one) is not list or len(one) != 2:
            raise WrongInput(f"range {one!r:.80}: expected [lo, hi]")
        lo, hi = check_id(one[0]), check_id(one[1])
        if lo > hi:
            raise WrongInput(f"range {one!r:.80}: expected lo <= hi")
