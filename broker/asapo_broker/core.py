"""The delivery core: one poll thread over the socket, and the threads that do for it what takes time (R31)."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from asapo.errors import AsapoError, LinkLost, RemoteProtocolError, WrongInput, to_wire
from asapo.hostinfo import check_memory
from asapo.index.asked import QueryLimits
from asapo.models import StreamRef
from asapo.transport import Message, Waiter, Wakeup, listen
from asapo.wire.codec import decode, encode
from asapo.wire.events import (
    Acknowledge,
    Announce,
    Beat,
    Bye,
    Describe,
    Done,
    Event,
    Failed,
    GetById,
    GetLast,
    GetNext,
    Goodbye,
    Hello,
    ListReceivers,
    ListStreams,
    Nack,
    Query,
    Register,
    Welcome,
)
from asapo.wire.group_events import DeleteGroup, Explain, ListDeadLetters, ListGroups, Seek, SettleDeadLetters
from asapo.wire.limits import HEARTBEAT_S
from asapo.wire.put import Put
from asapo.wire.stream_events import DeleteStream
from asapo_broker.bookkeeping import Facts
from asapo_broker.checks import check_registration
from asapo_broker.delivery import Delivery
from asapo_broker.feed import Forgotten, Reply
from asapo_broker.indexes import Indexes
from asapo_broker.listings import Listing
from asapo_broker.loader import Loader
from asapo_broker.registry import Registry
from asapo_broker.removals import Removals
from asapo_broker.requests import RequestPool
from asapo_broker.sessions import Peer, Session, Sessions
from asapo_broker.settings import CoreSettings
from asapo_broker.stages import check_work, listing
from asapo_broker.stages import metrics as stage_metrics
from asapo_broker.state_lock import StateLock
from asapo_broker.store import CursorStore
from asapo_broker.streams import GroupRequest
from asapo_broker.tally import PREFIX, Tally

log = logging.getLogger(__name__)

GROUP_REQUESTS: Final = frozenset({GetNext, Acknowledge, Nack, DeleteGroup, Explain, Seek, SettleDeadLetters})
POOL_REQUESTS: Final = frozenset({GetLast, GetById, Query, Describe, ListStreams})
BURST: Final = 64
"""Messages taken from the socket before the loader and the clock get their turn."""
CLOCK_S: Final = 0.5
"""Silent sessions and receivers are looked for this often."""
IDLE_S: Final = 10.0
LONGEST_WAIT_S: Final = 0.5


class Core:
    """A running delivery core; `serve` blocks until `stop` is called from another thread or a signal handler."""

    def __init__(self, settings: CoreSettings) -> None:
        self.settings = settings
        self.tally = Tally()
        self._lock = StateLock(settings.state_dir)
        try:
            self._server = listen(settings.listen, max_part_bytes=settings.max_part_bytes)
        except BaseException:
            self._lock.close()
            raise
        self.address = self._server.address
        self._inbox: deque[Any] = deque()
        self._bell = Wakeup()
        self._stopping = False
        self._started_s = time.monotonic()
        self._sessions = Sessions(settings.max_sessions)
        self._registry = Registry(settings.receiver_timeout_s)
        self._build()
        self._clock_s = self._save_s = self._idle_s = 0.0
        self._welcome = encode(Welcome("broker", heartbeat_s=HEARTBEAT_S, session_timeout_s=settings.session_timeout_s))
        self._beat = encode(Beat())

    def _build(self) -> None:
        settings = self.settings
        self._indexes = Indexes(
            settings.state_dir,
            session_timeout_s=settings.session_timeout_s,
        )
        self._store = CursorStore(settings.state_dir, save_s=settings.save_s)
        self._loader = Loader(self._indexes, self._store, self._post, poll_s=settings.poll_s)
        self._pool = RequestPool(
            self._indexes,
            self._store,
            self._registry,
            self._post,
            threads=settings.request_threads,
            query_threads=settings.query_threads,
            limits=QueryLimits(settings.query_limit_s, settings.query_rows),
            max_queued=settings.max_queued_requests,
        )
        self._delivery = Delivery(
            settings,
            load=self._loader.submit,
            reply=self._reply,
            tables=self._indexes.tables,
            registry=self._registry,
            tally=self.tally,
        )
        self._removals = Removals(
            self._registry,
            send=self._server.send,
            reply=self._reply,
            forget=self._delivery.forget,
            load=self._loader.submit,
            let_go=self._let_go,
            serve=self._serve_held,
        )

    # -- life ---------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask `serve` to end. Any thread, or a signal handler."""
        self._stopping = True
        self._bell.ring()

    def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop`; then write the cursors, say goodbye and return."""
        switch_s = sys.getswitchinterval()
        sys.setswitchinterval(self.settings.switch_s)
        threads = [
            threading.Thread(target=part.run, name=f"asapo-{name}", daemon=True)
            for name, part in (("loader", self._loader), ("store", self._store))
        ]
        for thread in threads:
            thread.start()
        self._pool.start()
        ready()
        try:
            self._loop()
        finally:
            self._shut_down(threads)
            sys.setswitchinterval(switch_s)

    def _shut_down(self, threads: list[threading.Thread]) -> None:
        leaving = encode(Goodbye({"code": "link_lost", "message": "the broker stops", "fields": {}}))
        for identity in list(self._sessions.peers):
            self._server.send(identity, leaving)
        self._store.save(self._delivery.changes())
        for part in (self._loader, self._pool, self._store):
            part.stop()
        for thread in threads:
            thread.join(10.0)
        self._pool.join(self.settings.query_limit_s + 1)
        self._server.close()
        self._indexes.close()
        self._bell.close()
        self._lock.close()

    def _post(self, message: Any) -> None:
        """Hand a message to the poll thread. Any thread."""
        self._inbox.append(message)
        self._bell.ring()

    # -- the poll thread ----------------------------------------------------------------------------------------

    def _loop(self) -> None:
        waiter = Waiter(self._bell, self._server)
        more, due_s = False, 0.0
        while not self._stopping:
            if not more:
                waiter.wait(min(LONGEST_WAIT_S, max(0.0, due_s - time.monotonic())))
            self._bell.hear()
            now_s = time.monotonic()
            self._take_inbox(now_s)
            more = self._take_burst(now_s)
            due_s = self._keep_time(time.monotonic())

    def _take_inbox(self, now_s: float) -> None:
        inbox = self._inbox
        for _ in range(len(inbox)):
            message = inbox.popleft()
            try:
                if isinstance(message, Reply):
                    self.tally.rows_answered += message.n_rows
                    self._reply(message.session, message.header)
                elif isinstance(message, Forgotten):
                    self._removals.forgotten(message)
                else:
                    self._delivery.take(message, now_s)
            except Exception:
                self.tally.defects += 1
                log.exception("message %s of another thread failed", type(message).__name__)

    def _take_burst(self, now_s: float) -> bool:
        """Serve what came in; True when there may be more."""
        receive = self._server.receive
        for _ in range(BURST):
            message = receive()
            if message is None:
                return False
            try:
                self._take(message, now_s)
            except Exception:
                self.tally.defects += 1
                log.exception("a message of a peer failed")
        return True

    def _take(self, message: Message, now_s: float) -> None:
        try:
            event = decode(message.header, len(message.payload))
            peer = self._sessions.peers.get(message.peer)
            if peer is None:
                self._greet(message.peer, event, now_s)
            else:
                self._sessions.heard(peer, event, now_s)
                self._dispatch(peer, event, now_s)
        except AsapoError as exc:
            self._refuse(message.peer, exc)

    def _greet(self, identity: bytes, event: Event | Put, now_s: float) -> None:
        if type(event) is Bye:
            return
        if type(event) is not Hello:
            raise RemoteProtocolError(f"{type(event).__name__} before Hello: say Hello first")
        check_memory("serve another client")
        self._sessions.greet(identity, event, now_s)
        self._server.send(identity, self._welcome)

    def _refuse(self, identity: bytes, error: AsapoError) -> None:
        """End the link of a peer that broke the protocol or is not acceptable; everybody else is served on."""
        self.tally.refused_peers += 1
        log.info("link of a peer ended: %s", error)
        self._server.send(identity, encode(Goodbye(to_wire(error))))
        self._sessions.forget(identity)
        self._registry.leave(identity)

    def _dispatch(self, peer: Peer, event: Event | Put, now_s: float) -> None:
        kind = type(event)
        self.tally.requests += 1
        if kind in GROUP_REQUESTS and peer.session is not None:
            self._serve_group(peer, event, now_s)  # type: ignore[arg-type]
        elif kind is Beat:
            if peer.session is not None:
                self._delivery.renew(peer.session, now_s)
                if event.work:  # type: ignore[union-attr]
                    peer.session.work = check_work(event.work)  # type: ignore[union-attr]
            self._server.send(peer.identity, self._beat)
        elif isinstance(event, Register):
            check_registration(event)
            self._registry.register(event, peer.identity, now_s)
        elif isinstance(event, Announce):
            self._delivery.announce(event.beamtime, event.heads, event.units, now_s)
        elif isinstance(event, Bye):
            self._leave(peer, event, now_s)
        elif isinstance(event, Done | Failed):
            self._removals.answered(peer.identity, event)
        else:
            self._request(peer, event, now_s)

    def _serve_group(self, peer: Peer, event: GroupRequest, now_s: float) -> None:
        assert peer.session is not None
        try:
            if not self._removals.holds(peer, event):
                self._delivery.request(peer.session, event, now_s)
        except AsapoError as exc:
            self._fail(peer, event, exc)

    def _serve_held(self, peer: Peer, event: GroupRequest) -> None:
        """Serve what was held back, unless its session ended meanwhile."""
        session = peer.session
        if session is not None and self._sessions.by_key.get((session.beamtime, session.key)) is session:
            self._serve_group(peer, event, time.monotonic())

    def _let_go(self, ref: StreamRef) -> None:
        """Let go of a stream that may be deleted, and may be not: what its groups have done counts then."""
        self._store.save(self._delivery.changes())
        self._delivery.forget(ref)

    def _leave(self, peer: Peer, event: Bye, now_s: float) -> None:
        self._sessions.forget(peer.identity)
        self._registry.leave(peer.identity)
        if event.final and peer.session is not None:
            self._end(peer.session, now_s)

    def _end(self, session: Session, now_s: float) -> None:
        self._sessions.end(session)
        self._delivery.end(session, now_s)

    def _request(self, peer: Peer, event: Any, now_s: float) -> None:
        try:
            if isinstance(event, ListReceivers):
                self._pool.submit(peer, event)
            elif isinstance(event, Describe) and not (event.source or event.stream or event.beamtime):
                self._answer(peer, Done(event.request, self.statistics()))
            elif peer.session is None:
                raise WrongInput("this request needs a beamtime; name it in Hello")
            elif type(event) in POOL_REQUESTS:
                self._pool.submit(peer.session, event)
            elif isinstance(event, ListGroups | ListDeadLetters):
                self._list(peer.session, event, now_s)
            elif isinstance(event, DeleteStream):
                self._removals.request(peer.session, event, now_s)
        except AsapoError as exc:
            self._fail(peer, event, exc)

    def _list(self, session: Session, event: ListGroups | ListDeadLetters, now_s: float) -> None:
        """Have the pool list what is stored, which from now on is what is in memory."""
        self._store.save(self._delivery.changes())
        live: Facts = {}
        if isinstance(event, ListGroups):
            live = self._delivery.facts(session.beamtime, event.source, event.stream, now_s)
        self._pool.submit(session, Listing(event, live))

    def _fail(self, peer: Peer, event: Any, error: AsapoError) -> None:
        self.tally.failed_requests += 1
        self._answer(peer, Failed(event.request, to_wire(error)))

    def _answer(self, peer: Peer, event: Event) -> None:
        if not self._server.send(peer.identity, encode(event)):
            self.tally.replies_undelivered += 1

    def _reply(self, session: Session, header: bytes) -> None:
        """Send an encoded answer over the link on which the session was heard last."""
        if not self._server.send(session.peer, header):
            self.tally.replies_undelivered += 1

    # -- time ---------------------------------------------------------------------------------------------------

    def _keep_time(self, now_s: float) -> float:
        """Do what is due; return when to come again at the latest."""
        due_s = self._delivery.turn(now_s)
        if now_s >= self._save_s and self._delivery.has_changes:
            self._save_s = now_s + self.settings.save_s
            if not self._store.busy:
                self._store.save(self._delivery.changes())
                # Groups with very many messages outstanding take long to write down: no more than 1/20 of our time.
                self._save_s = max(self._save_s, now_s + 20 * (time.monotonic() - now_s))
        if self._delivery.has_changes:
            due_s = min(due_s, self._save_s)
        if now_s >= self._clock_s:
            self._clock_s = now_s + CLOCK_S
            self._expire(now_s)
        return min(due_s, self._clock_s)

    def _expire(self, now_s: float) -> None:
        sessions, peers = self._sessions.silent(now_s, self.settings.session_timeout_s)
        for session in sessions:
            log.info("session of %s fell silent; what it held is given to others", session.name or "a client")
            self._end(session, now_s)
        timeout_s = self.settings.session_timeout_s
        for peer in peers:
            # A network that held everything may let it pass again: who hears this makes a new link.
            silent = LinkLost(f"the broker heard nothing on this link for {timeout_s:g} s", address=self.address)
            self._server.send(peer.identity, encode(Goodbye(to_wire(silent))))
            self._sessions.forget(peer.identity)
        for receiver_id in self._registry.expire(now_s):
            log.warning("receiver %s fell silent", receiver_id)
        self._removals.expire(now_s)
        if now_s >= self._idle_s and not self._store.busy:  # what leaves the memory must be on disk
            self._idle_s = now_s + IDLE_S
            self._delivery.drop_idle(now_s)

    def statistics(self) -> dict[str, Any]:
        """Return what the core holds and has done, as plain values."""
        work = listing(self._sessions.by_key.values())
        now = {
            "stages": len(work),
            "uptime_s": time.monotonic() - self._started_s,
            "sessions": len(self._sessions.by_key),
            "peers": len(self._sessions.peers),
            "receivers": len(self._registry),
            "broken_handshakes": self._server.refused(),
            "cursors_saved": self._store.n_saved,
            "cursor_saves_failed": self._store.n_failed,
            **self._delivery.numbers(),
        }
        metrics: list[Any] = [[f"{PREFIX}{name}", {}, value] for name, value in now.items()]
        metrics += self.tally.metrics() + stage_metrics(work)
        answer = {**now, **self.tally.values(), "metrics": metrics}
        answer["work"] = work
        return answer
