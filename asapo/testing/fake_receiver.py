"""A receiver and a broker that follow a script, in this process, on the real transport: for tests of producers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self

from xxhash import xxh3_64_intdigest

from asapo.errors import AsapoError, ConnectFailed, DuplicateId, PayloadChanged, StreamBusy, to_wire
from asapo.models import Format, Origin
from asapo.transport import Message, Server, Waiter, Wakeup, listen
from asapo.wire.codec import decode, encode
from asapo.wire.events import (
    Ack,
    Beat,
    Bye,
    Done,
    Event,
    Failed,
    FinishStream,
    Goodbye,
    Hello,
    ListReceivers,
    OpenStream,
    SetMeta,
    Welcome,
)
from asapo.wire.limits import MAX_UNIT_BYTES, MIB
from asapo.wire.put import Put, unit_offsets, unpack_column

Refusal = Callable[[str, int], AsapoError | None]
"""(stream, message id) to the error it is refused with."""


class Stored(NamedTuple):
    """One message as the fake receiver stored it."""

    data: bytes
    meta: str
    format: Format
    dataset_size: int
    acquired_ns: int
    level: str
    origin: Origin | None
    receiver_id: str


@dataclass
class Archive:
    """What all fake receivers of a test stored together: the part of the index."""

    messages: dict[tuple[str, int, int], Stored] = field(default_factory=dict)
    """(stream, substream, id) to message."""
    finished: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Stream to (last id, next stream)."""
    metas: dict[str, str] = field(default_factory=dict)
    numbering: dict[tuple[str, int], bytes] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def ids(self, stream: str = "default", substream: int = 0) -> list[int]:
        """Return the ids of a stream, ascending."""
        with self.lock:
            return sorted(i for name, part, i in self.messages if (name, part) == (stream, substream))


@dataclass
class FakePeer:
    """One producer link."""

    hello: Hello
    next_unit: int = 1
    in_flight: list[tuple[Put, int]] = field(default_factory=list)
    errors: list[list[Any]] = field(default_factory=list)


