"""Readers of the model: what the programs of `readers.py` are for real services."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

from asapo.testing.checker.evidence import Event, Probe, Reading, Seen, Way
from asapo.testing.checker.model import Given, Model, ModelError, Row

DRAIN_STEPS = 100_000


def take_digest(payload: bytes) -> str:
    """Return the SHA-256 of a payload."""
    return hashlib.sha256(payload).hexdigest()


class Log:
    """What one reader has seen so far."""

    def __init__(self, model: Model, now_ns: Callable[[], int], way: Way, name: str, *, final: bool) -> None:
        self.model = model
        self.now_ns = now_ns
        self.way = way
        self.name = name
        self.final = final
        self.group = ""
        self.complete = False
        self.seen: list[Seen] = []
        self.errors: list[Event] = []
        self.holes: list[Event] = []
        self.confirmed: list[Event] = []

    def note(self, row: Row, attempt: int = 1) -> None:
        """Read a message and write down what it holds."""
        try:
            payload = self.model.read(row)
        except ModelError as exc:
            self.errors.append(Event(row.id, self.now_ns(), str(exc)))
        else:
            digest = take_digest(payload)
            self.seen.append(Seen(row.id, len(payload), digest, row.named, self.now_ns(), attempt))

    def reading(self, *, final: bool = False) -> Reading:
        """Return all of it."""
        return Reading(
            self.way, self.name, tuple(self.seen), self.complete, self.final or final, self.group, tuple(self.errors),
            tuple(self.holes), tuple(self.confirmed),
        )  # fmt: skip


class GroupReader(Log):
    """Takes messages of a group and acknowledges them."""

    def __init__(
        self, model: Model, now_ns: Callable[[], int], way: Way, group: str, name: str, *, final: bool = False
    ) -> None:
        super().__init__(model, now_ns, way, name, final=final)
        self.group = group
        self.held: list[Given] = []

    def turn(self, chance: random.Random) -> None:
        """Take a message, or acknowledge one that is held."""
        if self.held and chance.random() < 0.5:
            self.acknowledge(self.held.pop(0))
        else:
            self.take()

    def take(self) -> bool:
        """Take the next message; False when there is none."""
        given = self.model.next(self.group, self.name)
        if given is None:
            return False
        self.note(given.row, given.attempt)
        self.held.append(given)
        return True

    def acknowledge(self, given: Given) -> None:
        """Say that a message is done."""
        if self.model.acknowledge(self.group, self.name, given.key):
            self.confirmed.append(Event(given.row.id, self.now_ns()))

    def drain(self) -> Probe:
        """Read to the end of the finished stream, and tell whether it came."""
        steps = 0
        while self.model.core_up and steps < DRAIN_STEPS:
            steps += 1
            self.model.pass_time()
            if self.held:
                self.acknowledge(self.held.pop(0))
            elif not self.take():
                self.complete = True
                break
        return Probe(f"{self.name} reads to the end", DRAIN_STEPS, steps if self.complete else None)


class Asker(Log):
    """Asks for single ids."""

    def __init__(self, model: Model, now_ns: Callable[[], int], *, final: bool = False) -> None:
        super().__init__(model, now_ns, Way.BY_ID, "", final=final)

    def ask(self, message_id: int) -> None:
        """Ask for an id: a message, a hole when it will never come, or nothing yet."""
        row = self.model.find(message_id)
        if row is not None:
            self.note(row)
        elif message_id < self.model.closed_below or self.model.finished:
            self.holes.append(Event(message_id, self.now_ns()))


class Lasts(Log):
    """Asks for the last message again and again."""

    def look(self) -> None:
        """Ask once."""
        last = max((row.id for row in self.model.rows), default=0)
        row = self.model.find(last)
        if row is not None:
            self.note(row)

    def forget(self) -> None:
        """Begin anew: what was last may have been lost with the power."""
        self.seen.clear()


def last_of(model: Model, now_ns: Callable[[], int]) -> Lasts:
    """Return a reader of the last message."""
    return Lasts(model, now_ns, Way.LAST, "", final=False)


def offline(model: Model, now_ns: int) -> Reading:
    """Read the files alone: the first live record of each id."""
    log = Log(model, lambda: now_ns, Way.OFFLINE, "files", final=True)
    known: set[int] = set()
    for number, file in sorted(model.files.items()):
        for record in file.records:
            if record.live and record.id not in known:
                known.add(record.id)
                log.note(Row(record.id, number, record.offset, record.size, record.checksum, record.named))
    log.complete = True
    return log.reading()
