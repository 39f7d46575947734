"""Which of the peers that have greeted sends a message that never ends (R17).

ZeroMQ hands a message over when it is whole, and holds its parts until then, however many come. So a connection that
received more than the longest message there may be, and has none to show for it, is known by these numbers alone. What
the system counts for each TCP connection is exact. It counts nothing for Unix sockets: there the memory of the process
must tell, and does so later.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from asapo.wire.limits import MAX_HEADER_BYTES, MIB

MOST_PEERS: Final = 10_000
SLACK_BYTES: Final = 16 * MIB
"""What a connection may hold beside one message: the system's buffers, and what was whole but is not counted yet."""
TCP: Final = 6
TCP_INFO: Final = 11
RECEIVED_AT: Final = 128
"""Offset of tcpi_bytes_received in Linux' struct tcp_info, 8 bytes long."""
INFO_BYTES: Final = 256


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def received_bytes(descriptor: int) -> int | None:
    """Return the bytes that a TCP connection has received in all; None where the system does not say."""
    if not sys.platform.startswith("linux"):
        return None
    info, length = ctypes.create_string_buffer(INFO_BYTES), ctypes.c_uint(INFO_BYTES)
    failed = _libc().getsockopt(descriptor, TCP, TCP_INFO, info, ctypes.byref(length))
    if failed or length.value < RECEIVED_AT + 8:
        return None
    return int.from_bytes(info.raw[RECEIVED_AT : RECEIVED_AT + 8], sys.byteorder)


def inode_of(descriptor: int) -> int:
    """Return what tells a connection from a later one with the same descriptor; 0 when there is none."""
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return 0


@dataclass(slots=True, eq=False)
class Heard:
    """A connection of which whole messages have come."""

    descriptor: int
    inode: int
    whole: int = 1
    """Messages; counted by the thread that receives, the rest is the watching thread's."""
    seen: int = 0
    """`whole` as of the last look."""
    received: int = 0
    """Bytes that had come when `whole` last grew."""
    resident: int = 0
    """Memory of this process then."""
    heard_s: float = 0.0
    """When that was."""
    mark: tuple[int, int] | None = None
    """Proof to wait for that the receiving thread is not just behind."""


class Heards:
    """The peers of a server that have said something whole.

    Parameters
    ----------
    longest_bytes : int
        Longest payload part there may be.
    other_bytes : int
        Memory that this process may take beside one message of each connection.
    received : callable, optional
        As `received_bytes`.
    """

    def __init__(
        self, longest_bytes: int, other_bytes: int, *, received: Callable[[int], int | None] = received_bytes
    ) -> None:
        self.peers: dict[bytes, Heard] = {}
        """By identity; for the thread that receives, which counts their messages there."""
        self.drained = 0
        """How often that thread found no message waiting."""
        self.suspects = False
        """Whether at the last look there were any that must be proved."""
        self.large = False
        """Whether at the last look a message was under way that is worth looking again soon."""
        self._most = longest_bytes + MAX_HEADER_BYTES + SLACK_BYTES
        self._other = other_bytes
        self._received = received
        self._by_descriptor: dict[int, Heard] = {}
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._by_descriptor)

    def add(self, peer: bytes, descriptor: int) -> None:
        """Take note of a peer whose first message came. The thread that receives."""
        if len(self.peers) >= MOST_PEERS:
            self.peers = {one: heard for one, heard in self.peers.items() if inode_of(heard.descriptor) == heard.inode}
            if len(self.peers) >= MOST_PEERS:
                self.peers.clear()  # they are introduced again, which does no harm
        inode = inode_of(descriptor)
        with self._lock:
            heard = self._by_descriptor.get(descriptor)
            if heard is not None and heard.inode == inode:
                heard.whole += 1  # known before, or by whom had the descriptor since
            else:
                heard = Heard(descriptor, inode)
                if (received := self._received(descriptor)) is not None:
                    heard.seen, heard.received = heard.whole, received
                if inode:
                    self._by_descriptor[descriptor] = heard
        self.peers[peer] = heard

    def received_from(self, peer: bytes) -> int:
        """Return the bytes that came from a peer in all; 0 where nobody counts them. The thread that receives."""
        heard = self.peers.get(peer)
        if heard is None or inode_of(heard.descriptor) != heard.inode:
            return 0
        return self._received(heard.descriptor) or 0

    def gone(self, descriptor: int) -> None:
        """Take note that a connection ended; a new one may have its descriptor by now, and have spoken."""
        with self._lock:
            heard = self._by_descriptor.get(descriptor)
            if heard is not None and inode_of(descriptor) != heard.inode:
                del self._by_descriptor[descriptor]

    def endless(self, resident: int, now_s: float) -> list[Heard]:
        """Return the connections that send a message longer than any.

        `resident` is the memory of this process. Of connections whose bytes nobody counts one is named at a time: the
        one that was last heard of longest ago, when memory says that there is one. Honest clients say something every
        second, unless a long message of theirs is under way.
        """
        drained = self.drained  # before the counts: what is drained behind them proves nothing
        with self._lock:
            heards = list(self._by_descriptor.values())
        total = sum([heard.whole for heard in heards])
        hidden = self._other + self._most * len(heards)
        self.large = False
        found: list[Heard] = []
        unseen: list[Heard] = []
        for heard in heards:
            if inode_of(heard.descriptor) != heard.inode:
                self.gone(heard.descriptor)
                continue
            received = self._received(heard.descriptor)
            if heard.whole != heard.seen:
                heard.seen, heard.received, heard.resident = heard.whole, received or 0, resident
                heard.heard_s, heard.mark = now_s, None
            if received is None:
                if self._proved(heard, resident - heard.resident > hidden, drained, total, len(heards)):
                    unseen.append(heard)
                continue
            came = received - heard.received
            self.large |= came > SLACK_BYTES
            if self._proved(heard, came > self._most, drained, total, len(heards)):
                found.append(heard)
        found += sorted(unseen, key=lambda heard: heard.heard_s)[:1]
        self.suspects = any(heard.mark is not None for heard in heards)
        return found

    @staticmethod
    def _proved(heard: Heard, suspected: bool, drained: int, total: int, n: int) -> bool:
        """Say whether a suspicion holds although the receiving thread has taken all that was whole since it arose.

        It has when nothing was waiting, or when so much was taken that each connection had its turn.
        """
        if not suspected:
            heard.mark = None
        elif heard.mark is None:
            heard.mark = (drained, total)
        else:
            return drained > heard.mark[0] or total - heard.mark[1] > 2 * n
        return False
