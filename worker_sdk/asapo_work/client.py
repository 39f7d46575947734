"""What the sync and the async consumer share: settings, the session's channel, and its payload reader."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

from asapo.errors import AsapoError
from asapo.hostinfo import boot_id, who_am_i
from asapo.models import check_name
from asapo.wire.events import SESSION_BYTES, GetById, Hello, Rows
from asapo_work.keepalive import KeepAlive
from asapo_work.link import Channel
from asapo_work.payload import Access, MessagePayloads
from asapo_work.plans import Place, check_wait
from asapo_work.session import ClientSession

MAX_PLACES: Final = 1024
"""Streams that were named lately; their names need no second check."""
TIMEOUT_S: Final = 10.0
"""Default wait of a call."""
LOCATE_S: Final = 1.0
"""Wait for the broker to say where a message lies, before it is asked again."""
STREAM_TIMEOUT_S: Final = 600.0
"""Default wait of `stream()` for the next message (every wait is finite, R29)."""


class Client:
    """Settings and connections of one consumer; the sockets are opened by the first call."""

    def __init__(
        self,
        url: str,
        *,
        beamtime: str,
        source: str,
        timeout_s: float,
        verify: bool,
        token: str,
        name: str,
        access: Access,
    ) -> None:
        self.beamtime = check_name("beamtime", beamtime)
        self.source = source and check_name("source", source)
        self.timeout_s = check_wait(timeout_s)
        session = os.urandom(SESSION_BYTES)
        hello = Hello("consumer", session, beamtime, source, name or who_am_i(), boot_id(), token)
        self.channel = Channel(url, ClientSession(hello))
        self.payloads = MessagePayloads(
            hello, access=access, verify=verify, timeout_s=self.timeout_s, locate=self._locate
        )
        self.keep_alive = KeepAlive(self.channel)
        self._places: dict[tuple[str, str | None], Place] = {}

    def place(self, stream: str, source: str | None = None) -> Place:
        """Return the stream that a call names."""
        key = (stream, source)
        place = self._places.get(key)
        if place is None:
            place = Place(self.beamtime, self.source if source is None else source, stream, self.payloads)
            if len(self._places) >= MAX_PLACES:
                self._places.clear()
            self._places[key] = place
        return place

    def _locate(self, source: str, stream: str, row: Sequence[Any]) -> Any:
        """Ask where the bytes of a row lie now; see `payload.Locate`."""
        fields = {"source": source, "stream": stream, "ids": [row[0]]}
        try:
            answer = self.channel.call(GetById, fields, LOCATE_S)
        except AsapoError:
            return None
        return answer.segments.get(row[4]) if isinstance(answer, Rows) else None

    def wait_s(self, timeout_s: float | None) -> float:
        """Return the timeout of a call."""
        return self.timeout_s if timeout_s is None else check_wait(timeout_s)

    def close(self) -> None:
        """End everything; payloads that were read stay readable."""
        self.keep_alive.stop()
        self.channel.close()
        self.payloads.close()

    def summary(self, kind: str) -> str:
        """Return a repr for the terminal."""
        state = "closed" if self.channel.closed else self.channel.address
        source = f"/{self.source}" if self.source else ""
        return f"<{kind} of {self.beamtime}{source}: {state}>"
