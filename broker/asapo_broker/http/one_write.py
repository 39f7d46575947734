"""HTTP/1.1 whose answers leave in one write: status line, headers and body in one segment if they fit.

Uvicorn writes headers and body apart. Two small segments cost a client that does not acknowledge at once 40 ms for each
answer (Nagle's algorithm and delayed acknowledgements), and the clients of ASAP::O are such.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol


class _Gathering:
    """A transport that keeps what is written until the event loop's turn is over."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes | memoryview] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes | memoryview) -> None:
        """Take bytes."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        """Close behind what was written."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            self._transport.writelines(parts)  # of uvloop: one system call, and nothing is copied


class OneWriteProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type, unused-ignore]
    """Uvicorn's own protocol on such a transport."""

    def connection_made(self, transport: Any) -> None:
        """Begin with a connection."""
        super().connection_made(_Gathering(transport, self.loop))
