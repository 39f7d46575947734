"""A TCP proxy between two of our programs that loses, holds or cuts connections on purpose.

>>> with TcpProxy("tcp://127.0.0.1:4000") as proxy:                     # doctest: +SKIP
...     producer = Producer(url, beamtime="demo", source="det", receivers=[proxy.address])
...     proxy.hold()                                                    # a silent partition
...     proxy.release()
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from enum import Enum
from types import TracebackType
from typing import Final, Self

PIECE_BYTES: Final = 65536
CONNECT_S: Final = 10.0
RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends a reset, as a host that went away."""


class Way(Enum):
    """A direction of the bytes."""

    UP = "from whoever connected to the target"
    DOWN = "back to whoever connected"


class _Connection:
    """Two sockets, and a thread for each direction."""

    def __init__(self, proxy: TcpProxy, client: socket.socket, target: socket.socket, cuts: dict[Way, int]) -> None:
        self._proxy = proxy
        self._sockets = (client, target)
        self._cuts = cuts
        self.passed = {Way.UP: 0, Way.DOWN: 0}
        self.threads = [
            threading.Thread(target=self._pass, args=(way, source, sink), name=f"asapo-proxy-{way.name}", daemon=True)
            for way, source, sink in ((Way.UP, client, target), (Way.DOWN, target, client))
        ]
        for thread in self.threads:
            thread.start()

    def _pass(self, way: Way, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE_BYTES):
                self._proxy.wait_open(way)
                self._proxy.wait_turn(way, len(data))
                left = self._cuts[way] - self.passed[way] if way in self._cuts else len(data)
                sink.sendall(data[:left])
                self.passed[way] += min(left, len(data))
                if way in self._cuts and left <= len(data):
                    self._proxy.n_cut += 1
                    break
        self.reset()

    def reset(self) -> None:
        """End both sides at once; what was on its way is lost."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                one.shutdown(socket.SHUT_RD)  # wakes the thread that reads
        for one in self._sockets:
            one.close()


class TcpProxy:
    """Passes connections on to a target and does to them what a network does.

    Parameters
    ----------
    target : str
        Address, for example tcp://127.0.0.1:4000 or asapo://127.0.0.1:8400.
    """

    def __init__(self, target: str) -> None:
        scheme, _, rest = target.partition("://")
        host, _, port = rest.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        """Where to connect instead of to the target."""
        self.n_connections = 0
        """Connections that were passed on so far."""
        self.n_cut = 0
        """Connections that were cut where `cut_next` said."""
        self._gate = threading.Condition()
        self._held: set[Way] = set()
        self._bytes_per_s: dict[Way, float] = {}
        self._cuts: dict[Way, int] = {}
        self._connections: list[_Connection] = []
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="asapo-proxy", daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                target = socket.create_connection(self._target, timeout=CONNECT_S)
            except OSError:
                client.close()
                continue
            target.settimeout(None)
            for one in (client, target):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._gate:
                self.n_connections += 1
                cuts, self._cuts = self._cuts, {}
                self._connections = [
                    one for one in self._connections if any(map(threading.Thread.is_alive, one.threads))
                ]
                self._connections.append(_Connection(self, client, target, cuts))

    def wait_open(self, way: Way) -> None:
        """Wait while a direction is held."""
        with self._gate:
            while way in self._held and not self._closed:
                self._gate.wait()

    def wait_turn(self, way: Way, nbytes: int) -> None:
        """Wait for as long as so many bytes take."""
        if way in self._bytes_per_s:
            time.sleep(nbytes / self._bytes_per_s[way])

    # -- what a test does -------------------------------------------------------------------------------------------

    def hold(self, *ways: Way) -> None:
        """Let nothing pass any more, in these directions or in both, and tell nobody: a silent partition.

        As with a real one, what was sent meanwhile arrives when it is over, if both ends still wait for it.
        """
        with self._gate:
            self._held = set(ways or Way)

    def slow_down(self, way: Way, bytes_per_s: float) -> None:
        """Let no more than so much pass from now on, on each connection."""
        self._bytes_per_s[way] = bytes_per_s

    def release(self) -> None:
        """Let everything pass again."""
        with self._gate:
            self._held = set()
            self._gate.notify_all()

    def cut_next(self, way: Way, nbytes: int) -> None:
        """Reset the next connection behind its first `nbytes` bytes in one direction."""
        with self._gate:
            self._cuts = {way: nbytes}

    def reset_all(self) -> None:
        """Reset all connections now."""
        with self._gate:
            for one in self._connections:
                one.reset()

    def passed(self, way: Way) -> int:
        """Return how many bytes the newest connection has passed on in one direction."""
        with self._gate:
            return self._connections[-1].passed[way] if self._connections else 0

    def close(self) -> None:
        """End everything."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        self._thread.join()
        with self._gate:
            self._closed = True
            self._gate.notify_all()
            connections = list(self._connections)
        for connection in connections:
            connection.reset()
            for thread in connection.threads:
                thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
