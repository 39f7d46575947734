"""The doorkeeper of a server: ends connections that have not said one whole message, before they cost much (R17).

ZeroMQ bounds the messages of a peer and the length of each part, but not the parts of a message that never ends, and
it holds a connection that says nothing for ever. Nothing is lost by ending those: none of them was ever answered.
Whoever has said something is watched for messages that never end, see `asapo.transport.endless`.
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

from asapo.transport.endless import Heards, inode_of
from asapo.transport.wait import Wakeup

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
WATCH_S: Final = 0.02
"""How often the memory of this process is looked at while there are peers."""
GROWN_BYTES: Final = 8 * 1024 * 1024
"""When it grew by so much, their connections are looked at, and else every so often:"""
LOOK_ANYWAY_S: Final = 0.5
PAUSES: Final = 20
"""But no look comes sooner than so many times what the one before took."""
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
    heards : Heards
        Those who have said something.
    memory : callable
        Returns the memory of this process in bytes.
    """

    def __init__(self, monitor: Any, heards: Heards, *, memory: Callable[[], int] = resident_bytes) -> None:
        self.heards = heards
        self.bell = Wakeup()
        """Rung when the thread that receives is to look whether anything is left to be taken."""
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
        self._looked_s = 0.0
        self._looked_bytes = 0
        self._due_s = 0.0
        self._hurry = False
        self._thread = threading.Thread(target=self._run, name="asapo-door", daemon=True)
        self._thread.start()

    def introduce(self, peer: bytes, part: Any) -> None:
        """Take note that a peer's first whole message came, of which this is a part. The thread that receives."""
        try:
            descriptor = part.get(zmq.SRCFD)
        except zmq.ZMQError:
            return  # ZeroMQ's oldest protocols do not tell, and we do not speak them: it stays a stranger
        self.heards.add(peer, descriptor)
        with self._lock:
            if self._strangers.pop(descriptor, None) is None:
                self._early.add(descriptor)

    def emptied(self) -> None:
        """Take note that no whole message is left to be taken. The thread that receives."""
        self.heards.drained += 1
        self.bell.hear()

    def close(self) -> None:
        """Wait for the end; the monitor of the socket was stopped before."""
        self._thread.join()
        self._monitor.close()
        self.bell.close()

    def _run(self) -> None:
        while True:
            pause_s = LOOK_S if self._strangers or self._hurry else WATCH_S if self.heards else None
            if self._monitor.poll(pause_s and pause_s * 1000):
                event, value = EVENT.unpack(self._monitor.recv_multipart()[0])
                if event == zmq.Event.MONITOR_STOPPED:
                    return
                self._note(event, value)
            if self._strangers:
                self._look(time.monotonic())
            if self.heards:
                self._watch(time.monotonic())

    def _note(self, event: int, value: int) -> None:
        if event & int(REFUSED):
            self.refused += 1
            return
        name = _other_end(value) if event == zmq.Event.ACCEPTED else None
        self.heards.gone(value)
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
                self._end(descriptor, lambda own, name=stranger.name: _name_of(own) == name)  # type: ignore[misc]

    def _watch(self, now_s: float) -> None:
        """End greeted connections with a message that is longer than any, as soon as memory grows."""
        if now_s < self._due_s:
            return
        resident = self._memory()
        self._looked_bytes = min(self._looked_bytes, resident)
        grown = resident >= self._looked_bytes + GROWN_BYTES
        if not (grown or self._hurry or now_s >= self._looked_s + LOOK_ANYWAY_S):
            return
        self._looked_s, self._looked_bytes = now_s, resident
        found = self.heards.endless(resident, now_s)
        self._hurry = self.heards.suspects or self.heards.large
        self._due_s = now_s + PAUSES * (time.monotonic() - now_s)
        for heard in found:
            log.warning("a message of descriptor %d does not end; its connection is ended", heard.descriptor)
            self._end(heard.descriptor, lambda own, inode=heard.inode: inode_of(own.fileno()) == inode)  # type: ignore[misc]
        if found or self.heards.suspects:
            self.bell.ring()  # to be told what is left, and to have what was ended let go of its memory

    def _end(self, descriptor: int, is_it: Callable[[socket.socket], bool]) -> None:
        """Shut a connection down under ZeroMQ, which then ends it as one that its peer closed."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as own:
            if is_it(own):
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
