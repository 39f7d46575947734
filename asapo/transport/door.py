"""The doorkeeper of a server: ends connections that have not said one whole message, before they cost much (R17).

ZeroMQ bounds the messages of a peer and the length of each part, but not the parts of a message that never ends, and
it holds a connection that says nothing for ever. Nothing is lost by ending those: none of them was ever answered.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import zmq

log = logging.getLogger(__name__)

GREETING_S: Final = 10.0
"""A connection says something whole within this."""
GREETING_BYTES: Final = 32 * 1024 * 1024
"""Memory that this process may take while a connection has not said anything whole: two of the longest headers."""
LOOK_S: Final = 0.01
"""How often strangers are looked at, while there are any; a peer on this machine sends some 20 MB in that time."""
REFUSED: Final = (
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL | zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_AUTH
)
EVENT: Final = struct.Struct("=Hi")
"""Kind and value of an event, as zmq_socket_monitor(3) gives them; what pyzmq has for that imports asyncio."""
MOST_PEERS: Final = 10_000
WATCHED: Final = int(REFUSED | zmq.Event.ACCEPTED | zmq.Event.DISCONNECTED | zmq.Event.MONITOR_STOPPED)


@dataclass(frozen=True, slots=True)
class Stranger:
    """A connection that has not said anything whole."""

    since_s: float
    resident_bytes: int
    """Memory of this process when it came."""
    name: str
    """Address of its other end, to know the descriptor by: ZeroMQ may have closed it, and the system used it anew."""


def resident_bytes() -> int:
    """Return the memory of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class Doorkeeper:
    """Watches the connections of one server on a thread of its own.

    Parameters
    ----------
    monitor : zmq.Socket
        Receives the `WATCHED` events of the server's socket; the doorkeeper's from now on.
    memory : callable
        Returns the memory of this process in bytes.
    """

    def __init__(self, monitor: Any, *, memory: Callable[[], int] = resident_bytes) -> None:
        self.peers: set[bytes] = set()
        """Who has said something; for the thread that receives."""
        self.refused = 0
        """Connections that broke the transport's rules."""
        self.ended = 0
        """Connections that were ended here."""
        self._strangers: dict[int, Stranger] = {}
        """By descriptor."""
        self._early: set[int] = set()
        """Descriptors of connections that spoke before their events were looked at."""
        self._lock = threading.Lock()
        self._monitor = monitor
        self._memory = memory
        self._thread = threading.Thread(target=self._run, name="asapo-door", daemon=True)
        self._thread.start()

    def introduce(self, peer: bytes, part: Any) -> None:
        """Take note that a peer's first whole message came, of which this is a part. The thread that receives."""
        if len(self.peers) >= MOST_PEERS:
            self.peers.clear()  # they are introduced again, which does no harm
        self.peers.add(peer)
        try:
            descriptor = part.get(zmq.SRCFD)
        except zmq.ZMQError:
            return  # ZeroMQ's oldest protocols do not tell, and we do not speak them: it stays a stranger
        with self._lock:
            if self._strangers.pop(descriptor, None) is None:
                self._early.add(descriptor)

    def close(self) -> None:
        """Wait for the end; the monitor of the socket was stopped before."""
        self._thread.join()
        self._monitor.close()

    def _run(self) -> None:
        while True:
            if self._monitor.poll(LOOK_S * 1000 if self._strangers else None):
                event, value = EVENT.unpack(self._monitor.recv_multipart()[0])
                if event == zmq.Event.MONITOR_STOPPED:
                    return
                self._note(event, value)
            if self._strangers:
                self._look(time.monotonic())

    def _note(self, event: int, value: int) -> None:
        if event & int(REFUSED):
            self.refused += 1
            return
        name = _other_end(value) if event == zmq.Event.ACCEPTED else None
        with self._lock:
            self._strangers.pop(value, None)
            if name is not None and value not in self._early:
                self._strangers[value] = Stranger(time.monotonic(), self._memory(), name)
            self._early.discard(value)

    def _look(self, now_s: float) -> None:
        resident = self._memory()
        with self._lock:
            strangers = list(self._strangers.items())
        for descriptor, stranger in strangers:
            grown = resident - stranger.resident_bytes
            if grown > GREETING_BYTES:
                log.warning("a connection of %s said nothing whole in %d bytes; it is ended", stranger.name, grown)
            elif now_s - stranger.since_s > GREETING_S:
                log.info("a connection of %s said nothing for %g s; it is ended", stranger.name, GREETING_S)
            else:
                continue
            with self._lock:
                known = self._strangers.pop(descriptor, None) is None  # it has just said something
            if not known:
                self._end(descriptor, stranger)

    def _end(self, descriptor: int, stranger: Stranger) -> None:
        """Shut a connection down under ZeroMQ, which then ends it as one that its peer closed."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as own:
            if _name_of(own) == stranger.name:
                own.shutdown(socket.SHUT_RDWR)
                self.ended += 1


def _other_end(descriptor: int) -> str | None:
    try:
        with socket.socket(fileno=os.dup(descriptor)) as own:
            return _name_of(own)
    except OSError:
        return None  # it is gone already


def _name_of(own: socket.socket) -> str:
    found = own.getpeername()
    return f"{found[0]}:{found[1]}" if isinstance(found, tuple) else str(found) or "a Unix socket"
