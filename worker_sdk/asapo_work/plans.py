"""Each call of the API as a plan: a generator that yields what to ask and gets the answer. No I/O and no clock.

The sync and the async consumer drive the same plans, so both behave alike.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from asapo.errors import Gap, IndexUnavailable, LeaseLost, NothingYet, RemoteProtocolError, UnknownStream, WrongInput
from asapo.models import MAX_ID, check_id, check_name
from asapo.wire.events import (
    Acknowledge,
    Describe,
    Done,
    Event,
    GetById,
    GetLast,
    GetNext,
    ListReceivers,
    ListStreams,
    Nack,
    Rows,
)
from asapo.wire.limits import LEASE_S, MAX_ROWS
from asapo.wire.stream_events import DeleteStream
from asapo_work.failures import told
from asapo_work.message import Message, Payloads, messages_of, ranges_of, settle
from asapo_work.session import error_of

WAIT_SLICE_S: Final = 30.0
"""Longest single wait asked of the broker: a request that was given up holds messages back no longer than this."""
PAUSE_S: Final = 0.1
"""Between two questions when the broker answered before the wait was over."""
PAGE: Final = 1000
"""Streams in one answer."""
IDS_AT_ONCE: Final = 1000
"""Ids in one request, so that their metadata fits into one answer."""
SHOWN_IDS: Final = 10
"""Ids in the text of an error; its field has all."""


class Ask(NamedTuple):
    """Send this request and give me its answer."""

    kind: type[Any]
    fields: dict[str, Any]
    timeout_s: float


class Pause(NamedTuple):
    """Come back after this time."""

    seconds: float


class Show(NamedTuple):
    """Give this to user code; come back when it asks for more."""

    value: Any


T = TypeVar("T")
Plan = Generator[Ask | Pause, Any, T]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Place:
    """A stream as the calls of one consumer name it, and where its payloads come from."""

    beamtime: str
    source: str
    stream: str
    payloads: Payloads

    def __post_init__(self) -> None:
        if not self.source:
            raise WrongInput("no data source named: give `source=` to the call or to the Consumer")
        check_name("source", self.source)
        check_name("stream", self.stream)

    @property
    def fields(self) -> dict[str, Any]:
        """The fields by which a request names the stream."""
        return {"source": self.source, "stream": self.stream}

    def messages(self, answer: Event) -> list[Message]:
        """Return the messages of an answer."""
        return messages_of(self.beamtime, self.source, self.stream, expect(answer, Rows), self.payloads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a group reads a stream."""

    group: str
    ordered: bool = True
    where: str = ""
    lease_s: float = LEASE_S
    max_attempts: int = 0
    min_parts: int = 0
    dataset_timeout_s: float = 0.0
    aligned: bool = False

    def __post_init__(self) -> None:
        check_name("group", self.group)
        if not self.lease_s > 0:
            raise WrongInput(f"lease_s {self.lease_s!r}: expected seconds above 0")
        check_parts(self.min_parts)
        if not 0 <= self.dataset_timeout_s < float("inf"):
            raise WrongInput(
                f"dataset_timeout_s {self.dataset_timeout_s!r}: expected seconds; 0 waits until a dataset is complete"
            )

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of GetNext that stay the same."""
        return {
            "group": self.group,
            "ordered": self.ordered,
            "where": self.where,
            "lease_s": float(self.lease_s),
            "max_attempts": self.max_attempts,
            "min_parts": self.min_parts,
            "dataset_timeout_s": float(self.dataset_timeout_s),
            "aligned": self.aligned,
        }


@functools.lru_cache(maxsize=1024, typed=True)
def reading_of(
    *, n: int | None, group: str, ordered: bool, where: str, lease_s: float, max_attempts: int, min_parts: int,
    dataset_timeout_s: float, aligned: bool,
) -> Reading:  # fmt: skip
    """Return the one `Reading` of these values: a worker asks with the same ones again and again.

    `n` is the length of the lists that are asked for, None when it is not lists.
    """
    if aligned and n is None:
        raise WrongInput(f"aligned chunks for group {group!r}: say how long they are, by `n=` or `batch=`")
    return Reading(
        group=group, ordered=ordered, where=where, lease_s=lease_s, max_attempts=max_attempts, min_parts=min_parts,
        dataset_timeout_s=dataset_timeout_s, aligned=aligned,
    )  # fmt: skip


def expect(answer: Event, kind: type[T]) -> T:
    """Return the answer when it is of the kind that the request has."""
    if not isinstance(answer, kind):
        raise RemoteProtocolError(f"the broker answered {type(answer).__name__}: expected {kind.__name__}")
    return answer


def check_count(n: object) -> int:
    """Return `n` when it is a number of messages that one answer may hold."""
    if type(n) is not int or not 1 <= n <= MAX_ROWS:
        raise WrongInput(f"{n!r} messages: expected an integer from 1 to {MAX_ROWS}")
    return n


def check_parts(min_parts: object) -> int:
    """Return `min_parts` when it is a number of parts of a dataset; 0 stands for all."""
    if type(min_parts) is not int or not 0 <= min_parts <= MAX_ID:
        raise WrongInput(f"min_parts {min_parts!r}: expected an integer from 1 on; 0 for complete datasets only")
    return min_parts


def check_wait(timeout_s: float) -> float:
    """Return a timeout when it is a finite number of seconds (R29)."""
    if not 0 <= timeout_s < float("inf"):
        raise WrongInput(f"timeout_s {timeout_s!r}: expected a finite number of seconds, not negative")
    return float(timeout_s)  # events are born faster from the very type that they declare


def get_next(place: Place, reading: Reading, n: int, timeout_s: float, clock: Clock) -> Plan[list[Message]]:
    """Wait until the group gets something; a stream that does not exist yet is waited for, too (R29)."""
    fields = {**place.fields, **reading.fields, "n": check_count(n)}
    deadline_s = clock() + check_wait(timeout_s)
    while True:
        left_s = max(0.0, deadline_s - clock())
        try:
            answer = yield Ask(GetNext, {**fields, "wait_s": min(left_s, WAIT_SLICE_S)}, left_s)
            return place.messages(answer)
        except (NothingYet, UnknownStream) as exc:
            if clock() >= deadline_s or (isinstance(exc, NothingYet) and left_s <= WAIT_SLICE_S):
                raise
            yield Pause(min(PAUSE_S, max(0.0, deadline_s - clock())))


def get_last(place: Place, timeout_s: float) -> Plan[Message]:
    """Ask for the highest id."""
    messages = place.messages((yield Ask(GetLast, place.fields, timeout_s)))
    if not messages:
        raise NothingYet(f"{place.source}/{place.stream} has no message yet", id_max=0)
    return messages[0]


def get_by_id(place: Place, ids: Sequence[int], timeout_s: float, min_parts: int = 0) -> Plan[list[Message]]:
    """Ask for these ids, in this order; the first one that is not there says why."""
    check_parts(min_parts)
    found: dict[int, Message] = {}
    missing: dict[int, Any] = {}
    for at in range(0, len(ids), IDS_AT_ONCE):
        wanted = [check_id(message_id) for message_id in ids[at : at + IDS_AT_ONCE]]
        answer = yield Ask(GetById, {**place.fields, "ids": wanted, "min_parts": min_parts}, timeout_s)
        missing.update(expect(answer, Rows).missing)
        found.update((message.id, message) for message in place.messages(answer))
    for message_id in ids:
        if message_id in missing:
            raise error_of(missing[message_id])
        if message_id not in found:
            raise Gap(f"{place.source}/{place.stream} has no message {message_id}", message_id=message_id, id_max=0)
    return [found[message_id] for message_id in ids]


Given = Message | int | Sequence[Message] | Sequence[int]
"""What may be acknowledged or handed back: messages, or ids (then the stream must be named)."""


def by_place(given: Given, place: Callable[[], Place]) -> list[tuple[dict[str, Any], list[int], list[Message]]]:
    """Return stream fields, ids and messages for each stream among what was given; bare ids belong to `place`."""
    items: Sequence[Any] = [given] if isinstance(given, Message | int) else given
    groups: dict[tuple[str, str], tuple[list[int], list[Message]]] = {}
    for item in items:
        if isinstance(item, Message):
            ids, messages = groups.setdefault((item.source, item.stream), ([], []))
            messages.append(item)
            ids.append(item.id)
        else:
            here = place()
            groups.setdefault((here.source, here.stream), ([], []))[0].append(check_id(item))
    return [
        ({"source": source, "stream": stream}, ids, messages) for (source, stream), (ids, messages) in groups.items()
    ]


def acknowledge(given: Given, place: Callable[[], Place], group: str, timeout_s: float) -> Plan[None]:
    """Say that these are done, one request per stream; LeaseLost when some of them are somebody else's now."""
    lost: list[int] = []
    for stream, ids, messages in by_place(given, place):
        fields = {**stream, "group": check_name("group", group), "ranges": ranges_of(ids)}
        lost += yield from _settle(Acknowledge, fields, ids, messages, timeout_s)
    if lost:
        raise LeaseLost(
            f"messages {lost[:SHOWN_IDS]} were given to somebody else before they were acknowledged; work for less "
            "than the lease, or give a longer `lease_s`",
            message_ids=lost,
        )


