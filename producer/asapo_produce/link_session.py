"""One link to a receiver: greeting, unit numbers, credit, what is in flight, requests. No I/O, no clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from asapo.errors import (
    AsapoError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    UnsupportedVersion,
    from_wire,
)
from asapo.wire.events import Ack, Beat, Bye, Done, Event, Failed, Goodbye, Hello, Welcome
from asapo.wire.limits import HEARTBEAT_S, SESSION_TIMEOUT_S
from asapo.wire.put import Put
from asapo.wire.session import Role, State, advance
from asapo_produce.units import Unit

Outcome = tuple[Unit, list[tuple[int, AsapoError]]]


@dataclass(slots=True)
class LinkSession:
    """State of one link, from Hello to its end."""

    hello: Hello
    heard_s: float
    """When the receiver last said anything; the link's start at first."""
    beat_s: float = 0.0
    """When we last said that we are alive."""
    welcome: Welcome | None = None
    ours: State = State.GREETING
    theirs: State = State.GREETING
    open: bool = False
    """Whether units may be sent."""
    window_bytes: int = 0
    in_flight_bytes: int = 0
    in_flight_messages: int = 0
    _next_unit: int = 1
    _in_flight: deque[Unit] = field(default_factory=deque)
    """Units not yet acknowledged; the first is number `_next_unit - len(_in_flight)`."""
    _requests: dict[int, Any] = field(default_factory=dict)

    @property
    def heartbeat_s(self) -> float:
        """How often to say that we are alive."""
        return self.welcome.heartbeat_s if self.welcome else HEARTBEAT_S

    @property
    def timeout_s(self) -> float:
        """A receiver silent for this long is lost."""
        return self.welcome.session_timeout_s if self.welcome else SESSION_TIMEOUT_S

    @property
    def idle(self) -> bool:
        """Whether nothing waits for an answer on this link."""
        return not self._in_flight and not self._requests

    def say(self, event: Event) -> None:
        """Note that we say this; LocalProtocolError when it is not our turn."""
        self.ours = advance(Role.PRODUCER, self.ours, event, LocalProtocolError)
        self._look()

    def _look(self) -> None:
        self.open = self.welcome is not None and self.ours is State.OPEN and self.theirs is State.OPEN

    # -- units ------------------------------------------------------------------------------------------------------

    def has_room(self, nbytes: int = 1, n: int = 1) -> bool:
        """Whether the credit covers a unit; one larger than the whole window goes alone."""
        welcome = self.welcome
        if welcome is None or not self.open:
            return False
        return not self._in_flight or (
            self.in_flight_bytes + nbytes <= self.window_bytes
            and self.in_flight_messages + n <= welcome.window_messages
        )

    def takes(self, nbytes: int) -> bool:
        """Whether the receiver takes units of this size at all."""
        return self.welcome is not None and (not self.welcome.max_unit_bytes or nbytes <= self.welcome.max_unit_bytes)

    @property
    def next_unit(self) -> int:
        """Number of the unit that is sent next."""
        return self._next_unit

    def check_open(self) -> None:
        """Raise LocalProtocolError when it is not our turn to send a unit."""
        if not self.open:
            raise LocalProtocolError(f"Put is not legal while we are {self.ours.name}, the receiver {self.theirs.name}")

    def sent(self, unit: Unit) -> None:
        """Note that `unit` went out and bore the number `next_unit`."""
        self._next_unit += 1
        self._in_flight.append(unit)
        self.in_flight_bytes += unit.nbytes
        self.in_flight_messages += unit.n

    def take_back(self) -> list[Unit]:
        """Return the units without outcome and forget them: the link is lost or will be left."""
        units = list(self._in_flight)
        self._in_flight.clear()
        self.in_flight_bytes = self.in_flight_messages = 0
        return units

    # -- requests ---------------------------------------------------------------------------------------------------

    def asked(self, number: int, request: Any) -> None:
        """Note that `request` went out under this number."""
        self._requests[number] = request

    def take_back_requests(self) -> list[Any]:
        """Return the requests without answer and forget them."""
        requests = list(self._requests.values())
        self._requests.clear()
        return requests

    # -- what comes in ----------------------------------------------------------------------------------------------

    def receive(self, event: Event | Put, now_s: float) -> list[Outcome]:
        """Take an event of the receiver; return the units that have their outcome by it.

        Raises
        ------
        RemoteProtocolError
            If it is not the receiver's turn to say it, or an ack names a unit that was not sent.
        AsapoError
            What a Goodbye says.
        """
        if type(event) is Ack and self.theirs is State.OPEN:  # most of what comes; changes no state
            self.heard_s = now_s
            return self._acked(event)
        self.theirs = advance(Role.RECEIVER, self.theirs, event, RemoteProtocolError)
        self.heard_s = now_s
        if type(event) is Welcome:
            self.welcome = event
            self.window_bytes = event.window_bytes
            self._look()
        elif type(event) is Goodbye:
            raise error_of(event.error)
        return []

    def answered(self, event: Done | Failed) -> Any:
        """Return the request that this answers, None when nobody waits for it any more."""
        return self._requests.pop(event.request, None)

    def _acked(self, ack: Ack) -> list[Outcome]:
        first = self._next_unit - len(self._in_flight)
        if ack.upto >= self._next_unit:
            raise RemoteProtocolError(f"ack of unit {ack.upto}: the last one sent is {self._next_unit - 1}")
        if ack.window_bytes:
            self.window_bytes = ack.window_bytes
        errors: dict[int, list[tuple[int, AsapoError]]] = {}
        for number, index, error in ack.errors:
            if not first <= number <= ack.upto or not 0 <= index < self._in_flight[number - first].n:
                raise RemoteProtocolError(f"ack up to {ack.upto} refuses message {index} of unit {number}")
            errors.setdefault(number, []).append((index, error_of(error)))
        outcomes = []
        for number in range(first, ack.upto + 1):
            unit = self._in_flight.popleft()
            self.in_flight_bytes -= unit.nbytes
            self.in_flight_messages -= unit.n
            outcomes.append((unit, errors.get(number, [])))
        return outcomes


def error_of(error: dict[Any, Any]) -> AsapoError:
    """Rebuild an error from the map by which it travels."""
    fields = error.get("fields")
    return from_wire(str(error.get("code", "")), str(error.get("message", "")), fields if type(fields) is dict else {})


def is_fatal(error: AsapoError) -> bool:
    """Whether a link that ended with this error need not be tried again."""
    broken = isinstance(error, ProtocolError) and not isinstance(error, UnsupportedVersion)
    return not error.retriable and not broken


FAREWELL = Bye(final=True)
LEAVING = Bye(final=False)
ALIVE = Beat()
