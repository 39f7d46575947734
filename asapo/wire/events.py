"""What the two ends of a link say to each other: frozen records that cannot exist with wrong contents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from asapo.wire.event import Event as Event
from asapo.wire.event import declare
from asapo.wire.group_events import DeleteGroup, Explain, ListDeadLetters, ListGroups, Seek, SettleDeadLetters
from asapo.wire.stream_events import DeleteStream, RemoveStream

SESSION_BYTES: Final = 16


# -- every link ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello(Event):
    """First event of a client on a link."""

    role: str
    """producer, consumer, receiver (registering with the broker) or reader (of the data server)."""
    session: bytes
    """16 random bytes, the same on all links of one client."""
    beamtime: str = ""
    source: str = ""
    name: str = ""
    """Host and program for logs and listings."""
    boot_id: str = ""
    token: str = ""


@dataclass(frozen=True, slots=True)
class Welcome(Event):
    """First event of a server: what it grants."""

    server_id: str
    epoch: int = 0
    window_bytes: int = 0
    window_messages: int = 0
    max_unit_bytes: int = 0
    heartbeat_s: float = 1.0
    session_timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Beat(Event):
    """I am alive; a producer adds `closed_below` of each open stream, a consumer renews its leases by it."""

    marks: dict[Any, Any] = field(default_factory=dict)
    """Stream name to `closed_below`."""
    work: list[Any] = field(default_factory=list)
    """What the stages of a consumer did so far: for each a map of `group`, `source`, `stream` and numbers."""


@dataclass(frozen=True, slots=True)
class Bye(Event):
    """The client leaves this link in good order; `final` when it leaves for good, so that its session ends."""

    final: bool = True


@dataclass(frozen=True, slots=True)
class Goodbye(Event):
    """The server ends the link; `error` says why (code, message, fields)."""

    error: dict[Any, Any]


@dataclass(frozen=True, slots=True)
class Done(Event):
    """A request succeeded."""

    request: int
    result: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """A request failed, or its answer is a stream state (nothing yet, finished, gap, unknown)."""

    request: int
    error: dict[Any, Any]
    lost: list[Any] = field(default_factory=list)
    """Of the ids that a GetNext reported as done: those that were given to somebody else meanwhile (LeaseLost)."""


# -- producer to receiver -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenStream(Event):
    """Ask what a stream holds; with `numbering`, become the one session that numbers it."""

    request: int
    stream: str
    substream: int = 0
    numbering: bool = False


@dataclass(frozen=True, slots=True)
class FinishStream(Event):
    """No message above `last_id` will come; readers may go on with `next_stream`."""

    request: int
    stream: str
    last_id: int
    next_stream: str = ""


@dataclass(frozen=True, slots=True)
class SetMeta(Event):
    """Set the metadata (JSON text) of a stream, or of the beamtime when `stream` is empty."""

    request: int
    meta: str
    stream: str = ""


@dataclass(frozen=True, slots=True)
class Ack(Event):
    """All units up to `upto` on this link have their outcome; `errors` lists the messages that were refused."""

    upto: int
    errors: list[Any] = field(default_factory=list)
    """Each [unit, index in unit, error map]."""
    window_bytes: int = 0
    """New credit; 0 leaves it as it is."""


# -- consumer to broker -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GetNext(Event):
    """Give up to `n` messages to this session in the name of a group; wait up to `wait_s` for the first."""

    request: int
    source: str
    stream: str
    group: str
    n: int = 1
    wait_s: float = 0.0
    ordered: bool = True
    where: str = ""
    lease_s: float = 60.0
    max_attempts: int = 0
    """0: no bound."""
    done: list[Any] = field(default_factory=list)
    """Ranges [lo, hi] of ids to acknowledge first."""
    min_parts: int = 0
    """Give datasets as soon as they have so many parts; 0: when they are complete."""
    dataset_timeout_s: float = 0.0
    """Give datasets so long after their first part, as they are then; 0: when they are complete."""
    aligned: bool = False
    """Give chunks of exactly `n`, the last one of a stream may be shorter; a chunk is given again as a whole."""


@dataclass(frozen=True, slots=True)
class GetLast(Event):
    """Give the message with the highest id."""

    request: int
    source: str
    stream: str
    after: int = 0
    """Only if its id is above this; else the answer is that there is nothing yet, or that the stream is finished."""


@dataclass(frozen=True, slots=True)
class GetById(Event):
    """Give these messages."""

    request: int
    source: str
    stream: str
    ids: list[Any]
    min_parts: int = 0
    """Give datasets that have so many parts, too; 0: only complete ones."""


@dataclass(frozen=True, slots=True)
class Query(Event):
    """Give the messages that a query selects, at most `limit`; or say something about them."""

    request: int
    source: str
    stream: str
    text: str
    limit: int = 1000
    keys: list[Any] = field(default_factory=list)
    """Of the metadata only these keys, as a query spells them; empty for all."""
    after: str = ""
    """Cursor of an earlier answer: go on behind its last message."""
    want: str = ""
    """Empty for messages; `count` for their number, `explain` for how they would be found (both answered by Done)."""
    paged: bool = False
    """The answer may end early, at a place where the client goes on."""


@dataclass(frozen=True, slots=True)
class Acknowledge(Event):
    """These ids are done."""

    request: int
    source: str
    stream: str
    group: str
    ranges: list[Any]


@dataclass(frozen=True, slots=True)
class Nack(Event):
    """Give these ids out again after `delay_s`; with `unstarted` the attempt does not count."""

    request: int
    source: str
    stream: str
    group: str
    ids: list[Any]
    delay_s: float = 0.0
    unstarted: bool = False
    reason: str = ""
    """Why they failed, in a line; kept with the dead letter if this was the last attempt."""
    traceback: str = ""
    given_by: int = 0
    """With `unstarted`: number of the GetNext whose answer nobody looked at; 0 for whichever it was."""
    unsure: bool = False
    """One of them failed, nobody knows which: each is given again beside fresh ones only."""


@dataclass(frozen=True, slots=True)
class Describe(Event):
    """Ask about one stream (size, last id, state, metadata), the beamtime, or, all being empty, the broker."""

    request: int
    source: str
    stream: str
    beamtime: bool = False
    """Tell the metadata of the session's beamtime; source and stream are empty then."""


