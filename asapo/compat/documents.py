"""The JSON that clients of ASAP::O read: messages, datasets, streams, and what there is instead of a message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from asapo.compat.ingest import NO_NEXT_STREAM, IngestMode
from asapo.compat.jsontext import encode
from asapo.compat.version import CLIENT_PROTOCOL, version_number
from asapo.errors import Gap, NothingYet, StreamFinished, StreamState, UnknownStream, WrongInput
from asapo.models import MAX_ID, Row

NO_SOURCE: Final = "none:0"
"""Address of no data server. It must have a colon: clients that find none end with a segmentation fault."""
OPERATION: Final = "get_record_by_id"
"""Text that clients look for in a 409."""
MAX_CONNECTIONS: Final = 32
"""Connections of one producer to the receivers; with 0 a client would wait for ever."""


@dataclass(frozen=True, slots=True)
class Place:
    """How a consumer gets at the bytes of a message."""

    name: str
    """Path relative to the root of its storage."""
    source: str = NO_SOURCE
    """Data server, `host:port`."""
    buffer_id: int = 0
    """What to ask the data server for, below 2**63; 0: do not ask."""
    mode: IngestMode = IngestMode(0)
    """Tells whether there is a file to fall back on; 0: perhaps."""

    def __post_init__(self) -> None:
        if not 0 <= self.buffer_id <= MAX_ID:
            raise WrongInput(f"buffer id {self.buffer_id}: expected 0 to 2**63 - 1, or users see negative numbers")
        host, colon, port = self.source.rpartition(":")
        if not (host and colon and port.isdecimal() and port.isascii()):
            raise WrongInput(f"data server {self.source!r}: expected host:port, anything else ends clients")
        if not self.name:
            raise WrongInput("name of a message: expected a path")


def message_json(row: Row, stream: str, place: Place) -> bytes:
    """Return what a client is told of one message, or of one part of a dataset.

    The metadata stay the text that the producer wrote: numbers keep their digits.
    """
    fields = {
        "_id": row.id,
        "size": row.size,
        "name": place.name,
        "timestamp": max(row.t_ingest_ns, 0),
        "source": place.source,
        "buf_id": place.buffer_id,
        "dataset_substream": row.substream,
        "stream": stream,
        "ingest_mode": int(place.mode),
        "ib_source": "",
        "time_id": row.seq,
    }
    return encode(fields)[:-1] + b',"meta":' + (row.meta.encode() or b"{}") + b"}"


def dataset_json(message_id: int, dataset_size: int, parts: Iterable[bytes]) -> bytes:
    """Return what a client is told of a dataset, by the documents of its parts (`message_json`)."""
    return b'{"_id":%d,"dataset_size":%d,"messages":%b}' % (message_id, dataset_size, messages_json(parts))


def messages_json(messages: Iterable[bytes]) -> bytes:
    """Return a list of documents: the answer to a query."""
    return b"[" + b",".join(messages) + b"]"


# -- no message ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NoMessage:
    """Why there is no message: the body of a 409."""

    message_id: int
    """The id that was looked for. At the end of a stream it is `id_max`."""
    id_max: int
    """Highest id there is; of a finished stream its last one."""
    next_stream: str = ""
    """Empty while the stream goes on; `asapo_no_next` when it is finished and names none."""

    def encode(self) -> bytes:
        """Return the body."""
        fields = {
            "op": OPERATION,
            "id": self.message_id,
            "id_max": self.id_max,
            "next_stream": self.next_stream,
        }
        return encode(fields)


def at_the_end(id_max: int) -> NoMessage:
    """Return the answer "everything was read, more may come"."""
    return NoMessage(id_max, id_max)


def at_the_finish(last_id: int, next_stream: str) -> NoMessage:
    """Return the answer "everything was read, and no more will come"."""
    return NoMessage(last_id, last_id, next_stream or NO_NEXT_STREAM)


def no_message(state: StreamState) -> NoMessage:
    """Return the body for a state of a stream that the native protocol reports."""
    fields = state.fields
    id_max = fields.get("id_max", 0)
    if isinstance(state, StreamFinished):
        return at_the_finish(id_max, fields.get("next_stream", ""))
    if isinstance(state, Gap):
        return NoMessage(fields["message_id"], id_max)
    if isinstance(state, NothingYet | UnknownStream):
        return at_the_end(id_max)
    return NoMessage(fields.get("message_id", id_max), id_max)


# -- streams ------------------------------------------------------------------------------------------------------

STREAM_FILTERS: Final = ("all", "finished", "unfinished")


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """A stream as it is listed."""

    name: str
    last_id: int = 0
    created_ns: int = 0
    """When its first message was taken in, ns since the Unix epoch."""
    last_ns: int = 0
    """When its newest message was taken in."""
    finished: bool = False
    next_stream: str = ""

    def document(self) -> dict[str, Any]:
        """Return the six keys; clients fail when one is missing."""
        return {
            "lastId": self.last_id,
            "name": self.name,
            "timestampCreated": self.created_ns,
            "timestampLast": self.last_ns,
            "finished": self.finished,
            "nextStream": self.next_stream,
        }


def streams_body(
    streams: Iterable[StreamEntry], *, first: str = "", which: str = "all", single: bool = False, last: bool = False
) -> bytes:
    """Return the answer to a listing.

    Parameters
    ----------
    streams : iterable of StreamEntry
        The streams of one source; they are answered by the time at which they were made.
    first : str
        Only this one and those made after it; nothing when there is none of this name.
    which : {"all", "finished", "unfinished"}
    single : bool
        Only `first`.
    last : bool
        Only the one made last.
    """
    found = sorted(streams, key=lambda entry: (entry.created_ns, entry.name))
    if single:
        found = [entry for entry in found if entry.name == first]
    elif last:
        found = found[-1:]
    elif first:
        names = [entry.name for entry in found]
        found = found[names.index(first) :] if first in names else []
    if which != "all":
        found = [entry for entry in found if entry.finished is (which == "finished")]
    return encode({"streams": [entry.document() for entry in found]})


# -- small answers ------------------------------------------------------------------------------------------------


def receivers_body(addresses: Sequence[str]) -> bytes:
    """Return the answer to a producer that looks for receivers; no address reads as "none now"."""
    return encode({"MaxConnections": MAX_CONNECTIONS, "Uris": list(addresses)})


def version_body(software: str, client_protocol: str) -> bytes:
    """Return the answer to `get_version_info`.

    Raises
    ------
    WrongInput
        If the client's protocol is no version.
    """
    supported = version_number(client_protocol) <= version_number(CLIENT_PROTOCOL)
    body: Mapping[str, Any] = {
        "softwareVersion": software,
        "clientProtocol": {"versionInfo": f"{CLIENT_PROTOCOL} (current)", "microservicesApi": {}},
        "clientSupported": "yes" if supported else "no",
        "supportedProtocols": [],
    }
    return encode(body)
