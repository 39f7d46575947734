"""What the sync and the async consumer share: settings, the session's channel, and its payload reader."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from asapo.errors import AsapoError
from asapo.hostinfo import boot_id, who_am_i
from asapo.models import check_name
from asapo.wire.events import SESSION_BYTES, Event, GetById, Hello, Rows
from asapo.wire.group_events import Explain
from asapo_work.failures import Unexplained, told
from asapo_work.keepalive import KeepAlive
from asapo_work.link import Channel
from asapo_work.message import Payloads
from asapo_work.overtime import Overtime
from asapo_work.payload import Access, MessagePayloads
from asapo_work.plans import Place, check_wait
from asapo_work.session import Call, ClientSession

MAX_PLACES: Final = 1024
"""Streams that were named lately; their names need no second check."""
TIMEOUT_S: Final = 10.0
"""Default wait of a call."""
LOCATE_S: Final = 1.0
"""Wait for the broker to say where a message lies, before it is asked again."""
STREAM_TIMEOUT_S: Final = 600.0
"""Default wait of `stream()` for the next message (every wait is finite, R29)."""


class Conversation(Protocol):
    """Requests and their answers, whoever gives them: what `Channel` promises of these methods."""

    @property
    def closed(self) -> bool:
        """True when no call is possible any more."""

    def begin(self, kind: type[Any], fields: dict[str, Any]) -> Call:
        """Send a request and return at once."""

    def post(self, kind: type[Any], fields: dict[str, Any]) -> None:
        """Send a request whose answer nobody waits for."""

    def check(self, call: Call) -> bool:
        """Return whether `call` has its answer, without waiting."""

    def call(self, kind: type[Any], fields: dict[str, Any], timeout_s: float) -> Event:
        """Send a request and wait for its answer."""

    def result(self, call: Call, timeout_s: float) -> Event:
        """Wait for the answer of `call`."""

    def glance(self, call: Call, timeout_s: float) -> bool:
        """Wait for an answer that may well come later; True when it is there."""

    def abandon(self, call: Call) -> None:
        """Wait for this call no longer."""


class BaseClient:
    """What the calls of a consumer need, wherever its messages come from."""

    channel: Conversation
    payloads: Payloads

    def __init__(self, *, beamtime: str, source: str, timeout_s: float) -> None:
        self.beamtime = check_name("beamtime", beamtime)
        self.source = source and check_name("source", source)
        self.timeout_s = check_wait(timeout_s)
        self.clock: Callable[[], float] = time.monotonic
        """What deadlines are told by, seconds."""
        self.pause: Callable[[float], None] = time.sleep
        self._places: dict[tuple[str, str | None], Place] = {}
        self.unexplained: Unexplained | None = None
        """What the last loop handed back that was dropped, nobody knows why."""

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

    def wait_s(self, timeout_s: float | None) -> float:
        """Return the timeout of a call."""
        return self.timeout_s if timeout_s is None else check_wait(timeout_s)

    def summary(self, kind: str, where: str) -> str:
        """Return a repr for the terminal."""
        source = f"/{self.source}" if self.source else ""
        return f"<{kind} of {self.beamtime}{source}: {'closed' if self.channel.closed else where}>"

    def explain(self, error: BaseException | None) -> None:
        """Tell the broker why messages were handed back, if it was for this exception."""
        known, self.unexplained = self.unexplained, None
        if known is not None and error is not None and known.is_by(error):
            self.channel.post(Explain, {**known.fields, **told(error)})

    def keep_leases(self, lease_s: float) -> None:
        """See to it that leases of this length do not run out while this process lives."""
        raise NotImplementedError

    def watch(self, overtime: Overtime) -> None:
        """See to it that messages which user code does not come back from are given to others, if there are any."""

    def forget(self, overtime: Overtime) -> None:
        """User code is watched no more; any thread, harmless for what was never watched."""

    def report(self, work: object, tell: Callable[[], dict[str, Any]]) -> None:
        """Have the services told what a piece of work has done, with each sign of life; `tell` must not block."""

    def close(self) -> None:
        """End everything; payloads that were read stay readable."""
        raise NotImplementedError


class Client(BaseClient):
    """Settings and connections of one consumer; the sockets are opened by the first call."""

    channel: Channel
    payloads: MessagePayloads

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
        super().__init__(beamtime=beamtime, source=source, timeout_s=timeout_s)
        session = os.urandom(SESSION_BYTES)
        hello = Hello("consumer", session, beamtime, source, name or who_am_i(), boot_id(), token)
        self.channel = Channel(url, ClientSession(hello))
        self.payloads = MessagePayloads(
            hello, access=access, verify=verify, timeout_s=self.timeout_s, locate=self._locate
        )
        self.keep_alive = KeepAlive(self.channel)

    def _locate(self, source: str, stream: str, row: Sequence[Any]) -> Any:
        """Ask where the bytes of a row lie now; see `payload.Locate`."""
        fields = {"source": source, "stream": stream, "ids": [row[0]]}
        try:
            answer = self.channel.call(GetById, fields, LOCATE_S)
        except AsapoError:
            return None
        return answer.segments.get(row[4]) if isinstance(answer, Rows) else None

    def keep_leases(self, lease_s: float) -> None:
        """Beat often enough for leases of this length."""
        self.keep_alive.start(lease_s)

    def watch(self, overtime: Overtime) -> None:
        """Look after user code with each sign of life."""
        if overtime.limit_s:
            self.keep_alive.watch(overtime)

    def forget(self, overtime: Overtime) -> None:
        """Look after it no more."""
        if overtime.limit_s:
            overtime.end()
            self.keep_alive.forget(overtime)

    def report(self, work: object, tell: Callable[[], dict[str, Any]]) -> None:
        """Have the broker told what a piece of work has done; see `BaseClient.report`."""
        self.channel.report(work, tell)

    def close(self) -> None:
        """End everything; payloads that were read stay readable."""
        self.keep_alive.stop()
        self.channel.close()
        self.payloads.close()
