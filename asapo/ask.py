"""Ask a service one question at a time: what tools and the HTTP front need of the native protocol."""

from __future__ import annotations

import itertools
import os
import threading
import time
from typing import Any, Final

from asapo.errors import AsapoError, DeadlineExceeded, LinkLost, RemoteProtocolError, from_wire
from asapo.hostinfo import boot_id, who_am_i
from asapo.transport import Link, Waiter, connect
from asapo.wire.codec import decode, encode
from asapo.wire.events import Bye, Done, Event, Failed, Fetch, Goodbye, Hello, Piece, Rows, Welcome

QUIET_S: Final = 5.0
"""A link that was not used for this long is made anew, because the service may have dropped it."""


class Asker:
    """A client that waits for each answer. Safe from several threads, one question after the other.

    Parameters
    ----------
    url : str
        The broker's address; that of a data server for a reader.
    beamtime : str
        Beamtime that questions about streams refer to; may be empty for questions about the service.
    role : {"consumer", "reader"}
        Whether the broker is asked, or a data server.
    """

    def __init__(self, url: str, *, beamtime: str = "", timeout_s: float = 5.0, role: str = "consumer") -> None:
        self.url = url
        self._hello = Hello(role, os.urandom(16), beamtime=beamtime, name=who_am_i(), boot_id=boot_id())
        self._timeout_s = timeout_s
        self._link: Link | None = None
        self._used_s = 0.0
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def ask(self, kind: type[Any], **fields: Any) -> dict[Any, Any] | Rows:
        """Send a request (an event class of `asapo.wire.events` and its fields) and return its answer.

        Raises
        ------
        LinkLost, DeadlineExceeded
            The service is not there, or does not answer in time.
        AsapoError
            The error that the service answered.
        """
        answer, _ = self._ask(kind, fields)
        assert not isinstance(answer, Piece), "a data server is asked by `fetch`"
        return answer.result if isinstance(answer, Done) else answer

    def tell(self, kind: type[Any], **fields: Any) -> None:
        """Send a request behind those that were answered, and do not wait: its answer is passed over.

        Raises
        ------
        LinkLost, DeadlineExceeded
            The service is not there.
        """
        with self._lock:
            try:
                link = self._opened(time.monotonic() + self._timeout_s)
                link.send(encode(kind(request=next(self._numbers), **fields)))
                self._used_s = time.monotonic()
            except AsapoError:
                self._drop()
                raise

    def fetch(self, **fields: Any) -> memoryview:
        """Return the bytes that a data server sends for the fields of a Fetch, read-only.

        Raises
        ------
        LinkLost, DeadlineExceeded, AsapoError
            As `ask`.
        """
        _, payload = self._ask(Fetch, fields)
        return memoryview(payload).cast("B").toreadonly()

    def _ask(self, kind: type[Any], fields: dict[str, Any]) -> tuple[Done | Rows | Piece, Any]:
        """Return the answer with its payload part."""
        with self._lock:
            try:
                deadline_s = time.monotonic() + self._timeout_s
                self._opened(deadline_s)
                request = kind(request=next(self._numbers), **fields)
                answer, payload = self._exchange(request, deadline_s)
                self._used_s = time.monotonic()
            except AsapoError:
                self._drop()
                raise
        if isinstance(answer, Failed):
            raise from_wire(answer.error["code"], answer.error["message"], answer.error["fields"])
        return answer, payload

    def _opened(self, deadline_s: float) -> Link:
        """Return the link, made anew when there is none, or it was quiet for long."""
        if self._link is not None and time.monotonic() - self._used_s <= QUIET_S:
            return self._link
        self._drop()
        self._link = connect(self.url)
        self._link.send(encode(self._hello))
        answer, _ = self._next(deadline_s)
        if not isinstance(answer, Welcome):
            raise RemoteProtocolError(f"{self.url} answered {type(answer).__name__}: expected Welcome")
        return self._link

    def _exchange(self, request: Any, deadline_s: float) -> tuple[Done | Failed | Rows | Piece, Any]:
        assert self._link is not None
        self._link.send(encode(request))
        while True:
            answer, payload = self._next(deadline_s)
            if isinstance(answer, (Done, Failed, Rows, Piece)) and answer.request == request.request:
                return answer, payload

    def _next(self, deadline_s: float) -> tuple[Event, Any]:
        assert self._link is not None
        waiter = Waiter(self._link)
        while (left_s := deadline_s - time.monotonic()) > 0:
            message = self._link.receive()
            if message is None:
                waiter.wait(left_s)
                continue
            event = decode(message.header, len(message.payload))
            if isinstance(event, Goodbye):
                raise from_wire(event.error["code"], event.error["message"], event.error["fields"])
            return event, message.payload  # type: ignore[return-value]
        raise DeadlineExceeded(f"{self.url} did not answer within {self._timeout_s:g} s", after_s=self._timeout_s)

    def _drop(self) -> None:
        if self._link is not None:
            try:
                self._link.send(encode(Bye()))
                self._link.close(linger_s=0.1)
            except LinkLost:
                self._link.close()
            self._link = None

    def close(self) -> None:
        """End the link."""
        with self._lock:
            self._drop()
