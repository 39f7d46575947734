"""What a group reads from the index because its stream's window does not reach so far back."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final

from asapo.delivery.rows import Entry
from asapo.delivery.window import Slice

BACKLOG_LOW: Final = 1_500
"""The next backlog is asked for when fewer entries than this are left."""


@dataclass(slots=True)
class Backlog:
    """Entries read from the index for one group, served before the window."""

    keys: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    covered_below: int = 0
    """Every message with a key from the position up to here is in the backlog."""

    def take(self, position: int, n: int) -> Slice:
        """Return up to `n` entries from `position` on."""
        first = bisect_left(self.keys, position)
        end = min(first + n, len(self.keys))
        part = slice(first, end)
        position = self.keys[end - 1] + 1 if end < len(self.keys) else self.covered_below
        return Slice(self.keys[part], self.ids[part], self.entries[part], position)

    def left(self, position: int) -> int:
        """Return how many entries there are from `position` on."""
        return len(self.keys) - bisect_left(self.keys, position)
