"""Which ids a stream lacks, and which of its datasets lack parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from asapo.errors import WrongInput
from asapo.models import MAX_ID

LISTS: Final = ("gaps", "incomplete")
"""What a Query may want that is a list of gaps."""
ABSENT: Final = (
    "SELECT before + 1, id - 1 FROM (SELECT id, lag(id, 1, ?) OVER (ORDER BY id) AS before FROM message "
    "WHERE stream_no = ? AND id >= ?) WHERE id > before + 1 LIMIT ?"
)
"""Takes first id - 1, stream number, first id, limit; the index of ids alone answers it."""
DENSE: Final = "SELECT max(substream) = 0 AND count(*) = max(id) - ? + 1 FROM message WHERE stream_no = ? AND id >= ?"
"""Takes first id, stream number, first id: 1 when no id is absent, found ten times as fast as by looking at each."""
PARTS: Final = (
    "SELECT id, count(*) AS have, (SELECT dataset_size FROM message AS one WHERE one.stream_no = message.stream_no "
    "AND one.id = message.id LIMIT 1) AS whole FROM message WHERE stream_no = ? AND id >= ? AND substream > 0 "
    "GROUP BY id HAVING have < whole ORDER BY id LIMIT ?"
)
"""Takes stream number, first id, limit."""


class Incomplete(NamedTuple):
    """A dataset of which parts are missing."""

    id: int
    have: int
    size: int


def absent_among(ids: Iterable[int], first: int, limit: int) -> list[tuple[int, int]]:
    """Return the closed ranges between `first` and the highest of these ascending ids that are not among them.

    >>> absent_among([2, 2, 3, 7], 1, 10)
    [(1, 1), (4, 6)]
    """
    found: list[tuple[int, int]] = []
    expected = first
    for one in ids:
        if one > expected:
            found.append((expected, one - 1))
            if len(found) == limit:
                break
        expected = max(expected, one + 1)
    return found


def incomplete_among(rows: Iterable[tuple[int, int]], first: int, limit: int) -> list[Incomplete]:
    """Return the incomplete datasets among rows given as (id, dataset size)."""
    have: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for message_id, size in rows:
        if size and message_id >= first:
            have[message_id] = have.get(message_id, 0) + 1
            sizes[message_id] = size
    return [Incomplete(one, have[one], sizes[one]) for one in sorted(have) if have[one] < sizes[one]][:limit]


def first_of(cursor: str) -> int:
    """Return the id with which the next part of a list begins; raise WrongInput when this is no cursor of one."""
    if cursor and not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 20 and 1 <= int(cursor) <= MAX_ID):
        raise WrongInput(f"after {cursor!r:.80}: expected the cursor of an earlier answer; leave it out to begin anew")
    return int(cursor or 1)


def cursor_behind(found: Sequence[Sequence[int]], want: str, limit: int) -> str:
    """Return the cursor of a part of a list; empty when it was the last part."""
    if len(found) < limit:
        return ""
    return str(min(MAX_ID, found[-1][1 if want == "gaps" else 0] + 1))
