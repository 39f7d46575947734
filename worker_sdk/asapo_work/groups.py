"""Groups as such: how far they are, their dead letters, and letting them go on elsewhere. Plans, as in `plans`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, TypeVar

from asapo.errors import RemoteProtocolError, StreamState, WrongInput
from asapo.models import check_id, check_name
from asapo.wire.events import Done, GetById, Query
from asapo.wire.group_events import DeleteGroup, ListDeadLetters, ListGroups, Seek, SettleDeadLetters
from asapo_work.plans import PAGE, Ask, Place, Plan, expect

T = TypeVar("T")
SETTLED_AT_ONCE: Final = 1000
"""Dead letters in one request."""
SECOND_NS: Final = 1_000_000_000

Edge = Literal["start", "end"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupInfo:
    """How far a group is with a stream."""

    source: str
    stream: str
    group: str
    ordered: bool = True
    where: str = ""
    position: int = 1
    """What is looked at next: an id, or an arrival number in an unordered group."""
    floor: int = 0
    """Everything up to this id (or arrival number) is done or does not exist."""
    held: int = 0
    """Messages that consumers have and did not acknowledge."""
    waiting: int = 0
    """Messages that will be given again, or that came late."""
    unread: int = 0
    """Messages that nobody was given yet; each part of a dataset counts, and what a filter may leave out."""
    lag: int = 0
    """`held + waiting + unread`."""
    failed: int = 0
    """Messages that are not done and whose delivery came to nothing at least once."""
    dead_letters: int = 0
    """Messages that were given up."""
    oldest_s: float = 0.0
    """Age of the oldest delivery that is not acknowledged, seconds; 0 when there is none."""
    passed: int = 0
    """Messages that the filter left out."""
    late: int = 0
    """Messages that arrived below the position."""
    workers: tuple[str, ...] = ()
    """Names of the consumers that hold messages or wait for some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that a group gave up after `max_attempts` deliveries."""

    id: int
    attempts: int
    """How often it was given out."""
    reason: str = ""
    """Why the last attempt failed, in a line."""
    traceback: str = ""
    """Of the exception that user code raised, where the broker was told; the last 8000 characters."""
    worker: str = ""
    """Name of the consumer that had it last."""
    failed_ns: int = 0
    """When the last attempt failed, ns since the Unix epoch."""


Letters = int | DeadLetter | Sequence[int] | Sequence[DeadLetter]
"""Dead letters, or their ids."""


def _record(kind: type[T], facts: Any, **more: Any) -> T:
    """Return a record from a map of the broker, whatever a newer one put into it."""
    names = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    try:
        return kind(**{name: value for name, value in facts.items() if name in names} | more)
    except (AttributeError, TypeError) as exc:
        raise RemoteProtocolError(f"the broker told of a {kind.__name__} that is none: {facts!r:.80}") from exc


def groups(source: str, stream: str, timeout_s: float) -> Plan[list[GroupInfo]]:
    """Ask for all groups of a stream, of a source, or of the beamtime."""
    found: list[GroupInfo] = []
    after: list[str] = []
    while True:
        request = {"source": source, "stream": stream, "after": after, "limit": PAGE}
        page = expect((yield Ask(ListGroups, request, timeout_s)), Done).result.get("groups", ())
        found += [_record(GroupInfo, facts, workers=tuple(facts.get("workers", ()))) for facts in page]
        if len(page) < PAGE:
            return found
        after = [found[-1].source, found[-1].stream, found[-1].group]


def dead_letters(place: Place, group: str, timeout_s: float) -> Plan[list[DeadLetter]]:
    """Ask for all dead letters of a group, by id."""
    found: list[DeadLetter] = []
    names = {**place.fields, "group": check_name("group", group)}
    while True:
        after = found[-1].id if found else 0
        answer = yield Ask(ListDeadLetters, {**names, "after": after, "limit": PAGE}, timeout_s)
        page = expect(answer, Done).result.get("letters", ())
        found += [_record(DeadLetter, facts, id=facts.get("message_id", 0)) for facts in page]
        if not page:
            return found


def settle(place: Place, group: str, given: Letters | None, timeout_s: float, *, requeue: bool) -> Plan[int]:
    """Give dead letters out again or forget them: these, or (None) all there are now; return how many it were."""
    names = {**place.fields, "group": check_name("group", group), "requeue": requeue}
    if given is None:
        return (yield from _settle_all(names, timeout_s))
    items: Sequence[Any] = [given] if isinstance(given, int | DeadLetter) else given
    ids = [check_id(item.id if isinstance(item, DeadLetter) else item) for item in items]
    count = 0
    for at in range(0, len(ids), SETTLED_AT_ONCE):
        answer = yield Ask(SettleDeadLetters, {**names, "ids": ids[at : at + SETTLED_AT_ONCE]}, timeout_s)
        count += int(expect(answer, Done).result.get("count", 0))
    return count


def _settle_all(names: dict[str, Any], timeout_s: float) -> Plan[int]:
    """Settle what is there now; workers may make new dead letters of them meanwhile, which are left."""
    count, total = 0, -1
    while True:
        result = expect((yield Ask(SettleDeadLetters, {**names, "everything": True}, timeout_s)), Done).result
        some, left = int(result.get("count", 0)), int(result.get("left", 0))
        count += some
        total = some + left if total < 0 else total
        if not some or count >= total:
            return count


def seek(
    place: Place,
    group: str,
    timeout_s: float,
    *,
    to: Edge | None,
    message_id: int | None,
    time_ns: int | None,
    fraction: float | None,
) -> Plan[int]:
    """Let a group go on elsewhere; return its position."""
    if sum(target is not None for target in (to, message_id, time_ns, fraction)) != 1:
        raise WrongInput("seek: expected exactly one of to='start', to='end', id, time_ns, fraction")
    fields: dict[str, Any] = {**place.fields, "group": check_name("group", group)}
    if to is not None:
        if to not in ("start", "end"):
            raise WrongInput(f"seek to {to!r}: expected 'start' or 'end'")
        fields["to"] = to
    elif fraction is not None:
        fields |= {"to": "fraction", "fraction": float(fraction)}
    elif time_ns is not None:
        fields |= yield from _first_since(place, time_ns, timeout_s)
    else:
        fields |= yield from _message(place, check_id(message_id), timeout_s)
    return int(expect((yield Ask(Seek, fields, timeout_s)), Done).result["position"])


def _first_since(place: Place, time_ns: int, timeout_s: float) -> Plan[dict[str, Any]]:
    """Look for the first message that was acquired at or after this time; the end when there is none yet."""
    if type(time_ns) is not int or time_ns < 0:
        raise WrongInput(f"time_ns {time_ns!r}: expected ns since the Unix epoch, an integer")
    seconds, ns = divmod(time_ns, SECOND_NS)
    text = f"timestamp >= {seconds}.{ns:09d} ORDER BY timestamp"
    asked = {**place.fields, "text": text, "limit": 1, "paged": True}
    found = place.messages((yield Ask(Query, asked, timeout_s)))
    return {"to": "id", "message_id": found[0].id, "seq": found[0].seq} if found else {"to": "end"}


def _message(place: Place, message_id: int, timeout_s: float) -> Plan[dict[str, Any]]:
    """Look for the arrival number of a message, which unordered groups count; ids without one serve ordered groups."""
    try:
        found = place.messages((yield Ask(GetById, {**place.fields, "ids": [message_id]}, timeout_s)))
    except StreamState:
        found = []
    return {"to": "id", "message_id": message_id, "seq": found[0].seq if found else 0}


def delete(place: Place, group: str, timeout_s: float) -> Plan[None]:
    """Let the broker forget a group."""
    expect((yield Ask(DeleteGroup, {**place.fields, "group": check_name("group", group)}, timeout_s)), Done)
