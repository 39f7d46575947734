"""Messages and datasets: by a group, by id, the last one."""

from __future__ import annotations

import threading
import time
from http import HTTPStatus
from typing import Final

from asapo.compat.documents import dataset_json
from asapo.compat.requests import BY_ID, ById, Last, Next, Parts
from asapo.errors import StreamState, WrongInput
from asapo.wire.events import GetLast
from asapo_broker.http.compat.answer import Answer, no_message_answer
from asapo_broker.http.compat.arrivals import Arrivals
from asapo_broker.http.compat.book import GroupBook, Mark
from asapo_broker.http.compat.streams import NEWEST, Found, Streams, ref_of

LOCKS: Final = 64
"""Groups share locks: two of them wait for each other now and then, and nothing grows."""


class Reading:
    """Answers requests for messages."""

    def __init__(self, streams: Streams, arrivals: Arrivals, book: GroupBook) -> None:
        self._streams = streams
        self._arrivals = arrivals
        self._book = book
        self._locks = [threading.Lock() for _ in range(LOCKS)]

    def _turn(self, request: Next | Last) -> threading.Lock:
        """Return the lock of a group: its pointer moves once for each call, whoever else asks meanwhile."""
        return self._locks[hash((ref_of(request), request.group)) % LOCKS]

    # -- by a group ---------------------------------------------------------------------------------------------------

    def next(self, request: Next) -> Answer:
        """Give the next message of a group, or one that is to be given again."""
        with self._turn(request):
            mark = self._book.mark(ref_of(request), request.group, self._streams.deletion(request))
            found = self._again(request, mark)
            if found is not None:
                return _given(found, request.dataset)
            return self._onward(request, mark) if request.by == BY_ID else self._as_it_arrived(request, mark)

    def _again(self, request: Next, mark: Mark) -> Found | None:
        while (message_id := self._book.due(mark, time.time())) is not None:
            found = self._streams.look(request, message_id)
            if found is not None:
                return found
            self._book.forget(mark, message_id)
        return None

    def _onward(self, request: Next, mark: Mark) -> Answer:
        wanted = mark.position + 1
        found = self._streams.look(request, wanted)
        if found is None:
            facts = self._streams.describe(request)
            if wanted > facts.id_max:
                return no_message_answer(facts.at_the_end())  # the pointer stays
            # Looked for once more: it may have come meanwhile.
            behind = self._streams.one(request, f"_id >= {wanted} ORDER BY _id LIMIT 1")
            if wanted < facts.closed_below and behind is None:
                return no_message_answer(facts.at_the_end())
            # Nobody will send what is missing below the watermark, so the group passes over it.
            if behind is None or (behind.id > wanted and wanted >= facts.closed_below):
                # A hole. The client goes on asking for this id by itself, so the pointer is behind it already.
                self._book.give(mark, wanted)
                return no_message_answer(facts.absent(wanted))
            found = self._streams.look(request, behind.id) or behind
        answer = _given(found, request.dataset)
        self._book.give(mark, found.id)
        self._expect(request, mark, found)
        return answer

    def _as_it_arrived(self, request: Next, mark: Mark) -> Answer:
        found = self._arrivals.next(request)
        if found is None:
            return no_message_answer(self._streams.describe(request).at_the_end())
        answer = _given(found, request.dataset)
        self._expect(request, mark, found)
        return answer

    def _expect(self, request: Next, mark: Mark, found: Found) -> None:
        resend = request.resend
        if resend is not None:
            self._book.expect(mark, found.id, delay_s=resend.delay_s, attempts=resend.attempts, now_s=time.time())

    # -- the last one -------------------------------------------------------------------------------------------------

    def last(self, request: Last) -> Answer:
        """Give the message of the highest id, or the highest dataset that has enough parts."""
        if not request.group:
            return self._last(request)
        with self._turn(request):
            mark = self._book.mark(ref_of(request), request.group, self._streams.deletion(request))
            found = self._highest(request)
            if found is None or found.id == mark.last_given:
                return no_message_answer(self._streams.describe(request).at_the_end())
            answer = _given(found, request.dataset)
            if answer.status is HTTPStatus.OK:
                # Not with 206: the client asks again then, and would get nothing.
                self._book.give_last(mark, found.id)
            return answer

    def _last(self, request: Last) -> Answer:
        found = self._highest(request)
        if found is None:
            return no_message_answer(self._streams.describe(request).at_the_end())
        return _given(found, request.dataset)

    def _highest(self, request: Last) -> Found | None:
        """Return the last message of a stream that goes on; None for one that is finished, as in the original."""
        facts = self._streams.describe(request)
        if facts.finished or not facts.id_max:
            return None
        newest = self._streams.look(request, facts.id_max)
        if newest is None or request.dataset is None or _enough(newest, request.dataset):
            return newest
        if request.dataset.min_parts:
            return self._highest_with(request, request.dataset, newest)
        try:
            rows = self._streams.cores.rows(request.beamtime, GetLast, source=request.source, stream=request.stream)
        except StreamState:
            return newest
        return self._streams.look(request, rows.rows[0][0]) or newest

    def _highest_with(self, request: Last, wanted: Parts, newest: Found) -> Found:
        """Walk down to a dataset that has enough parts; the newest one when there is none."""
        found: Found | None = newest
        while found is not None and not _enough(found, wanted):
            below = self._streams.one(request, f"_id < {found.id} {NEWEST}")
            found = None if below is None else self._streams.look(request, below.id)
        return found or newest

    # -- by id --------------------------------------------------------------------------------------------------------

    def by_id(self, request: ById) -> Answer:
        """Give one message."""
        found = self._streams.look(request, request.message_id)
        if found is None:
            return no_message_answer(self._streams.describe(request).absent(request.message_id))
        return _given(found, request.dataset)


def _enough(found: Found, wanted: Parts) -> bool:
    if wanted.substream:
        return any(row.substream == wanted.substream for row in found.rows)
    return len(found.rows) >= (min(wanted.min_parts, found.dataset_size) or found.dataset_size)


def _given(found: Found, wanted: Parts | None) -> Answer:
    """Return a message, or a dataset with the status that says whether it has enough parts.

    Raises
    ------
    WrongInput
        If a message is asked for where datasets are, or the other way round: clients cannot read the answer.
    """
    if wanted is None:
        if found.dataset_size:
            raise WrongInput(f"id {found.id} is a dataset of {found.dataset_size} parts; ask by the calls for datasets")
        return Answer(found.documents[0])
    if not found.dataset_size:
        raise WrongInput(f"id {found.id} is a message, not a dataset; ask by the calls for messages")
    parts = [
        document
        for row, document in zip(found.rows, found.documents, strict=True)
        if wanted.substream in (0, row.substream)
    ]
    status = HTTPStatus.OK if _enough(found, wanted) else HTTPStatus.PARTIAL_CONTENT
    return Answer(dataset_json(found.id, found.dataset_size, parts), status)
