"""Reading as messages arrive (`id_key=time_id`): a group of ours that is not ordered, acknowledged as it is given.

A group of ASAP::O may use both orders, each with a place of its own. This one is kept by the delivery core, which knows
the order of arrival; the group is listed there under a name that begins with `asapo:`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from asapo.compat.requests import CompatRequest, Next
from asapo.errors import StreamState, UnknownGroup, WrongInput
from asapo.models import check_name
from asapo.wire.events import Acknowledge, GetNext, Nack
from asapo.wire.group_events import Seek
from asapo_broker.http.compat.streams import Found, Streams

PREFIX: Final = "asapo:"


class Arrivals:
    """Gives messages in the order in which they arrived."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    def next(self, request: Next) -> Found | None:
        """Give the next one to arrive, and call it done; None when there is none. A dataset arrives with its last part.

        A message where datasets are asked for, or the other way round, is handed back: the client cannot read it.
        """
        names = _names(request, request.group)
        try:
            rows = self._streams.cores.rows(request.beamtime, GetNext, **names, ordered=False)
        except StreamState:
            return None
        found = self._streams.found(request, rows)
        if (request.dataset is None) is bool(found.dataset_size):
            self._streams.cores.ask(request.beamtime, Nack, **names, ids=[found.id], unstarted=True)
            return found
        # Not waited for: it goes before the next GetNext of this group, and if it is lost the message comes once more.
        self._streams.cores.tell(request.beamtime, Acknowledge, **names, ranges=[[found.id, found.id]])
        return found

    def set_position(self, request: CompatRequest, group: str, value: int) -> None:
        """Go on behind so many arrivals; where there are not so many, or the group never read so, nothing changes."""
        names = _names(request, group)
        place: dict[str, Any] = {"to": "start"}
        if value:
            # An id must be named, too, but in this order it is the number of the arrival that counts.
            place = {"to": "id", "message_id": 1, "seq": value + 1}
        with suppress(UnknownGroup, StreamState, WrongInput):
            self._streams.cores.ask(request.beamtime, Seek, **names, **place)


def _names(request: CompatRequest, group: str) -> dict[str, Any]:
    return {"source": request.source, "stream": request.stream, "group": check_name("group", f"{PREFIX}{group}")}
