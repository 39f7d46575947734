"""What is said about streams as such: a consumer has one deleted, and the broker passes that on to a receiver."""

from __future__ import annotations

from dataclasses import dataclass

from asapo.wire.event import Event


@dataclass(frozen=True, slots=True)
class DeleteStream(Event):
    """Delete a stream: its messages, files, groups and their dead letters."""

    request: int
    source: str
    stream: str
    force: bool = False
    """Also when it is not finished and live producers write to it."""
    number: int = 0
    """Only if this is the stream's number, as Describe tells it: what comes late hits no newer stream of the name. 0:
    whichever."""


@dataclass(frozen=True, slots=True)
class RemoveStream(Event):
    """The same, from the broker to a receiver, which answers by Done or Failed."""

    request: int
    """Numbered by the broker, for each link anew."""
    beamtime: str
    source: str
    stream: str
    force: bool = False
    number: int = 0
