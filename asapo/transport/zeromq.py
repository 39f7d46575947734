"""ZeroMQ transport: DEALER for clients, ROUTER for servers, two parts for every message, payload never copied.

No `zmq.ZMQError` leaves this module.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import sys
import threading
import weakref
from typing import Any, Final

import zmq

from asapo.errors import ConnectFailed, LinkLost
from asapo.transport.base import Buffer, Message
from asapo.transport.door import WATCHED, Doorkeeper
from asapo.transport.endless import Heards

HEARTBEAT_MS: Final = 2000
PATIENCE_MS: Final = 60_000
"""A peer's sign of life waits behind the message that it is sending, which may be 2 GiB long."""
CONNECT_TIMEOUT_MS: Final = 3000
QUEUE_MESSAGES: Final = 4096
"""Messages a pipe may hold: credits bound the bytes, this bounds a peer that ignores them."""
PAYLOAD_KINDS: Final = (16, 65)
"""Kind bytes whose payload is worth not copying (Put, Piece)."""
KIND_AT: Final = 4
_READABLE: Final = int(zmq.POLLIN)
_NOW: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.SNDMORE)
_MORE_NOW: Final = _MORE | _NOW
"""Plain integers: combining pyzmq's flags costs more than the call."""
LOST: Final = (
    zmq.Event.DISCONNECTED
    | zmq.Event.CLOSED
    | zmq.Event.CONNECT_RETRIED
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
)
_numbers = itertools.count(1)
_context_lock = threading.Lock()
_context: tuple[int, zmq.Context[Any]] | None = None


def context() -> zmq.Context[Any]:
    """Return this process's context; a forked child gets its own."""
    global _context
    with _context_lock:
        if _context is None or _context[0] != os.getpid():
            _context = (os.getpid(), zmq.Context())
        return _context[1]


def tune_malloc() -> None:
    """Keep frame buffers in the heap instead of mapping and faulting each anew (R12).

    Only for our own service processes, before the first context. Does nothing where malloc is not glibc's.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    m_trim_threshold, m_top_pad, m_mmap_threshold, m_arena_max = -1, -2, -3, -8
    mallopt(m_mmap_threshold, 32 << 20)
    mallopt(m_trim_threshold, 1 << 30)
    mallopt(m_top_pad, 16 << 20)
    mallopt(m_arena_max, 1)


class _Sent:
    """Tells whether the transport has let go of a payload: it alone holds the view that was made for it.

    A tracker of pyzmq says the same, but makes an event with its lock for every message.
    """

    __slots__ = ("_view",)

    def __init__(self, view: memoryview) -> None:
        self._view = weakref.ref(view)

    @property
    def done(self) -> bool:
        """Whether the payload may be changed."""
        return self._view() is None


class ZmqLink:
    """The client's end: one DEALER that never reconnects by itself, so nothing is ever resent behind our back."""

    def __init__(self, address: str, *, send_bytes: int = 0) -> None:
        self.address = address
        self._lost = False
        socket = context().socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, QUEUE_MESSAGES)
        socket.setsockopt(zmq.RCVHWM, QUEUE_MESSAGES)
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 5 * HEARTBEAT_MS)
        if send_bytes:
            socket.setsockopt(zmq.SNDBUF, send_bytes)
        self._socket = socket
        self._monitor = _monitor(socket, LOST)
        try:
            socket.connect(address)
        except zmq.ZMQError as exc:
            self.close()
            raise ConnectFailed(f"cannot connect to {address}: {exc.strerror}", address=address) from exc

    def send(self, header: bytes, payload: Buffer = b"", *, copy: bool = True) -> Any:
        """Queue one message; see `Link.send`."""
        try:
            self._socket.send(header, _MORE_NOW)
            if copy:
                self._socket.send(payload)
                return True
            view = memoryview(payload)
            self._socket.send(view, copy=False)
            return _Sent(view)
        except zmq.Again:
            return False

    def receive(self) -> Message | None:
        """Return the next message or None; see `Link.receive`."""
        message = _receive(self._socket)
        if message is None and self._is_lost():
            raise LinkLost(f"connection to {self.address} lost", address=self.address)
        return message

    def _is_lost(self) -> bool:
        if not self._lost:
            self._lost = _drain(self._monitor) > 0
        return self._lost

    def close(self, *, linger_s: float = 0.0) -> None:
        """End the link."""
        _close(self._socket, self._monitor, linger_s)

    def pollables(self) -> tuple[Any, ...]:
        """Return socket and monitor."""
        return (self._socket, self._monitor)


