"""Chunks: messages that one session is given together, and that stay together until all of them are done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from asapo.delivery.cursor import GroupCursor
from asapo.delivery.leases import GroupState
from asapo.delivery.letters import HANDED_BACK, NO_LETTERS, Failure
from asapo.delivery.ranges import RangeSet
from asapo.delivery.rows import Chunk, Entry, entry_ids
from asapo.delivery.terms import Terms


class ChunkCursor(GroupCursor):
    """A cursor that gives chunks of `size` messages. To the rest of it, a chunk is one message with the first's id.

    Parameters
    ----------
    size : int
        Messages of a chunk; the last one of a stream may be shorter, and a message that comes late is one by itself.
    max_attempts, state, given_below, dead
        See `GroupCursor`; a chunk is tried as a whole.
    """

    def __init__(
        self, size: int, *, max_attempts: int = 0, state: GroupState | None = None, given_below: int = 0,
        dead: Mapping[int, int] = NO_LETTERS,
    ) -> None:  # fmt: skip
        super().__init__(ordered=True, max_attempts=max_attempts, state=state, given_below=given_below, dead=dead)
        self.size = size
        self.ids: list[int] = []
        """Of the messages read for the next chunk."""
        self.entries: list[Entry] = []
        """Messages read for the next chunk, which is not full yet."""
        self._partly: dict[tuple[bytes, int], set[int]] = {}
        """Session and first id of a chunk that it holds, to the ids that it acknowledged."""

    def take_chunk(self) -> Chunk:
        """Return the chunk that was read."""
        chunk = Chunk(self.entries)
        self.ids, self.entries = [], []
        return chunk

    # -- being told: of messages, where the cursor knows chunks -------------------------------------------------------

    def ack(self, session: bytes, ranges: Iterable[Sequence[int]]) -> list[int]:
        """Mark messages as done; a chunk is done when all of its messages are. Otherwise as `GroupCursor.ack`."""
        told = RangeSet(ranges)
        held = self._chunks_of(session)
        self._partly = {key: done for key, done in self._partly.items() if key[0] != session or key[1] in held}
        for first, ids in held.items():
            done = [one for one in ids if one in told]
            if not done:
                continue
            acked = self._partly.setdefault((session, first), set())
            acked.update(done)
            for one in done:
                told.remove(one)
            if len(acked) == len(ids):
                told.add(first)
        lost = super().ack(session, told)
        return [one for first in lost for one in self._ids_at(first)] if lost else lost

    def nack(
        self, session: bytes, ids: Iterable[int], delay_s: float, now_s: float, failure: Failure = HANDED_BACK, *,
        unsure: bool = False,
    ) -> list[int]:  # fmt: skip
        """Give the chunks that these messages belong to out again. Otherwise as `GroupCursor.nack`."""
        return super().nack(session, self._firsts(session, ids), delay_s, now_s, failure, unsure=unsure)

    def give_back(self, session: bytes, ids: Iterable[int] | None = None) -> list[int]:
        """Take back the chunks that these messages belong to. Otherwise as `GroupCursor.give_back`."""
        return super().give_back(session, None if ids is None else self._firsts(session, ids))

    def _chunks_of(self, session: bytes) -> dict[int, list[int]]:
        """Return the chunks that a session holds: first id to all ids."""
        holder = self._sessions.get(session)
        return {} if holder is None else {one: entry_ids(lease.entries[one]) for one, lease in holder.held.items()}

    def _firsts(self, session: bytes, ids: Iterable[int]) -> list[int]:
        """Return the first ids of the chunks that messages belong to; of one that is in none that is held, itself."""
        first_of = {one: first for first, chunk in self._chunks_of(session).items() for one in chunk}
        return list(dict.fromkeys(first_of.get(one, one) for one in ids))

    def _ids_at(self, first: int) -> list[int]:
        """Return the ids of a chunk that is held or waits, whosoever it is."""
        for name in self._sessions:
            found = self._chunks_of(name).get(first)
            if found is not None:
                return found
        waiting = self._again.waiting.get(first)
        return [first] if waiting is None else entry_ids(waiting[1])

    def _give_up(self, message_id: int, entry: Entry, attempts: int, failure: Failure, worker: str) -> None:
        """Give each message of a chunk up; requeued, each of them is one by itself."""
        self._settle_one(message_id, entry)
        for one in entry_ids(entry):
            self.dead.add(one, one, attempts, failure, worker)

    def seek(self, position: int) -> int:
        """Go on at `position`, where the next chunk begins; see `GroupCursor.seek`."""
        self.ids, self.entries = [], []
        self._partly.clear()
        return super().seek(position)

    def completed(self, message_id: int, entry: Entry) -> bool:
        """Put a dataset that is complete now in the place of what was read of it for the next chunk, if it was."""
        if message_id not in self.ids:
            return False
        self.entries[self.ids.index(message_id)] = entry
        return True

    # -- what is known ------------------------------------------------------------------------------------------------

    def is_pending(self, message_id: int) -> bool:
        """Return whether a message was read, or came late, and is not done."""
        return message_id in set(self.pending())

    def pending_among(self, ids: Sequence[int]) -> set[int]:
        """Return those of these ids that are pending; see `is_pending`."""
        return set(self.pending()).intersection(ids)

    def pending(self) -> Iterator[int]:
        """Yield the ids of all messages that were read, or came late, and are not done."""
        yield from self.ids
        yield from self._again.late
        for _, entry in self._again.waiting.values():
            yield from entry_ids(entry)
        for name in self._sessions:
            for ids in self._chunks_of(name).values():
                yield from ids

    @property
    def n_outstanding(self) -> int:
        """How many messages are held by sessions, were all chunks full."""
        return super().n_outstanding * self.size

    @property
    def n_waiting(self) -> int:
        """How many messages wait to be given again, were all chunks full, and how many came late."""
        return len(self._again.waiting) * self.size + len(self._again.late)


def cursor_of(
    terms: Terms, *, max_attempts: int, state: GroupState | None, given_below: int, dead: Mapping[int, int]
) -> GroupCursor:
    """Return the cursor of a group that reads on these terms; see `GroupCursor`."""
    kept: dict[str, Any] = {"max_attempts": max_attempts, "state": state, "given_below": given_below, "dead": dead}
    return ChunkCursor(terms.aligned, **kept) if terms.aligned else GroupCursor(ordered=terms.ordered, **kept)
