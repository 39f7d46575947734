"""The I/O side of one receiver: its link, made again with growing pauses when it is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from asapo.errors import AsapoError, DeadlineExceeded, LinkLost
from asapo.transport import Link, Waiter, connect
from asapo.wire.codec import decode, encode
from asapo.wire.events import Beat, Done, Event, Failed, Hello
from asapo_produce.link_session import ALIVE, FAREWELL, LEAVING, LinkSession, Outcome, error_of
from asapo_produce.units import Unit

log = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
COPY_BELOW_BYTES: Final = 64 * 1024
"""Smaller payloads are copied into the transport: cheaper than keeping track of them."""


class Request:
    """One question of a caller that waits on another thread."""

    __slots__ = ("abandoned", "done", "due_s", "error", "make", "result", "timeout_s")

    def __init__(self, make: Callable[[int], Event], timeout_s: float, done: Any) -> None:
        self.make = make
        """Builds the event from the request number."""
        self.done = done
        """A threading.Event."""
        self.timeout_s = timeout_s
        self.abandoned = False
        """The caller waits no more."""
        self.due_s = 0.0
        """Not to be sent before."""
        self.result: dict[Any, Any] = {}
        self.error: AsapoError | None = None

    def wait(self) -> dict[Any, Any]:
        """Return the answer; raises what the receiver said, or DeadlineExceeded."""
        if not self.done.wait(self.timeout_s):
            self.abandoned = True
            raise DeadlineExceeded(
                f"no receiver answered within {self.timeout_s} s; is one running?", after_s=self.timeout_s
            )
        if self.error is not None:
            raise self.error
        return self.result

    def finish(self, result: dict[Any, Any], error: AsapoError | None = None) -> None:
        """Give the answer."""
        self.result, self.error = result, error
        self.done.set()


@dataclass(slots=True)
class Heard:
    """What came in on one link, in one go."""

    outcomes: list[Outcome] = field(default_factory=list)
    answers: list[tuple[Request, Done | Failed]] = field(default_factory=list)


class ReceiverLink:
    """One receiver. For the I/O thread only."""

    def __init__(self, receiver_id: str, addresses: tuple[str, ...], hello: Hello) -> None:
        self.receiver_id = receiver_id
        self.addresses = addresses
        self.leaving = False
        """Gone from the list of receivers: finish what is in flight, then part."""
        self.session: LinkSession | None = None
        self.link: Link | None = None
        self._hello = hello
        self._attempts = 0
        self._connect_s = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._numbers = 0

    @property
    def open(self) -> bool:
        """Whether units may be sent."""
        return self.session is not None and self.session.open

    def has_room(self, nbytes: int = 1, n: int = 1) -> bool:
        """Whether a unit may be sent now, as far as limits and credit go."""
        session = self.session
        return session is not None and not self.leaving and session.takes(nbytes) and session.has_room(nbytes, n)

    def load(self) -> int:
        """Return the bytes without acknowledgement."""
        return self.session.in_flight_bytes if self.session else 0

    def silent(self, now_s: float) -> bool:
        """Whether nothing was heard for so long that the link counts as lost."""
        return self.session is not None and now_s - self.session.heard_s > self.session.timeout_s

    def due_s(self) -> float:
        """Return when something must be done here."""
        return self.session.beat_s + self.session.heartbeat_s if self.session else self._connect_s

    def connect_when_due(self, now_s: float, waiter: Waiter) -> None:
        """Make the link when there is none and the pause is over."""
        if self.session is not None or now_s < self._connect_s:
            return
        address = self.addresses[self._attempts % len(self.addresses)]
        self._attempts += 1
        self._connect_s = now_s + self._pause_s
        self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
        try:
            self.link = connect(address)
        except AsapoError as exc:
            log.debug("receiver %s at %s: %s", self.receiver_id, address, exc)
            return
        waiter.add(self.link)
        self.session = LinkSession(self._hello, heard_s=now_s, beat_s=now_s)
        self._say(self._hello)

    def _say(self, event: Event) -> bool:
        assert self.link is not None
        assert self.session is not None
        if not self.link.send(encode(event)):
            return False
        self.session.say(event)
        return True

    def listen(self, now_s: float, heard: Heard) -> None:
        """Add everything that is there to `heard`.

        Raises
        ------
        AsapoError
            The link is of no further use; call `lose`. What was heard before counts all the same.
        """
        link, session = self.link, self.session
        if link is None or session is None:
            return
        while (message := link.receive()) is not None:
            event = decode(message.header, len(message.payload))
            heard.outcomes += session.receive(event, now_s)
            if type(event) in (Done, Failed):
                request = session.answered(event)  # type: ignore[arg-type]
                if request is not None:
                    heard.answers.append((request, event))  # type: ignore[arg-type]
            if session.open:
                self._pause_s, self._attempts = FIRST_PAUSE_S, 0
        if self.silent(now_s):
            raise LinkLost(f"receiver {self.receiver_id} is silent for {session.timeout_s} s", address=link.address)

    def transmit(self, unit: Unit) -> bool:
        """Send a unit; False when the transport has no room now."""
        link, session = self.link, self.session
        assert link is not None
        assert session is not None
        session.check_open()
        copy = unit.nbytes < COPY_BELOW_BYTES
        sent = link.send(unit.header(session.next_unit), unit.payload, copy=copy)
        if sent is False:
            return False
        session.sent(unit)
        if not copy and len(unit.items) == 1:
            unit.trackers.append(sent)
        return True

    def ask(self, request: Request) -> bool:
        """Send a request; False when the transport has no room now."""
        assert self.session is not None
        number = self._numbers + 1
        if not self._say(request.make(number)):
            return False
        self._numbers = number
        self.session.asked(number, request)
        return True

    def beat(self, marks: dict[str, int], now_s: float) -> bool:
        """Say that we are alive, and how far the streams are closed."""
        assert self.session is not None
        self.session.beat_s = now_s
        return self._say(Beat(marks) if marks else ALIVE)

    def lose(self, waiter: Waiter, now_s: float) -> tuple[list[Unit], list[Request]]:
        """End a broken link; return what has no outcome and must go another way."""
        units: list[Unit] = []
        requests: list[Request] = []
        if self.session is not None:
            units, requests = self.session.take_back(), self.session.take_back_requests()
        self._close(waiter, 0.0)
        self._connect_s = max(self._connect_s, now_s + FIRST_PAUSE_S)
        return units, requests

    def part(self, waiter: Waiter, *, final: bool) -> None:
        """Leave in good order."""
        if self.open:
            self._say(FAREWELL if final else LEAVING)
        self._close(waiter, 1.0)

    def _close(self, waiter: Waiter, linger_s: float) -> None:
        if self.link is not None:
            waiter.remove(self.link)
            self.link.close(linger_s=linger_s)
        self.link = self.session = None


def failed_with(answer: Done | Failed) -> AsapoError | None:
    """Return the error of an answer, None when it is none."""
    return error_of(answer.error) if type(answer) is Failed else None
