"""Whose turn it is: the protocol as a table and one function.

A link has a client and a server; each side moves through GREETING, OPEN, CLOSED by the events *it sends*. Each end
keeps both states: its own, where a wrong event is our defect, and its peer's, where it is the peer's.
"""

from __future__ import annotations

from enum import IntEnum, auto
from typing import Final

from asapo.errors import ProtocolError
from asapo.wire.events import (
    Ack,
    Acknowledge,
    Announce,
    Beat,
    Bye,
    Describe,
    Done,
    Event,
    Failed,
    Fetch,
    FinishStream,
    GetById,
    GetLast,
    GetNext,
    Goodbye,
    Hello,
    ListReceivers,
    ListStreams,
    Nack,
    OpenStream,
    Piece,
    Query,
    Register,
    Rows,
    SetMeta,
    Welcome,
)
from asapo.wire.group_events import DeleteGroup, Explain, ListDeadLetters, ListGroups, Seek, SettleDeadLetters
from asapo.wire.put import Put
from asapo.wire.stream_events import DeleteStream, RemoveStream


class Role(IntEnum):
    """Who sends: the two ends of each of the four kinds of link. A number, since those are hashed by C."""

    PRODUCER = auto()
    RECEIVER = auto()
    CONSUMER = auto()
    BROKER = auto()
    REGISTRANT = auto()
    REGISTRY = auto()
    READER = auto()
    DATA_SERVER = auto()


class State(IntEnum):
    """Where a side stands."""

    GREETING = auto()
    OPEN = auto()
    CLOSED = auto()


AnyEvent = Event | Put
Kinds = tuple[type[AnyEvent], ...]

REQUESTS: Final[Kinds] = (
    GetNext, GetLast, GetById, Query, Acknowledge, Nack, Describe, ListStreams, ListReceivers,
    ListGroups, Seek, DeleteGroup, ListDeadLetters, SettleDeadLetters, Explain, DeleteStream,
)  # fmt: skip
SPOKEN: Final[dict[Role, Kinds]] = {
    Role.PRODUCER: (Put, OpenStream, FinishStream, SetMeta, Beat),
    Role.RECEIVER: (Ack, Done, Failed, Beat),
    Role.CONSUMER: (*REQUESTS, Beat),
    Role.BROKER: (Rows, Done, Failed, Beat),
    Role.REGISTRANT: (Register, Announce, Done, Failed, Beat),
    Role.REGISTRY: (RemoveStream, Beat),
    Role.READER: (Fetch, Beat),
    Role.DATA_SERVER: (Piece, Failed, Beat),
}
"""What each side may say while OPEN."""
CLIENTS: Final = (Role.PRODUCER, Role.CONSUMER, Role.REGISTRANT, Role.READER)
HELLO_ROLES: Final = {"producer": Role.PRODUCER, "consumer": Role.CONSUMER, "receiver": Role.REGISTRANT,
                      "reader": Role.READER}  # fmt: skip
"""`Hello.role` to the role it claims."""


def _table() -> dict[tuple[Role, State], dict[type[AnyEvent], State]]:
    table: dict[tuple[Role, State], dict[type[AnyEvent], State]] = {}
    for role, spoken in SPOKEN.items():
        first, last = (Hello, Bye) if role in CLIENTS else (Welcome, Goodbye)
        table[role, State.GREETING] = {first: State.OPEN, last: State.CLOSED}
        table[role, State.OPEN] = {**dict.fromkeys(spoken, State.OPEN), last: State.CLOSED}
        table[role, State.CLOSED] = {}
    return table


NEXT: Final = _table()
"""(role, state) to the events it may send and the state that follows."""


def advance(role: Role, state: State, event: AnyEvent, blame: type[ProtocolError]) -> State:
    """Return the state that follows, or blame whoever broke the table."""
    try:
        return NEXT[role, state][type(event)]
    except KeyError:
        raise blame(f"{type(event).__name__} is not legal for {role.name} in {state.name}") from None