def _listen(url: str, timeout_s: float = 10.0) -> Server:
    """Bind; an address whose last server has just closed is free only when the transport's thread has let go of it."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            return listen(url, max_part_bytes=MAX_UNIT_BYTES)
        except ConnectFailed:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.005)


class _Served:
    """A thread around a server: the common part of both fakes."""

    def __init__(self, url: str) -> None:
        self._server = _listen(url)
        self.address = self._server.address
        self._bell = Wakeup()
        self._stopping = False
        self._changed = threading.Condition()
        self.heard: list[Event | Put] = []
        """Everything that came in, in order."""
        self.defects: list[str] = []
        """What the peer did against the protocol, and what broke in here."""
        self._thread = threading.Thread(target=self._run, name="fake-server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Vanish without a word, as a killed process does."""
        if self._stopping:
            return
        self._stopping = True
        self._bell.ring()
        self._thread.join(10)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Wait until `condition` holds; AssertionError when it does not within `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while not condition():
                # The condition may depend on others, so it is looked at now and then without an event, too.
                self._changed.wait(0.02)
                assert time.monotonic() < deadline_s, f"not within {timeout_s} s; defects: {self.defects}"

    def count(self, kind: type[Event] | type[Put]) -> int:
        """Return how many events of a kind came in."""
        return sum(type(event) is kind for event in self.heard)

    def _run(self) -> None:
        waiter = Waiter(self._bell, self._server)
        try:
            while not self._stopping:
                waiter.wait(0.05)
                self._bell.hear()
                while (message := self._server.receive()) is not None:
                    event = decode(message.header, len(message.payload))
                    self.heard.append(event)
                    self.take(message, event)
                    with self._changed:
                        self._changed.notify_all()
                self.turn(time.monotonic())
        except Exception as exc:  # a test must see what broke here
            self.defects.append(repr(exc))
        finally:
            self._server.close()
            self._bell.close()

    def take(self, message: Message, event: Event | Put) -> None:
        """React to an event."""
        raise NotImplementedError

    def turn(self, now_s: float) -> None:
        """Do what is due."""


class FakeReceiver(_Served):
    """Stores messages in memory and acknowledges them, or does what the test wants instead.

    Parameters
    ----------
    archive : Archive, optional
        Shared by the receivers of one test.
    greeting : AsapoError, optional
        Goodbye instead of a Welcome.
    """

    def __init__(
        self,
        url: str = "tcp://127.0.0.1:*",
        *,
        receiver_id: str = "fake",
        archive: Archive | None = None,
        window_bytes: int = 128 * MIB,
        window_messages: int = 8192,
        max_unit_bytes: int = 0,
        heartbeat_s: float = 1.0,
        session_timeout_s: float = 10.0,
        greeting: AsapoError | None = None,
    ) -> None:
        super().__init__(url)
        self.archive = archive or Archive()
        self.receiver_id = receiver_id
        self.peers: dict[bytes, FakePeer] = {}
        self.marks: list[dict[str, int]] = []
        """Marks of every Beat that had some, and of every Put as it came."""
        self._welcome = Welcome(receiver_id, 1, window_bytes, window_messages, max_unit_bytes, heartbeat_s,
                                session_timeout_s)  # fmt: skip
        self._greeting = greeting
        self._holding = False
        self._beat_s = 0.0
        self.silent = False
        """Take everything, say nothing."""
        self.refuse: Refusal = lambda stream, message_id: None
        self.busy = False
        """Answer StreamBusy to whoever wants to number a stream."""
        self.farewell: AsapoError | None = None
        """Say Goodbye with this directly after the next ack."""
        self.put_sizes: list[int] = []
        """Messages in each unit as it came."""
        self.most_in_flight = (0, 0)
        """Most (bytes, messages) unacknowledged at a time on one link."""

    def hold_acks(self) -> None:
        """Store, but acknowledge nothing until `release_acks`."""
        self._holding = True

    def release_acks(self) -> None:
        """Acknowledge what was held back, and what follows."""
        self._holding = False
        self._bell.ring()

    def take(self, message: Message, event: Event | Put) -> None:
        """React as a receiver would."""
        if type(event) is Hello:
            self._greet(message.peer, event)
            return
        peer = self.peers.get(message.peer)
        if peer is None:
            self.defects.append(f"{type(event).__name__} before Hello")
        elif type(event) is Put:
            self._store(peer, event, message)
            self._acknowledge(message.peer, peer)
        elif type(event) is Beat:
            if event.marks:
                self.marks.append(dict(event.marks))
        elif type(event) is Bye:
            del self.peers[message.peer]
        elif not self.silent:
            self._answer(message.peer, peer, event)

    def _say(self, identity: bytes, event: Event) -> None:
        if not self.silent:
            self._server.send(identity, encode(event))

    def _greet(self, identity: bytes, hello: Hello) -> None:
        if self._greeting is not None:
            self._say(identity, Goodbye(to_wire(self._greeting)))
            return
        self.peers[identity] = FakePeer(hello)
        self._say(identity, self._welcome)

    def _store(self, peer: FakePeer, put: Put, message: Message) -> None:
        if put.unit != peer.next_unit:
            self.defects.append(f"unit {put.unit} instead of {peer.next_unit}")
        peer.next_unit = put.unit + 1
        nbytes = len(message.payload)
        peer.in_flight.append((put, nbytes))
        self._check_credit(peer)
        self.put_sizes.append(len(put.ids))
        self.marks.append({put.stream: put.closed_below})
        view = memoryview(message.payload)
        checksums, times = unpack_column(put.checksums), unpack_column(put.acquired_ns, signed=True)
        starts = unit_offsets(put.sizes)
        for index, (message_id, size) in enumerate(zip(put.ids, put.sizes, strict=True)):
            data = bytes(view[starts[index] : starts[index] + size])
            stored = Stored(data, put.metas[index], put.format, put.dataset_size, times[index], put.level,
                            put.origins[index] if put.origins else None, self.receiver_id)  # fmt: skip
            error = self.refuse(put.stream, message_id)
            if error is None and xxh3_64_intdigest(data) != checksums[index]:
                error = PayloadChanged(f"payload of message {message_id} is not what was sent", message_id=message_id)
            if error is None:
                error = self._keep((put.stream, put.substream, message_id), stored)
            if error is not None:
                peer.errors.append([put.unit, index, to_wire(error)])

    def _keep(self, key: tuple[str, int, int], stored: Stored) -> AsapoError | None:
        with self.archive.lock:
            known = self.archive.messages.setdefault(key, stored)
        if (known.data, known.meta, known.format) != (stored.data, stored.meta, stored.format):
            return DuplicateId(f"id {key[2]} exists with other content", message_id=key[2])
        return None

    def _check_credit(self, peer: FakePeer) -> None:
        nbytes = sum(size for _, size in peer.in_flight)
        messages = sum(len(put.ids) for put, _ in peer.in_flight)
        self.most_in_flight = max(self.most_in_flight[0], nbytes), max(self.most_in_flight[1], messages)
        over = nbytes > self._welcome.window_bytes or messages > self._welcome.window_messages
        if over and len(peer.in_flight) > 1:
            self.defects.append(f"credit broken: {nbytes} bytes, {messages} messages in flight")

    def _acknowledge(self, identity: bytes, peer: FakePeer) -> None:
        if self._holding or not peer.in_flight:
            return
        upto = peer.in_flight[-1][0].unit
        self._say(identity, Ack(upto, peer.errors))
        peer.in_flight, peer.errors = [], []
        if self.farewell is not None:
            self._say(identity, Goodbye(to_wire(self.farewell)))
            self.farewell = None

    def _answer(self, identity: bytes, peer: FakePeer, event: Event | Put) -> None:
        archive = self.archive
        with archive.lock:
            if type(event) is OpenStream:
                owner = peer.hello.session
                if event.numbering:
                    owner = archive.numbering.setdefault((event.stream, event.substream), owner)
                if self.busy or owner != peer.hello.session:
                    self._say(identity, Failed(event.request, to_wire(StreamBusy("another session numbers it"))))
                    return
                last_id, next_stream = archive.finished.get(event.stream, (0, ""))
                ids = archive.ids(event.stream)
                finished = event.stream in archive.finished
                result = {"id_max": max(ids, default=0), "closed_below": 0, "finished": finished, "last_id": last_id,
                          "next_stream": next_stream}  # fmt: skip
                self._say(identity, Done(event.request, result))
            elif type(event) is FinishStream:
                archive.finished[event.stream] = (event.last_id, event.next_stream)
                self._say(identity, Done(event.request))
            elif type(event) is SetMeta:
                archive.metas[event.stream] = event.meta
                self._say(identity, Done(event.request))

    def turn(self, now_s: float) -> None:
        """Send heartbeats and acks that were held back."""
        for identity, peer in self.peers.items():
            self._acknowledge(identity, peer)
        if now_s - self._beat_s >= self._welcome.heartbeat_s:
            self._beat_s = now_s
            for identity in self.peers:
                self._say(identity, Beat())


class FakeBroker(_Served):
    """Answers who the receivers are."""

    def __init__(self, url: str = "tcp://127.0.0.1:*", receivers: list[FakeReceiver] | None = None) -> None:
        super().__init__(url)
        self.receivers = list(receivers or [])
        self.boot_id = ""

    def take(self, message: Message, event: Event | Put) -> None:
        """React as a broker would."""
        if type(event) is Hello:
            self._server.send(message.peer, encode(Welcome("fake-broker")))
        elif type(event) is ListReceivers:
            listed = [
                {"receiver_id": r.receiver_id, "epoch": 1, "addresses": [r.address], "boot_id": self.boot_id}
                for r in self.receivers
            ]
            self._server.send(message.peer, encode(Done(event.request, {"receivers": listed})))
