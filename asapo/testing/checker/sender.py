"""The producer of a check: writes each frame down, sends it by the public SDK, writes its outcome down.

Killed at any time and started again with the same settings it sends what its journal does not know an outcome of.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from asapo import Producer
from asapo.errors import TransportError
from asapo.testing.checker.book import BookWriter
from asapo.testing.checker.content import Content

GROUP: Final = 64
"""Frames written down together before they are sent."""
GROUP_BYTES: Final = 32_000_000
STEP_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class SendSettings:
    """What to send, and where."""

    url: str
    beamtime: str
    source: str
    folder: str
    """Where the journal lies."""
    messages: int
    level: str = "written"
    conflict_every: int = 0
    """After so many frames other content is sent under an acknowledged id, to be refused; 0 for never."""
    under_way: int = 64
    """Frames without an outcome at a time."""
    rate_hz: float = 0.0
    """Frames per second; 0 for as fast as it goes."""
    receivers: tuple[str, ...] = ()
    """Receivers to use instead of asking the broker."""
    patience_s: float = 600.0
    """How long what may pass is retried."""


class Sender:
    """Sends the frames of one stream and finishes it."""

    def __init__(self, settings: SendSettings, content: Content, say: Callable[[str], None] = lambda _: None) -> None:
        self._settings = settings
        self._content = content
        self._say = say
        self._room = threading.Semaphore(settings.under_way)
        self._acked: list[int] = []
        self._conflicts = 0

    def run(self) -> None:
        """Send everything, wait for all outcomes, finish the stream.

        Raises
        ------
        AsapoError
            If the stream cannot be finished in time.
        """
        settings = self._settings
        with (
            BookWriter(settings.folder, self._content) as writer,
            Producer(
                settings.url, beamtime=settings.beamtime, source=settings.source, level=settings.level,
                receivers=settings.receivers or None, retry_s=settings.patience_s, name="checker",
            ) as producer,
        ):  # fmt: skip
            known = writer.book.outcomes()
            ids = itertools.islice(self._content.ids(), settings.messages)
            for group in self._groups(one for one in ids if known.get(one) not in ("ACK", "FAIL")):
                self._send(producer, writer, group, 0)
                self._provoke(producer, writer)
                self._say(f"sending {group[-1][0]}")
            producer.flush(settings.patience_s)
            producer.finish_stream(self._content.stream, timeout_s=settings.patience_s)

    def _groups(self, ids: Iterator[int]) -> Iterator[list[tuple[int, bytes]]]:
        """Yield (id, payload) by groups of bounded size."""
        group: list[tuple[int, bytes]] = []
        nbytes = 0
        for message_id in ids:
            payload = self._content.payload(message_id)
            group.append((message_id, payload))
            nbytes += len(payload)
            if len(group) == GROUP or nbytes >= GROUP_BYTES:
                yield group
                group, nbytes = [], 0
        if group:
            yield group

    def _send(self, producer: Producer, writer: BookWriter, group: list[tuple[int, bytes]], variant: int) -> None:
        writer.invoke([(one, hashlib.sha256(payload).hexdigest(), len(payload)) for one, payload in group])

        def settled(handle: Any) -> None:
            outcome, detail = outcome_of(handle.exception(0), self._settings.level)
            writer.settle(handle.id, outcome, detail)
            if outcome == "ACK" and not variant:
                self._acked.append(handle.id)
            self._room.release()

        for message_id, payload in group:
            self._room.acquire()
            producer.send(
                payload, id=message_id, stream=self._content.stream, meta=self._content.meta(message_id),
                callback=settled,
            )  # fmt: skip
            if self._settings.rate_hz:
                time.sleep(1 / self._settings.rate_hz)

    def _provoke(self, producer: Producer, writer: BookWriter) -> None:
        """Send other content under an acknowledged id when it is time for it."""
        every = self._settings.conflict_every
        if not every or len(self._acked) < every * (self._conflicts + 1):
            return
        message_id = self._acked[every * self._conflicts]
        self._conflicts += 1
        self._send(producer, writer, [(message_id, self._content.payload(message_id, 1))], 1)


def outcome_of(error: BaseException | None, level: str) -> tuple[str, str]:
    """Return what the journal says of an outcome: an error of the way leaves it unknown."""
    if error is None:
        return "ACK", level
    if isinstance(error, TransportError):
        return "UNKNOWN", ""
    return "FAIL", str(getattr(error, "code", type(error).__name__))
