"""Messages that a group gave up: what is remembered of each, and what changed of that since it was stored."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

REASON_CHARS: Final = 500
"""Longest reason that is kept."""
TRACEBACK_CHARS: Final = 8000
"""Longest traceback that is kept; of a longer one the end, where the error stands."""
TRACEBACKS: Final = 1000
"""Dead letters of one group that keep their traceback; those after them have their reason only."""


class Failure(NamedTuple):
    """Why a delivery came to nothing."""

    reason: str
    traceback: str = ""
    when_ns: int = 0
    """Since the Unix epoch."""


NO_LETTERS: Final[Mapping[int, int]] = {}
HANDED_BACK: Final = Failure("handed back by its worker")
LEASE_ENDED: Final = Failure("its worker did not acknowledge it before the lease ran out")
WORKER_GONE: Final = Failure("its worker died or was cut off")


class DeadLetter(NamedTuple):
    """A message that was given up."""

    message_id: int
    key: int
    """What the group's position counts: the id, or the arrival number."""
    attempts: int
    reason: str
    traceback: str
    worker: str
    failed_ns: int


class Explained(NamedTuple):
    """A worker says later why messages failed that it had handed back."""

    worker: str
    reason: str
    traceback: str

    def apply(self, letter: DeadLetter) -> DeadLetter:
        """Return the letter with its reason, if it speaks of this worker's failure and nothing better is known."""
        if letter.worker != self.worker or letter.traceback:
            return letter
        return letter._replace(reason=self.reason, traceback=self.traceback)


Change = DeadLetter | Explained | None
"""What becomes of the stored letter of an id; None: it is removed."""


def bounded(reason: str, traceback: str) -> tuple[str, str]:
    """Return both texts no longer than what is kept."""
    return reason[:REASON_CHARS], traceback[-TRACEBACK_CHARS:]


def merge(older: Mapping[int, Change], newer: Mapping[int, Change]) -> dict[int, Change]:
    """Return the changes that do what `older` and then `newer` do."""
    merged = dict(older)
    for message_id, change in newer.items():
        if isinstance(change, Explained) and message_id in merged:
            known = merged[message_id]
            merged[message_id] = change.apply(known) if isinstance(known, DeadLetter) else known or None
        else:
            merged[message_id] = change
    return merged


class DeadLetters:
    """The dead letters of one group: their ids in memory, their contents only until they are stored.

    Parameters
    ----------
    keys : mapping of int to int
        What is stored: id to key.
    """

    def __init__(self, keys: Mapping[int, int]) -> None:
        self.keys: dict[int, int] = dict(keys)
        self.changes: dict[int, Change] = {}
        """Since `take_changes` was called last."""

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, message_id: int, key: int, attempts: int, failure: Failure, worker: str) -> None:
        """Note that a message was given up."""
        reason, traceback = bounded(failure.reason, failure.traceback)
        if len(self.keys) >= TRACEBACKS:
            traceback = ""
        self.keys[message_id] = key
        self.changes[message_id] = DeadLetter(message_id, key, attempts, reason, traceback, worker, failure.when_ns)

    def explain(self, ids: Iterable[int], worker: str, reason: str, traceback: str) -> bool:
        """Take a worker's later word on messages it handed back; False when none of them is among these."""
        known = {message_id: Explained(worker, *bounded(reason, traceback)) for message_id in ids
                 if message_id in self.keys}  # fmt: skip
        self.changes = merge(self.changes, known)
        return bool(known)

    def remove(self, ids: Collection[int]) -> None:
        """Forget these."""
        for message_id in ids:
            if self.keys.pop(message_id, None) is not None:
                self.changes[message_id] = None

    def first(self, ids: Collection[int], everything: bool, limit: int) -> list[int]:
        """Return those of `ids` (or of all) that are dead letters, ascending, at most `limit`."""
        return sorted(self.keys if everything else self.keys.keys() & set(ids))[:limit]

    def take_changes(self) -> dict[int, Change]:
        """Return what is to be stored, and forget it here."""
        changes, self.changes = self.changes, {}
        return changes
