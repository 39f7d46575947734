"""A data server for tests of clients: payloads from memory over a real link."""

from __future__ import annotations

import threading

from asapo.errors import AsapoError, StorageError, to_wire
from asapo.transport import Waiter, Wakeup, listen
from asapo.wire.codec import decode, encode
from asapo.wire.events import Failed, Fetch, Hello, Piece, Welcome
from asapo.wire.limits import MAX_HEADER_BYTES


class FakeDataServer:
    """Serves readers from a thread until `close`; use it as a context manager.

    `payloads` maps (source, stream, id) to bytes, or to an error that is answered instead.
    """

    def __init__(self) -> None:
        self.payloads: dict[tuple[str, str, int], bytes | AsapoError] = {}
        self.heard: list[Hello | Fetch] = []
        self._bell = Wakeup()
        self._stop = False
        self._server = listen("tcp://127.0.0.1:*", max_part_bytes=MAX_HEADER_BYTES)
        self.url = self._server.address
        self._thread = threading.Thread(target=self._run, name="fake-data-server")
        self._thread.start()

    def fetched(self) -> list[Fetch]:
        """Return the requests for payloads so far."""
        return [event for event in list(self.heard) if isinstance(event, Fetch)]

    def close(self) -> None:
        """Stop serving."""
        self._stop = True
        self._bell.ring()
        self._thread.join()
        self._bell.close()

    def __enter__(self) -> FakeDataServer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _run(self) -> None:
        waiter = Waiter(self._server, self._bell)
        while not self._stop:
            waiter.wait(1.0)
            self._bell.hear()
            while (message := self._server.receive()) is not None:
                event = decode(message.header, len(message.payload))
                if isinstance(event, Hello):
                    self.heard.append(event)
                    self._server.send(message.peer, encode(Welcome("fake")))
                elif isinstance(event, Fetch):
                    self.heard.append(event)
                    self._answer(message.peer, event)
        self._server.close()

    def _answer(self, peer: bytes, event: Fetch) -> None:
        absent = StorageError(f"no message {event.message_id}")
        payload = self.payloads.get((event.source, event.stream, event.message_id), absent)
        if isinstance(payload, AsapoError):
            self._server.send(peer, encode(Failed(event.request, to_wire(payload))))
        else:
            end = event.offset + event.length if event.length else len(payload)
            piece = payload[event.offset : end]
            self._server.send(peer, encode(Piece(event.request, len(payload), event.offset)), piece)
