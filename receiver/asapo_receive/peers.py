"""What the network thread knows of each producer link: session state, credit, which units are done. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from asapo.errors import RemoteProtocolError
from asapo.models import MAX_ID, StreamRef, check_name
from asapo.wire.events import SESSION_BYTES, Ack, Beat, Event, Hello
from asapo.wire.put import Put
from asapo.wire.session import Role, State, advance
from asapo_receive.units import Unit

SLACK_MESSAGES: Final = 4096
MAX_REFS: Final = 1000


def check_hello(hello: Hello, role: str) -> None:
    """Check what a client says of itself.

    Raises
    ------
    RemoteProtocolError, WrongInput
        If it has another role than `role`, no session of the right length, or names no beamtime.
    """
    if hello.role != role:
        raise RemoteProtocolError(f"Hello with role {hello.role!r}: this port serves the role {role}")
    if len(hello.session) != SESSION_BYTES:
        raise RemoteProtocolError(f"session of {len(hello.session)} bytes: expected {SESSION_BYTES}")
    check_name("beamtime", hello.beamtime)


def check_marks(beat: Beat) -> None:
    """Check the marks of a heartbeat, which the index would take for the truth; RemoteProtocolError or WrongInput."""
    for name, mark in beat.marks.items():
        check_name("stream", name)
        if type(mark) is not int or not 0 <= mark <= MAX_ID:
            raise RemoteProtocolError(f"mark {mark!r:.80} of {name!r}: expected an integer from 0 to 2**63 - 1")


@dataclass(slots=True)
class Peer:
    """One link of one producer."""

    identity: bytes
    hello: Hello
    window_bytes: int
    window_messages: int
    heard_s: float
    """When it last said anything, on the monotonic clock."""
    received_bytes: int = 0
    """What had come of it at the last look."""
    came_s: float = 0.0
    """When bytes of a long message came last, behind which signs of life wait."""
    kept_alive_s: float = 0.0
    """When the index was last told that the session lives."""
    state: State = State.OPEN
    next_unit: int = 1
    acked_upto: int = 0
    in_flight_bytes: int = 0
    in_flight_messages: int = 0
    limit_bytes: int = 0
    """Largest credit ever given: what is enforced, since a smaller one may not have arrived yet."""
    finished: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """(wire units, bytes, messages) of units that have their outcome and wait for the ack of an earlier unit."""
    errors: list[list[object]] = field(default_factory=list)
    credit_changed: bool = False
    refs: dict[str, StreamRef] = field(default_factory=dict)
    """Streams this peer sends to, by name."""

    def ref(self, stream: str) -> StreamRef:
        """Return the stream's reference; made once, since every unit needs it."""
        ref = self.refs.get(stream)
        if ref is None:
            if len(self.refs) >= MAX_REFS:
                self.refs.clear()
            ref = self.refs[stream] = StreamRef(self.hello.beamtime, self.hello.source, stream)
        return ref

    def accept(self, event: Event | Put, nbytes: int, now_s: float, units: int = 1) -> None:
        """Take note of an event that came with `nbytes` of payload; a Put may be gathered from several `units`.

        Raises
        ------
        RemoteProtocolError
            If it is not this peer's turn to say it, or a Put breaks the unit order or the credit.
        """
        self.state = advance(Role.PRODUCER, self.state, event, RemoteProtocolError)
        self.heard_s = now_s
        if type(event) is Put:
            self._take_unit(event, nbytes, units)
        elif type(event) is Beat:
            check_marks(event)

    def _take_unit(self, put: Put, nbytes: int, units: int) -> None:
        if put.unit != self.next_unit:
            raise RemoteProtocolError(f"unit {put.unit}: expected {self.next_unit}")
        alone = self.in_flight_messages == 0
        if not alone and (
            self.in_flight_bytes + nbytes > max(self.limit_bytes, self.window_bytes)
            or self.in_flight_messages + len(put.ids) > self.window_messages + SLACK_MESSAGES
        ):
            raise RemoteProtocolError(
                f"unit of {nbytes} bytes goes beyond the credit: {self.in_flight_bytes} of {self.window_bytes} bytes, "
                f"{self.in_flight_messages} of {self.window_messages} messages are in flight"
            )
        self.next_unit += units
        self.in_flight_bytes += nbytes
        self.in_flight_messages += len(put.ids)

    def finish(self, unit: Unit) -> None:
        """Note the outcome of a unit."""
        self.finished[unit.put.unit] = (unit.wire_units, unit.nbytes, len(unit.put.ids))
        self.errors += unit.refusals()

    def next_ack(self) -> Ack | None:
        """Return the ack that is due, or None."""
        upto = self.acked_upto
        while (done := self.finished.pop(upto + 1, None)) is not None:
            upto += done[0]
            self.in_flight_bytes -= done[1]
            self.in_flight_messages -= done[2]
        if upto == self.acked_upto and not self.credit_changed:
            return None
        self.acked_upto = upto
        due = [error for error in self.errors if error[0] <= upto]  # type: ignore[operator]
        self.errors = [error for error in self.errors if error[0] > upto]  # type: ignore[operator]
        credit = self.window_bytes if self.credit_changed else 0
        self.credit_changed = False
        return Ack(upto, due, credit)

    def set_window(self, window_bytes: int) -> None:
        """Give another credit with the next ack. What is in flight already stays allowed."""
        if window_bytes != self.window_bytes:
            self.limit_bytes = max(self.limit_bytes, self.window_bytes, window_bytes)
            self.window_bytes = window_bytes
            self.credit_changed = True
