"""What clients of ASAP::O ask over HTTP, as frozen records; `routes.read_request` makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BY_ID: Final = "_id"
BY_ARRIVAL: Final = "time_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompatRequest:
    """What every request has: what it is about (empty where that is not the case), and the client's token."""

    token: str = ""
    beamtime: str = ""
    source: str = ""
    stream: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FindReceivers(CompatRequest):
    """A producer looks for receivers."""

    protocol: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FindService(CompatRequest):
    """A client looks for the broker or the file transfer."""

    service: str
    protocol: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowVersion(CompatRequest):
    """A client asks what we speak."""

    protocol: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateGroup(CompatRequest):
    """A consumer wants a group id that nobody has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Which parts of a dataset are wanted."""

    min_parts: int = 0
    """Enough of them; 0: all."""
    substream: int = 0
    """Only this one; 0: whatever is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resend:
    """Messages that were not acknowledged are given again."""

    delay_s: float
    attempts: int
    """0: without bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Next(CompatRequest):
    """The next message of a group."""

    group: str
    by: str = BY_ID
    """`_id`, or `time_id`: as they arrived."""
    dataset: Parts | None = None
    """None: a message is asked for."""
    resend: Resend | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Last(CompatRequest):
    """The message of the highest id; with a group, each only once."""

    group: str = ""
    dataset: Parts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ById(CompatRequest):
    """One message."""

    message_id: int
    dataset: Parts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryMessages(CompatRequest):
    """Messages by their metadata."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Size(CompatRequest):
    """How many messages there are."""

    datasets: str = ""
    """`complete` or `all` datasets; empty: messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams(CompatRequest):
    """The streams of a source."""

    first: str = ""
    which: str = "all"
    single: bool = False
    last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources(CompatRequest):
    """The sources of a beamtime."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledge(CompatRequest):
    """A message is done."""

    group: str
    message_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NegAcknowledge(CompatRequest):
    """A message is to be given again."""

    group: str
    message_id: int
    delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Unacknowledged(CompatRequest):
    """Ids that nobody acknowledged."""

    group: str
    first: int = 0
    """0: from 1."""
    last: int = 0
    """0: to the highest one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastAcknowledged(CompatRequest):
    """The highest id that was acknowledged."""

    group: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMarker(CompatRequest):
    """The next message is the one behind `value`."""

    group: str
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamtimeMetadata(CompatRequest):
    """The metadata of the beamtime."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamMetadata(CompatRequest):
    """The metadata of the stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteStream(CompatRequest):
    """A stream is to go."""

    error_if_absent: bool = True
    with_metadata: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PersistStream(CompatRequest):
    """A stream is to be kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderToken(CompatRequest):
    """A consumer wants to read files of a folder."""

    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferFile(CompatRequest):
    """A consumer wants a file, or its size."""

    name: str
    size_only: bool
