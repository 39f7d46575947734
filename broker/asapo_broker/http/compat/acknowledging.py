"""What a group has done, where it stands, and the end of all that with its stream."""

from __future__ import annotations

import time

from asapo.compat.requests import (
    Acknowledge,
    DeleteStream,
    LastAcknowledged,
    NegAcknowledge,
    SetMarker,
    Unacknowledged,
)
from asapo.errors import WrongInput
from asapo_broker.http.compat.answer import Answer, json_answer
from asapo_broker.http.compat.arrivals import Arrivals
from asapo_broker.http.compat.book import GroupBook, Mark
from asapo_broker.http.compat.streams import Streams, ref_of


class Acknowledging:
    """Answers requests about acknowledgements and markers."""

    def __init__(self, streams: Streams, arrivals: Arrivals, book: GroupBook) -> None:
        self._streams = streams
        self._arrivals = arrivals
        self._book = book

    def _mark(self, request: Acknowledge | NegAcknowledge | Unacknowledged | LastAcknowledged | SetMarker) -> Mark:
        return self._book.mark(ref_of(request), request.group, self._streams.deletion(request))

    def acknowledge(self, request: Acknowledge) -> Answer:
        """Note that a message is done."""
        self._book.acknowledge(self._mark(request), request.message_id)
        return Answer()

    def hand_back(self, request: NegAcknowledge) -> Answer:
        """Have a message given once more."""
        self._book.hand_back(self._mark(request), request.message_id, time.time() + request.delay_s)
        return Answer()

    def unacknowledged(self, request: Unacknowledged) -> Answer:
        """List the ids that are not done; all numbers count, whether there are such messages or not."""
        first = max(request.first, 1)
        last = request.last or self._streams.describe(request).id_max
        return json_answer({"unacknowledged": self._book.not_done(self._mark(request), first, last)})

    def last(self, request: LastAcknowledged) -> Answer:
        """Tell the highest id that is done; 0 for none."""
        return json_answer({"lastAckId": self._book.last_done(self._mark(request))})

    def delete_stream(self, request: DeleteStream) -> Answer:
        """Delete a stream and what groups know of it.

        Raises
        ------
        WrongInput
            If there is none, and the client wants to be told.
        """
        there = self._streams.delete(request)
        self._book.forget_stream(ref_of(request))
        if not there and request.error_if_absent:
            raise WrongInput(f"stream {request.stream!r}: there is none of this name, so nothing was deleted")
        return Answer()

    def set_marker(self, request: SetMarker) -> Answer:
        """Have `next` go on behind an id; reading as messages arrive, behind so many of them."""
        self._arrivals.set_position(request, request.group, request.value)
        self._book.set_position(self._mark(request), request.value)
        return Answer()
