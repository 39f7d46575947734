"""What of a group is neither done nor unread: messages that sessions hold, and messages that wait to be given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf

from asapo.delivery.leases import Holder
from asapo.delivery.redelivery import Redelivery
from asapo.delivery.rows import entry_seq


class Pending:
    """Messages that were read or came late, and are not done.

    Parameters
    ----------
    ordered : bool
        True: keys are ids; False: keys are arrival numbers.
    """

    def __init__(self, *, ordered: bool) -> None:
        self.ordered = ordered
        self._sessions: dict[bytes, Holder] = {}
        self._again = Redelivery()

    def renew(self, session: bytes, now_s: float) -> None:
        """Start all leases of the session anew."""
        holder = self._sessions.get(session)
        if holder is not None:
            holder.renewed_s = now_s

    def next_event_s(self) -> float:
        """Return when a lease runs out or a delayed message is due, whichever is first; infinity when neither."""
        ends = [holder.ends_s(lease) for holder in self._sessions.values() for lease in holder.leases if lease.entries]
        return min([*ends, self._again.next_due_s])

    def is_pending(self, message_id: int) -> bool:
        """Return whether a message was read, or came late, and is not done."""
        if message_id in self._again:
            return True
        return any(message_id in holder.held for holder in self._sessions.values())

    def pending_among(self, ids: Sequence[int]) -> set[int]:
        """Return those of these ids that are pending; see `is_pending`."""
        maps: list[Mapping[int, object]] = [self._again.late, self._again.waiting]
        maps += [holder.held for holder in self._sessions.values()]
        return set().union(*[held.keys() & ids for held in maps if not held.keys().isdisjoint(ids)])

    def held(self, session: bytes) -> Sequence[int]:
        """Return the ids that a session holds."""
        return list(self._sessions[session].held) if session in self._sessions else []

    def unfinished_beside(self, session: bytes) -> bool:
        """Return whether messages wait for redelivery or are held by sessions other than this."""
        if self._again:
            return True
        return any(holder.held for name, holder in self._sessions.items() if name != session)

    @property
    def n_outstanding(self) -> int:
        """How many messages are held by sessions."""
        return sum(len(holder.held) for holder in self._sessions.values())

    @property
    def n_waiting(self) -> int:
        """How many messages wait to be given again or came late."""
        return len(self._again)

    @property
    def n_suspects(self) -> int:
        """How many messages are given one at a time, because a worker was lost that held them."""
        return len(self._again.suspects)

    @property
    def oldest_s(self) -> float:
        """When the oldest of the deliveries was made that are not acknowledged; infinity when there is none."""
        leases = (lease for holder in self._sessions.values() for lease in holder.leases)
        return min((lease.granted_s for lease in leases if lease.entries), default=inf)

    def workers(self) -> dict[bytes, str]:
        """Return the sessions that hold messages, with their names."""
        return {session: holder.worker for session, holder in self._sessions.items() if holder.held}

    def _pending(self) -> Iterator[int]:
        yield from self._again
        for holder in self._sessions.values():
            yield from holder.held

    def _pending_keys(self) -> list[int]:
        if self.ordered:
            return sorted(self._pending())
        entries = self._again.entries()
        for holder in self._sessions.values():
            for lease in holder.leases:
                entries += lease.entries.values()
        return sorted(map(entry_seq, entries))
