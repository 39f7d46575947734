"""What a consumer says to the broker about groups as such, beside reading by them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from asapo.wire.event import Event


@dataclass(frozen=True, slots=True)
class Explain(Event):
    """Say why these ids failed, which this session has handed back before; kept with those that are dead letters."""

    request: int
    source: str
    stream: str
    group: str
    ids: list[Any]
    reason: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class ListGroups(Event):
    """Ask how far groups are: of one stream, of all of a source, or of all; page on with the last one seen."""

    request: int
    source: str = ""
    stream: str = ""
    after: list[Any] = field(default_factory=list)
    """[source, stream, group] of the last one seen; empty: from the first."""
    limit: int = 1000


@dataclass(frozen=True, slots=True)
class Seek(Event):
    """Let a group go on at another place; what its sessions hold is given again, or is done, as the place says."""

    request: int
    source: str
    stream: str
    group: str
    to: str
    """`start`, `end`, `id` or `fraction`."""
    message_id: int = 0
    seq: int = 0
    """Arrival number of `message_id`, which unordered groups need."""
    fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class DeleteGroup(Event):
    """Forget a group of a stream: its position, what it is done with, its dead letters."""

    request: int
    source: str
    stream: str
    group: str


@dataclass(frozen=True, slots=True)
class ListDeadLetters(Event):
    """Ask for the messages that a group gave up, by id; page on with the last id seen."""

    request: int
    source: str
    stream: str
    group: str
    after: int = 0
    limit: int = 1000


@dataclass(frozen=True, slots=True)
class SettleDeadLetters(Event):
    """Give dead letters out again (attempts counted anew), or forget them: these ids, or the first of all."""

    request: int
    source: str
    stream: str
    group: str
    ids: list[Any] = field(default_factory=list)
    everything: bool = False
    requeue: bool = True
