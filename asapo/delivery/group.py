"""One consumer group on one stream: its cursor over the window, and over the index where the window does not reach."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from math import inf
from operator import itemgetter, lt
from typing import Final

from asapo.delivery.answers import answer_next
from asapo.delivery.backlog import BACKLOG_LOW, Backlog
from asapo.delivery.chunks import ChunkCursor, cursor_of
from asapo.delivery.datasets import DatasetRule, Incomplete
from asapo.delivery.leases import GroupState
from asapo.delivery.letters import NO_LETTERS
from asapo.delivery.needs import AGAIN, Again, Answer, Granted, NeedBacklog, NeedUnseen
from asapo.delivery.rows import (
    Entry,
    Matches,
    RowTuple,
    assemble,
    entry_id,
    entry_ids,
    entry_rows,
    entry_seq,
    flatten,
    row_dataset_size,
    row_id,
    row_seq,
)
from asapo.delivery.terms import Terms
from asapo.delivery.window import Added, Slice, StreamWindow
from asapo.errors import WrongInput

SCAN_ENTRIES: Final = 4096
"""Entries a filter looks at in one call, so that one group never holds up the others."""
CHUNK_ENTRIES: Final = 256
"""Entries taken at once when some are left out."""


class Group:
    """Gives the messages of a stream to the sessions of one group.

    Parameters
    ----------
    window : StreamWindow
        The stream's window, shared by its groups; the owner of both is `StreamDelivery`.
    ordered, where, min_parts, dataset_timeout_s, aligned
        See `Terms`.
    matches : callable
        The filter's evaluation on one row; a dataset matches when one of its parts does.
    lease_s : float
        Default lease in seconds.
    max_attempts, dead
        See `GroupCursor`.
    state : GroupState, optional
        Stored state to go on from.

    Raises
    ------
    WrongInput
        If there is a filter text without its evaluation, or the other way round, or if the terms do not go together.
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
        min_parts: int = 0,
        dataset_timeout_s: float = 0.0,
        aligned: int = 0,
    ) -> None:
        if bool(where) != (matches is not None):
            raise WrongInput(f"group filter {where!r}: expected its text and its evaluation together")
        self.window = window
        self.terms = Terms(ordered, where, min_parts, dataset_timeout_s, aligned).check()
        self.matches = matches
        self.lease_s = lease_s
        self.cursor = cursor_of(
            self.terms, max_attempts=max_attempts, state=state, given_below=window.id_max + 1, dead=dead
        )
        rule = DatasetRule(min_parts, dataset_timeout_s)
        kept = () if state is None else (state.given_incomplete, state.late_parts)
        self.incomplete = Incomplete(rule, *kept) if rule else None
        """What to do about datasets of which parts are missing; None: they are not given."""
        self.fetched: dict[int, Entry | None] = {}
        """Entries of dead letters that were loaded to be given out again; None for those that are no more."""
        self.used_s = 0.0
        """When a session last asked for something, set by whoever serves it; monotonic clock, in seconds."""
        self._held_at_most = 0
        """Messages given out since they were last counted, and those."""
        self._backlog = Backlog()
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
            edge = max(edge, low, self._low)
            if added.lowest >= edge and added.lowest > cursor.ahead.last:
                return
            keys: Sequence[int] = added.ids
        else:
            keys = list(map(entry_seq, added.entries))
            if min(keys) >= edge:
                return
        backlog = self._backlog
        first = bisect_left(backlog.keys, cursor.position)
        waiting = {one: at for at, one in enumerate(backlog.ids[first:], first)}
        for key, message_id, entry in zip(keys, added.ids, added.entries, strict=True):
            if self._needs_nothing(message_id, entry):
                continue
            if message_id in waiting:
                backlog.entries[waiting[message_id]] = entry
                if self.incomplete is not None and key in cursor.ahead:
                    cursor.forget_done(message_id, entry)  # it counted as a gap while parts were missing
            elif key < edge:
                self._arrive_late(message_id, entry)
            elif cursor.ordered and key in cursor.ahead:
                cursor.forget_done(message_id, entry)

    def parts_came(self, rows: Sequence[RowTuple]) -> int:
        """Take note of new rows; return how many are parts of datasets that the group was given without them."""
        return 0 if self.incomplete is None else self.incomplete.came(rows, self.cursor.position)

    def _needs_nothing(self, message_id: int, entry: Entry) -> bool:
        """Tell whether a dataset that is complete now was given incomplete, or will be given with the next chunk."""
        if self.incomplete is None:
            return False
        cursor = self.cursor
        gathered = isinstance(cursor, ChunkCursor) and cursor.completed(message_id, entry)
        return gathered or message_id in self.incomplete.given

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
        self._backlog = Backlog(
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
        for entry in self._entries(rows, complete=True):
            message_id = entry_id(entry)
            if self._needs_nothing(message_id, entry):
                continue
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

    def _entries(self, rows: Sequence[RowTuple], *, complete: bool = False) -> list[Entry]:
        """Assemble rows of the index; the window may not have met a dataset of this stream yet."""
        if any(map(row_dataset_size, rows)):
            self.window.has_datasets = True
        if self.incomplete is None or complete:
            return assemble(rows)
        return self.incomplete.wanted(assemble(rows, incomplete=True))

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
        if self.incomplete is not None:
            for parts in self.incomplete.late(self.window, now_s):
                self._arrive_late(entry_id(parts), parts)
        chunks = cursor if isinstance(cursor, ChunkCursor) else None
        ids, entries = cursor.take_again(session, 1 if chunks else n, now_s)
        if chunks is None:
            stopped = self._fill(ids, entries, n, now_s) if len(ids) < n else None
        else:
            stopped = None if ids else self._fill_chunk(chunks, ids, entries, now_s)
        if not ids:
            return stopped or answer_next(self.window, cursor, session)
        cursor.lease(session, ids, entries, lease_s or self.lease_s, now_s, worker=worker)
        return self._granted(ids, entries)

    def _granted(self, ids: list[int], entries: list[Entry]) -> Granted:
        """Tell of messages that were leased; `ids` are those under which the cursor knows them."""
        cursor = self.cursor
        attempts = cursor.attempts
        late = [one for one in ids if one in cursor.late_ids] if cursor.late_ids else []
        tried = {one: attempts[one] + 1 for one in ids if one in attempts} if attempts else {}
        if self.terms.aligned:
            tried = {one: tried[first] for first, some in zip(ids, entries, strict=True) if first in tried
                     for one in entry_ids(some)}  # fmt: skip
            ids = [one for some in entries for one in entry_ids(some)]
        self._held_at_most += len(ids)
        rows = flatten(entries) if self.window.has_datasets or self.terms.aligned else entries
        incomplete = 0 if self.incomplete is None else self.incomplete.note_given(entries)
        return Granted(ids, rows, tried, late, self._look_ahead(), incomplete)

    def is_holding(self, limit: int) -> bool:
        """Return whether sessions hold at least `limit` messages; counts them only when that may be."""
        if self._held_at_most >= limit:
            self._held_at_most = self.cursor.n_outstanding
        return self._held_at_most >= limit

    def _fill_chunk(
        self, chunks: ChunkCursor, ids: list[int], entries: list[Entry], now_s: float
    ) -> NeedBacklog | Again | None:
        """Add the next chunk once it is full, or the last one of a stream; return as `_fill`."""
        stopped = self._fill(chunks.ids, chunks.entries, chunks.size, now_s)
        at_end = stopped is None and self.window.complete and chunks.position > self.window.last_id
        if len(chunks.ids) == chunks.size or (chunks.ids and at_end):
            ids.append(chunks.ids[0])
            entries.append(chunks.take_chunk())
        return stopped

    def _fill(self, ids: list[int], entries: list[Entry], n: int, now_s: float) -> NeedBacklog | Again | None:
        """Add new messages up to `n`; return what kept it from going on, None when the stream has no more now."""
        cursor = self.cursor
        choosy = self.matches is not None or bool(cursor.ahead) or bool(cursor.acked_ids) or self.incomplete is not None
        looked = 0
        while len(ids) < n:
            if looked >= SCAN_ENTRIES:
                return AGAIN
            before = cursor.position
            want = max(n - len(ids), CHUNK_ENTRIES) if choosy else n - len(ids)
            part = self._read(want)
            if isinstance(part, NeedBacklog):
                return part
            if self.incomplete is not None:
                part = self.incomplete.read(self.window, part, before, want, now_s, cursor.ahead)
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
            self._backlog = Backlog()
        if self.cursor.ordered:
            if position < self._low:
                return NeedBacklog(True, position, self._low)
            return self.window.slice_ordered(position, n, dense=self.incomplete is not None)
        if position < self.window.seq_low:
            return NeedBacklog(False, position, self.window.seq_low)
        return self.window.slice_arrival(position, n)

    @property
    def _low(self) -> int:
        """Id from which on the window has all that an ordered group gives."""
        window = self.window
        if self.incomplete is None:
            return window.low
        return max(window.low, min(window.aside.low, window.settled_below))

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
        low = self._low if ordered else self.window.seq_low
        if self.cursor.position >= low or backlog.left(self.cursor.position) >= BACKLOG_LOW:
            return None
        edge = max(backlog.covered_below, self.cursor.position)
        return NeedBacklog(ordered, edge, low) if edge < low else None

    def seek(self, position: int) -> int:
        """Go on at another place; see `GroupCursor.seek`."""
        self._backlog = Backlog()
        self._unseen_from = self._unseen_upto
        if self.incomplete is not None:
            self.incomplete = Incomplete(self.incomplete.rule)
        return self.cursor.seek(position)

    @property
    def waits_for_time(self) -> bool:
        """True while a dataset is waited for whose time ends: look again then although nothing comes."""
        return self.incomplete is not None and self.incomplete.due_s < inf

    def next_event_s(self) -> float:
        """Return when to look again although nothing comes: at the end of a lease, a delay, or a dataset's time."""
        return min(self.cursor.next_event_s(), inf if self.incomplete is None else self.incomplete.due_s)

    def snapshot(self) -> GroupState:
        """Return the state to store; clears `cursor.dirty`."""
        seen = self._unseen_from if self._unseen_from < self._unseen_upto else self.window.head_seq
        terms = self.terms
        state = self.cursor.snapshot(where=terms.where, seen_seq=seen)._replace(
            min_parts=terms.min_parts, dataset_timeout_s=terms.dataset_timeout_s, aligned=terms.aligned
        )
        kept = self.incomplete
        return state if kept is None else state._replace(given_incomplete=tuple(kept.given), late_parts=kept.late_parts)
