"""What a Query asks for: messages page by page, their number, or how they would be found; all within limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Protocol

from asapo.delivery.rows import RowTuple, row_dataset_size
from asapo.errors import DeadlineExceeded, WrongInput
from asapo.index import cursors
from asapo.index.cursors import Place
from asapo.index.gaps import LISTS, Incomplete, cursor_behind, first_of
from asapo.index.interface import Explanation
from asapo.models import Row, StreamRef
from asapo.query import Query, parse, projector
from asapo.wire.events import Done, Event, Rows
from asapo.wire.events import Query as Asked
from asapo.wire.limits import MAX_QUERY_BYTES, MAX_ROWS

REPLY_BYTES: Final = 12 * 1024 * 1024
"""Metadata text in one answer; what does not fit is left out and the client told."""
_META: Final = Row._fields.index("meta")


class Queried(Protocol):
    """What answers queries of a stream: a `MetadataIndex`, or a folder that has none."""

    def query(
        self, stream_no: int, query: Query, *, after: int = 0, row_limit: int, time_limit_s: float
    ) -> Sequence[RowTuple]:
        """Return the rows that a query selects."""

    def count(self, stream_no: int, query: Query, *, time_limit_s: float) -> int:
        """Return how many rows a query selects."""

    def explain(self, stream_no: int, query: Query, *, time_limit_s: float) -> Explanation:
        """Return how a query would be answered."""

    def absent_ids(self, stream_no: int, first: int, limit: int, *, time_limit_s: float) -> Sequence[tuple[int, int]]:
        """Return closed ranges of ids, from `first` to the highest id, that are not there."""

    def incomplete(self, stream_no: int, first: int, limit: int, *, time_limit_s: float) -> Sequence[Incomplete]:
        """Return the datasets with ids from `first` on that are not complete."""


MakeRows = Callable[..., Rows]
"""Makes the event that carries rows: takes request number, rows, and more fields."""


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """What one query may cost; the facility sets it."""

    run_s: float = 5.0
    rows: int = MAX_ROWS


def answer(index: Queried, ref: StreamRef, no: int, asked: Asked, limits: QueryLimits, make_rows: MakeRows) -> Event:
    """Answer a query of stream `no`.

    Raises
    ------
    WrongInput
        If the text, a key, the cursor or the limit is not acceptable; says what and where.
    DeadlineExceeded
        If it ran longer than the facility allows.
    """
    if len(asked.text) > MAX_QUERY_BYTES:
        raise WrongInput(f"query of {len(asked.text)} characters: expected at most {MAX_QUERY_BYTES} bytes")
    if asked.want in LISTS:
        return _listed(index, no, asked, limits)
    query = parse(asked.text)
    try:
        if asked.want == "count":
            return Done(asked.request, {"count": index.count(no, query, time_limit_s=limits.run_s)})
        if asked.want == "explain":
            return Done(asked.request, {"explain": asdict(index.explain(no, query, time_limit_s=limits.run_s))})
        if asked.want:
            raise WrongInput(f"want {asked.want!r:.80}: expected 'count', 'explain', 'gaps', 'incomplete' or nothing")
        return _messages(index, ref, no, asked, query, limits, make_rows)
    except DeadlineExceeded as exc:
        raise DeadlineExceeded(
            f"the query ran longer than {limits.run_s:g} s, which is this broker's query_limit_s; narrow it by _id or "
            "declare its key (explain tells what serves a query), or have the facility raise the limit",
            after_s=limits.run_s,
            limit="query_limit_s",
        ) from exc


def _listed(index: Queried, no: int, asked: Asked, limits: QueryLimits) -> Done:
    """Answer with the ids that a stream lacks, or with the datasets that lack parts."""
    if asked.text:
        raise WrongInput(f"want {asked.want!r} with a query: expected no text, it is of the whole stream")
    limit = max(1, min(asked.limit, limits.rows))
    read: Callable[..., Sequence[Sequence[int]]] = index.absent_ids if asked.want == "gaps" else index.incomplete
    try:
        found = read(no, first_of(asked.after), limit, time_limit_s=limits.run_s)
    except DeadlineExceeded as exc:
        raise DeadlineExceeded(
            f"finding the {asked.want} took longer than {limits.run_s:g} s, which is this broker's query_limit_s; have "
            "the facility raise it",
            after_s=limits.run_s,
            limit="query_limit_s",
        ) from exc
    entries = [list(one) for one in found]
    return Done(asked.request, {asked.want: entries, "cursor": cursor_behind(entries, asked.want, limit)})


def _messages(
    index: Queried,
    ref: StreamRef,
    no: int,
    asked: Asked,
    query: Query,
    limits: QueryLimits,
    make_rows: MakeRows,
) -> Rows:
    if not 1 <= asked.limit <= limits.rows:
        raise WrongInput(
            f"limit {asked.limit}: expected 1 to {limits.rows}, which is this broker's query_rows; take the rest page "
            "by page",
            limit="query_rows",
        )
    project = projector(asked.keys) if asked.keys else None
    place = cursors.read(asked.after, ref, query) if asked.after else Place()
    left = asked.limit if query.limit is None else min(asked.limit, max(query.limit - place.given, 0))
    rows: list[RowTuple] = []
    if left:
        everything = Query(query.where, query.order)
        rows = list(index.query(no, everything, after=place.seq, row_limit=left, time_limit_s=limits.run_s))
    more = len(rows) == asked.limit and query.limit != place.given + asked.limit
    if project is not None:
        rows = [(*row[:_META], project(row[_META]), *row[_META + 1 :]) for row in rows]
    fit = _fitting(rows)
    if fit < len(rows) and not asked.paged:
        raise WrongInput(f"the metadata exceed {REPLY_BYTES} bytes; use a smaller limit, or name the keys you need")
    if asked.paged and (more or fit < len(rows)):
        rows, more = _whole(rows[:fit]), True
    if rows:
        place = Place(rows[-1][1], place.given + len(rows))
    return make_rows(asked.request, rows, page={"cursor": cursors.write(ref, query, place), "more": more})


def _fitting(rows: list[RowTuple]) -> int:
    """Return how many of these rows fit into one answer: at least one, as the metadata of one message are bounded."""
    size = 0
    for n, row in enumerate(rows):
        text = row[_META]
        size += len(text) if text.isascii() else len(text.encode())
        if size > REPLY_BYTES and n:
            return n
    return len(rows)


def _whole(rows: list[RowTuple]) -> list[RowTuple]:
    """Leave a dataset at the end of a page to the next one, where all its parts can stand together."""
    if row_dataset_size(rows[-1]):
        kept = len(rows)
        while kept and rows[kept - 1][0] == rows[-1][0]:
            kept -= 1
        return rows[:kept] or rows
    return rows