class ZmqServer:
    """The server's end: one ROUTER."""

    def __init__(self, address: str, *, max_part_bytes: int, other_bytes: int) -> None:
        socket = context().socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.SNDHWM, QUEUE_MESSAGES)
        socket.setsockopt(zmq.RCVHWM, QUEUE_MESSAGES)
        socket.setsockopt(zmq.MAXMSGSIZE, max_part_bytes)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, PATIENCE_MS)
        socket.setsockopt(zmq.BACKLOG, 512)
        self._socket = socket
        self._door = Doorkeeper(_monitor(socket, WATCHED), Heards(max_part_bytes, other_bytes))
        self._file = ""
        try:
            socket.bind(address)
        except zmq.ZMQError as exc:
            self.address = address
            self.close()
            raise ConnectFailed(
                f"cannot listen on {address}: {exc.strerror}; choose another port, or port 0 for a free one",
                address=address,
            ) from exc
        self.address = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        if self.address.startswith("ipc:///"):
            self._file = self.address.removeprefix("ipc://")

    def send(self, peer: bytes, header: bytes, payload: Buffer = b"", *, copy: bool = True) -> bool:
        """Queue one message; see `Server.send`."""
        try:
            self._socket.send(peer, _MORE_NOW)
            self._socket.send(header, _MORE)
            self._socket.send(payload, copy=copy)
        except zmq.Again:
            return False
        except zmq.ZMQError as exc:
            if exc.errno != zmq.EHOSTUNREACH:
                raise LinkLost(f"server on {self.address}: {exc.strerror}", address=self.address) from exc
            return False
        return True

    def receive(self) -> Message | None:
        """Return the next message or None."""
        return _receive(self._socket, self._door)

    def received_bytes(self, peer: bytes) -> int:
        """Return how many bytes came from a peer; see `Server.received_bytes`."""
        return self._door.heards.received_from(peer)

    def refused(self) -> int:
        """Return how many connections never became a link."""
        return self._door.refused + self._door.ended

    def close(self) -> None:
        """End all links."""
        if self._file:  # libzmq leaves it behind
            with contextlib.suppress(OSError):
                os.unlink(self._file)
            self._file = ""
        with contextlib.suppress(zmq.ZMQError):  # closed before
            self._socket.monitor(None, 0)
            self._door.close()
        self._socket.close(linger=0)

    def pollables(self) -> tuple[Any, ...]:
        """Return the socket, and the bell by which the doorkeeper asks whether anything is left there."""
        return (self._socket, *self._door.bell.pollables())


def _receive(socket: Any, door: Doorkeeper | None = None) -> Message | None:
    """Take one message of exactly two parts (for servers three, with the peer); of another number, give garbage.

    Servers have a door, where peers are introduced that speak for the first time.

    Frames know whether more follows: asking the socket after each part would double the cost of small messages.
    """
    # Asking costs 2 us; the exception of a vain recv would cost 12.
    if not socket.getsockopt(zmq.EVENTS) & _READABLE:
        if door is not None:
            door.emptied()
        return None
    peer = b""
    try:
        if door is not None:
            peer = socket.recv(_NOW)  # no message ends behind it
            part = socket.recv(copy=False)
            heard = door.heards.peers.get(peer)
            if heard is None:
                door.introduce(peer, part)
            else:
                heard.whole += 1
        else:
            part = socket.recv(_NOW, copy=False)
    except zmq.Again:
        return None
    if not part.more:
        return Message(b"", b"", peer)
    header = part.bytes
    part = socket.recv(copy=False)
    if not part.more:
        large = len(header) > KIND_AT and header[KIND_AT] in PAYLOAD_KINDS
        return Message(header, part if large else part.bytes, peer)
    while part.more:
        part = socket.recv(copy=False)
    return Message(b"", b"", peer)


def _monitor(socket: Any, events: int) -> Any:
    address = f"inproc://asapo-monitor-{os.getpid()}-{next(_numbers)}"
    socket.monitor(address, int(events))
    monitor = context().socket(zmq.PAIR)
    monitor.setsockopt(zmq.LINGER, 0)
    monitor.connect(address)
    return monitor


def _drain(monitor: Any) -> int:
    """Count the monitor's events and forget them."""
    count = 0
    try:
        while monitor.getsockopt(zmq.EVENTS) & _READABLE:  # the exception of a vain recv would cost more
            monitor.recv_multipart(zmq.NOBLOCK)
            count += 1
    except zmq.ZMQError:
        pass  # closed
    return count


def _close(socket: Any, monitor: Any, linger_s: float) -> None:
    with contextlib.suppress(zmq.ZMQError):  # closed before
        socket.monitor(None, 0)
    monitor.close()
    socket.close(linger=int(linger_s * 1000))
