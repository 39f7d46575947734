"""One stream as a client of ASAP::O sees it, asked of the delivery core."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from asapo.compat.documents import NoMessage, Place, at_the_end, at_the_finish, message_json
from asapo.compat.names import KINDS, Named, exposed_name
from asapo.compat.requests import CompatRequest
from asapo.errors import StreamState, UnknownStream, WrongInput
from asapo.models import Row, StreamRef
from asapo.storage.layout import client_path_of
from asapo.wire.events import Describe, GetById, Query, Rows
from asapo.wire.stream_events import DeleteStream
from asapo_broker.http.compat.ahead import KEPT_S, MAX_STREAMS, Ahead
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

    @property
    def nbytes(self) -> int:
        """About the memory it takes: the metadata are there twice."""
        return 2 * sum(map(len, self.documents)) + 1000


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
        self._ahead = Ahead()
        self._deletions: dict[StreamRef, tuple[float, int]] = {}
        """When it was asked, and the number of the last deletion of a stream of this name."""

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

    def deletion(self, request: CompatRequest) -> int:
        """Return the number of the last deletion of a stream of this name, as of a moment ago; 0 for none."""
        ref, now_s = ref_of(request), time.monotonic()
        asked_s, number = self._deletions.get(ref, (-math.inf, 0))
        if now_s - asked_s >= KEPT_S:
            with suppress(UnknownStream):
                number = self._ask(request).get("deleted", 0)
            if len(self._deletions) >= MAX_STREAMS:
                self._deletions.clear()
            self._deletions[ref] = (now_s, number)
        return number

    def delete(self, request: CompatRequest) -> bool:
        """Delete the stream, also while somebody writes to it, as ASAP::O does; False when there is none."""
        try:
            self.cores.ask(request.beamtime, DeleteStream, source=request.source, stream=request.stream, force=True)
        except UnknownStream:
            return False
        finally:
            self._ahead.forget(ref_of(request))
            self._deletions.pop(ref_of(request), None)
        return True

    def _ask(self, request: CompatRequest) -> dict[Any, Any]:
        return self.cores.ask(request.beamtime, Describe, source=request.source, stream=request.stream)

    def look(self, request: CompatRequest, message_id: int) -> Found | None:
        """Return what there is of an id, also when it is a dataset that lacks parts; None when nothing is."""
        ref = ref_of(request)
        kept = self._ahead.take(ref, message_id)
        if kept is not None:
            return kept
        width = self._ahead.width(ref, message_id)
        try:
            found = self._looked(request, range(message_id, message_id + width))
        except WrongInput:
            if width == 1:
                raise
            # Together their metadata are more than one answer takes.
            width, found = 1, self._looked(request, range(message_id, message_id + 1))
        self._ahead.keep(ref, message_id, width, found)
        return found.get(message_id)

    def _looked(self, request: CompatRequest, ids: range) -> dict[int, Found]:
        """Return what there is of some ids."""
        try:
            rows = self.cores.rows(
                request.beamtime, GetById, source=request.source, stream=request.stream, ids=list(ids), min_parts=1
            )
        except StreamState:
            return {}
        return {found.id: found for found in self._each(request, rows)}

    def _each(self, request: CompatRequest, rows: Rows) -> Iterator[Found]:
        """Yield the rows of each id, which stand together."""
        all_of_them = zip(rows.rows, documents_of(request, rows), strict=True)
        for _, group in itertools.groupby(all_of_them, key=lambda entry: entry[0][0]):
            values, documents = zip(*group, strict=True)
            yield Found([_row(one) for one in values], documents)

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
        return next(self._each(request, rows))


def documents_of(request: CompatRequest, rows: Rows) -> list[bytes]:
    """Return the document of each row."""
    documents = []
    for values in rows.rows:
        row = _row(values)
        entry = rows.segments.get(row.segment)
        path = client_path_of(entry[0], request.source, request.stream) if entry else ""
        if not path.startswith(KINDS):
            path = exposed_name(Named(request.source, request.stream, row.id, row.substream))
        documents.append(message_json(row, request.stream, Place(path)))
    return documents


def _row(values: Sequence[Any]) -> Row:
    """Return a row as we know it; newer versions may send more columns."""
    return Row._make(values[: len(Row._fields)])


def ref_of(request: CompatRequest) -> StreamRef:
    """Return the stream that a request names."""
    return StreamRef(request.beamtime, request.source, request.stream)
