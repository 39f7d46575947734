"""Queries as plans: the messages that a query selects, page by page, their number, and how they are found."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from asapo.errors import RemoteProtocolError, WrongInput
from asapo.models import Origin
from asapo.wire.events import Done, Query, Rows
from asapo_work.message import Message
from asapo_work.plans import Ask, Pause, Place, Plan, Show, check_count, expect, get_by_id

LIMIT: Final = 1000
"""Messages of a query, or of a page, when the call does not say otherwise."""


class Found(list[Message]):
    """The messages that a query selected, in its order; a list that knows where it ends."""

    def __init__(self, messages: Iterable[Message] = (), cursor: str = "", more: bool = False) -> None:
        super().__init__(messages)
        self.cursor = cursor
        """Give it as `after` to go on behind the last message, also later and from another process."""
        self.more = more
        """There may be messages behind the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What a query is to answer with."""

    limit: int = LIMIT
    keys: Sequence[str] | None = None
    after: str = ""
    resolve: str = ""

    def __post_init__(self) -> None:
        check_count(self.limit)
        if self.resolve not in ("", "origin"):
            raise WrongInput(f"resolve {self.resolve!r}: expected 'origin' or nothing")
        if type(self.after) is not str:
            raise WrongInput(f"after {self.after!r:.80}: expected the `cursor` of an earlier answer")
        if self.keys is None:
            return
        if isinstance(self.keys, str) or not self.keys or not all(type(key) is str for key in self.keys):
            raise WrongInput(f"keys {self.keys!r:.80}: expected a list of metadata keys; leave it out to get all")
        if self.resolve:
            raise WrongInput("keys and resolve: expected one of them, as the messages of origin come as they are")

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of Query that stay the same from page to page."""
        return {"keys": list(self.keys or ()), "paged": True}


def query(place: Place, text: str, asking: Asking, timeout_s: float) -> Plan[Found]:
    """Ask for what a query selects, and for the messages that those came from when told to (R28)."""
    found = Found(cursor=asking.after)
    left = asking.limit
    while True:
        # An answer ends early where the metadata get too long for one; the next one goes on there.
        n_rows, page = yield from _page(place, text, asking, left, found.cursor, timeout_s)
        found += page
        found.cursor, found.more = page.cursor, page.more
        left -= n_rows
        if left <= 0 or not page.more or not page.cursor:
            break
    if asking.resolve:
        found[:] = yield from _origins(place, found, timeout_s, set())
    return found


def _page(
    place: Place, text: str, asking: Asking, limit: int, after: str, timeout_s: float
) -> Generator[Ask, Any, tuple[int, Found]]:
    """Ask for one page; return how many rows it has, and its messages."""
    fields = {**place.fields, **asking.fields, "text": text, "limit": limit, "after": after}
    answer = expect((yield Ask(Query, fields, timeout_s)), Rows)
    cursor = str(answer.page.get("cursor", ""))
    if after and not cursor:
        raise RemoteProtocolError("this broker cannot go on after a cursor; update it")
    return len(answer.rows), Found(place.messages(answer), cursor, bool(answer.page.get("more", False)))


def page(place: Place, text: str, asking: Asking, timeout_s: float) -> Plan[Found]:
    """Ask for the next page of what a query selects; a dataset stands whole on one page."""
    n_rows, found = yield from _page(place, text, asking, asking.limit, asking.after, timeout_s)
    if n_rows and not found.cursor:
        raise RemoteProtocolError("this broker cannot answer page by page; update it")
    return found


def pages(place: Place, text: str, asking: Asking, timeout_s: float) -> Generator[Ask | Pause | Show, Any, None]:
    """Show all that a query selects page by page, of `resolve` each message once."""
    seen: set[Origin] = set()
    more = True
    while more:
        found = yield from page(place, text, asking, timeout_s)
        asking, more = replace(asking, after=found.cursor), found.more
        if asking.resolve:
            found[:] = yield from _origins(place, found, timeout_s, seen)
        if found:
            yield Show(found)


def count(place: Place, text: str, timeout_s: float) -> Plan[int]:
    """Ask how many messages a query selects."""
    return int((yield from _said(place, text, "count", timeout_s)))


def explain(place: Place, text: str, timeout_s: float) -> Plan[dict[str, Any]]:
    """Ask how a query would be answered."""
    return dict((yield from _said(place, text, "explain", timeout_s)))


def _said(place: Place, text: str, want: str, timeout_s: float) -> Plan[Any]:
    answer = yield Ask(Query, {**place.fields, "text": text, "limit": 1, "want": want}, timeout_s)
    if isinstance(answer, Rows):
        raise RemoteProtocolError(f"this broker answers a query by its messages only, not by {want}; update it")
    return expect(answer, Done).result[want]


def _origins(place: Place, messages: list[Message], timeout_s: float, seen: set[Origin]) -> Plan[list[Message]]:
    """Replace results by the messages they were computed from, in the same order, each that is not in `seen` once."""
    origins = (message.origin for message in messages)
    wanted = dict.fromkeys(origin for origin in origins if origin is not None and origin not in seen)
    seen.update(wanted)
    by_stream: dict[tuple[str, str], list[int]] = {}
    for origin in wanted:
        by_stream.setdefault((origin.source, origin.stream), []).append(origin.message_id)
    found: dict[Origin, Message] = {}
    for (source, stream), ids in by_stream.items():
        there = Place(place.beamtime, source, stream, place.payloads)
        for message in (yield from get_by_id(there, ids, timeout_s)):
            found[Origin(source, stream, message.id)] = message
    return [found[origin] for origin in wanted]
