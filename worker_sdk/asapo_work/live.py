"""The live view as a plan: the newest message only, no more often than asked for, from stream to stream."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, Final

from asapo.errors import NothingYet, StreamFinished, StreamState, UnknownStream, WrongInput
from asapo.wire.events import GetLast
from asapo_work.message import Message
from asapo_work.plans import Ask, Clock, Pause, Place, Show, streams
from asapo_work.stream import LOOK_EVERY_S, Follow

POLL_S: Final = 0.05
"""A view that shows fewer frames a second looks this often for the next one, so that the one shown is new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """How a live view looks at a stream."""

    rate_hz: float
    every: int
    follow: Follow | None
    timeout_s: float

    def __post_init__(self) -> None:
        if not 0 < self.rate_hz < math.inf:
            raise WrongInput(f"rate_hz {self.rate_hz!r}: expected messages per second, above 0")
        if type(self.every) is not int or self.every < 1:
            raise WrongInput(f"every {self.every!r}: expected an integer from 1; 10 shows at most one message in ten")
        if self.follow not in (None, "next", "source"):
            raise WrongInput(f"follow {self.follow!r}: expected 'next', 'source' or None")


class LiveView:
    """One `live()` loop.

    A message is asked for when user code wants one, and what came meanwhile is passed over: a slow viewer sees fewer
    messages, not older ones.
    """

    def __init__(self, place: Place, settings: LiveSettings, clock: Clock) -> None:
        self._place = place
        self._settings = settings
        self._clock = clock
        self._visited = {place.stream}
        self._seen_id = 0
        self._shown_seq = 0
        self._looked_s = clock()
        """When newer streams of the source were looked for."""

    def read(self) -> Generator[Ask | Pause | Show, Any, None]:
        """Show the newest message again and again, until the stream (and what follows it) is finished.

        Raises
        ------
        NothingYet, UnknownStream
            If nothing new came for `timeout_s`.
        """
        interval_s = 1.0 / self._settings.rate_hz
        heard_s = self._clock()
        while True:
            left_s = heard_s + self._settings.timeout_s - self._clock()
            found = yield from self._newest(max(left_s, POLL_S))
            if isinstance(found, Message):
                shown_s = self._clock()
                yield Show(found)
                heard_s = self._clock()
                yield Pause(max(0.0, shown_s + interval_s - heard_s))
                continue
            moved = yield from self._go_on(found)
            if moved is None:
                return
            if moved:
                heard_s = self._clock()
                continue
            if left_s <= 0:
                raise found
            yield Pause(min(interval_s, POLL_S, max(left_s, 0.0)))

    def _newest(self, timeout_s: float) -> Generator[Ask, Any, Message | StreamState]:
        """Ask for a message that is newer than the last one; return it, or why there is none to show."""
        place = self._place
        nothing = NothingYet(f"nothing new in {place.source}/{place.stream}", id_max=self._seen_id)
        try:
            messages = place.messages((yield Ask(GetLast, {**place.fields, "after": self._seen_id}, timeout_s)))
        except (NothingYet, UnknownStream, StreamFinished) as exc:
            return nothing if isinstance(exc, NothingYet) else exc
        if not messages or messages[0].id <= self._seen_id:
            return nothing
        newest = messages[0]
        self._seen_id = newest.id
        if self._shown_seq and newest.seq < self._shown_seq + self._settings.every * max(1, newest.dataset_size):
            return nothing
        self._shown_seq = newest.seq
        return newest

    def _go_on(self, end: StreamState) -> Generator[Any, Any, bool | None]:
        """Turn to the stream that follows; True when there is one, None when the view ends here."""
        follow, finished = self._settings.follow, isinstance(end, StreamFinished)
        name = str(end.fields.get("next_stream") or "") if finished and follow else ""
        if not name and follow == "source":
            name = yield from self._newer_stream()
        if name and name not in self._visited:
            self._visited.add(name)
            self._place = replace(self._place, stream=name)
            self._seen_id = self._shown_seq = 0
            return True
        return None if finished and follow != "source" else False

    def _newer_stream(self) -> Generator[Any, Any, str]:
        """Look now and then for the newest stream of the source that has a message; empty when we are at it."""
        if self._clock() < self._looked_s + LOOK_EVERY_S:
            return ""
        self._looked_s = self._clock()
        entries = yield from streams(self._place.source, self._settings.timeout_s or POLL_S)
        mine = max((one.get("number") or 0 for one in entries if one["stream"] in self._visited), default=0)
        newer = [one for one in entries if one["id_max"] and (one.get("number") or 0) > mine]
        return str(max(newer, key=lambda one: one.get("number") or 0)["stream"]) if newer else ""
