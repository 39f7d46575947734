"""What the poll thread and the loader thread share of one stream, and the messages they exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final

from asapo.delivery.admin import NeedEntries
from asapo.delivery.needs import NeedBacklog, NeedUnseen
from asapo.delivery.rows import Entry, RowTuple, entry_rows
from asapo.errors import AsapoError
from asapo.index.interface import StreamHead
from asapo.models import Row, StreamRef
from asapo.query import Query
from asapo.query.rows import group_filter
from asapo.wire.events import GetNext
from asapo_broker.saves import Stored

MAX_VERDICTS: Final = 200_000
"""Verdicts kept for rows nobody has looked at yet; beyond it they are forgotten and worked out again when needed."""

_seq: Final = itemgetter(Row._fields.index("seq"))


class Filter:
    """A group's filter. The loader thread works out verdicts before it hands rows over, the poll thread looks them up.

    Raises
    ------
    WrongInput
        If the query has an order or a limit, which a group cannot have.
    """

    def __init__(self, query: Query) -> None:
        self._judge = group_filter(query)
        self._verdicts: dict[int, bool] = {}
        self._closed = False

    def close(self) -> None:
        """Work out no more verdicts: the group is gone. Any thread."""
        self._closed = True

    def prepare(self, rows: Sequence[RowTuple]) -> None:
        """Work out the verdicts of these rows. Loader thread."""
        if self._closed:
            return
        verdicts, judge = self._verdicts, self._judge
        if len(verdicts) > MAX_VERDICTS:
            verdicts.clear()
        for row in rows:
            verdicts[_seq(row)] = judge(row)

    def __call__(self, row: RowTuple) -> bool:
        """Tell whether the row passes. Poll thread; a row nobody prepared is judged here."""
        found = self._verdicts.pop(_seq(row), None)
        return self._judge(row) if found is None else found


@dataclass(slots=True, eq=False)
class Feed:
    """One stream between index and memory. Each field has one writer; the other thread only reads it."""

    ref: StreamRef
    watched: int = 0
    """Requests that wait for this stream (poll thread)."""
    announced_seq: int = 0
    """Highest head a receiver told us (poll thread)."""
    asked: bool = False
    """Somebody wants to be told when a look was made (set by the poll thread, taken back by the loader)."""
    taken: int = 0
    """Tails the poll thread has taken in."""
    pushed_seq: int = 0
    """Everything up to this arrival number is in memory because receivers told of it (poll thread)."""
    no: int | None = None
    """Number of the stream in the index; None while it is not known there (loader)."""
    loaded_seq: int = -1
    """Everything up to this arrival number was handed over; -1 before the first look (loader)."""
    given: int = 0
    """Tails handed over (loader)."""
    looked_s: float = 0.0
    """When the index was looked at last, monotonic clock (loader)."""
    head: StreamHead | None = None
    filters: list[Filter] = field(default_factory=list)
    behind: bool = False
    """The last look did not hand over everything, because the poll thread has enough to do (loader)."""
    polled: bool = False
    """The loader looks at it every now and then (loader)."""
    closed: bool = False
    """Nobody reads the stream any more (poll thread)."""
    begun_anew: bool = False
    """A stream of this name was deleted before (loader)."""

    @property
    def seen_seq(self) -> int:
        """Arrival number up to which everything was handed to the poll thread, by whichever way."""
        return max(self.loaded_seq, self.pushed_seq)


# -- to the loader ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenGroup:
    """Restore a group, or prepare a new one; work out its filter for the entries that are in memory."""

    feed: Feed
    group: str
    new: GetNext | None
    """Order, filter and bounds of the group if nothing is stored of it; None: then it is not made."""
    entries: Sequence[Entry] = ()

    def rows(self) -> list[RowTuple]:
        """Return the rows of the entries."""
        return [row for entry in self.entries for row in entry_rows(entry)]


@dataclass(frozen=True, slots=True)
class LoadRows:
    """Load what a group needs from the index."""

    feed: Feed
    group: str
    need: NeedBacklog | NeedUnseen | NeedEntries
    matches: Filter | None


@dataclass(frozen=True, slots=True)
class LoadParts:
    """Load all parts of these datasets."""

    feed: Feed
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ForgetGroups:
    """Forget what is stored of the groups of a stream that was deleted; then tell `done`."""

    ref: StreamRef
    done: Any


Job = Feed | OpenGroup | LoadRows | LoadParts | ForgetGroups
"""A Feed asks to look at the stream now."""


# -- to the poll thread -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Looked:
    """The loader looked at the stream; it is not known in the index when `feed.no` is None."""

    feed: Feed
    error: AsapoError | None = None


@dataclass(frozen=True, slots=True)
class Vanished:
    """The stream was deleted; another one may have its name."""

    feed: Feed


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Answer to ForgetGroups."""

    done: Any
    error: AsapoError | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """First look at a known stream: where its window begins, and what is in it."""

    feed: Feed
    low: int
    head_seq: int
    rows: list[RowTuple]
    head: StreamHead


@dataclass(frozen=True, slots=True)
class Tail:
    """Newly indexed rows in the order of seq; `head` once all rows it speaks of were handed over."""

    feed: Feed
    rows: list[RowTuple]
    head: StreamHead | None


@dataclass(frozen=True, slots=True)
class GroupReady:
    """Answer to OpenGroup."""

    job: OpenGroup
    matches: Filter | None = None
    stored: Stored | None = None
    error: AsapoError | None = None


@dataclass(frozen=True, slots=True)
class RowsLoaded:
    """Answer to LoadRows; every row asked for with a key below `covered` (up to it for NeedUnseen) is there."""

    job: LoadRows
    rows: list[RowTuple] = field(default_factory=list)
    covered: int = 0
    error: AsapoError | None = None


@dataclass(frozen=True, slots=True)
class PartsLoaded:
    """Answer to LoadParts."""

    feed: Feed
    rows: list[RowTuple]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that the pool worked out and encoded."""

    session: Any
    header: bytes
    n_rows: int = 0
