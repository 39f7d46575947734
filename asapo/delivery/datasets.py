"""Datasets of which parts are missing: where the parts wait, and when a group is given what is there (R9)."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Final

from asapo.delivery.ranges import RangeSet
from asapo.delivery.rows import (
    Entry,
    Parts,
    RowTuple,
    entry_id,
    entry_members,
    gather,
    is_incomplete,
    row_dataset_size,
    row_id,
    row_substream,
)

if TYPE_CHECKING:
    from asapo.delivery.window import Slice, StreamWindow

MAX_GIVEN_RANGES: Final = 4096
"""Ranges of ids that a group remembers as given incomplete. Parts of datasets that lie further back count no more, and
one of those that gets complete after all is given as late."""


class Aside:
    """The parts of datasets that are not complete yet, since when they are there.

    Parameters
    ----------
    low : int
        Lowest id whose parts are all kept here; those of lower ids may be in the index only.
    """

    def __init__(self, low: int) -> None:
        self.low = low
        self._parts: dict[int, dict[int, RowTuple]] = {}
        self._since_s: dict[int, float] = {}
        self._ids: list[int] = []
        self._n_rows = 0

    def __contains__(self, message_id: int) -> bool:
        return message_id in self._parts

    def add(self, row: RowTuple, now_s: float) -> Parts | None:
        """Take a part; return the dataset, which is let go of, when it is complete now."""
        message_id = row_id(row)
        parts = self._parts.get(message_id)
        if parts is None:
            parts = self._parts[message_id] = {}
            self._since_s[message_id] = now_s
            insort(self._ids, message_id)
        self._n_rows += row_substream(row) not in parts
        parts[row_substream(row)] = row
        found = gather(list(parts.values()))
        if found is not None:
            self.drop(message_id)
        return found

    def drop(self, message_id: int) -> None:
        """Let go of a dataset, if it is here."""
        parts = self._parts.pop(message_id, None)
        if parts is not None:
            self._n_rows -= len(parts)
            del self._since_s[message_id], self._ids[bisect_left(self._ids, message_id)]

    def parts(self, message_id: int) -> Parts:
        """Return the parts that are there, ordered by substream; none of a dataset that is not here."""
        return Parts(sorted(self._parts.get(message_id, {}).values(), key=row_substream))

    def since_s(self, message_id: int) -> float:
        """Return when the first part came, on the monotonic clock; minus infinity when it is not here."""
        return self._since_s.get(message_id, -inf)

    def first_from(self, message_id: int) -> int | None:
        """Return the lowest id that is not below this one, None when there is none."""
        at = bisect_left(self._ids, message_id)
        return self._ids[at] if at < len(self._ids) else None

    def prune(self, limit_rows: int) -> None:
        """Forget the datasets with the lowest ids until no more than so many parts are left."""
        n = 0
        surplus = self._n_rows - limit_rows
        while surplus > 0:
            surplus -= len(self._parts[self._ids[n]])
            n += 1
        for message_id in self._ids[:n]:
            self._n_rows -= len(self._parts.pop(message_id))
            del self._since_s[message_id]
            self.low = message_id + 1
        del self._ids[:n]


@dataclass(frozen=True, slots=True)
class DatasetRule:
    """When a dataset is given although parts are missing."""

    min_parts: int = 0
    """As soon as so many parts are there; 0: never for that reason."""
    timeout_s: float = 0.0
    """So long after its first part came, on the monotonic clock; 0: never for that reason."""

    def __bool__(self) -> bool:
        return self.min_parts > 0 or self.timeout_s > 0

    def due_s(self, parts: Sequence[RowTuple], since_s: float, *, over: bool) -> float:
        """Return when a dataset is given, on the monotonic clock: infinity when its parts are not enough ever.

        `over` says that nothing will come any more, so that nobody has to wait for it.
        """
        if 0 < self.min_parts <= len(parts):
            return -inf
        if self.timeout_s > 0:
            return -inf if over else since_s + self.timeout_s
        return inf


class Incomplete:
    """What one ordered group does about datasets of which parts are missing.

    Parameters
    ----------
    rule : DatasetRule
        When they are given.
    given : pairs of int
        Ids that were given incomplete.
    late_parts : int
        Parts that came after their dataset was given.
    """

    def __init__(self, rule: DatasetRule, given: Iterable[Sequence[int]] = (), late_parts: int = 0) -> None:
        self.rule = rule
        self.given = RangeSet(given)
        self.late_parts = late_parts
        self.due_s = inf
        """When to look again: the time of the dataset that is waited for is over then."""
        self._behind: set[int] = set()
        """Datasets below the group's position that were not given and of which parts came."""

    def wanted(self, entries: Iterable[Entry]) -> list[Entry]:
        """Leave out datasets, read from the index, that have too few parts; the time of all others is long over."""
        rule = self.rule
        return [entry for entry in entries if not is_incomplete(entry) or rule.due_s(entry, -inf, over=True) < inf]

    def read(self, window: StreamWindow, part: Slice, position: int, n: int, now_s: float, done: RangeSet) -> Slice:
        """Put the datasets that are due into their places, and end before one whose time is not over.

        Parameters
        ----------
        part : Slice
            What the window or the backlog has from `position` on.
        n : int
            Entries enough.
        done : RangeSet
            Ids that are not given again.
        """
        ids: list[int] = []
        entries: list[Entry] = []
        self.due_s = inf
        while len(ids) < n:
            one = window.aside.first_from(position)
            if one is None or one > part.position:
                _copy(part, ids, entries, position, part.position)
                position = part.position
                break
            _copy(part, ids, entries, position, one)
            position = one
            if one not in done:
                parts, since_s = window.aside.parts(one), window.aside.since_s(one)
                due_s = self.rule.due_s(parts, since_s, over=window.complete)
                if due_s <= now_s:
                    ids.append(one)
                    entries.append(parts)
                elif due_s < inf or one >= window.settled_below:
                    self.due_s = due_s
                    break
            position = one + 1
            if position > part.position:
                break
        return type(part)(ids, ids, entries, position)

    def note_given(self, entries: Iterable[Entry]) -> int:
        """Remember which of the entries that are given out are not complete; return how many."""
        found = [one for entry in entries for one in entry_members(entry) if is_incomplete(one)]
        for one in found:
            self.given.add(entry_id(one))
        surplus = len(self.given) - MAX_GIVEN_RANGES
        if surplus > 0:
            self.given.remove_below(list(self.given)[surplus][0])
        return len(found)

    def came(self, rows: Iterable[RowTuple], position: int) -> int:
        """Take note of new parts of datasets that the group has passed; return how many it was given without them."""
        n = 0
        for row in rows:
            message_id = row_id(row)
            if not row_dataset_size(row):
                continue
            if message_id in self.given:
                n += 1
            elif message_id < position:
                self._behind.add(message_id)
        self.late_parts += n
        return n

    def late(self, window: StreamWindow, now_s: float) -> list[Parts]:
        """Return datasets below the position that were not given and are due now."""
        found = []
        for message_id in sorted(self._behind):
            parts = window.aside.parts(message_id)
            due_s = self.rule.due_s(parts, window.aside.since_s(message_id), over=window.complete) if parts else -inf
            if due_s > now_s:
                self.due_s = min(self.due_s, due_s)
                continue
            self._behind.discard(message_id)
            if parts:
                found.append(parts)
        return found


def _copy(part: Slice, ids: list[int], entries: list[Entry], from_id: int, below: int) -> None:
    """Take over what lies between two ids."""
    first, end = bisect_left(part.ids, from_id), bisect_left(part.ids, below)
    ids += part.ids[first:end]
    entries += part.entries[first:end]
