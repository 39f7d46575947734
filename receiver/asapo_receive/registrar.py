"""The link to the broker: registration once a second, announcements in between; losing either is harmless."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Final

from asapo.errors import AsapoError, TransportError
from asapo.transport import Link, Waiter, Wakeup, connect
from asapo.wire.codec import decode, encode
from asapo.wire.events import Announce, Bye, Goodbye, Hello, Register

log = logging.getLogger(__name__)

REGISTER_S: Final = 1.0
RETRY_S: Final = 0.2


class Registrar:
    """Keeps one link to the delivery core, and makes it anew whenever it is lost."""

    def __init__(self, broker: str, register: Callable[[], Register]) -> None:
        self._broker = broker
        self._register = register
        self._bell = Wakeup()
        self._lock = threading.Lock()
        self._heads: dict[str, dict[tuple[str, str], int]] = {}
        self._stopping = False

    def announce(self, beamtime: str, heads: list[tuple[str, str, int]]) -> None:
        """Tell the broker that streams grew: (source, stream, head_seq). Any thread, never blocks."""
        with self._lock:
            waiting = self._heads.setdefault(beamtime, {})
            for source, stream, head in heads:
                waiting[source, stream] = max(head, waiting.get((source, stream), 0))
        self._bell.ring()

    def stop(self) -> None:
        """End `run`. Any thread."""
        self._stopping = True
        self._bell.ring()

    def run(self) -> None:
        """Serve until `stop`."""
        while not self._stopping:
            link: Link | None = None
            try:
                link = connect(self._broker)
                self._serve(link)
            except (TransportError, AsapoError) as exc:
                log.debug("broker %s is away: %s", self._broker, exc)
                self._pause()
            finally:
                if link is not None:
                    link.close(linger_s=0.2)
        self._bell.close()

    def _pause(self) -> None:
        until_s = time.monotonic() + RETRY_S
        waiter = Waiter(self._bell)
        while not self._stopping and (left_s := until_s - time.monotonic()) > 0:
            waiter.wait(left_s)
            self._bell.hear()

    def _serve(self, link: Link) -> None:
        link.send(encode(Hello("receiver", os.urandom(16))))
        waiter = Waiter(self._bell, link)
        due_s = 0.0
        while not self._stopping:
            now_s = time.monotonic()
            if now_s >= due_s:
                link.send(encode(self._register()))
                due_s = now_s + REGISTER_S
            for beamtime, heads in self._take_heads():
                link.send(encode(Announce(beamtime, [[*name, head] for name, head in heads.items()])))
            waiter.wait(max(0.0, due_s - time.monotonic()))
            self._bell.hear()
            while (message := link.receive()) is not None:
                event = decode(message.header)
                if type(event) is Goodbye:
                    raise TransportError(f"broker {self._broker} ended the link: {event.error.get('message')}")
        link.send(encode(Bye()))

    def _take_heads(self) -> list[tuple[str, dict[tuple[str, str], int]]]:
        with self._lock:
            heads, self._heads = self._heads, {}
        return list(heads.items())
