"""The two interfaces every transport fulfils. Neither knows what the parts mean."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

Buffer = bytes | bytearray | memoryview


class Message(NamedTuple):
    """What came in: the header part, and the payload part uncopied (`len`, `memoryview()` work on it)."""

    header: bytes
    payload: Any
    """Any object with the buffer protocol; `.buffer` of a zmq.Frame. Its memory lives as long as the object."""
    peer: bytes = b""
    """Who sent it (servers only); give it back to `Server.send`."""


class Link(Protocol):
    """The client's end. Never blocks; wait with a `Waiter`."""

    address: str

    def send(self, header: bytes, payload: Buffer = b"", *, copy: bool = True) -> Any:
        """Queue one message. Returns False when the peer's queue is full (try again when writable).

        With `copy=False` the payload must stay unchanged until the returned tracker's `done` is true.
        """

    def receive(self) -> Message | None:
        """Return the next message, None when nothing is there now.

        Raises
        ------
        LinkLost
            The connection ended or could not be made; the link is of no further use.
        """

    def close(self, *, linger_s: float = 0.0) -> None:
        """End the link; what is queued is sent for at most `linger_s`."""

    def pollables(self) -> tuple[Any, ...]:
        """Return what a `Waiter` waits on."""


class Server(Protocol):
    """The server's end: many peers, one socket."""

    address: str
    """Where peers connect to, with the port that was bound."""

    def send(self, peer: bytes, header: bytes, payload: Buffer = b"", *, copy: bool = True) -> bool:
        """Queue one message; False when this peer is gone or its queue is full."""

    def receive(self) -> Message | None:
        """Return the next message, None when nothing is there now."""

    def received_bytes(self, peer: bytes) -> int:
        """Return how many bytes came from a peer, its unfinished message included; 0 where nobody counts them."""

    def refused(self) -> int:
        """Return how many connections broke the transport's own rules (garbage, wrong greeting) since the start."""

    def close(self) -> None:
        """End all links."""

    def pollables(self) -> tuple[Any, ...]:
        """Return what a `Waiter` waits on."""
