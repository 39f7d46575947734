"""How many messages of a stream a group has before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from asapo.delivery.ranges import RangeSet
from asapo.errors import DeadlineExceeded
from asapo.index.asked import Queried
from asapo.models import StreamInfo
from asapo.query import parse

COUNT_S: Final = 1.0
"""Longest count for one group."""
COUNTED_RANGES: Final = 50
"""Done ranges that a count leaves out; what lies in ranges beyond these is taken for unread."""


def unread(
    index: Queried, no: int, info: StreamInfo, *, ordered: bool, first: int, done: Sequence[Sequence[int]]
) -> int:
    """Return how many messages are not done from the key `first` on; each part of a dataset counts.

    Parameters
    ----------
    ordered : bool
        Keys are ids, else arrival numbers.
    done : pairs of int
        Closed ranges of keys that are done.
    """
    # Arrival numbers have no holes, and ids have none where there are as many messages.
    last = info.id_max if ordered else info.head_seq
    if not ordered or info.n_messages == info.id_max:
        return max(0, last - first + 1) - sum(hi - lo + 1 for lo, hi in RangeSet(done).overlap(first, last))
    text = f"_id >= {first}" + "".join(f" AND NOT _id BETWEEN {lo} AND {hi}" for lo, hi in done[:COUNTED_RANGES])
    try:
        return index.count(no, parse(text), time_limit_s=COUNT_S)
    except DeadlineExceeded:
        return min(info.n_messages, max(0, last - first + 1))  # more than it can be is better than no answer
