"""A delivery core for tests of clients: real links, memory instead of an index, and answers that a test can script."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any, TypeVar

from asapo.errors import AsapoError, ConnectFailed, Gap, NothingYet, StreamFinished, UnknownStream, to_wire
from asapo.models import Row
from asapo.transport import Server, Waiter, Wakeup, listen
from asapo.wire.codec import decode, encode
from asapo.wire.events import (
    Acknowledge,
    Beat,
    Bye,
    Describe,
    Done,
    Event,
    Failed,
    GetById,
    GetLast,
    GetNext,
    Goodbye,
    Hello,
    ListReceivers,
    ListStreams,
    Nack,
    Query,
    Rows,
    Welcome,
)
from asapo.wire.limits import MAX_HEADER_BYTES

E = TypeVar("E")
Answer = Event | None


@dataclass
class FakeStream:
    """What the fake knows of one stream, and how far its groups are."""

    rows: list[Row] = field(default_factory=list)
    finished: bool = False
    next_stream: str = ""
    given: dict[str, set[int]] = field(default_factory=dict)
    """Group to the ids it was given and did not hand back."""
    done: dict[str, set[int]] = field(default_factory=dict)
    attempts: dict[tuple[str, int], int] = field(default_factory=dict)

    def take(self, group: str, n: int) -> list[Row]:
        """Give the next rows to a group."""
        given = self.given.setdefault(group, set())
        rows = [row for row in self.rows if row.id not in given][:n]
        given.update(row.id for row in rows)
        for row in rows:
            self.attempts[group, row.id] = self.attempts.get((group, row.id), 0) + 1
        return rows

    def settle(self, group: str, ranges: Sequence[Sequence[int]]) -> None:
        """Note ids as done."""
        for low, high in ranges:
            self.done.setdefault(group, set()).update(range(low, high + 1))


def row(message_id: int, **columns: Any) -> Row:
    """Return a row of a small message; name the columns that matter."""
    empty = Row(message_id, message_id, 0, 0, 1, 0, 0, 0, 0, "{}", 0, 0, 0, 0)
    return empty._replace(**columns)


class FakeBroker:
    """Serves consumers from a thread until `close`; use it as a context manager.

    A test prepares `streams` before, looks at `requests` after, and sets `script[kind]` to a function that answers such
    requests instead (it returns an event, or None for no answer at all).
    """

    def __init__(self, *, heartbeat_s: float = 0.2) -> None:
        self.streams: dict[tuple[str, str], FakeStream] = {}
        self.segments: dict[int, list[str]] = {}
        self.formats: dict[int, list[Any]] = {}
        self.origins: dict[int, list[str]] = {}
        self.receivers: list[dict[str, Any]] = []
        self.script: dict[type[Event], Callable[[Any], Answer]] = {}
        self.requests: list[Event] = []
        self.lock = threading.Condition()
        """Held while the fake works; a test holds it to change several things at once."""
        self._heartbeat_s = heartbeat_s
        self._replies: dict[tuple[bytes, int], bytes] = {}
        self._sessions: dict[bytes, bytes] = {}
        self._lose: set[type[Event]] = set()
        self._hold: set[type[Event]] = set()
        self._held: list[tuple[bytes, bytes]] = []
        self._waiting: deque[tuple[bytes, GetNext, float]] = deque()
        self._bell = Wakeup()
        self._stop = False
        self._restart = False
        self._server: Server = listen("tcp://127.0.0.1:*", max_part_bytes=MAX_HEADER_BYTES)
        self.url = self._server.address
        self._thread = threading.Thread(target=self._run, name="fake-broker")
        self._thread.start()

    def stream(self, source: str = "det", stream: str = "default", n: int = 0, **state: Any) -> FakeStream:
        """Make a stream with messages 1..n and wake who waits for it."""
        made = FakeStream([row(i + 1) for i in range(n)], **state)
        with self.lock:
            self.streams[source, stream] = made
        self._bell.ring()
        return made

    def change(self, do: Callable[[], object]) -> None:
        """Run `do` while the fake stands still, then let it look again."""
        with self.lock:
            do()
        self._bell.ring()

    def seen(self, kind: type[E]) -> list[E]:
        """Return the requests of one kind so far."""
        with self.lock:
            return [request for request in self.requests if isinstance(request, kind)]

    def wait_until(self, true: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Wait for something that the fake's work makes true; an AssertionError when it does not."""
        with self.lock:
            assert self.lock.wait_for(true, timeout_s), "the fake broker did not come to that"

    def cut_links(self) -> None:
        """Lose every link as a restart does: the same address is served again, sessions and replies are kept."""
        with self.lock:
            self._restart = True
            self._bell.ring()
            assert self.lock.wait_for(lambda: not self._restart, 10.0), "the fake broker did not come back"

    def lose_answer(self, kind: type[Event]) -> None:
        """Cut all links instead of sending the next answer to this kind of request; the reply is kept."""
        self.change(lambda: self._lose.add(kind))

    def hold_answers(self, kind: type[Event]) -> None:
        """Answer this kind of request only when `release_answers` is called."""
        self.change(lambda: self._hold.add(kind))

    def release_answers(self) -> None:
        """Send what was held, and hold nothing more."""
        self.change(self._hold.clear)

    def close(self) -> None:
        """Stop serving."""
        with self.lock:
            self._stop = True
        self._bell.ring()
        self._thread.join()
        self._bell.close()

    def __enter__(self) -> FakeBroker:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # ----------------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop:  # each round is one life of the server
            waiter = Waiter(self._server, self._bell)
            while self._serving():
                waiter.wait(self._pause_s())
                self._bell.hear()
                with self.lock:
                    self._work()
                    self.lock.notify_all()
            self._server.close()
            if self._restart:
                self._server = self._listen_again()
                with self.lock:
                    self._restart = False
                    self.lock.notify_all()

    def _listen_again(self, give_up_s: float = 5.0) -> Server:
        """Bind the same address as soon as ZeroMQ's own thread has let go of it."""
        deadline_s = monotonic() + give_up_s
        while True:
            try:
                return listen(self.url, max_part_bytes=MAX_HEADER_BYTES)
            except ConnectFailed:
                if monotonic() > deadline_s:
                    raise
                sleep(0.005)

    def _serving(self) -> bool:
        return not (self._stop or self._restart)

    def _pause_s(self) -> float:
        return max(0.0, min((until_s - monotonic() for _, _, until_s in self._waiting), default=1.0))

    def _work(self) -> None:
        while (message := self._server.receive()) is not None:
            self._hear(message.peer, decode(message.header, len(message.payload)))
        while self._held and not self._hold:
            session, reply = self._held.pop(0)
            self._server.send(self._sessions[session], reply)
        for _ in range(len(self._waiting)):
            session, request, until_s = self._waiting.popleft()
            self._answer(session, request, until_s)

    def _hear(self, peer: bytes, event: Any) -> None:
        self.requests.append(event)
        if isinstance(event, Hello):
            self._sessions[event.session] = peer
            self._server.send(peer, encode(Welcome("fake", heartbeat_s=self._heartbeat_s)))
        session = next((key for key, known in self._sessions.items() if known == peer), None)
        if session is None:
            self._server.send(peer, encode(Goodbye(to_wire(AsapoError("Hello first")))))
        elif isinstance(event, Beat | Bye | Hello):
            return
        elif (session, event.request) in self._replies:
            self._server.send(peer, self._replies[session, event.request])
        elif not any(entry[:1] == (session,) and entry[1].request == event.request for entry in self._waiting):
            self._answer(session, event, monotonic() + getattr(event, "wait_s", 0.0))

    def _answer(self, session: bytes, event: Any, until_s: float) -> None:
        script = self.script.get(type(event))
        try:
            answer = script(event) if script is not None else self._serve(event)
        except AsapoError as exc:
            if isinstance(event, GetNext) and isinstance(exc, NothingYet | UnknownStream) and monotonic() < until_s:
                self._waiting.append((session, event, until_s))
                return
            answer = Failed(event.request, to_wire(exc))
        if answer is not None:
            reply = encode(answer)
            self._replies[session, event.request] = reply
            self._send(session, type(event), reply)

    def _send(self, session: bytes, kind: type[Event], reply: bytes) -> None:
        if kind in self._lose:
            self._lose.discard(kind)
            self._restart = True
        elif kind in self._hold:
            self._held.append((session, reply))
        else:
            self._server.send(self._sessions[session], reply)

    def _serve(self, event: Any) -> Event:
        if isinstance(event, ListStreams):
            return self._list(event)
        if isinstance(event, ListReceivers):
            return Done(event.request, {"receivers": self.receivers})
        stream = self.streams.get((event.source, event.stream))
        if stream is None:
            raise UnknownStream(f"no stream {event.stream}", source=event.source, stream=event.stream)
        if isinstance(event, Acknowledge):
            stream.settle(event.group, event.ranges)
            return Done(event.request)
        if isinstance(event, Nack):
            stream.given.setdefault(event.group, set()).difference_update(event.ids)
            for message_id in event.ids if event.unstarted else ():
                stream.attempts[event.group, message_id] -= 1
            return Done(event.request)
        if isinstance(event, Describe):
            return Done(event.request, self._info(event.source, event.stream))
        return self._rows(event, stream)

    def _rows(self, event: GetNext | GetLast | GetById | Query, stream: FakeStream) -> Rows:
        attempts, missing = {}, {}
        if isinstance(event, GetNext):
            stream.settle(event.group, event.done)
            rows = stream.take(event.group, event.n)
            attempts = {one.id: stream.attempts[event.group, one.id] for one in rows}
        elif isinstance(event, GetById):
            rows = [one for one in stream.rows if one.id in event.ids]
            for message_id in set(event.ids) - {one.id for one in rows}:
                missing[message_id] = to_wire(Gap(f"no id {message_id}", message_id=message_id))
        else:
            rows = stream.rows[-1:] if isinstance(event, GetLast) else stream.rows[: event.limit]
        if not rows and not isinstance(event, Query | GetById):
            id_max = max((one.id for one in stream.rows), default=0)
            if stream.finished:
                raise StreamFinished("finished", id_max=id_max, next_stream=stream.next_stream)
            raise NothingYet("nothing yet", id_max=id_max)
        again = {message_id: n for message_id, n in attempts.items() if n > 1}
        return Rows(event.request, rows, self.segments, self.formats, self.origins, again, missing=missing)

    def _info(self, source: str, name: str) -> dict[str, Any]:
        stream = self.streams[source, name]
        id_max = max((one.id for one in stream.rows), default=0)
        return {"source": source, "stream": name, "n_messages": len(stream.rows), "id_max": id_max,
                "finished": stream.finished, "next_stream": stream.next_stream, "meta": {}}  # fmt: skip

    def _list(self, event: ListStreams) -> Done:
        names = sorted(key for key in self.streams if event.source in ("", key[0]))
        after = (event.source, event.after) if event.source else tuple(event.after.split("\0"))
        found = [self._info(*key) for key in names if not event.after or key > after]
        return Done(event.request, {"streams": found[: event.limit]})
