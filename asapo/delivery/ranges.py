"""Sets of integers kept as closed ranges: what is done, in a few numbers however many messages that are."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence


class RangeSet:
    """A set of integers, stored as disjoint closed ranges [lo, hi] that never touch.

    Parameters
    ----------
    ranges : pairs of int, optional
        Closed ranges in any order; they may overlap.

    >>> done = RangeSet([(1, 3), (5, 9)])
    >>> done.add(4)
    >>> list(done), done.count, 10 in done
    ([(1, 9)], 9, False)
    """

    __slots__ = ("_his", "_los")

    def __init__(self, ranges: Iterable[Sequence[int]] = ()) -> None:
        self._los: list[int] = []
        self._his: list[int] = []
        for lo, hi in ranges:
            self.add(lo, hi)

    def add(self, lo: int, hi: int | None = None) -> None:
        """Put the integers from `lo` to `hi` (default: `lo` alone) into the set; an empty range changes nothing."""
        hi = lo if hi is None else hi
        if lo > hi:
            return
        # The ranges first..last-1 overlap or touch the new one and melt into it.
        first = bisect_left(self._his, lo - 1)
        last = bisect_right(self._los, hi + 1)
        if first < last:
            lo = min(lo, self._los[first])
            hi = max(hi, self._his[last - 1])
        self._los[first:last] = [lo]
        self._his[first:last] = [hi]

    def remove(self, lo: int, hi: int | None = None) -> None:
        """Take the integers from `lo` to `hi` (default: `lo` alone) out of the set, where they are in it."""
        hi = lo if hi is None else hi
        first = bisect_left(self._his, lo)
        last = bisect_right(self._los, hi)
        if lo > hi or first >= last:
            return
        left, right = self._los[first], self._his[last - 1]
        kept = [(a, b) for a, b in ((left, lo - 1), (hi + 1, right)) if a <= b]
        self._los[first:last] = [a for a, _ in kept]
        self._his[first:last] = [b for _, b in kept]

    def remove_below(self, bound: int) -> None:
        """Take out everything under `bound`."""
        if self._los and self._los[0] < bound:
            self.remove(self._los[0], bound - 1)

    def clear(self) -> None:
        """Take out everything."""
        self._los.clear()
        self._his.clear()

    def overlap(self, lo: int, hi: int) -> list[tuple[int, int]]:
        """Return the parts of the set from `lo` to `hi` as closed ranges, ascending."""
        first = bisect_left(self._his, lo)
        last = bisect_right(self._los, hi)
        return [(max(a, lo), min(b, hi)) for a, b in zip(self._los[first:last], self._his[first:last], strict=True)]

    @property
    def count(self) -> int:
        """How many integers are in the set."""
        return sum(self._his) - sum(self._los) + len(self._los)

    @property
    def last(self) -> int:
        """Highest integer of the set; 0 when it is empty."""
        return self._his[-1] if self._his else 0

    def floor(self, base: int = 0) -> int:
        """Return the highest n with every integer from `base` + 1 to n in the set; `base` when there is none."""
        at = bisect_left(self._his, base + 1)
        return self._his[at] if at < len(self._los) and self._los[at] <= base + 1 else base

    def __contains__(self, value: int) -> bool:
        at = bisect_left(self._his, value)
        return at < len(self._los) and self._los[at] <= value

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._los, self._his, strict=True)

    def __bool__(self) -> bool:
        return bool(self._los)

    def __len__(self) -> int:
        """Return the number of ranges; `count` is the number of integers."""
        return len(self._los)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeSet) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RangeSet({list(self)})"


def complement(members: Iterable[int], lo: int, hi: int) -> list[tuple[int, int]]:
    """Return, as closed ranges, the integers from `lo` to `hi` that are not among `members` (ascending)."""
    out: list[tuple[int, int]] = []
    at = lo
    for member in members:
        if member > hi:
            break
        if member > at:
            out.append((at, member - 1))
        at = max(at, member + 1)
    if at <= hi:
        out.append((at, hi))
    return out
