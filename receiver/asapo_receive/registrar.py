"""The link to the broker: registration once a second, announcements in between; losing either is harmless.

Whoever committed something announces it on his own thread: one switch of threads less between a frame and its reader.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from asapo.errors import AsapoError, TransportError
from asapo.transport import Link, Waiter, Wakeup, connect
from asapo.wire.codec import decode, encode
from asapo.wire.events import Announce, Bye, Done, Failed, Goodbye, Hello, Register
from asapo.wire.stream_events import RemoveStream

log = logging.getLogger(__name__)

REGISTER_S: Final = 1.0
LOOK_S: Final = 0.2
"""Between two looks at the link: has it ended, is there something that found no room; and after it ended, before the
next one is made."""
Heads = dict[tuple[str, str], int]


class Registrar:
    """Keeps one link to the delivery core, and makes it anew whenever it is lost."""

    def __init__(
        self, broker: str, register: Callable[[], Register], remove: Callable[[RemoveStream], None] = lambda _: None
    ) -> None:
        self._broker = broker
        self._register = register
        self._remove = remove
        self._bell = Wakeup()
        self._lock = threading.Lock()
        """Held by whoever uses the link or looks at `_heads`: never for longer than one message takes."""
        self._link: Link | None = None
        self._heads: dict[str, Heads] = {}
        """What was not announced yet, because there is no link or it has no room."""
        self._stopping = False

    def announce(self, beamtime: str, heads: Sequence[tuple[str, str, int]], units: Sequence[Any] = ()) -> None:
        """Tell the broker that streams grew: (source, stream, head_seq), and by which units. Any thread, never blocks.

        Without a link, or without room on it, the heads are told later and the units never: they are in the index.
        """
        with self._lock:
            waiting = self._heads.pop(beamtime, {})
            for source, stream, head in heads:
                waiting[source, stream] = max(head, waiting.get((source, stream), 0))
            self._heads[beamtime] = waiting  # the last one, to which `units` belong
            self._tell(units)

    def _tell(self, units: Sequence[Any] = ()) -> None:
        """Send what waits; `units` belong to the beamtime that was added last. The lock is held."""
        while self._link is not None and self._heads:
            beamtime, heads = self._heads.popitem()
            if not self._link.send(
                encode(Announce(beamtime, [[*name, head] for name, head in heads.items()], [*units]))
            ):
                self._heads[beamtime] = heads
                return
            units = ()

    def answer(self, event: Done | Failed) -> None:
        """Answer the broker; on another link than that of the request nobody waits for it. Any thread, never blocks."""
        with self._lock:
            if self._link is not None:
                self._link.send(encode(event))

    def stop(self) -> None:
        """End `run`. Any thread."""
        self._stopping = True
        self._bell.ring()

    def run(self) -> None:
        """Serve until `stop`."""
        waiter = Waiter(self._bell)
        while not self._stopping:
            try:
                self._serve(connect(self._broker), waiter)
            except AsapoError as exc:
                log.debug("broker %s is away: %s", self._broker, exc)
                waiter.wait(LOOK_S)
        self._bell.close()

    def _serve(self, link: Link, waiter: Waiter) -> None:
        due_s = 0.0
        try:
            link.send(encode(Hello("receiver", os.urandom(16))))
            while not self._stopping:
                if time.monotonic() >= due_s:
                    due_s = time.monotonic() + REGISTER_S
                    registration = encode(self._register())
                    with self._lock:
                        link.send(registration)
                        self._link = link  # from now on announcements may follow
                with self._lock:
                    self._tell()
                    self._hear(link)
                waiter.wait(LOOK_S)
                self._bell.hear()
        finally:
            with self._lock:
                self._link = None
                if self._stopping:
                    link.send(encode(Bye()))
            link.close(linger_s=0.2)

    def _hear(self, link: Link) -> None:
        while (message := link.receive()) is not None:
            event = decode(message.header)
            if type(event) is Goodbye:
                raise TransportError(f"broker {self._broker} ended the link: {event.error.get('message')}")
            if type(event) is RemoveStream:
                self._remove(event)
