"""One consumer group on one stream: its cursor over the window, and over the index where the window does not reach."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter, lt
from typing import Final

from asapo.delivery.answers import answer_next
from asapo.delivery.cursor import NO_LETTERS, GroupCursor
from asapo.delivery.leases import GroupState
from asapo.delivery.rows import (
    Entry,
    RowTuple,
    assemble,
    entry_id,
    entry_rows,
    entry_seq,
    flatten,
    row_dataset_size,
    row_id,
    row_seq,
)
from asapo.delivery.window import Added, Slice, StreamWindow
from asapo.errors import StreamState, WrongInput

Matches = Callable[[RowTuple], bool]
"""A filter on one index row."""

SCAN_ENTRIES: Final = 4096
"""Entries a filter looks at in one call, so that one group never holds up the others."""
CHUNK_ENTRIES: Final = 256
"""Entries taken at once when some are left out."""
BACKLOG_ROWS: Final = 3_000
"""Rows asked from the index at once: many groups take turns at it, and each keeps its rows in memory."""
BACKLOG_LOW: Final = 1_500
"""The next backlog is asked for when fewer entries than this are left."""


@dataclass(frozen=True, slots=True)
class NeedBacklog:
    """Load messages with `from_key` <= key < `below` from the index, at most about `limit` rows, then `add_backlog`.

    Keys are ids when `ordered`, else arrival numbers. A dataset belongs to the key of its last part and comes whole;
    incomplete datasets may be left out.
    """

    ordered: bool
    from_key: int
    below: int
    limit: int = BACKLOG_ROWS


@dataclass(frozen=True, slots=True)
class NeedUnseen:
    """Load rows with `after_seq` < seq <= `upto_seq` and id < `below_id`, in the order of seq, then `add_unseen`.

    They came while no core looked after the group, with ids it had passed already.
    """

    after_seq: int
    upto_seq: int
    below_id: int
    limit: int = BACKLOG_ROWS


@dataclass(frozen=True, slots=True)
class Again:
    """The filter looked at its share and found nothing; call again, after others had their turn."""


@dataclass(frozen=True, slots=True)
class Granted:
    """Messages given to a session."""

    ids: list[int]
    rows: list[RowTuple]
    """One per message; all parts of a dataset."""
    attempts: dict[int, int]
    """Id to delivery count, for those delivered more than once."""
    late: list[int]
    """Ids that came below the group's position."""
    need: NeedBacklog | None = None
    """Load this already now, so that the next call does not wait for it."""


Answer = Granted | NeedBacklog | NeedUnseen | Again | StreamState
AGAIN: Final = Again()


@dataclass(slots=True)
class _Backlog:
    """Entries read from the index for one group, served before the window."""

    keys: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    covered_below: int = 0
    """Every message with a key from the position up to here is in the backlog."""

    def take(self, position: int, n: int) -> Slice:
        first = bisect_left(self.keys, position)
        end = min(first + n, len(self.keys))
        part = slice(first, end)
        position = self.keys[end - 1] + 1 if end < len(self.keys) else self.covered_below
        return Slice(self.keys[part], self.ids[part], self.entries[part], position)

    def left(self, position: int) -> int:
        return len(self.keys) - bisect_left(self.keys, position)


