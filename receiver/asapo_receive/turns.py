"""Fairness between links (R36): what waits to be stored is taken in turns, each turn worth the same work.

A producer that sends as much as its credit allows would otherwise have everything of its own stored before what a
quiet one sent meanwhile. Within one link the order stays. Taking turns is deficit round robin.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from asapo_receive.units import Closing, Note, Request, Unit

Item = Unit | Request | Note | Closing

TURN_COST: Final = 1024 * 1024
"""Work of one turn, in bytes: links with large units save up several turns for one."""
UNIT_COST: Final = 16 * 1024
MESSAGE_COST: Final = 2 * 1024
"""What else a unit and each of its messages cost, as bytes that take as long to store."""
BURST_S: Final = 1.0
"""A beamtime with a limited rate may be ahead of it by this much."""
ASK_AGAIN_S: Final = 0.01
"""A beamtime that is not ready is asked for again after this."""


@dataclass(slots=True)
class _Line:
    """What waits of one link."""

    items: deque[Item] = field(default_factory=deque)
    beamtime: str = ""
    saved: int = 0
    """Work that it may do beyond its turn."""
    in_turn: bool = False
    """It was interrupted in its turn."""


@dataclass(slots=True)
class _Rate:
    """How much a beamtime may store now."""

    bytes_left: float
    seen_s: float


def cost_of(item: Item) -> int:
    """Return the work that an item is, in bytes."""
    if type(item) is Unit:
        return item.nbytes + UNIT_COST + MESSAGE_COST * len(item.put.ids)
    return UNIT_COST


class Turns:
    """Items of all links, taken in turns; for one thread.

    Parameters
    ----------
    beamtime_bytes_per_s : int
        What all links of one beamtime may have stored together; 0 for no limit.
    ready : callable, optional
        Says of a beamtime whether anything of it may be stored yet; asked again and again until then.
    """

    def __init__(self, beamtime_bytes_per_s: int = 0, *, ready: Callable[[str], bool] | None = None) -> None:
        self._rate = beamtime_bytes_per_s
        self._ready = ready
        self._free = not beamtime_bytes_per_s and ready is None
        """No beamtime ever waits."""
        self._lines: OrderedDict[Any, _Line] = OrderedDict()
        """By link; whose turn it is stands first. Notes and Closings have a line of their own."""
        self._rates: dict[str, _Rate] = {}

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, items: Sequence[Item]) -> None:
        """Queue items, each behind those of its link."""
        for item in items:
            own = isinstance(item, Unit | Request)
            key = item.peer if own else None  # type: ignore[union-attr]
            line = self._lines.get(key)
            if line is None:
                line = self._lines[key] = _Line()
                line.beamtime = _beamtime_of(item) if own else ""
            line.items.append(item)

    def take(self, most_bytes: int, most_items: int, now_s: float = 0.0) -> list[Item]:
        """Return what is to be stored next, about that much and at least one item; nothing while all must wait."""
        found: list[Item] = []
        nbytes = passed = 0
        while self._lines and nbytes < most_bytes and len(found) < most_items and passed < len(self._lines):
            key, line = next(iter(self._lines.items()))
            if not self._free and self.wait_s(line.beamtime, now_s) > 0:
                passed += 1
                self._lines.move_to_end(key)
                continue
            passed = 0
            if not line.in_turn:
                line.saved += TURN_COST
            alone = len(self._lines) == 1
            while (line.items and nbytes < most_bytes and len(found) < most_items
                   and (alone or cost_of(line.items[0]) <= line.saved)):  # fmt: skip
                item = line.items.popleft()
                line.saved = max(0, line.saved - cost_of(item))
                found.append(item)
                if type(item) is Unit:
                    nbytes += item.nbytes
                    self._spend(line.beamtime, item.nbytes)
            if not line.items:
                del self._lines[key]
                continue
            line.in_turn = cost_of(line.items[0]) <= line.saved
            if not line.in_turn:
                self._lines.move_to_end(key)
        return found

    def next_s(self, now_s: float) -> float:
        """Return in how many seconds something can be taken: 0 for now, infinity when nothing waits."""
        if self._free:
            return 0.0 if self._lines else math.inf
        return min((self.wait_s(line.beamtime, now_s) for line in self._lines.values()), default=math.inf)

    def wait_s(self, beamtime: str, now_s: float) -> float:
        """Return how long a beamtime must wait until it may store something."""
        if not beamtime:
            return 0.0
        if self._ready is not None and now_s < math.inf and not self._ready(beamtime):
            return ASK_AGAIN_S
        if not self._rate:
            return 0.0
        rate = self._rates.setdefault(beamtime, _Rate(self._rate * BURST_S, now_s))
        rate.bytes_left = min(self._rate * BURST_S, rate.bytes_left + self._rate * (now_s - rate.seen_s))
        rate.seen_s = now_s
        return max(0.0, -rate.bytes_left / self._rate)

    def _spend(self, beamtime: str, nbytes: int) -> None:
        if beamtime in self._rates:
            self._rates[beamtime].bytes_left -= nbytes


def _beamtime_of(item: Any) -> str:
    return str(item.ref.beamtime if type(item) is Unit else item.beamtime)
