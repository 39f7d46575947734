"""Deletion of streams, on the poll thread: passed on to a receiver; then stream and groups are forgotten here."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from asapo.errors import AsapoError, DeadlineExceeded, IndexUnavailable, LinkLost, StreamBusy, UnknownStream, to_wire
from asapo.models import StreamRef
from asapo.wire.codec import encode
from asapo.wire.events import Done, Event, Failed
from asapo.wire.stream_events import DeleteStream, RemoveStream
from asapo_broker.feed import ForgetGroups, Forgotten
from asapo_broker.registry import Registry
from asapo_broker.sessions import Session

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
    peer: bytes
    """Link of the receiver that was asked."""
    deadline_s: float


class Removals:
    """Carries out such requests.

    Parameters
    ----------
    send : callable
        Sends an encoded event over a link; False when it cannot.
    reply : callable
        Sends an encoded answer to a session.
    forget : callable
        Lets go of a stream in memory.
    load : callable
        Takes a job for the loader.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        send: Callable[[bytes, bytes], bool],
        reply: Callable[[Session, bytes], None],
        forget: Callable[[StreamRef], None],
        load: Callable[[ForgetGroups], None],
    ) -> None:
        self._registry = registry
        self._send = send
        self._reply = reply
        self._forget = forget
        self._load = load
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Removal] = {}
        """What receivers were asked, by number."""
        self._forgetting: set[Removal] = set()

    def request(self, session: Session, event: DeleteStream, now_s: float) -> None:
        """Have a stream deleted.

        Raises
        ------
        WrongInput, IndexUnavailable, LinkLost
            A name is not acceptable, or no receiver is there to do it.
        """
        if (kept := session.replies.get(event.request)) is not None:
            self._reply(session, kept)
            return
        asked = [*self._waiting.values(), *self._forgetting]
        if any(one.session is session and one.event.request == event.request for one in asked):
            return  # it came again over a new link: the answer goes there
        ref = StreamRef(session.beamtime, event.source, event.stream)
        peer = self._registry.any_peer()
        if peer is None:
            raise IndexUnavailable("no receiver is running, and only receivers delete: start one and try again")
        number = next(self._numbers)
        if not self._send(peer, encode(RemoveStream(number, ref.beamtime, ref.source, ref.stream, event.force))):
            raise LinkLost("the receiver that should delete the stream cannot be reached now; try again")
        self._waiting[number] = Removal(session, event, ref, peer, now_s + LIMIT_S)

    def answered(self, peer: bytes, event: Done | Failed) -> None:
        """Take the answer of a receiver."""
        removal = self._waiting.get(event.request)
        if removal is None or removal.peer != peer:
            return
        del self._waiting[event.request]
        if isinstance(event, Failed) and event.error.get("code") in NOTHING_DONE:
            self._answer(removal, Failed(removal.event.request, event.error))
            return
        self._forget(removal.ref)
        if isinstance(event, Failed):
            self._answer(removal, Failed(removal.event.request, event.error))
        else:
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
            elif not self._registry.has_peer(removal.peer):
                error = IndexUnavailable(
                    f"the receiver ended while it deleted {removal.ref}; it is deleted, or is not: try again"
                )
            if error is not None:
                del self._waiting[number]
                self._forget(removal.ref)
                self._answer(removal, Failed(removal.event.request, to_wire(error)))

    def _answer(self, removal: Removal, event: Event) -> None:
        header = encode(event)
        removal.session.remember(removal.event.request, header)
        self._reply(removal.session, header)