class Group:
    """Gives the messages of a stream to the sessions of one group.

    Parameters
    ----------
    window : StreamWindow
        The stream's window, shared by its groups; the owner of both is `StreamDelivery`.
    ordered : bool
        By id below the watermark, or by arrival.
    where, matches : str and callable
        The filter's text and its evaluation on one row; a dataset matches when one of its parts does.
    lease_s : float
        Default lease in seconds.
    max_attempts : int
        See `GroupCursor`.
    state : GroupState, optional
        Stored state to go on from.
    dead : mapping of int to int
        See `GroupCursor`.

    Raises
    ------
    WrongInput
        If there is a filter text without its evaluation, or the other way round.
    """

    def __init__(
        self,
        window: StreamWindow,
        *,
        ordered: bool = True,
        where: str = "",
        matches: Matches | None = None,
        lease_s: float = 60.0,
        max_attempts: int = 0,
        state: GroupState | None = None,
        dead: Mapping[int, int] = NO_LETTERS,
    ) -> None:
        if bool(where) != (matches is not None):
            raise WrongInput(f"group filter {where!r}: expected its text and its evaluation together")
        self.window = window
        self.where = where
        self.matches = matches
        self.lease_s = lease_s
        self.cursor = GroupCursor(
            ordered=ordered, max_attempts=max_attempts, state=state, given_below=window.id_max + 1, dead=dead
        )
        self.fetched: dict[int, Entry | None] = {}
        """Entries of dead letters that were loaded to be given out again; None for those that are no more."""
        self.used_s = 0.0
        """When a session last asked for something, set by whoever serves it; monotonic clock, in seconds."""
        self._held_at_most = 0
        """Messages given out since they were last counted, and those."""
        self._backlog = _Backlog()
        self._unseen_from = self._unseen_upto = self._unseen_below = 0
        if state is not None and ordered and (state.floor or state.done):
            self._unseen_from, self._unseen_upto = state.seen_seq, window.head_seq
            self._unseen_below = max(state.floor, self.cursor.ahead.last) + 1

    # -- what comes in ------------------------------------------------------------------------------------------

    def arrived(self, added: Added, low: int) -> None:
        """Take note of new messages; `low` is the window's `low` when they were added."""
        cursor = self.cursor
        edge = max(cursor.position, self._backlog.covered_below)
        if cursor.ordered:
            edge = max(edge, low)
            if added.lowest >= edge and added.lowest > cursor.ahead.last:
                return
            keys: Sequence[int] = added.ids
        else:
            keys = list(map(entry_seq, added.entries))
            if min(keys) >= edge:
                return
        waiting = set(self._backlog.ids[bisect_left(self._backlog.keys, cursor.position) :])
        for key, message_id, entry in zip(keys, added.ids, added.entries, strict=True):
            if message_id in waiting:
                continue
            if key < edge:
                self._arrive_late(message_id, entry)
            elif cursor.ordered and key in cursor.ahead:
                cursor.forget_done(message_id, entry)

    def add_backlog(self, rows: Sequence[RowTuple], *, from_key: int, covered_below: int) -> None:
        """Take rows loaded for `NeedBacklog`.

        Parameters
        ----------
        rows : sequence of RowTuple
            In any order; may hold rows that were not asked for.
        from_key, covered_below : int
            Every message with `from_key` <= key < `covered_below` is among them: `below` when the limit was not
            reached, else what the load was sure to reach.
        """
        backlog, cursor = self._backlog, self.cursor
        edge = max(cursor.position, backlog.covered_below)
        if from_key > edge or covered_below <= edge:
            return  # an answer to a question that was answered before
        keys, ids, entries = self._unknown(self._entries(rows), edge, covered_below)
        at = bisect_left(backlog.keys, cursor.position)
        self._backlog = _Backlog(
            backlog.keys[at:] + keys, backlog.ids[at:] + ids, backlog.entries[at:] + entries, covered_below
        )

    def _unknown(self, entries: list[Entry], edge: int, covered_below: int) -> tuple[list[int], list[int], list[Entry]]:
        """Return keys, ids and entries of those the group was not given and will not be given otherwise, by key.

        What the tail brings later, or brought before as late, is given once, from there.
        """
        cursor, window = self.cursor, self.window
        ids = list(map(entry_id if window.has_datasets else row_id, entries))
        seqs = list(map(entry_seq if window.has_datasets else row_seq, entries))
        keys = ids if cursor.ordered else seqs
        known = cursor.pending_among(ids) | window.orphans.intersection(ids)
        ascending = all(map(lt, keys, keys[1:]))
        within = bool(keys) and edge <= keys[0] and keys[-1] < covered_below and max(seqs) <= window.head_seq
        if within and ascending and not known:  # mostly so; looked at one by one it costs five times as much
            return keys, ids, entries
        fresh = [
            item
            for item, seq in zip(zip(keys, ids, entries, strict=True), seqs, strict=True)
            if edge <= item[0] < covered_below and seq <= window.head_seq and item[1] not in known
        ]
        fresh.sort(key=itemgetter(0))
        return [key for key, _, _ in fresh], [one for _, one, _ in fresh], [entry for _, _, entry in fresh]

    def add_unseen(self, rows: Sequence[RowTuple], *, covered_seq: int) -> None:
        """Take rows loaded for `NeedUnseen`: all of them with seq <= `covered_seq`, datasets whole."""
        if covered_seq <= self._unseen_from:
            return
        cursor = self.cursor
        for entry in self._entries(rows):
            message_id = entry_id(entry)
            new = self._unseen_from < entry_seq(entry) <= min(covered_seq, self._unseen_upto)
            if new and message_id < cursor.position:
                self._arrive_late(message_id, entry)
            elif new and message_id in cursor.ahead and message_id not in cursor.acked_since:
                cursor.forget_done(message_id, entry)
        self._unseen_from = covered_seq

    def add_entries(self, ids: Sequence[int], rows: Sequence[RowTuple]) -> None:
        """Take the rows of these ids, datasets whole; what is not among them does not exist any more."""
        found = {entry_id(entry): entry for entry in self._entries(rows)}
        self.fetched = {message_id: found.get(message_id) for message_id in ids}

    def _arrive_late(self, message_id: int, entry: Entry) -> None:
        """Keep a message below the position for the next session that asks, unless the filter does not let it pass."""
        if self.matches is None or any(map(self.matches, entry_rows(entry))):
            self.cursor.arrive_late(message_id, entry)
        else:
            self.cursor.passed += 1

    def _entries(self, rows: Sequence[RowTuple]) -> list[Entry]:
        """Assemble rows of the index; the window may not have met a dataset of this stream yet."""
        if any(map(row_dataset_size, rows)):
            self.window.has_datasets = True
        return assemble(rows)

    # -- what goes out ------------------------------------------------------------------------------------------

    def next_rows(self, session: bytes, n: int, now_s: float, lease_s: float = 0.0, *, worker: str = "") -> Answer:
        """Give up to `n` messages to a session, or say what is needed first, or why there is none.

        Parameters
        ----------
        session : bytes
            Who asks.
        n : int
            Most messages, at least 1; a dataset counts as one.
        now_s : float
            Monotonic clock, in seconds.
        lease_s : float
            Lease in seconds; 0 means the group's default.
        worker : str
            Name of the session, for the dead letters.
        """
        if self._unseen_from < self._unseen_upto:
            return NeedUnseen(self._unseen_from, self._unseen_upto, self._unseen_below)
        cursor = self.cursor
        ids, entries = cursor.take_again(session, n, now_s)
        late = [message_id for message_id in ids if message_id in cursor.late_ids]
        stopped = self._fill(ids, entries, n) if len(ids) < n else None
        if not ids:
            return stopped or answer_next(self.window, cursor, session)
        cursor.lease(session, ids, entries, lease_s or self.lease_s, now_s, worker=worker)
        self._held_at_most += len(ids)
        attempts = cursor.attempts
        return Granted(
            ids,
            flatten(entries) if self.window.has_datasets else entries,
            {one: attempts[one] + 1 for one in ids if one in attempts} if attempts else {},
            late,
            self._look_ahead(),
        )

    def is_holding(self, limit: int) -> bool:
        """Return whether sessions hold at least `limit` messages; counts them only when that may be."""
        if self._held_at_most >= limit:
            self._held_at_most = self.cursor.n_outstanding
        return self._held_at_most >= limit

    def _fill(self, ids: list[int], entries: list[Entry], n: int) -> NeedBacklog | Again | None:
        """Add new messages up to `n`; return what kept it from going on, None when the stream has no more now."""
        cursor = self.cursor
        choosy = self.matches is not None or bool(cursor.ahead) or bool(cursor.acked_ids)
        looked = 0
        while len(ids) < n:
            if looked >= SCAN_ENTRIES:
                return AGAIN
            before = cursor.position
            want = max(n - len(ids), CHUNK_ENTRIES) if choosy else n - len(ids)
            part = self._read(want)
            if isinstance(part, NeedBacklog):
                return part
            looked += len(part.ids)
            if choosy:
                self._choose(part, ids, entries, n)
            else:
                ids += part.ids
                entries += part.entries
                cursor.advance(part.position)
            if cursor.position == before:
                return None
        return None

    def _read(self, n: int) -> Slice | NeedBacklog:
        position, backlog = self.cursor.position, self._backlog
        if position < backlog.covered_below:
            return backlog.take(position, n)
        if backlog.keys:
            self._backlog = _Backlog()
        if self.cursor.ordered:
            if position < self.window.low:
                return NeedBacklog(True, position, self.window.low)
            return self.window.slice_ordered(position, n)
        if position < self.window.seq_low:
            return NeedBacklog(False, position, self.window.seq_low)
        return self.window.slice_arrival(position, n)

    def _choose(self, part: Slice, ids: list[int], entries: list[Entry], n: int) -> None:
        """Take what the filter lets pass and what is not done; stop behind the n-th."""
        cursor, passed, position = self.cursor, 0, part.position
        for key, message_id, entry in zip(*part[:3], strict=True):
            if len(ids) == n:
                position = key
                break
            if key in cursor.ahead:
                continue
            if message_id in cursor.acked_ids:
                cursor.acked_ids.remove(message_id)
            elif self.matches is None or any(map(self.matches, entry_rows(entry))):
                ids.append(message_id)
                entries.append(entry)
            else:
                passed += 1
        cursor.advance(position, passed)

    def _look_ahead(self) -> NeedBacklog | None:
        """Return the next backlog to load while there is still some to serve."""
        backlog, ordered = self._backlog, self.cursor.ordered
        low = self.window.low if ordered else self.window.seq_low
        if self.cursor.position >= low or backlog.left(self.cursor.position) >= BACKLOG_LOW:
            return None
        edge = max(backlog.covered_below, self.cursor.position)
        return NeedBacklog(ordered, edge, low) if edge < low else None

    def seek(self, position: int) -> int:
        """Go on at another place; see `GroupCursor.seek`."""
        self._backlog = _Backlog()
        self._unseen_from = self._unseen_upto
        return self.cursor.seek(position)

    def snapshot(self) -> GroupState:
        """Return the state to store; clears `cursor.dirty`."""
        seen = self._unseen_from if self._unseen_from < self._unseen_upto else self.window.head_seq
        return self.cursor.snapshot(where=self.where, seen_seq=seen)
