"""What one group was given, what it is done with, and what it has to be given again."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Final

from asapo.delivery.leases import Departed, GroupState, Holder, Lease
from asapo.delivery.letters import HANDED_BACK, LEASE_ENDED, NO_LETTERS, WORKER_GONE, DeadLetters, Failure
from asapo.delivery.pending import Pending
from asapo.delivery.ranges import RangeSet, complement
from asapo.delivery.redelivery import Redelivery
from asapo.delivery.rows import Entry, entry_seq

TIDY_ABOVE: Final = 64
"""Emptied leases are swept when a session has more leases than this and than messages."""


class GroupCursor(Pending):
    """Position, leases and redelivery of one group. Gives entries out at most to one session at a time.

    Parameters
    ----------
    ordered : bool
        True: keys are ids; False: keys are arrival numbers.
    max_attempts : int
        Failed deliveries after which a message is given up and becomes a dead letter; 0 means never.
    state : GroupState, optional
        What was stored. The position starts again behind the floor, and done keys are skipped.
    given_below : int
        With `state`: ids under this may have been given out by the core before; their acknowledgement is accepted.
    dead : mapping of int to int
        With `state`: ids of the stored dead letters, and their keys.
    """

    def __init__(
        self, *, ordered: bool, max_attempts: int = 0, state: GroupState | None = None, given_below: int = 0,
        dead: Mapping[int, int] = NO_LETTERS,
    ) -> None:  # fmt: skip
        super().__init__(ordered=ordered)
        self.max_attempts = max_attempts
        self.position = 1 if state is None else state.floor + 1
        """Next key to look at."""
        self.ahead = RangeSet(state.done if state else ())
        """Done keys at or above the position."""
        self.acked_ids = RangeSet(state.acked_ids if state else ())
        self.attempts: dict[int, int] = dict(state.attempts if state else ())
        self.dead = DeadLetters(dead)
        self.passed = state.passed if state else 0
        self.late = state.late if state else 0
        self.given_below = given_below if state else 0
        self.acked_since = RangeSet()
        """Ids given out by the core before and acknowledged to this one: no gaps, whatever `state` says."""
        self.dirty = state is None
        """True when the durable state changed since `snapshot`."""
        self.late_ids: set[int] = set()
        """Ids that arrived below the position and are not done."""
        self._departed = Departed()

    # -- giving out ---------------------------------------------------------------------------------------------

    def take_again(self, session: bytes, n: int, now_s: float) -> tuple[list[int], list[Entry]]:
        """Take out up to `n` messages that have to be given again, then those that came late."""
        holder = self._sessions.get(session)
        return self._again.take(n, now_s, holds_suspect=holder is not None and holder.suspect in holder.held)

    def lease(
        self, session: bytes, ids: Sequence[int], entries: Iterable[Entry], lease_s: float, now_s: float, *,
        worker: str = "",
    ) -> None:  # fmt: skip
        """Record that `session`, known as `worker`, was given these messages, for `lease_s` seconds unless renewed."""
        holder = self._sessions.get(session)
        if holder is None:
            holder = self._sessions[session] = self._departed.take(session, worker)
        if self._again.suspects:
            holder.suspect = next(filter(self._again.suspects.__contains__, ids), holder.suspect)
        if len(holder.leases) > TIDY_ABOVE and len(holder.leases) > len(holder.held):
            holder.leases = [lease for lease in holder.leases if lease.entries]
        lease = Lease(now_s, lease_s, dict(zip(ids, entries, strict=True)))
        holder.leases.append(lease)
        holder.soonest_s = min(holder.soonest_s, now_s + lease_s)
        holder.held.update(dict.fromkeys(ids, lease))
        if holder.lost:
            for message_id in ids:
                holder.lost.remove(message_id)

    def advance(self, position: int, passed: int = 0) -> None:
        """Go on at `position`; `passed` messages before it were left out by the filter."""
        if position != self.position:
            self.position = position
            self.dirty = True
            if self.ahead:
                self.ahead.remove_below(position)
        self.passed += passed

    def arrive_late(self, message_id: int, entry: Entry) -> None:
        """Queue a message that came below the position or where the group does not look any more."""
        if not self.is_pending(message_id):
            self._again.late[message_id] = entry
            self.late_ids.add(message_id)
            self.late += 1
            self.forget_done(message_id, entry)

    def forget_done(self, message_id: int, entry: Entry) -> None:
        """Undo the mark "done" of a key that counted as a gap until its message came."""
        self.ahead.remove(self._key(message_id, entry))
        self.dirty = True

    # -- being told ---------------------------------------------------------------------------------------------

    def ack(self, session: bytes, ranges: Iterable[Sequence[int]]) -> list[int]:
        """Mark messages as done.

        Parameters
        ----------
        session : bytes
            Who acknowledges.
        ranges : pairs of int
            Closed ranges [lo, hi] of the ids it was given. Ids between them that it does not hold are not touched.

        Returns
        -------
        list of int
            Ids that were taken from the session and are, or were, somebody else's: `LeaseLost`.

        Notes
        -----
        A message whose lease ran out, or whose session fell silent and is back, and that nobody was given since is
        accepted: the first ack wins. So is, after `state` was restored, one that the core before may have given out.
        """
        holder = self._sessions.get(session) or self._departed.find(session)
        merged = list(RangeSet(ranges))
        if holder is None:
            return self._ack_unheld(None, merged)
        held, open_ranges = holder.held, []
        order = sorted(held) if len(merged) > 1 or (merged and merged[0][1] - merged[0][0] >= len(held)) else None
        for lo, hi in merged:
            if order is None:
                ids = list(filter(held.__contains__, range(lo, hi + 1)))
            else:
                ids = order[bisect_left(order, lo) : bisect_right(order, hi)]
            if ids:
                self._done(holder, ids)
            if len(ids) <= hi - lo:
                open_ranges.append((lo, hi))
        return self._ack_unheld(holder, open_ranges) if open_ranges else []

    def _done(self, holder: Holder, ids: list[int]) -> None:
        """Let go of held messages that are done."""
        held = holder.held
        if self.late_ids or (self.ordered and ids[-1] >= self.position):
            self._keep_ahead(holder, ids)
        lease = held[ids[0]]
        if len(ids) == len(lease.entries) and list(lease.entries) == ids:  # mostly one grant is reported as a whole
            lease.entries = {}
            deque(map(held.__delitem__, ids), maxlen=0)
        else:
            for message_id in ids:
                del held.pop(message_id).entries[message_id]
        if not held:
            holder.leases.clear()
        if self.attempts:
            for message_id in ids:
                self.attempts.pop(message_id, None)
        if self._again.suspects:
            self._again.suspects.difference_update(ids)
        if self.late_ids:
            self.late_ids.difference_update(ids)
        self.dirty = True

    def _keep_ahead(self, holder: Holder, ids: list[int]) -> None:
        """Remember done keys that the position has still before it: late arrivals of a part not read yet."""
        if self.ordered:
            for message_id in ids[bisect_left(ids, self.position) :]:
                self.ahead.add(message_id)
        else:
            for message_id in filter(self.late_ids.__contains__, ids):
                seq = entry_seq(holder.held[message_id].entries[message_id])
                if seq >= self.position:
                    self.ahead.add(seq)

    def _ack_unheld(self, holder: Holder | None, ranges: list[tuple[int, int]]) -> list[int]:
        """Treat ranges of an ack that the session does not hold in full; return the lost ids."""
        lost: list[int] = []
        for lo, hi in ranges:
            if holder is not None and holder.lost:
                for a, b in holder.lost.overlap(lo, hi):
                    holder.lost.remove(a, b)
                    lost += [message_id for message_id in range(a, b + 1) if not self._ack_waiting(message_id)]
            if lo == hi and (not lost or lost[-1] != lo) and self._held_by_other(holder, lo):
                lost.append(lo)
            if lo < self.given_below:
                hi = min(hi, self.given_below - 1)
                lost += [one for one in self._held_beside(holder, lo, hi) if one not in lost]
                self._ack_given_before(lo, hi)
        return lost

    def _ack_waiting(self, message_id: int) -> bool:
        """Accept the ack of a message that waits for redelivery; False when it does not."""
        entry = self._again.pop(message_id)
        if entry is None:
            return False
        self.attempts.pop(message_id, None)
        self._settle_one(message_id, entry)
        return True

    def _settle_one(self, message_id: int, entry: Entry) -> None:
        """Count a message that nobody holds as done."""
        self.late_ids.discard(message_id)
        self._again.suspects.discard(message_id)
        key = self._key(message_id, entry)
        if key >= self.position:
            self.ahead.add(key)
        self.dirty = True

    def _key(self, message_id: int, entry: Entry) -> int:
        return message_id if self.ordered else entry_seq(entry)

    def _held_by_other(self, holder: Holder | None, message_id: int) -> bool:
        return any(message_id in other.held for other in self._sessions.values() if other is not holder)

    def _held_beside(self, holder: Holder | None, lo: int, hi: int) -> list[int]:
        """Return the ids within [lo, hi] that sessions other than this hold."""
        others = (other for other in self._sessions.values() if other is not holder)
        return sorted(one for other in others for one in other.held if lo <= one <= hi)

    def _ack_given_before(self, lo: int, hi: int) -> None:
        """Accept the ack of messages that the core before can have given out and that nobody holds."""
        for message_id in [one for one in self._again.waiting if lo <= one <= hi]:
            self._ack_waiting(message_id)
        lo = max(lo, self.position) if self.ordered else lo
        if lo > hi:
            return
        kept = RangeSet([(lo, hi)])
        for message_id in filter(lambda one: lo <= one <= hi, self.pending()):
            kept.remove(message_id)
        target = self.ahead if self.ordered else self.acked_ids
        for a, b in kept:
            target.add(a, b)
            self.acked_since.add(a, b)
            self.dirty = True

    def nack(
        self, session: bytes, ids: Iterable[int], delay_s: float, now_s: float, failure: Failure = HANDED_BACK, *,
        unsure: bool = False,
    ) -> list[int]:  # fmt: skip
        """Give these messages out again after `delay_s`; the attempt counts. Return those the session does not hold.

        `unsure`: nobody knows which of them failed, so all are suspects.
        """
        if unsure and self.max_attempts > 1 and session in self._sessions:
            self._again.suspects.update(filter(self._sessions[session].held.__contains__, ids))
        return self._return(session, ids, now_s + delay_s, failure)

    def give_back(self, session: bytes, ids: Iterable[int] | None = None) -> list[int]:
        """Take back messages (None: all) that were never started; no attempt counts. Return those not held."""
        if ids is None:
            ids = list(self._sessions[session].held) if session in self._sessions else []
        return self._return(session, ids, -inf, None)

    def _return(self, session: bytes, ids: Iterable[int], due_s: float, failure: Failure | None) -> list[int]:
        holder = self._sessions.get(session)
        lost: list[int] = []
        for message_id in ids:
            lease = holder.held.pop(message_id, None) if holder is not None else None
            if holder is None or lease is None:
                lost.append(message_id)
            else:
                self._wait(message_id, lease.entries.pop(message_id), due_s, failure, holder)
        return lost

    def _lose(self, holder: Holder, items: Iterable[tuple[int, Entry]], due_s: float, failure: Failure) -> list[int]:
        """Take back what a session held that is gone or too slow; any of these may be the reason."""
        items = list(items)
        if self.max_attempts > 1:
            self._again.suspects.update([message_id for message_id, _ in items])
        for message_id, entry in items:
            self._wait(message_id, entry, due_s, failure, holder)
        return [message_id for message_id, _ in items]

    def _wait(self, message_id: int, entry: Entry, due_s: float, failure: Failure | None, holder: Holder) -> None:
        """Put a message, that was given out in vain, into the queue for redelivery, or give it up."""
        self.dirty = True
        if failure is not None:
            failed = self.attempts[message_id] = self.attempts.get(message_id, 0) + 1
            if 0 < self.max_attempts <= failed:
                del self.attempts[message_id]
                self._give_up(message_id, entry, failed, failure, holder.worker)
                return
        self._again.put(message_id, entry, due_s)

    def _give_up(self, message_id: int, entry: Entry, attempts: int, failure: Failure, worker: str) -> None:
        """Make a message a dead letter."""
        self._settle_one(message_id, entry)
        self.dead.add(message_id, self._key(message_id, entry), attempts, failure, worker)

    # -- time ---------------------------------------------------------------------------------------------------

    def expire(self, now_s: float, when_ns: int = 0) -> list[int]:
        """Take messages back whose lease ran out at or before `now_s`; return their ids. `when_ns`: time of day."""
        out: list[int] = []
        failure = LEASE_ENDED._replace(when_ns=when_ns)
        for holder in self._sessions.values():
            if now_s < holder.soonest_s:
                continue
            ended = [lease for lease in holder.leases if holder.ends_s(lease) <= now_s]
            if ended:
                holder.leases = [lease for lease in holder.leases if holder.ends_s(lease) > now_s]
            holder.soonest_s = min(map(holder.ends_s, holder.leases), default=inf)
            items = [item for lease in ended for item in lease.entries.items()]
            for message_id, _ in items:
                del holder.held[message_id]
                holder.lost.add(message_id)
            out += self._lose(holder, items, now_s, failure)
        return out

    def drop_session(self, session: bytes, now_s: float = -inf, when_ns: int = 0) -> list[int]:
        """Forget a session that is gone; what it held is given out again at once. Return those ids."""
        holder = self._sessions.pop(session, None)
        if holder is None:
            return []
        items = [(message_id, lease.entries[message_id]) for message_id, lease in holder.held.items()]
        self._departed.add(session, holder)
        return self._lose(holder, items, now_s, WORKER_GONE._replace(when_ns=when_ns))

    # -- what an administrator does -----------------------------------------------------------------------------

    def seek(self, position: int) -> int:
        """Go on at `position`: everything below it is done, everything else is given again, with no attempts counted.

        Leases end: late acknowledgements of what was held are refused. Dead letters from the position on are no more.

        Returns
        -------
        int
            How many messages were held.
        """
        n_held = self.n_outstanding
        for holder in self._sessions.values():
            for message_id in holder.held:
                holder.lost.add(message_id)
            holder.held.clear()
            holder.leases.clear()
        self._again = Redelivery()
        self.late_ids.clear()
        for done in (self.ahead, self.acked_ids, self.acked_since):
            done.clear()
        self.attempts.clear()
        self.dead.remove([message_id for message_id, key in self.dead.keys.items() if key >= position])
        self.given_below = 0
        self.position = position
        self.dirty = True
        return n_held

    def revive(self, ids: Iterable[int], entries: Mapping[int, Entry]) -> int:
        """Give dead letters out again, attempts counted anew; those without an entry are no more. Return how many."""
        given = [message_id for message_id in ids if message_id in self.dead.keys]
        for message_id in given:
            entry = entries.get(message_id)
            if entry is not None and not self.is_pending(message_id):
                self.forget_done(message_id, entry)
                if self.dead.keys[message_id] < self.position:  # else it is read in its turn
                    self._again.put(message_id, entry, -inf)
        self.dead.remove(given)
        self.dirty = True
        return len(given)

    # -- what is stored -----------------------------------------------------------------------------------------

    def at_rest(self, now_s: float) -> bool:
        """Return whether nothing is lost by making the cursor anew from its stored state."""
        return not (self.dirty or self.n_outstanding or self._again.late or self._again.waits_beyond(now_s))

    @property
    def floor(self) -> int:
        """Every key up to this is done or will never come."""
        return self._durable()[0]

    def _durable(self) -> tuple[int, tuple[tuple[int, int], ...]]:
        """Return the floor and the ranges of done keys above it."""
        pending = self._pending_keys()
        done = RangeSet(complement(pending, 1, self.position - 1))
        for lo, hi in self.ahead:
            done.add(lo, hi)
        for key in pending[bisect_left(pending, self.position) :]:
            done.remove(key)
        floor = done.floor()
        return floor, tuple((lo, hi) for lo, hi in done if lo > floor)

    def snapshot(self, *, where: str, seen_seq: int) -> GroupState:
        """Return the durable state and clear `dirty`; `seen_seq`: of the newest row that this cursor took part in."""
        floor, done = self._durable()
        self.dirty = False
        return GroupState(
            self.ordered, where, floor, done, tuple(self.acked_ids), tuple(self.attempts.items()), seen_seq,
            self.passed, self.late,
        )  # fmt: skip