def hand_back(
    given: Given, place: Callable[[], Place], group: str, timeout_s: float, *, delay_s: float, unstarted: bool,
    reason: str | BaseException = "",
) -> Plan[None]:  # fmt: skip
    """Ask to have these given out again, one request per stream; an `unstarted` attempt does not count."""
    why = told(reason) if reason else {}
    lost: list[int] = []
    for stream, ids, messages in by_place(given, place):
        fields = {**stream, "group": check_name("group", group), "ids": ids}
        fields |= {"delay_s": delay_s, "unstarted": unstarted, **why}
        lost += yield from _settle(Nack, fields, ids, messages, timeout_s)
    if lost:
        raise LeaseLost(
            f"messages {lost[:SHOWN_IDS]} are not held by this consumer, so it cannot hand them back", message_ids=lost
        )


def _settle(
    kind: type[Any], fields: dict[str, Any], ids: list[int], messages: Sequence[Message], timeout_s: float
) -> Plan[list[int]]:
    """Ask this of one stream; return the ids that this session does not hold, so that other streams have their turn."""
    try:
        lost = lost_in((yield Ask(kind, fields, timeout_s)))
    except LeaseLost:
        lost = ids  # nobody knows the group
    for message in messages:  # they may be of several answers
        settle([message])
    return lost


