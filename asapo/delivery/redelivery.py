"""The waiting room of a group: messages to be given again, and messages that came late."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from math import inf
from typing import Final

from asapo.delivery.rows import Entry

PATIENCE_S: Final = 5.0
"""A suspect that waited for this long is given even to a session that holds one."""


class Redelivery:
    """Messages that wait to be given out.

    Notes
    -----
    When a worker dies or hangs, nobody knows which of the messages that it held did it: each of them is a *suspect*
    from then on, and each of them has used up an attempt. A session is given one suspect at a time, before anything
    else, so that a message that kills its workers does not use up the attempts of its neighbours.
    """

    def __init__(self) -> None:
        self.late: dict[int, Entry] = {}
        self.waiting: dict[int, tuple[float, Entry]] = {}
        self.suspects: set[int] = set()
        """Whether they wait here or are held."""
        self._due: list[tuple[float, int]] = []
        self._due_suspects: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self.late) + len(self.waiting)

    def __contains__(self, message_id: int) -> bool:
        return message_id in self.waiting or message_id in self.late

    def __iter__(self) -> Iterator[int]:
        yield from self.late
        yield from self.waiting

    def entries(self) -> list[Entry]:
        """Return all that wait."""
        return [*self.late.values(), *(entry for _, entry in self.waiting.values())]

    def put(self, message_id: int, entry: Entry, due_s: float) -> None:
        """Keep a message until `due_s`."""
        self.waiting[message_id] = (due_s, entry)
        heappush(self._due_suspects if message_id in self.suspects else self._due, (due_s, message_id))

    def pop(self, message_id: int) -> Entry | None:
        """Take a message out that waits to be given again; None when it does not."""
        found = self.waiting.pop(message_id, None)
        return None if found is None else found[1]

    def take(self, n: int, now_s: float, *, holds_suspect: bool) -> tuple[list[int], list[Entry]]:
        """Take out up to `n` messages: a suspect, those that are due (lowest id first), those that came late."""
        ids: list[int] = []
        entries: list[Entry] = []
        if self._due_suspects:
            self._stamp(now_s)
            self._take_due(self._due_suspects, 1, now_s - PATIENCE_S if holds_suspect else now_s, ids, entries)
        self._take_due(self._due, n, now_s, ids, entries)
        while self.late and len(ids) < n:
            message_id = next(iter(self.late))
            ids.append(message_id)
            entries.append(self.late.pop(message_id))
        return ids, entries

    def _stamp(self, now_s: float) -> None:
        """Let suspects that were handed back unstarted wait from now on."""
        while self._due_suspects and self._due_suspects[0][0] == -inf:
            _, message_id = heappop(self._due_suspects)
            found = self.waiting.get(message_id)
            if found is not None and found[0] == -inf:
                self.put(message_id, found[1], now_s)

    def _take_due(
        self, heap: list[tuple[float, int]], n: int, now_s: float, ids: list[int], entries: list[Entry]
    ) -> None:
        while heap and len(ids) < n and heap[0][0] <= now_s:
            due_s, message_id = heappop(heap)
            found = self.waiting.get(message_id)
            # An entry of the heap is stale when the message was acknowledged or put back meanwhile.
            if found is not None and found[0] == due_s:
                del self.waiting[message_id]
                ids.append(message_id)
                entries.append(found[1])

    def waits_beyond(self, now_s: float) -> bool:
        """Return whether a message has to wait on."""
        return any(due_s > now_s for due_s, _ in self.waiting.values())

    @property
    def next_due_s(self) -> float:
        """When something is due, at the earliest."""
        return min((heap[0][0] for heap in (self._due, self._due_suspects) if heap), default=inf)
