"""The part of a stream kept in memory: rows by id and by arrival, and how far ids are settled."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from asapo.delivery.datasets import Aside
from asapo.delivery.rows import (
    Entry,
    RowTuple,
    assemble,
    entry_id,
    entry_seq,
    flatten,
    row_dataset_size,
    row_id,
    row_seq,
    rows_bytes,
)

PRUNE_STEP: Final = 1024
"""Entries dropped at once, so that the lists are shifted rarely."""
FEW: Final = 4
"""Up to so many out-of-order ids are inserted one by one; more are merged by one sort of the list's end."""


class Added(NamedTuple):
    """What became visible by one call."""

    ids: list[int]
    entries: Sequence[Entry]
    """One per id, in arrival order."""
    lowest: int
    """Lowest of the ids; 0 when nothing became visible."""


NOTHING: Final = Added([], [], 0)


class Slice(NamedTuple):
    """Consecutive entries of a window."""

    keys: list[int]
    """What positions count: ids for ordered groups, arrival numbers for the others."""
    ids: list[int]
    entries: list[Entry]
    position: int
    """Where to go on: everything below it was given or is known not to exist."""


class StreamWindow:
    """Every visible message of a stream with id >= `low` and seq <= `head_seq`.

    Parameters
    ----------
    low : int
        Lowest id that will be kept; 1 keeps the stream from its beginning.
    head_seq : int
        Arrival number up to which the owner hands in rows by `load`; later ones come by `add`.

    Notes
    -----
    An id is *settled* when it is below the watermark or present, and every id below it is settled. Ordered groups read
    settled ids only; a settled id that is absent is a gap. Neither the watermark nor `settled_below` ever falls.
    """

    def __init__(self, *, low: int = 1, head_seq: int = 0) -> None:
        self.low = low
        self.head_seq = head_seq
        self.seq_low = head_seq + 1
        """Every visible message with seq >= this can be read by `slice_arrival`."""
        self.id_max = 0
        """Highest visible id; 0 when there is none."""
        self.watermark = low
        self.settled_below = low
        self.finished = False
        self.last_id = 0
        self.next_stream = ""
        self.n_rows = 0
        self.n_bytes = 0
        self.has_datasets = False
        self.orphans: set[int] = set()
        """Datasets of which a part came while earlier parts may be in the index only: load them for `add_parts`."""
        self._ids: list[int] = []
        self._by_id: dict[int, Entry] = {}
        self._arrived_seqs: list[int] = []
        self._arrived_ids: list[int] = []
        self._arrived_entries: list[Entry] = []
        self.aside = Aside(low)
        """Datasets that are not complete."""

    def __len__(self) -> int:
        return len(self._ids)

    # -- what comes in ------------------------------------------------------------------------------------------

    def load(self, rows: Sequence[RowTuple], now_s: float = 0.0) -> None:
        """Take all rows with id >= `low` and seq <= `head_seq`: those indexed before this window began."""
        entries: Sequence[Entry] = rows
        if any(map(row_dataset_size, rows)):
            self.has_datasets = True
            entries = self._complete(rows, now_s)
        self._insert(list(map(entry_id, entries)), entries)

    def add(self, rows: Sequence[RowTuple], now_s: float = 0.0) -> Added:
        """Take newly indexed rows in the order of their seq; rows that were handed in before are ignored.

        `now_s` is the monotonic clock: from the first part of a dataset on, the time of the dataset runs.
        """
        if rows and row_seq(rows[0]) <= self.head_seq:
            rows = [row for row in rows if row_seq(row) > self.head_seq]
        if not rows:
            return NOTHING
        self.head_seq = row_seq(rows[-1])
        if self.has_datasets or any(map(row_dataset_size, rows)):
            self.has_datasets = True
            entries = self._complete(rows, now_s)
            ids = list(map(entry_id, entries))
            seqs = list(map(entry_seq, entries))
        else:
            entries = list(rows)
            ids = list(map(row_id, rows))
            # seq has no holes (R6), so a batch of rows is a range; a foreign index that leaves some is read exactly.
            first, last = row_seq(rows[0]), self.head_seq
            seqs = list(range(first, last + 1)) if last - first + 1 == len(rows) else list(map(row_seq, rows))
        if not ids:
            return NOTHING
        self._arrived_seqs += seqs
        self._arrived_ids += ids
        self._arrived_entries += entries
        self._insert(ids, entries)
        return Added(ids, entries, min(ids))

    def add_parts(self, rows: Sequence[RowTuple], now_s: float = 0.0) -> Added:
        """Take all parts of datasets named by `orphans`, in answer to a load by id."""
        self.orphans.difference_update(map(row_id, rows))
        entries = [entry for entry in assemble(rows) if entry_id(entry) not in self._by_id]
        complete = set(map(entry_id, entries))
        for row in rows:
            if row_id(row) not in complete and row_id(row) not in self._by_id:
                self.aside.add(row, now_s)
        if not entries:
            return NOTHING
        for entry in entries:
            self._insert_arrival(entry)
        ids = list(map(entry_id, entries))
        self._insert(ids, entries)
        return Added(ids, entries, min(ids))

    def _insert_arrival(self, entry: Entry) -> None:
        seq = entry_seq(entry)
        if seq >= self.seq_low:
            at = bisect_left(self._arrived_seqs, seq)
            self._arrived_seqs.insert(at, seq)
            self._arrived_ids.insert(at, entry_id(entry))
            self._arrived_entries.insert(at, entry)

    def _complete(self, rows: Sequence[RowTuple], now_s: float) -> list[Entry]:
        """Return messages and the datasets completed by these rows; keep the other parts aside."""
        out: list[Entry] = []
        for row in rows:
            message_id = row_id(row)
            if not row_dataset_size(row):
                out.append(row)
            elif message_id in self.aside or message_id >= self.aside.low:
                found = self.aside.add(row, now_s)
                if found is not None:
                    out.append(found)
            else:
                self.orphans.add(message_id)
        return out

    def _insert(self, ids: list[int], entries: Sequence[Entry]) -> None:
        """Enter visible messages; those below `low` count for `id_max` only."""
        if not ids:
            return
        self.id_max = max(self.id_max, max(ids))
        if min(ids) < self.low or not self._by_id.keys().isdisjoint(ids):
            fresh = {
                one: entry
                for one, entry in zip(ids, entries, strict=True)
                if one >= self.low and one not in self._by_id
            }
            ids, entries = list(fresh), list(fresh.values())
            if not ids:
                return
        known, ascending = self._ids, sorted(ids)
        if not known or ascending[0] > known[-1]:
            known.extend(ascending)
        elif len(ids) <= FEW:
            for message_id in ids:
                insort(known, message_id)
        else:
            at = bisect_left(known, ascending[0])
            known[at:] = sorted(known[at:] + ascending)
        self._by_id.update(zip(ids, entries, strict=True))
        rows = flatten(entries) if self.has_datasets else entries
        self.n_rows += len(rows)
        self.n_bytes += rows_bytes(rows)
        self._settle()

    # -- how far ids are settled --------------------------------------------------------------------------------

    def set_watermark(self, closed_below: int) -> None:
        """Every id under `closed_below` has been handed in or will never come; a lower value than before is ignored.

        The owner reads the value before, or together with, the rows it hands in, never after them.
        """
        if closed_below > self.watermark:
            self.watermark = closed_below
            self._settle()

    def finish(self, last_id: int, next_stream: str = "") -> None:
        """No message above `last_id` will come; readers may go on with `next_stream`."""
        self.finished = True
        self.last_id = last_id
        self.next_stream = next_stream

    @property
    def complete(self) -> bool:
        """True when the stream is finished and every id up to its last is settled."""
        return self.finished and self.settled_below > self.last_id

    def _settle(self) -> None:
        """Extend `settled_below` from the watermark over ids that follow without a hole."""
        self.settled_below = self._dense_end(max(self.watermark, self.settled_below))

    def _dense_end(self, below: int) -> int:
        """Return the lowest id from `below` on that is not there."""
        ids = self._ids
        first = bisect_left(ids, below)
        if first < len(ids) and ids[first] == below:
            # ids[k] - k never falls, so the end of the run without a hole is found by bisection.
            low, high = first, len(ids) - 1
            if ids[high] - below != high - first:
                while low < high:
                    middle = (low + high + 1) // 2
                    if ids[middle] - below == middle - first:
                        low = middle
                    else:
                        high = middle - 1
            below = ids[high] + 1
        return below

    # -- what is read -------------------------------------------------------------------------------------------

    def get(self, message_id: int) -> Entry | None:
        """Return the message or complete dataset, or None when it is not in the window."""
        return self._by_id.get(message_id)

    def last(self) -> Entry | None:
        """Return the message or complete dataset with the highest id in the window, or None."""
        return self._by_id[self._ids[-1]] if self._ids else None

    def parts_of(self, message_id: int) -> Sequence[RowTuple]:
        """Return the parts that are there of an incomplete dataset."""
        return self.aside.parts(message_id)

    def slice_ordered(self, from_id: int, n: int, *, dense: bool = False) -> Slice:
        """Return up to `n` settled messages with id >= `from_id`, ascending; `from_id` must not be below `low`.

        With `dense`, everything below `from_id` is settled for the caller: ids that follow without a hole are, too.
        """
        settled_below = self._dense_end(max(from_id, self.settled_below)) if dense else self.settled_below
        first = bisect_left(self._ids, from_id)
        end = bisect_left(self._ids, settled_below, first)
        ids = self._ids[first : min(first + n, end)]
        position = ids[-1] + 1 if first + n < end else max(settled_below, from_id)
        return Slice(ids, ids, list(map(self._by_id.__getitem__, ids)), position)

    def slice_arrival(self, from_seq: int, n: int) -> Slice:
        """Return up to `n` messages with seq >= `from_seq` in arrival order; `from_seq` must not be below `seq_low`."""
        seqs = self._arrived_seqs
        first = bisect_left(seqs, from_seq)
        end = min(first + n, len(seqs))
        position = seqs[end - 1] + 1 if end < len(seqs) else max(self.head_seq + 1, from_seq)
        return Slice(seqs[first:end], self._arrived_ids[first:end], self._arrived_entries[first:end], position)

    # -- what is dropped ----------------------------------------------------------------------------------------

    def prune(self, *, limit_rows: int, limit_bytes: int) -> int:
        """Drop the lowest settled ids until the window keeps the limits or nothing settled is left.

        Parameters
        ----------
        limit_rows : int
            Most rows to keep (each part of a dataset is one).
        limit_bytes : int
            Most memory to keep, estimated, in bytes.

        Returns
        -------
        int
            Number of messages and datasets dropped; groups that need them read them from the index.
        """
        settled = bisect_left(self._ids, self.settled_below)
        dropped = 0
        while dropped < settled and (self.n_rows > limit_rows or self.n_bytes > limit_bytes):
            step = min(PRUNE_STEP, settled - dropped, max(self.n_rows - limit_rows, len(self._ids) // 16, 1))
            self._drop(self._ids[dropped : dropped + step])
            dropped += step
        if dropped:
            self.low = self._ids[dropped - 1] + 1
            del self._ids[:dropped]
        surplus = len(self._arrived_seqs) - limit_rows
        if surplus >= max(PRUNE_STEP, limit_rows // 16):
            self.seq_low = self._arrived_seqs[surplus - 1] + 1
        cut = bisect_left(self._arrived_seqs, self.seq_low)
        if cut:
            del self._arrived_seqs[:cut], self._arrived_ids[:cut], self._arrived_entries[:cut]
        self.aside.prune(limit_rows)
        return dropped

    def _drop(self, ids: Iterable[int]) -> None:
        entries = list(map(self._by_id.pop, ids))
        rows = flatten(entries) if self.has_datasets else entries
        # The share of the rows stands for their bytes: an estimate again, exact when the window is empty.
        self.n_bytes -= self.n_bytes * len(rows) // self.n_rows
        self.n_rows -= len(rows)
        self.seq_low = max(self.seq_low, max(map(row_seq, rows)) + 1)
