"""What readers, services and the test itself have seen: plain records that the invariants are checked on."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from asapo.testing.checker.book import Book

SURVIVES_KILLS: Final = frozenset({"written", "synced", "both"})
SURVIVES_POWER_LOSS: Final = frozenset({"synced", "both"})
SHOWN_DIGITS: Final = 12


class Way(StrEnum):
    """How a reader reads."""

    ORDERED = "ordered reader"
    """Alone in a group: ids must ascend."""
    WORKER = "worker"
    """Shares a group with others and acknowledges."""
    LAST = "last"
    BY_ID = "by id"
    OFFLINE = "offline"
    """The files, without any service."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A message as a reader was given it."""

    id: int
    size: int
    sha256: str
    named: int
    """The id that the metadata name; 0 when they name none."""
    t_ns: int = 0
    attempt: int = 1
    """How often it was given out, as the services say."""
    late: bool = False

    def __str__(self) -> str:
        return f"{self.size} bytes {self.sha256[:SHOWN_DIGITS]} naming {self.named}"


@dataclass(frozen=True, slots=True)
class Event:
    """Something else that happened with an id."""

    id: int
    t_ns: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """All that one reader saw."""

    way: Way
    name: str
    seen: tuple[Seen, ...] = ()
    """In the order in which they were given."""
    complete: bool = False
    """It came to the end: what it lacks is not there."""
    final: bool = False
    """It began after the last fault, so it must agree with the other final ones."""
    group: str = ""
    errors: tuple[Event, ...] = ()
    """Messages that are there but could not be read; the code of the error in `detail`."""
    holes: tuple[Event, ...] = ()
    """Ids of which the services said that they will never come."""
    confirmed: tuple[Event, ...] = ()
    """Acknowledged by this worker, and the acknowledgement was answered."""

    def __str__(self) -> str:
        return f"{self.way} {self.name}" if self.name else str(self.way)

    @property
    def asked(self) -> frozenset[int]:
        """Every id this reader has got an answer for."""
        return frozenset(one.id for part in (self.seen, self.errors, self.holes) for one in part)


@dataclass(frozen=True, slots=True)
class ServerLedger:
    """What the services count of the stream."""

    n_messages: int
    n_bytes: int
    id_max: int
    finished: bool = False
    last_id: int = 0
    taken: int | None = None
    """Messages handed to the index, repeated ones included; None when a receiver was restarted, or others send, too."""
    refused: int | None = None
    """Messages refused in acknowledgements; None as above."""


@dataclass(frozen=True, slots=True)
class Kill:
    """The end of a process."""

    component: str
    """receiver, core, worker, producer, or power for everything at once."""
    t_ns: int


@dataclass(frozen=True, slots=True)
class Probe:
    """How long something took to work again."""

    what: str
    allowed_s: float
    took_s: float | None
    """None when it had not come back when the test gave up."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A number that must come back to where it was."""

    what: str
    before: int
    after: int
    tolerance: int = 0


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything about one stream."""

    book: Book
    readings: tuple[Reading, ...] = ()
    ledger: ServerLedger | None = None
    kills: tuple[Kill, ...] = ()
    probes: tuple[Probe, ...] = ()
    resources: tuple[Resource, ...] = ()
    survivors: frozenset[str] = SURVIVES_KILLS
    """Levels of acknowledgement that promise to survive what was done."""
    forgotten_acks_s: float = 0.5
    """A core that was killed may have forgotten acknowledgements that it answered within so long before; documented
    are 50 ms and the time of one write."""
    late_is_fine: bool = False
    """A producer was away for longer than its session lasts, so what it sends afterwards is flagged late."""
    notes: dict[str, str] = field(default_factory=dict)
    """Invariant to the reason why it cannot be checked here."""
