"""The readers of a check, by the public SDK: a group in order, workers, the last message, single ids."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from asapo import Consumer
from asapo.errors import AsapoError, Gap, LeaseLost, NothingYet, StreamFinished, StreamState, UnknownStream
from asapo.testing.checker.evidence import Seen, Way
from asapo.testing.checker.reading_log import ReadingLog

PAGE: Final = 200
LOOK_S: Final = 0.05
"""Between two questions for the last message or for a single id."""


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """What to read, how, and where to write it down."""

    url: str
    beamtime: str
    source: str
    stream: str
    log: str
    way: Way
    name: str
    group: str = ""
    final: bool = False
    batch: int = 20
    access: str = "auto"
    verify: bool = False
    """Compare checksums. Off, because the bytes are compared here: what is wrong must not hide behind an error."""
    lease_s: float = 60.0
    patience_s: float = 120.0
    """How long the services may be away, or have nothing."""
    seed: int = 1


class Reader:
    """One reader at work."""

    def __init__(self, settings: ReadSettings, say: Callable[[str], None] = lambda _: None) -> None:
        self._settings = settings
        self._say = say

    def run(self, ids: Sequence[int] = ()) -> None:
        """Read until the stream is finished and all was read; `ids` are those to ask for, for a final one by id.

        Raises
        ------
        AsapoError
            If the services were away, or had nothing, for longer than `patience_s`.
        """
        settings = self._settings
        with (
            ReadingLog(settings.log, settings.way, settings.name, group=settings.group, final=settings.final) as log,
            Consumer(
                settings.url, beamtime=settings.beamtime, source=settings.source, access=settings.access,  # type: ignore[arg-type]
                verify=settings.verify, timeout_s=min(10.0, settings.patience_s), name="checker",
            ) as consumer,
        ):  # fmt: skip
            self._say("ready")
            if settings.way is Way.ORDERED:
                self._ordered(consumer, log)
            elif settings.way is Way.WORKER:
                self._work(consumer, log)
            elif settings.way is Way.LAST:
                self._last(consumer, log)
            elif ids:
                self._all_ids(consumer, log, ids)
            else:
                self._some_ids(consumer, log)
            log.end()

    # -- groups -----------------------------------------------------------------------------------------------------

    def _ordered(self, consumer: Consumer, log: ReadingLog) -> None:
        """Read by the loop that most scripts use."""
        settings = self._settings
        # A batch fetched ahead would be written down long after it was given, and times tell what a kill excuses.
        lists = consumer.stream(
            group=settings.group, stream=settings.stream, batch=settings.batch, follow=None, ack="manual",
            prefetch=settings.final, timeout_s=settings.patience_s, lease_s=settings.lease_s,
        )  # fmt: skip
        for messages in lists:
            self._take(consumer, log, messages)

    def _work(self, consumer: Consumer, log: ReadingLog) -> None:
        """Take and acknowledge, batch by batch."""
        settings = self._settings
        while True:
            messages = self._patiently(
                lambda: consumer.get_next(
                    settings.group, n=settings.batch, stream=settings.stream, timeout_s=1.0, lease_s=settings.lease_s
                )
            )
            if messages is None:
                return
            self._take(consumer, log, messages)

    def _take(self, consumer: Consumer, log: ReadingLog, messages: list[Any]) -> None:
        now_ns = time.monotonic_ns()
        for message in messages:
            note(log, message, now_ns)
        lost: set[int] = set()
        try:
            self._patiently(lambda: consumer.acknowledge(messages, group=self._settings.group))
        except LeaseLost as exc:
            lost.update(exc.fields.get("message_ids", ()))
        now_ns = time.monotonic_ns()
        for message in messages:
            if message.id not in lost:
                log.done(message.id, now_ns)

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """Return an answer, or None when the stream is finished; whatever may pass is waited for."""
        deadline_s = time.monotonic() + self._settings.patience_s
        while True:
            try:
                return ask()
            except StreamFinished:
                return None
            except (NothingYet, UnknownStream, AsapoError) as exc:
                if not exc.retriable or time.monotonic() > deadline_s:
                    raise
                time.sleep(LOOK_S)

    # -- without a group --------------------------------------------------------------------------------------------

    def _finished(self, consumer: Consumer) -> bool:
        info = self._patiently(lambda: consumer.stream_info(stream=self._settings.stream))
        return bool(info["finished"])

    def _last(self, consumer: Consumer, log: ReadingLog) -> None:
        """Look at the last message again and again, once more when the stream is finished."""
        while True:
            finished = self._finished(consumer)
            message = self._patiently(lambda: consumer.get_last(stream=self._settings.stream))
            if message is not None:
                note(log, message, time.monotonic_ns())
            if finished:
                return
            time.sleep(LOOK_S)

    def _some_ids(self, consumer: Consumer, log: ReadingLog) -> None:
        """Ask for ids at random, also for some that were never sent or not yet, until the stream is finished."""
        chance = random.Random(self._settings.seed)
        while not self._finished(consumer):
            message = self._patiently(lambda: consumer.get_last(stream=self._settings.stream))
            for _ in range(10):
                self._one_id(consumer, log, chance.randint(1, (message.id if message else 0) + 20))
            time.sleep(LOOK_S)

    def _one_id(self, consumer: Consumer, log: ReadingLog, message_id: int) -> None:
        try:
            message = consumer.get_by_id(message_id, stream=self._settings.stream)
        except Gap:
            log.hole(message_id, time.monotonic_ns())
        except StreamState:
            return
        except AsapoError as exc:
            if not exc.retriable:
                raise
        else:
            note(log, message, time.monotonic_ns())

    def _all_ids(self, consumer: Consumer, log: ReadingLog, ids: Sequence[int]) -> None:
        """Ask for every id that was sent; what is not there is a hole, whatever it is called."""
        stream = self._settings.stream
        for at in range(0, len(ids), PAGE):
            some = ids[at : at + PAGE]
            try:
                messages = consumer.get_by_id(some, stream=stream)
            except StreamState:
                messages = self._one_by_one(consumer, log, some)
            for message in messages:
                note(log, message, time.monotonic_ns())

    def _one_by_one(self, consumer: Consumer, log: ReadingLog, ids: Iterable[int]) -> list[Any]:
        found = []
        for message_id in ids:
            try:
                found.append(consumer.get_by_id(message_id, stream=self._settings.stream))
            except StreamState:
                log.hole(message_id, time.monotonic_ns())
        return found


def note(log: ReadingLog, message: Any, t_ns: int) -> None:
    """Read a message's payload and write down what it holds, or the error that it gives."""
    try:
        raw = message.raw
        named = message.meta.get("n", 0)
        digest = hashlib.sha256(raw).hexdigest()
    except AsapoError as exc:
        log.failed(message.id, exc.code, t_ns)
        return
    number = named if type(named) is int else 0
    log.got(Seen(message.id, len(raw), digest, number, t_ns, message.attempt, message.late))
