"""Messages by ranges of ids and times, and the ranges of ids that are missing: plans without a group."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import index
from typing import Any, Final, Literal, SupportsIndex

from asapo.errors import RemoteProtocolError, WrongInput
from asapo.models import check_id
from asapo.wire.events import Done, Query
from asapo_work.plans import Ask, Pause, Place, Plan, Show, describe
from asapo_work.queries import Asking, pages

Moment = str | datetime | SupportsIndex
"""A point in time: ISO 8601 text (UTC unless it says otherwise), a datetime with its zone, or ns since 1970."""
TimeOf = Literal["acquired", "stored"]
KEYS: Final = {"acquired": "timestamp", "stored": "_stored"}
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
GAPS_AT_ONCE: Final = 10_000
"""Ranges in one answer."""


def moment_text(name: str, moment: Moment) -> str:
    """Return a point in time as a query writes it.

    >>> moment_text("since", "2026-01-01T00:00:00Z"), moment_text("since", 1_500_000_001)
    ("'2026-01-01T00:00:00Z'", '1.500000001')
    """
    if isinstance(moment, str):
        if "'" in moment:
            raise WrongInput(f"{name} {moment!r:.80}: expected ISO 8601 text like 2026-01-31T12:00:00Z")
        return f"'{moment}'"
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise WrongInput(f"{name} {moment!r}: expected a datetime with its zone, for example tzinfo=datetime.UTC")
        ns = (moment - EPOCH) // timedelta(microseconds=1) * 1000
    elif isinstance(moment, float) or not hasattr(moment, "__index__"):
        raise WrongInput(f"{name} {moment!r:.80}: expected ISO 8601 text, a datetime, or whole ns since 1970")
    else:
        ns = index(moment)
    seconds, rest = divmod(abs(ns), 10**9)
    return f"{'-' if ns < 0 else ''}{seconds}.{rest:09d}"


def range_text(
    *, first: int | None, last: int | None, since: Moment | None, until: Moment | None, by: TimeOf, where: str
) -> str:
    """Return the query that selects a range of ids and times."""
    if by not in KEYS:
        raise WrongInput(f"by {by!r}: expected 'acquired' or 'stored'")
    parts = []
    if first is not None:
        parts.append(f"_id >= {check_id(first)}")
    if last is not None:
        parts.append(f"_id <= {check_id(last)}")
    if since is not None:
        parts.append(f"{KEYS[by]} >= {moment_text('since', since)}")
    if until is not None:
        parts.append(f"{KEYS[by]} < {moment_text('until', until)}")
    if where:
        parts.append(f"({where})")
    return " AND ".join(parts)


def messages(
    place: Place, text: str, page: int, keys: Sequence[str] | None, timeout_s: float
) -> Generator[Ask | Pause | Show, Any, None]:
    """Show the messages that a range's query selects, one by one, in the order of ids."""
    plan = pages(place, text, Asking(limit=page, keys=keys), timeout_s)
    try:
        step = next(plan)
        while True:
            if isinstance(step, Show):
                for message in step.value:
                    yield Show(message)
                step = next(plan)
            else:
                step = plan.send((yield step))
    except StopIteration:
        return


Range = tuple[int, int]
"""Both ends belong to it."""


@dataclass(frozen=True, slots=True)
class Gaps:
    """What a stream has and what it lacks, as it was when the broker was asked."""

    missing: tuple[Range, ...]
    """Ids that are not there and will not come. Where ids are sparse on purpose, these are no losses."""
    awaited: tuple[Range, ...]
    """Ids that are not there and may still come, up to the highest one that is known of."""
    incomplete: tuple[tuple[int, int, int], ...]
    """Datasets that are not complete: id, parts that are there, parts that it should have."""
    n_messages: int
    """Messages that are there; each part of a dataset counts."""
    id_max: int
    """Highest id that is there; 0 when there is none."""
    closed_below: int
    """The watermark: every id below it is there or will not come."""
    finished: bool
    last_id: int
    """Last id as the producer declared it; 0 when the stream is not finished."""
    n_missing: int = field(init=False)
    """Ids in `missing`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_missing", sum(hi - lo + 1 for lo, hi in self.missing))

    @property
    def whole(self) -> bool:
        """True when the stream is finished and has every id from 1 to its last, every dataset with all parts."""
        return self.finished and not (self.missing or self.awaited or self.incomplete)


def gaps(place: Place, timeout_s: float) -> Plan[Gaps]:
    """Ask which ids a stream lacks."""
    # Asked for first: what lies below this watermark and is absent afterwards will not come.
    head = yield from describe(place.source, place.stream, timeout_s)
    absent = yield from _listed(place, "gaps", timeout_s)
    incomplete = yield from _listed(place, "incomplete", timeout_s)
    id_max, last_id, bound = head["id_max"], head["last_id"], head["closed_below"]
    absent = [(lo, min(hi, id_max)) for lo, hi in absent if lo <= id_max]
    if last_id > id_max:
        absent.append((id_max + 1, last_id))
    return Gaps(
        missing=tuple((lo, min(hi, bound - 1)) for lo, hi in absent if lo < bound),
        awaited=tuple((max(lo, bound), hi) for lo, hi in absent if hi >= bound),
        incomplete=tuple(incomplete),
        n_messages=head["n_messages"],
        id_max=id_max,
        closed_below=bound,
        finished=head["finished"],
        last_id=last_id,
    )


def _listed(place: Place, want: str, timeout_s: float) -> Plan[list[Any]]:
    """Ask for all entries of a list, part by part."""
    found: list[Any] = []
    after = ""
    while True:
        fields = {**place.fields, "text": "", "limit": GAPS_AT_ONCE, "want": want, "after": after}
        answer = yield Ask(Query, fields, timeout_s)
        if not isinstance(answer, Done):
            raise RemoteProtocolError(f"this broker does not tell the {want} of a stream; update it")
        found += map(tuple, answer.result[want])
        after = answer.result["cursor"]
        if not after:
            return found
