"""What there is: streams, sources, sizes, metadata, and messages by their metadata."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final

from asapo.compat import requests as asked
from asapo.compat.documents import StreamEntry, messages_json, streams_body
from asapo.compat.query import parse_query
from asapo.errors import UnknownStream, WrongInput
from asapo.models import StreamRef
from asapo.wire.events import Describe, ListStreams, Query
from asapo.wire.limits import MAX_ROWS
from asapo_broker.http.compat.answer import Answer, json_answer
from asapo_broker.http.compat.streams import FIRST, NEWEST, Streams, documents_of, facts_of

MAX_FOUND: Final = 100_000
"""Most messages in the answer to one query."""
MAX_KNOWN: Final = 100_000
"""Streams whose time of creation is remembered."""


class Listings:
    """Answers requests about more than one message."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._created_ns: dict[tuple[StreamRef, int], int] = {}
        """By stream and its number: a later one may have the same name."""

    # -- streams and sources ------------------------------------------------------------------------------------------

    def streams(self, request: asked.Streams) -> Answer:
        """List the streams of a source that have messages, or are finished."""
        entries = [self._entry(request, found) for found in self._listed(request.beamtime, request.source)]
        body = streams_body(entries, first=request.first, which=request.which, single=request.single, last=request.last)
        return Answer(body)

    def _entry(self, request: asked.Streams, found: dict[str, Any]) -> StreamEntry:
        facts = facts_of(found)
        of_stream = asked.CompatRequest(beamtime=request.beamtime, source=request.source, stream=found["stream"])
        return StreamEntry(
            found["stream"],
            facts.id_max,
            self._created(of_stream, found["number"]) if facts.n_messages else 0,
            self._taken_in(of_stream, NEWEST) if facts.n_messages else 0,
            facts.finished,
            facts.next_stream,
        )

    def _created(self, request: asked.CompatRequest, number: int) -> int:
        """Return when the first message was taken in, ns since the Unix epoch; it is asked once."""
        key = (StreamRef(request.beamtime, request.source, request.stream), number)
        found = self._created_ns.get(key)
        if found is None:
            if len(self._created_ns) >= MAX_KNOWN:
                self._created_ns.clear()
            found = self._created_ns[key] = self._taken_in(request, FIRST)
        return found

    def _taken_in(self, request: asked.CompatRequest, text: str) -> int:
        found = self._streams.one(request, text)
        return found.rows[0].t_ingest_ns if found is not None else 0

    def _listed(self, beamtime: str, source: str) -> Iterator[dict[str, Any]]:
        """Yield what the core knows of each stream that has something in it, of one source or ("") of all."""
        after = ""
        while True:
            answer = self._streams.cores.ask(beamtime, ListStreams, source=source, after=after, limit=MAX_ROWS)
            page = answer["streams"]
            yield from (found for found in page if found["n_messages"] or found["finished"])
            if len(page) < MAX_ROWS:
                return
            last = page[-1]
            after = last["stream"] if source else f"{last['source']}\0{last['stream']}"

    def sources(self, request: asked.Sources) -> Answer:
        """List the sources of the beamtime that have streams."""
        names = {found["source"] for found in self._listed(request.beamtime, "")}
        return json_answer({"sources": sorted(names)})

    # -- sizes --------------------------------------------------------------------------------------------------------

    def size(self, request: asked.Size) -> Answer:
        """Count messages, or datasets; those that lack parts if they are asked for."""
        first = self._streams.one(request, FIRST)
        if first is None:
            return json_answer({"size": 0})
        if not first.dataset_size:
            if request.datasets:
                raise WrongInput(f"stream {request.stream!r} holds messages, not datasets; ask for its size")
            return json_answer({"size": self._streams.describe(request).n_messages})
        n_lacking = self._listed_length(request, "incomplete") if request.datasets == "complete" else 0
        return json_answer({"size": self._n_ids(request) - n_lacking})

    def _n_ids(self, request: asked.Size) -> int:
        """Return how many ids there are: all up to the highest one but the gaps."""
        newest = self._streams.one(request, NEWEST)
        highest = newest.id if newest is not None else 0
        return highest - sum(hi - lo + 1 for lo, hi in self._pages(request, "gaps") if lo <= highest)

    def _listed_length(self, request: asked.Size, want: str) -> int:
        return sum(1 for _ in self._pages(request, want))

    def _pages(self, request: asked.CompatRequest, want: str) -> Iterator[list[int]]:
        """Yield what the core lists of a stream page by page."""
        after = ""
        while True:
            answer = self._streams.cores.ask(
                request.beamtime, Query, source=request.source, stream=request.stream, text="", want=want, after=after,
                limit=MAX_ROWS,
            )  # fmt: skip
            yield from answer[want]
            after = answer["cursor"]
            if not after:
                return

    # -- metadata -----------------------------------------------------------------------------------------------------

    def beamtime_metadata(self, request: asked.BeamtimeMetadata) -> Answer:
        """Tell the metadata of the beamtime; 409 when there are none."""
        answer = self._streams.cores.ask(request.beamtime, Describe, source="", stream="", beamtime=True)
        return _metadata(answer["meta"], f"beamtime {request.beamtime}")

    def stream_metadata(self, request: asked.StreamMetadata) -> Answer:
        """Tell the metadata of the stream; 409 when there are none."""
        return _metadata(self._streams.metadata(request), f"stream {request.stream}")

    def persist(self, request: asked.PersistStream) -> Answer:
        """Say yes: streams are kept until they are deleted.

        Raises
        ------
        WrongInput
            If there is no such stream.
        """
        facts = self._streams.describe(request)
        if not (facts.n_messages or facts.finished):
            raise WrongInput(f"stream {request.stream!r}: there is none of this name")
        return Answer()

    # -- queries ------------------------------------------------------------------------------------------------------

    def query(self, request: asked.QueryMessages) -> Answer:
        """List the messages that a query selects; of datasets each part by itself, as clients read messages only.

        Raises
        ------
        WrongInput
            If the query is not acceptable, or finds more messages than one answer takes.
        """
        text = str(parse_query(request.text))
        found: list[bytes] = []
        after, more = "", True
        while more:
            try:
                rows = self._streams.page(request, text, after)
            except UnknownStream:
                break
            found += documents_of(request, rows)
            after, more = rows.page["cursor"], rows.page["more"]
            if len(found) > MAX_FOUND:
                raise WrongInput(f"the query finds more than {MAX_FOUND} messages; narrow it, for example by _id")
        return Answer(messages_json(found))


def _metadata(found: dict[str, Any], what: str) -> Answer:
    if not found:
        return Answer(f"{what} has no metadata".encode(), HTTPStatus.CONFLICT)
    return json_answer(found)
