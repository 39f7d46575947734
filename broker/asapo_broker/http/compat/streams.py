"""One stream as a client of ASAP::O sees it, asked of the delivery core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from asapo.compat.documents import NoMessage, Place, at_the_end, at_the_finish, message_json
from asapo.compat.names import KINDS, Named, exposed_name
from asapo.compat.requests import CompatRequest
from asapo.errors import StreamState, UnknownStream
from asapo.models import Row
from asapo.storage.layout import client_path_of
from asapo.wire.events import Describe, GetById, Query, Rows
from asapo_broker.http.compat.cores import Cores

FIRST: Final = "LIMIT 1"
NEWEST: Final = "ORDER BY _id DESC LIMIT 1"
PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Found:
    """The message, or the parts of the dataset, that there are of one id."""

    rows: Sequence[Row]
    documents: Sequence[bytes]
    """One for each row."""

    @property
    def id(self) -> int:
        """Their id."""
        return self.rows[0].id

    @property
    def dataset_size(self) -> int:
        """Parts of the dataset; 0 for a message."""
        return self.rows[0].dataset_size


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """What is known of a stream; all is 0 of one that does not exist."""

    n_messages: int = 0
    id_max: int = 0
    """Highest id; of a finished stream the last one."""
    closed_below: int = 0
    finished: bool = False
    next_stream: str = ""

    def at_the_end(self) -> NoMessage:
        """Return the answer to whoever has read everything."""
        return at_the_finish(self.id_max, self.next_stream) if self.finished else at_the_end(self.id_max)

    def absent(self, message_id: int) -> NoMessage:
        """Return the answer to whoever asked for an id that is not there."""
        if not self.id_max or (self.finished and message_id > self.id_max):
            return self.at_the_end()
        return NoMessage(message_id, self.id_max)


def facts_of(listed: dict[Any, Any]) -> StreamFacts:
    """Return the facts of a stream as the core lists it."""
    finished = listed["finished"]
    return StreamFacts(
        listed["n_messages"],
        listed["last_id"] if finished else listed["id_max"],
        listed["closed_below"],
        finished,
        listed["next_stream"],
    )


class Streams:
    """Asks the core about the stream that a request names."""

    def __init__(self, cores: Cores) -> None:
        self.cores = cores

    def describe(self, request: CompatRequest) -> StreamFacts:
        """Return what is known of the stream."""
        try:
            return facts_of(self._ask(request))
        except UnknownStream:
            return StreamFacts()

    def metadata(self, request: CompatRequest) -> dict[str, Any]:
        """Return the metadata of the stream; none of a stream that does not exist."""
        try:
            return dict(self._ask(request)["meta"])
        except UnknownStream:
            return {}

    def _ask(self, request: CompatRequest) -> dict[Any, Any]:
        return self.cores.ask(request.beamtime, Describe, source=request.source, stream=request.stream)

    def look(self, request: CompatRequest, message_id: int) -> Found | None:
        """Return what there is of an id, also when it is a dataset that lacks parts; None when nothing is."""
        try:
            rows = self.cores.rows(
                request.beamtime, GetById, source=request.source, stream=request.stream, ids=[message_id], min_parts=1
            )
        except StreamState:
            return None
        return self.found(request, rows)

    def one(self, request: CompatRequest, text: str) -> Found | None:
        """Return the message, or the part of a dataset, that a query of ours with LIMIT 1 selects."""
        try:
            rows = self.cores.rows(
                request.beamtime, Query, source=request.source, stream=request.stream, text=text, limit=1
            )
        except UnknownStream:
            return None
        return self.found(request, rows) if rows.rows else None

    def page(self, request: CompatRequest, text: str, after: str = "") -> Rows:
        """Return the next rows that a query of ours selects. Raises as the core answers."""
        return self.cores.rows(
            request.beamtime, Query, source=request.source, stream=request.stream, text=text, limit=PAGE, after=after,
            paged=True,
        )  # fmt: skip

    def found(self, request: CompatRequest, rows: Rows) -> Found:
        """Return the rows of one id with their documents."""
        return Found([Row._make(row[: len(Row._fields)]) for row in rows.rows], documents_of(request, rows))


def documents_of(request: CompatRequest, rows: Rows) -> list[bytes]:
    """Return the document of each row."""
    documents = []
    for values in rows.rows:
        row = Row._make(values[: len(Row._fields)])
        entry = rows.segments.get(row.segment)
        path = client_path_of(entry[0], request.source, request.stream) if entry else ""
        if not path.startswith(KINDS):
            path = exposed_name(Named(request.source, request.stream, row.id, row.substream))
        documents.append(message_json(row, request.stream, Place(path)))
    return documents
