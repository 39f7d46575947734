"""Waiting on links, and waking a waiting thread from another."""

from __future__ import annotations

import io
import os
import socket
import sys
import threading
from typing import Any, Final

import zmq

ONE: Final = (1).to_bytes(8, sys.byteorder)
"""What adds one to the counter of an eventfd."""


class Wakeup:
    """A bell: any thread rings it, one thread waits on it with a `Waiter`."""

    def __init__(self) -> None:
        self._bell: _EventBell | _SocketBell = _EventBell() if hasattr(os, "eventfd") else _SocketBell()
        self._rung = False
        self._lock = threading.Lock()

    def ring(self) -> None:
        """Wake the waiting thread; rings that were not heard yet count as one."""
        with self._lock:
            if self._rung:
                return
            self._rung = True
            self._bell.ring()

    def hear(self) -> None:
        """Take note of the ring. Call it *before* looking at the shared state that the ringer changed."""
        if not self._rung:
            return  # who rings from now on wakes the next wait
        with self._lock:
            if self._rung:
                self._rung = False
                self._bell.hear()

    def close(self) -> None:
        """Free the descriptors."""
        with self._lock:
            self._rung = True
            self._bell.close()

    def pollables(self) -> tuple[Any, ...]:
        """Return what a `Waiter` waits on."""
        return (self._bell.waited_on,)


class _EventBell:
    """An eventfd: a fraction of the work of a socket."""

    def __init__(self) -> None:
        self.waited_on = io.FileIO(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), "r+")

    def ring(self) -> None:
        """Make it readable."""
        self.waited_on.write(ONE)

    def hear(self) -> None:
        """Make it wait again."""
        self.waited_on.read(len(ONE))

    def close(self) -> None:
        """Free the descriptor."""
        self.waited_on.close()


class _SocketBell:
    """A pair of sockets: for systems without eventfd."""

    def __init__(self) -> None:
        self.waited_on, self._write = socket.socketpair()
        self.waited_on.setblocking(False)
        self._write.setblocking(False)

    def ring(self) -> None:
        """Make it readable."""
        self._write.send(b"\0")

    def hear(self) -> None:
        """Make it wait again."""
        self.waited_on.recv(16)

    def close(self) -> None:
        """Free the descriptors."""
        self.waited_on.close()
        self._write.close()


class Waiter:
    """Waits until one of the registered links, servers or wakeups has something to read."""

    def __init__(self, *members: Any) -> None:
        self._poller = zmq.Poller()
        self._member_of: dict[Any, Any] = {}
        for member in members:
            self.add(member)

    def add(self, member: Any) -> None:
        """Wait on this one, too."""
        for item in member.pollables():
            self._poller.register(item, zmq.POLLIN)
            self._member_of[_key(item)] = member

    def remove(self, member: Any) -> None:
        """Stop waiting on this one; call it before the member is closed."""
        for item in member.pollables():
            self._poller.unregister(item)
            del self._member_of[_key(item)]

    def wait(self, timeout_s: float) -> bool:
        """Wait at most this long; True when something may be there to read."""
        return bool(self._poller.poll(max(0, int(timeout_s * 1000 + 0.999))))

    def ready(self, timeout_s: float) -> list[Any]:
        """Wait at most this long; return the members that may have something to read, some of them twice."""
        found = self._poller.poll(max(0, int(timeout_s * 1000 + 0.999)))
        return [self._member_of[item] for item, _ in found]


def _key(item: Any) -> Any:
    """Return what the poller calls an item: ZeroMQ sockets by themselves, others by their descriptor."""
    return item if isinstance(item, zmq.Socket) else item.fileno()
