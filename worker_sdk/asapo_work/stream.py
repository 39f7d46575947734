"""Reading a stream from its first message to its end: prefetch, acknowledgement, and what follows the end.

The plan below is shared by the sync and the async consumer. Requests are begun, posted and abandoned on the channel
directly, which never blocks; only waiting is yielded to the driver.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from asapo.errors import LeaseLost, NothingYet, StreamFinished, UnknownStream, WrongInput
from asapo.wire.events import Acknowledge, GetNext, Nack
from asapo_work.client import Conversation
from asapo_work.failures import told
from asapo_work.message import Message, ranges_of, settle
from asapo_work.overtime import Overtime
from asapo_work.pace import Pace
from asapo_work.plans import PAUSE_S, WAIT_SLICE_S, Clock, Pause, Place, Reading, lost_in, streams
from asapo_work.session import LOST_TEXT, Call

logger = logging.getLogger(__name__)

ACK_AFTER_S: Final = 0.5
"""Done messages are reported at least this often while user code works on."""
ACK_SOON_S: Final = 0.02
"""Done messages wait this long for the next request, which they travel with, before they are reported by themselves:
the core has as much work with a report as with a request."""
LOOK_EVERY_S: Final = 0.5
"""Between two looks for a new stream of the source."""

Follow = Literal["next", "source"]
AckMode = Literal["auto", "manual"]


class Await(NamedTuple):
    """Wait for the answer of this call."""

    call: Call
    timeout_s: float


class Glance(NamedTuple):
    """Wait no longer than this for the answer of this call, which stays wanted; come back with or without it."""

    call: Call
    timeout_s: float


class Give(NamedTuple):
    """Give these messages to user code; come back when it asks for more."""

    taken: Taken


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """How `stream()` reads."""

    batch: int | None
    """Messages per list; None: one by one, with as many fetched ahead as suits the pace of user code."""
    follow: Follow | None
    timeout_s: float
    ack: AckMode
    prefetch: bool
    work_timeout_s: float = 0.0
    """How long user code may take for what it is given at once; 0: for ever."""

    def __post_init__(self) -> None:
        if self.follow not in (None, "next", "source"):
            raise WrongInput(f"follow {self.follow!r}: expected 'next', 'source' or None")
        if self.ack not in ("auto", "manual"):
            raise WrongInput(f"ack {self.ack!r}: expected 'auto' or 'manual'")


class Taken:
    """Messages of one answer and how far user code has come with them."""

    __slots__ = ("messages", "reported", "started")

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages
        self.started = 0
        """How many user code has been given."""
        self.reported = 0
        """How many of those are reported as done or were settled by user code."""

    def finished(self, upto: int) -> list[int]:
        """Return the ids of what is done now and was not settled by user code; they count as settled then."""
        ids = settle(self.messages[self.reported : upto])
        self.reported = max(self.reported, upto)
        return ids


class StreamReader:
    """One `stream()` loop: what it holds and what it owes to the broker."""

    def __init__(
        self, channel: Conversation, place: Place, reading: Reading, settings: StreamSettings, clock: Clock
    ) -> None:
        self._channel = channel
        self._place = place
        self._reading = reading
        self._settings = settings
        self._clock = clock
        self._pace = Pace()
        self._owed: list[int] = []
        self._taken = Taken([])
        self._ahead: deque[Call] = deque()
        """Requests on their way, in the order of their answers."""
        self._acked_s = clock()
        self._visited = {place.stream}
        self.overtime = Overtime(settings.work_timeout_s, clock, self._give_up)
        """Of user code; whoever carries the plan out says when it begins and ends."""
        self.failure: Exception | None = None
        """For which user code leaves the loop, as far as it is known when the loop ends."""
        self.unexplained: dict[str, Any] | None = None
        """What the loop handed back at its end without knowing why, as fields of a request."""

    def read(self) -> Generator[Await | Glance | Pause | Give | Any, Any, None]:
        """Yield what to wait for and what to give to user code, until the stream (and what follows it) is finished."""
        try:
            while True:
                early = bool(self._ahead)
                try:
                    messages = yield from self._next()
                except StreamFinished as exc:
                    yield from self._report_all()
                    if early:
                        continue  # asked before our last messages were done; some may have come back since
                    if not (yield from self._go_on(exc)):
                        return
                    continue
                self._taken = Taken(messages)
                full = len(messages) >= self._wanted
                while self._settings.prefetch and len(self._ahead) < self._pace.requests:
                    self._ahead.append(self._ask(self._settings.timeout_s))
                given_s = self._clock()
                yield Give(self._taken)
                self._pace.used(len(messages), self._clock() - given_s, full=full)
                if self._settings.ack == "auto":
                    self._owed += self._taken.finished(len(messages))
                self._taken = Taken([])
        finally:
            self.give_back()

    def due(self) -> bool:
        """Tell whether done messages should be reported now although user code is at work."""
        return self._clock() - self._acked_s > ACK_AFTER_S

    def report(self, done: int) -> None:
        """Report what is done without waiting: `done` messages of the present answer and what is still owed."""
        if self._settings.ack == "auto":
            self._owed += self._taken.finished(done)
        if self._owed:
            self._channel.post(Acknowledge, self._acknowledgement())
        self._acked_s = self._clock()

    def give_back(self) -> None:
        """End the loop: report what is done, hand back what is not. Never blocks; nothing to do the second time."""
        self.overtime.end()
        taken, self._taken = self._taken, Taken([])
        while self._ahead:
            self._channel.abandon(self._ahead.popleft())
        if self._settings.ack == "auto":
            upto = taken.started - (1 if self._settings.batch is None else taken.started)
            self._owed += taken.finished(max(0, upto))
            self._hand_back(taken.messages[max(0, upto) : taken.started], unstarted=False)
        self._hand_back(taken.messages[taken.started :], unstarted=True)
        if self._owed:
            self._channel.post(Acknowledge, self._acknowledgement())

    def _give_up(self, why: dict[str, str]) -> None:
        """Hand on what user code does not come back from, and all that waits behind it; any thread."""
        taken = self._taken
        stuck = taken.messages[: taken.started]
        if self._settings.ack == "auto" and self._settings.batch is None:
            self.report(taken.started - 1)
        ids = settle(stuck)
        logger.warning("%s: messages %s of %s are given to others", why["reason"], ids, self._place.fields)
        if ids:
            names = {**self._place.fields, "group": self._reading.group, "ids": ids}
            self._channel.post(Nack, {**names, "unsure": len(ids) > 1, **why})
        self._hand_back(taken.messages[taken.started :], unstarted=True)
        del taken.messages[taken.started :]
        while self._ahead:
            self._channel.abandon(self._ahead.popleft())

    # ----------------------------------------------------------------------------------------------------------------

    @property
    def _wanted(self) -> int:
        """Messages to ask for at once."""
        return self._settings.batch or self._pace.n

    def _ask(self, left_s: float) -> Call:
        """Send a GetNext that is answered before so much time is over; what is owed travels with it."""
        done, self._owed = ranges_of(self._owed), []
        self._acked_s = self._clock()
        fields = {
            **self._place.fields,
            **self._reading.fields,
            "n": self._wanted,
            "wait_s": min(left_s, WAIT_SLICE_S),
            "done": done,
        }
        return self._channel.begin(GetNext, fields)

    def _next(self) -> Generator[Any, Any, list[Message]]:
        """Wait for messages until the time is over."""
        deadline_s = self._clock() + self._settings.timeout_s
        while True:
            if not self._ahead:
                self._ahead.append(self._ask(max(0.0, deadline_s - self._clock())))
            call = self._ahead[0]
            if self._owed and not self._channel.check(call) and not (yield Glance(call, ACK_SOON_S)):
                self.report(0)  # nobody knows when the next request leaves
            self._ahead.popleft()
            try:
                answer = yield Await(call, max(0.0, deadline_s - self._clock()))
                return self._place.messages(answer)
            except (NothingYet, UnknownStream) as exc:
                if self._clock() >= deadline_s:
                    raise
                if isinstance(exc, UnknownStream):
                    yield Pause(PAUSE_S)

    def _report_all(self) -> Generator[Any, Any, None]:
        """Acknowledge what is owed and wait until that is done."""
        if self._owed:
            fields = self._acknowledgement()
            try:
                lost = lost_in((yield Await(self._channel.begin(Acknowledge, fields), self._settings.timeout_s)))
            except LeaseLost:
                lost = [message_id for lo, hi in fields["ranges"] for message_id in range(lo, hi + 1)]
            if lost:  # somebody else does them again: no reason to end this loop
                logger.warning(LOST_TEXT, lost)

    def _acknowledgement(self) -> dict[str, Any]:
        ids, self._owed = self._owed, []
        return {**self._place.fields, "group": self._reading.group, "ranges": ranges_of(ids)}

    def _hand_back(self, messages: Sequence[Message], *, unstarted: bool) -> None:
        ids = settle(messages)
        if not ids:
            return
        names = {**self._place.fields, "group": self._reading.group, "ids": ids}
        why = told(self.failure) if self.failure is not None and not unstarted else {}
        self._channel.post(Nack, {**names, "unstarted": unstarted, **why})
        if not unstarted and not why and self._reading.max_attempts:
            self.unexplained = names

    def _go_on(self, end: StreamFinished) -> Generator[Any, Any, bool]:
        """Turn to the stream that follows; False when there is none."""
        follow = self._settings.follow
        name = str(end.fields.get("next_stream") or "") if follow else ""
        if not name and follow == "source":
            name = yield from self._newcomer()
        if not name or name in self._visited:
            return False
        self._visited.add(name)
        self._place = dataclasses.replace(self._place, stream=name)
        return True

    def _newcomer(self) -> Generator[Any, Any, str]:
        """Wait for a stream of the source that was not read yet; of several, take the one that was made first."""
        deadline_s = self._clock() + self._settings.timeout_s
        while True:
            left_s = max(0.0, deadline_s - self._clock())
            entries = yield from streams(self._place.source, max(left_s, PAUSE_S))
            unread = [entry for entry in entries if entry["stream"] not in self._visited]
            if unread:
                return str(min(unread, key=lambda entry: entry.get("number", 0))["stream"])
            if self._clock() >= deadline_s:
                raise NothingYet(
                    f"no further stream of source {self._place.source!r} came within {self._settings.timeout_s:g} s"
                )
            yield Pause(min(LOOK_EVERY_S, left_s))
