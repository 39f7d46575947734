"""A client's side of a conversation, pure: requests numbered and kept until answered, answers matched, no I/O.

The same class speaks to the delivery core (role consumer) and to data servers (role reader). A link may die at any
time: `opened` then repeats the greeting and every unanswered request under its old number, and the server answers
a request that it has already served from its stored replies, so nothing is delivered twice to one session.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from asapo.errors import AsapoError, LocalProtocolError, RemoteProtocolError, from_wire
from asapo.wire.codec import decode, encode
from asapo.wire.events import (
    Acknowledge,
    Beat,
    Bye,
    Done,
    Event,
    Failed,
    GetNext,
    Goodbye,
    Hello,
    Nack,
    Piece,
    Rows,
    Welcome,
)
from asapo.wire.session import HELLO_ROLES, Role, State, advance

logger = logging.getLogger(__name__)

SERVER_OF = {Role.CONSUMER: Role.BROKER, Role.READER: Role.DATA_SERVER}
BEAT = encode(Beat())
LOST_TEXT = "messages %s were done here after they were given to somebody else"


class Call:
    """One request and, once `done`, its answer or its error."""

    __slots__ = ("abandoned", "answer", "done", "error", "header", "on_done", "payload", "request")

    def __init__(self, request: Any, header: bytes, on_done: Callable[[Call], None] | None) -> None:
        self.request = request
        self.header = header
        self.on_done = on_done
        self.answer: Event | None = None
        self.payload: Any = b""
        self.error: AsapoError | None = None
        self.done = False
        self.abandoned = False

    def finish(self, answer: Event | None, payload: Any = b"", error: AsapoError | None = None) -> None:
        """Take the answer; `on_done` runs in the thread that received it and must not block."""
        self.answer, self.payload, self.error, self.done = answer, payload, error, True
        if self.on_done is not None:
            self.on_done(self)

    def result(self) -> Event:
        """Return the answer or raise the error that came instead."""
        if self.error is not None:
            raise self.error
        if self.answer is None:
            raise LocalProtocolError(f"{type(self.request).__name__} {self.request.request} has no answer yet")
        return self.answer


class ClientSession:
    """Requests in flight under one session id. Not thread-safe: the channel that owns it holds a lock."""

    def __init__(self, hello: Hello) -> None:
        self.hello = hello
        self.welcome: Welcome | None = None
        """The server's greeting on the present link; None before it came."""
        self.outgoing: deque[bytes] = deque()
        """Headers to be sent on the present link, oldest first."""
        self.pending: dict[int, Call] = {}
        self.reports: dict[Any, Callable[[], dict[str, Any]]] = {}
        """What tells the server with each sign of life what is done here, by whose work it is."""
        self._server = SERVER_OF[HELLO_ROLES[hello.role]]
        self._server_state = State.GREETING
        self._numbers = itertools.count(1)

    def begin(self, kind: type[Any], fields: dict[str, Any], on_done: Callable[[Call], None] | None = None) -> Call:
        """Queue a request under a new number.

        Raises
        ------
        WrongInput
            If a field is not acceptable.
        """
        request = kind(request=next(self._numbers), **fields)
        call = Call(request, encode(request), on_done)
        self.pending[request.request] = call
        self.outgoing.append(call.header)
        return call

    def opened(self) -> None:
        """Begin a new link: the greeting, then every unanswered request again, oldest first."""
        self.welcome = None
        self._server_state = State.GREETING
        self.outgoing.clear()
        self.outgoing.append(encode(self.hello))
        self.outgoing.extend(call.header for call in self.pending.values())

    def beat(self) -> None:
        """Queue a sign of life; it renews the leases of this session."""
        reports = list(self.reports.values())
        self.outgoing.append(encode(Beat(work=[report() for report in reports])) if reports else BEAT)

    def leave(self) -> None:
        """Queue the farewell that ends the session."""
        self.outgoing.append(encode(Bye()))

    def abandon(self, call: Call) -> None:
        """Nobody waits for this call any more; messages it still brings are given back."""
        call.abandoned = True
        call.on_done = None
        if call.done:
            self._give_back(call)

    def is_owed_messages(self) -> bool:
        """Tell whether messages may come that nobody waits for."""
        return any(call.abandoned and isinstance(call.request, GetNext) for call in self.pending.values())

    def fail_all(self, error: AsapoError) -> None:
        """End every pending call with `error`."""
        calls = list(self.pending.values())
        self.pending.clear()
        for call in calls:
            call.finish(None, error=error)

    def receive(self, header: bytes, payload: Any = b"") -> None:
        """Take one message of the server.

        Raises
        ------
        ProtocolError
            If the server broke the protocol; the link must be dropped.
        AsapoError
            The reason that the server gave for ending the link.
        """
        event = decode(header, len(payload))
        self._server_state = advance(self._server, self._server_state, event, RemoteProtocolError)
        if isinstance(event, (Rows, Done, Failed, Piece)):
            self._answered(event, payload)
        elif isinstance(event, Welcome):
            self.welcome = event
        elif isinstance(event, Goodbye):
            raise error_of(event.error)

    def _answered(self, event: Rows | Done | Failed | Piece, payload: Any) -> None:
        call = self.pending.pop(event.request, None)
        if call is None:
            return  # a second answer to a request that was repeated
        if isinstance(event, (Rows, Failed)) and event.lost:
            logger.warning(LOST_TEXT, event.lost)
        if isinstance(event, Failed):
            call.finish(None, error=error_of(event.error))
        else:
            call.finish(event, payload)
        if call.abandoned:
            self._give_back(call)

    def _give_back(self, call: Call) -> None:
        """Return messages that nobody will look at; their attempt does not count."""
        fields = unlooked(call)
        if fields is not None:
            self.begin(Nack, fields, log_failure)


def unlooked(call: Call) -> dict[str, Any] | None:
    """Return the fields of the Nack that hands the messages of an abandoned call back; None when it brought none."""
    asked, rows = call.request, call.answer
    if not isinstance(asked, GetNext) or not isinstance(rows, Rows) or not rows.rows:
        return None
    ids = list(dict.fromkeys(row[0] for row in rows.rows))
    given = {"ids": ids, "unstarted": True, "given_by": asked.request}
    return {"source": asked.source, "stream": asked.stream, "group": asked.group, **given}


def log_failure(call: Call) -> None:
    """Report the failure of a request that nobody waits for, unless it is our own leaving before its answer."""
    if call.error is not None and not isinstance(call.error, LocalProtocolError):
        logger.warning("%s was refused: %s", type(call.request).__name__, call.error)
    elif isinstance(call.request, Acknowledge) and isinstance(call.answer, Done) and call.answer.result.get("lost"):
        logger.warning(LOST_TEXT, call.answer.result["lost"])


def error_of(fields: dict[Any, Any]) -> AsapoError:
    """Rebuild an error from its map, whatever a newer or broken peer put into it."""
    details = fields.get("fields")
    known = {str(key): value for key, value in details.items()} if isinstance(details, dict) else {}
    return from_wire(str(fields.get("code", "")), str(fields.get("message", "")), known)
