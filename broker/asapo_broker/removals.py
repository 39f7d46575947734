"""Deletion of streams, on the poll thread: passed on to a receiver; then stream and groups are forgotten here."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from asapo.errors import AsapoError, DeadlineExceeded, IndexUnavailable, QueueFull, StreamBusy, UnknownStream, to_wire
from asapo.models import StreamRef
from asapo.wire.codec import encode
from asapo.wire.events import Done, Event, Failed
from asapo.wire.stream_events import DeleteStream, RemoveStream
from asapo_broker.feed import ForgetGroups, Forgotten
from asapo_broker.registry import Registry
from asapo_broker.sessions import Peer, Session
from asapo_broker.streams import GroupRequest

MAX_HELD: Final = 10_000
"""Requests that wait until it is known what became of their stream."""
MAX_GIVEN_UP: Final = 1000
LIMIT_S: Final = 60.0
"""Longest wait for a receiver: nothing it does takes long, but a disk may be stuck."""
NOTHING_DONE: Final = frozenset({UnknownStream.code, StreamBusy.code})
"""Answers of a receiver that leave everything as it was."""


@dataclass(slots=True, eq=False)
class Removal:
    """A stream that is being deleted."""

    session: Session
    event: DeleteStream
    ref: StreamRef
    deadline_s: float
    peer: bytes = b""
    """Link of the receiver that was asked; empty while none could be."""
    answered: bool = False


def no_receiver() -> IndexUnavailable:
    """Return the error for a core without receivers."""
    return IndexUnavailable("no receiver is running, and only receivers delete: start one and try again")


class Removals:
    """Carries out such requests.

    Parameters
    ----------
    send : callable
        Sends an encoded event over a link; False when it cannot.
    reply : callable
        Sends an encoded answer to a session.
    forget : callable
        Lets go of a stream in memory that was deleted.
    let_go : callable
        The same, of one that may have been.
    load : callable
        Takes a job for the loader.
    serve : callable
        Takes a request of a peer that was held back.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        send: Callable[[bytes, bytes], bool],
        reply: Callable[[Session, bytes], None],
        forget: Callable[[StreamRef], None],
        let_go: Callable[[StreamRef], None],
        load: Callable[[ForgetGroups], None],
        serve: Callable[[Peer, GroupRequest], None],
    ) -> None:
        self._registry = registry
        self._send = send
        self._reply = reply
        self._forget = forget
        self._let_go = let_go
        self._load = load
        self._serve = serve
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Removal] = {}
        """What receivers were asked, by number."""
        self._forgetting: set[Removal] = set()
        self._given_up: dict[int, Removal] = {}
        """Those that were answered by an error although the receiver may carry them out yet."""
        self._held: dict[StreamRef, list[tuple[Peer, GroupRequest]]] = {}

    def request(self, session: Session, event: DeleteStream, now_s: float) -> None:
        """Have a stream deleted.

        Raises
        ------
        WrongInput, IndexUnavailable
            A name is not acceptable, or no receiver is there to do it.
        """
        if (kept := session.replies.get(event.request)) is not None:
            self._reply(session, kept)
            return
        asked = [*self._waiting.values(), *self._forgetting]
        if any(one.session is session and one.event.request == event.request for one in asked):
            return  # it came again over a new link: the answer goes there
        ref = StreamRef(session.beamtime, event.source, event.stream)
        if self._registry.any_peer() is None:
            raise no_receiver()
        number = next(self._numbers)
        self._waiting[number] = Removal(session, event, ref, now_s + LIMIT_S)
        self._ask(number)

    def holds(self, peer: Peer, event: GroupRequest) -> bool:
        """Hold back what is asked of a stream's groups while it is being deleted: they may be those of the next one.

        Raises
        ------
        QueueFull
            If too many requests are held back.
        """
        if not (self._waiting or self._forgetting):
            return False
        for one in (*self._waiting.values(), *self._forgetting):
            ref = one.ref
            if (ref.beamtime, ref.source, ref.stream) == (peer.beamtime, event.source, event.stream):
                if sum(map(len, self._held.values())) >= MAX_HELD:
                    raise QueueFull(f"{MAX_HELD} requests wait for a stream to be deleted", limit=MAX_HELD)
                self._held.setdefault(ref, []).append((peer, event))
                return True
        return False

    def _ask(self, number: int) -> None:
        """Pass a request on, if a receiver can be reached: one that was just killed cannot."""
        removal = self._waiting[number]
        ref, peer = removal.ref, self._registry.any_peer()
        event = removal.event
        asked = RemoveStream(number, ref.beamtime, ref.source, ref.stream, event.force, event.number)
        if peer is not None and self._send(peer, encode(asked)):
            removal.peer = peer

    def answered(self, peer: bytes, event: Done | Failed) -> None:
        """Take the answer of a receiver."""
        removal = self._waiting.get(event.request) or self._given_up.get(event.request)
        if removal is None or removal.peer != peer:
            return
        if self._waiting.pop(event.request, None) is None:
            del self._given_up[event.request]
        if isinstance(event, Failed) and event.error.get("code") in NOTHING_DONE:
            self._answer(removal, Failed(removal.event.request, event.error))
            return
        if isinstance(event, Failed):
            self._let_go(removal.ref)
            self._answer(removal, Failed(removal.event.request, event.error))
        else:
            self._forget(removal.ref)
            self._forgetting.add(removal)
            self._load(ForgetGroups(removal.ref, removal))

    def forgotten(self, message: Forgotten) -> None:
        """Take the answer of the loader: nothing is left of the stream's groups."""
        removal: Removal = message.done
        self._forgetting.discard(removal)
        number = removal.event.request
        self._answer(removal, Done(number) if message.error is None else Failed(number, to_wire(message.error)))

    def expire(self, now_s: float) -> None:
        """Give up on receivers that are gone: whether they deleted the stream, the index will tell."""
        for number, removal in list(self._waiting.items()):
            error: AsapoError | None = None
            if now_s >= removal.deadline_s:
                error = DeadlineExceeded(f"the receiver did not answer within {LIMIT_S:g} s", after_s=LIMIT_S)
            elif not removal.peer:
                self._ask(number)
                error = None if self._registry.any_peer() is not None else no_receiver()
            elif not self._registry.has_peer(removal.peer):
                error = IndexUnavailable(
                    f"the receiver ended while it deleted {removal.ref}; it is deleted, or is not: try again"
                )
            if error is not None:
                self._give_up(number)
                self._let_go(removal.ref)
                self._answer(removal, Failed(removal.event.request, to_wire(error)))

    def _give_up(self, number: int) -> None:
        self._given_up[number] = self._waiting.pop(number)
        if len(self._given_up) > MAX_GIVEN_UP:
            del self._given_up[next(iter(self._given_up))]

    def _answer(self, removal: Removal, event: Event) -> None:
        if not removal.answered:
            removal.answered = True
            header = encode(event)
            removal.session.remember(removal.event.request, header)
            self._reply(removal.session, header)
        if not any(one.ref == removal.ref for one in (*self._waiting.values(), *self._forgetting)):
            for peer, request in self._held.pop(removal.ref, ()):
                self._serve(peer, request)