@dataclass(frozen=True, slots=True)
class ListStreams(Event):
    """Ask for streams, of one source or of all; page on with the last name seen."""

    request: int
    source: str = ""
    after: str = ""
    limit: int = 1000


@dataclass(frozen=True, slots=True)
class ListReceivers(Event):
    """Ask for the receivers that are alive (producers do, too) and the beamtimes."""

    request: int


@dataclass(frozen=True, slots=True)
class Rows(Event):
    """Messages: index rows as they are (`models.Row`), with the tables that their numbers refer to."""

    request: int
    rows: list[Any]
    segments: dict[Any, Any]
    """Segment number to [path, receiver id, boot id, tier uuid, data server address]."""
    formats: dict[Any, Any]
    """Format number to [dtype, shape, codec]."""
    origins: dict[Any, Any] = field(default_factory=dict)
    """Origin number to [source, stream]."""
    attempts: dict[Any, Any] = field(default_factory=dict)
    """Id to delivery count, for those delivered more than once."""
    late: list[Any] = field(default_factory=list)
    """Ids that arrived below the group's position."""
    lost: list[Any] = field(default_factory=list)
    """Of the ids that a GetNext reported as done: those that were given to somebody else meanwhile (LeaseLost)."""
    missing: dict[Any, Any] = field(default_factory=dict)
    """Of the ids that a GetById asked for: id to error map of those that are not there."""
    page: dict[Any, Any] = field(default_factory=dict)
    """Of a query: `cursor`, the place where this answer ended, and `more`, whether anything may be behind it."""


# -- receiver to broker -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Register(Event):
    """A receiver is there (repeated as its heartbeat)."""

    receiver_id: str
    epoch: int
    addresses: list[Any]
    data_address: str
    boot_id: str
    tiers: dict[Any, Any]
    """Tier uuid to {"root": path, "free_bytes": n}."""
    load: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Announce(Event):
    """These streams grew; and, of small commits, what by. Only a hint: who misses it looks into the index."""

    beamtime: str
    heads: list[Any]
    """Each [source, stream, head_seq]; 0 stands for a stream whose marks or end changed."""
    units: list[Any] = field(default_factory=list)
    """Each [source, stream, arrival number of its first message, segment number, offset in the segment, format number,
    time of arrival in ns, header part of its Put]: units of which every message was new, in the order of arrival."""


# -- reader to data server ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fetch(Event):
    """Send the bytes [offset, offset + length) of one message's payload; length 0 means to its end."""

    request: int
    source: str
    stream: str
    message_id: int
    substream: int = 0
    offset: int = 0
    length: int = 0
    segment: int = 0
    """Number of the segment that the row names: with it, a message of the same id of a stream that was deleted and made
    anew is never sent instead. 0: whichever."""


@dataclass(frozen=True, slots=True)
class Piece(Event):
    """The bytes asked for are this event's payload part."""

    request: int
    size: int
    """Whole payload of the message, in bytes."""
    offset: int = 0


KINDS: Final[dict[int, type[Event]]] = {
    1: Hello, 2: Welcome, 3: Beat, 4: Bye, 5: Goodbye, 6: Done, 7: Failed,
    17: OpenStream, 18: FinishStream, 19: SetMeta, 20: Ack,
    32: GetNext, 33: GetLast, 34: GetById, 35: Query, 36: Acknowledge, 37: Nack, 38: Describe, 39: ListStreams,
    40: ListReceivers, 41: Rows,
    48: Register, 49: Announce,
    64: Fetch, 65: Piece,
    80: ListGroups, 81: Seek, 82: DeleteGroup, 83: ListDeadLetters, 84: SettleDeadLetters, 85: Explain,
    96: DeleteStream, 97: RemoveStream,
}  # fmt: skip
"""Kind byte to event; 16 is Put (`asapo.wire.put`), whose layout is its own."""

declare(KINDS.values())

PAYLOAD_KINDS: Final[frozenset[type[Event]]] = frozenset({Piece})
"""Events (beside Put) that come with a payload part."""