def lost_in(answer: Event) -> list[int]:
    """Return the ids that an answer to Acknowledge or Nack names as not held by this session."""
    return list(expect(answer, Done).result.get("lost", ()))


def beamtime_meta(timeout_s: float) -> Plan[dict[str, Any]]:
    """Ask for the metadata of the beamtime."""
    answer = yield Ask(Describe, {"source": "", "stream": "", "beamtime": True}, timeout_s)
    result = expect(answer, Done).result
    if result.get("beamtime") is None:
        raise RemoteProtocolError("this broker does not tell the metadata of a beamtime; update it")
    return dict(result["meta"])


def describe(source: str, stream: str, timeout_s: float) -> Plan[dict[str, Any]]:
    """Ask about one stream."""
    return dict(expect((yield Ask(Describe, {"source": source, "stream": stream}, timeout_s)), Done).result)


def delete_stream(place: Place, timeout_s: float, clock: Clock, *, force: bool, missing_ok: bool) -> Plan[None]:
    """Have the stream deleted that has the name now."""
    deadline_s = clock() + timeout_s
    try:
        facts = expect((yield Ask(Describe, place.fields, timeout_s)), Done).result
    except UnknownStream:
        if missing_ok:
            return
        raise
    fields = {**place.fields, "force": force, "number": facts.get("number", 0)}
    while True:
        try:
            expect((yield Ask(DeleteStream, fields, max(0.0, deadline_s - clock()))), Done)
        except UnknownStream:
            return  # deleted by a request whose answer was lost, or by somebody else
        except IndexUnavailable:
            if clock() >= deadline_s:
                raise
            yield Pause(PAUSE_S)
        else:
            return


def stream_meta(source: str, stream: str, timeout_s: float) -> Plan[dict[str, Any]]:
    """Ask for the metadata of one stream."""
    return dict((yield from describe(source, stream, timeout_s)).get("meta", {}))


def stages(beamtime: str, timeout_s: float) -> Plan[list[dict[str, Any]]]:
    """Ask what the stages of a beamtime did."""
    work = (yield from describe("", "", timeout_s)).get("work")
    if work is None:
        raise RemoteProtocolError("this broker does not tell what stages do; update it")
    return [dict(one) for one in work if one.get("beamtime") == beamtime]


def receivers(timeout_s: float) -> Plan[list[dict[str, Any]]]:
    """Ask which receivers are alive."""
    return list(expect((yield Ask(ListReceivers, {}, timeout_s)), Done).result.get("receivers", ()))


def streams(source: str, timeout_s: float) -> Plan[list[dict[str, Any]]]:
    """Ask for all streams of a source, or of all sources, page by page; ordered by source and name."""
    found: list[dict[str, Any]] = []
    after = ""
    while True:
        answer = yield Ask(ListStreams, {"source": source, "after": after, "limit": PAGE}, timeout_s)
        page = expect(answer, Done).result.get("streams", ())
        found.extend(page)
        if len(page) < PAGE:
            return found
        last = page[-1]
        after = last["stream"] if source else f"{last['source']}\0{last['stream']}"


def sources(timeout_s: float) -> Plan[list[str]]:
    """Ask for the names of all data sources."""
    return list(dict.fromkeys([entry["source"] for entry in (yield from streams("", timeout_s))]))
