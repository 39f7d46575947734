"""The I/O thread: moves units from the queue to the links and outcomes back."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from asapo.errors import AsapoError, DeliveryError, LinkLost, LocalProtocolError, StorageError, WrongInput
from asapo.transport import Waiter, Wakeup
from asapo.wire.events import Event, Hello
from asapo_produce.discovery import Discovery
from asapo_produce.link_session import is_fatal
from asapo_produce.receivers import Heard, ReceiverLink, Request, failed_with
from asapo_produce.send_queue import SendQueue
from asapo_produce.units import Unit

log = logging.getLogger(__name__)

CLOGGED_S: Final = 0.005
"""Pause before a transport that had no room is tried again."""
FIRST_RETRY_S: Final = 0.1
LONGEST_RETRY_S: Final = 2.0
LOSSES: Final = 3
"""A unit with which so many links were lost may be the reason, for example because the receiver lacks memory for it."""


class Engine:
    """Owns the links of one producer; everything below `run` belongs to its thread."""

    def __init__(self, queue: SendQueue, discovery: Discovery, hello: Hello, retry_s: float) -> None:
        self._queue = queue
        self._discovery = discovery
        self._hello = hello
        self._retry_s = retry_s
        self._bell = Wakeup()
        self._waiter = Waiter(self._bell)
        self._receivers: dict[str, ReceiverLink] = {}
        self._asked: deque[Request] = deque()
        self._again: list[Unit] = []
        self._held: Unit | None = None
        self._clogged_s = 0.0
        self._due_s = 0.0
        self._search_s = 0.0
        """When discovery must be looked after."""
        self._stopping = False
        self._leaving = False
        self._error: AsapoError | None = None
        self.ended = threading.Event()
        self.resent = 0
        self._thread = threading.Thread(target=self.run, name="asapo-producer", daemon=True)

    # -- any thread -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def ring(self) -> None:
        """Say that there is something to do."""
        try:
            self._bell.ring()
        except OSError:
            return  # the thread has ended and closed the bell

    def ask(self, make: Callable[[int], Event], timeout_s: float) -> dict[Any, Any]:
        """Ask any receiver and wait for the answer.

        Raises
        ------
        DeadlineExceeded
            If no receiver answers within `timeout_s`.
        AsapoError
            What the receiver answered.
        """
        request = Request(make, timeout_s, threading.Event())
        self._asked.append(request)
        if self.ended.is_set():
            self._fail_requests()
        self.ring()
        return request.wait()

    def stop(self, timeout_s: float, error: AsapoError) -> None:
        """End the thread; what has no outcome fails with `error`."""
        self._error = self._error or error
        self._stopping = True
        self.ring()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def stop_when_idle(self) -> None:
        """End the thread as soon as everything has its outcome: nobody holds the producer any more."""
        self._leaving = True
        self.ring()

    @property
    def links(self) -> int:
        """Receivers to which units may be sent now."""
        return sum(receiver.open for receiver in list(self._receivers.values()))

    # -- the thread -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until `stop`, or until a receiver refuses us for good."""
        try:
            while not self._stopping and not (self._leaving and self._queue.idle):
                ready = self._waiter.ready(self._due_s - time.monotonic())
                self._turn(ready, time.monotonic())
        except AsapoError as exc:
            log.warning("producer %s stops: %s", self._hello.name, exc)
            self._error = exc
        except Exception as exc:
            log.exception("producer %s stops on a defect", self._hello.name)
            self._error = LocalProtocolError(f"the producer's I/O thread failed: {exc!r}")
        finally:
            self._end()

    def _turn(self, ready: list[Any], now_s: float) -> None:
        """Do what is to do. Work that is not due is left out: after a pause every line of it delays the caller."""
        if self._bell in ready:
            self._bell.hear()
            self._send_units(now_s)  # what callers have just given goes before all else
            if len(ready) == 1 and now_s < self._due_s and not self._asked:
                return
        if now_s >= self._search_s or (self._discovery.link is not None and self._discovery.link in ready):
            self._search_s = self._discovery.step(now_s, self._waiter)
            self._follow_targets()
        for receiver in list(self._receivers.values()):
            if receiver.session is None:
                receiver.connect_when_due(now_s, self._waiter)
            elif receiver.link in ready or receiver.silent(now_s):
                self._listen(receiver, now_s)
        if self._asked:
            self._send_requests(now_s)
        self._send_units(now_s)
        self._send_marks(now_s)
        self._part_when_idle()
        self._due_s = self._next_due_s(now_s)

    def _next_due_s(self, now_s: float) -> float:
        due_s = min([self._search_s, *[receiver.due_s() for receiver in self._receivers.values()]])
        if self._again:
            due_s = min([due_s, *[unit.due_s for unit in self._again if unit.due_s > now_s]])
        if self._asked:
            due_s = min(due_s, now_s + FIRST_RETRY_S)
        if self._clogged_s > now_s:
            due_s = min(due_s, self._clogged_s)
        return due_s

    def _follow_targets(self) -> None:
        targets = self._discovery.targets
        for receiver_id, addresses in targets.items():
            receiver = self._receivers.get(receiver_id)
            if receiver is None:
                self._receivers[receiver_id] = ReceiverLink(receiver_id, addresses, self._hello)
            else:
                receiver.addresses = addresses
                receiver.leaving = False
        for receiver_id, receiver in self._receivers.items():
            receiver.leaving = receiver_id not in targets

    def _part_when_idle(self) -> None:
        leaving = [receiver for receiver in self._receivers.values() if receiver.leaving]
        for receiver in leaving:
            if receiver.session is None or receiver.session.idle:
                receiver.part(self._waiter, final=False)
                del self._receivers[receiver.receiver_id]

    def _listen(self, receiver: ReceiverLink, now_s: float) -> None:
        heard = Heard()
        lost: AsapoError | None = None
        try:
            receiver.listen(now_s, heard)
        except AsapoError as exc:
            lost = exc
        for unit, errors in heard.outcomes:
            self._outcome(unit, errors, now_s)
        for request, answer in heard.answers:
            error = failed_with(answer)
            if error is not None and isinstance(error, StorageError) and error.retriable:
                request.due_s = now_s + FIRST_RETRY_S  # asked again until the caller's deadline
                self._asked.append(request)
            else:
                request.finish({} if error else answer.result, error)  # type: ignore[union-attr]
        if lost is not None:
            self._lose(receiver, lost, now_s)

    def _lose(self, receiver: ReceiverLink, error: AsapoError, now_s: float) -> None:
        welcomed = receiver.open
        units, requests = receiver.lose(self._waiter, now_s)
        if welcomed and units and not self._blame(units[0], error, now_s):
            del units[0]
        self._send_again(units)
        self._asked.extendleft(reversed(requests))
        if is_fatal(error):
            raise error
        level = logging.DEBUG if error.retriable and not units else logging.WARNING
        log.log(level, "receiver %s: %s; %d units will be resent", receiver.receiver_id, error, len(units))

    def _send_again(self, units: list[Unit]) -> None:
        if units:
            self.resent += sum(unit.n for unit in units)
            self._again = sorted([*self._again, *units], key=lambda unit: unit.first)

    def _outcome(self, unit: Unit, errors: list[tuple[int, AsapoError]], now_s: float) -> None:
        passing = any(error.retriable and not isinstance(error, DeliveryError) for _, error in errors)
        if passing and self._bear_with(unit, now_s):
            self._send_again([unit])
            return
        if errors:
            index, error = errors[0]
            log.warning("%s, message %d (and %d more): %s", unit.lane.stream, unit.ids[index], len(errors) - 1, error)
        self._queue.settle(unit, errors)

    def _bear_with(self, unit: Unit, now_s: float) -> bool:
        """Have a unit wait before it is sent again; False when it has failed for too long."""
        unit.failing_since_s = unit.failing_since_s or now_s
        if now_s - unit.failing_since_s >= self._retry_s:
            return False
        unit.delay_s = min(LONGEST_RETRY_S, 2 * unit.delay_s or FIRST_RETRY_S)
        unit.due_s = now_s + unit.delay_s
        return True

    def _blame(self, unit: Unit, error: AsapoError, now_s: float) -> bool:
        """Take note that a link was lost while this unit was the oldest under way; False when it is given up."""
        unit.losses += 1
        if unit.losses < LOSSES or self._bear_with(unit, now_s):
            return True
        what = f"the link was lost {unit.losses} times while this was sent ({unit.nbytes} bytes)"
        self._refuse(unit, LinkLost(f"{what}: has the receiver no memory for it? {error}", **error.fields))
        return False

    def _send_requests(self, now_s: float) -> None:
        waiting = len(self._asked)
        receiver = next((r for r in self._receivers.values() if r.open and not r.leaving), None)
        while receiver is not None and waiting:
            waiting -= 1
            request = self._asked.popleft()
            if request.abandoned:
                continue
            if request.due_s > now_s or not receiver.ask(request):
                self._asked.append(request)

    def _send_units(self, now_s: float) -> None:
        while True:
            ready = [receiver for receiver in self._receivers.values() if receiver.has_room()]
            unit = self._next(now_s) if ready else None
            if unit is None:
                return
            self._held = unit  # until it is in flight or settled, whatever happens
            if not self._send_unit(unit, ready, now_s):
                return
            self._held = None

    def _next(self, now_s: float) -> Unit | None:
        unit = self._held
        if unit is None and self._again:
            index = next((i for i, again in enumerate(self._again) if again.due_s <= now_s), None)
            unit = None if index is None else self._again.pop(index)
        if unit is None:
            return self._queue.take()
        unit.closed_below = self._queue.closed_below(unit.book)
        return unit

    def _send_unit(self, unit: Unit, ready: list[ReceiverLink], now_s: float) -> bool:
        """Send by the link with the fewest unacknowledged bytes; False when no link has room now."""
        able = [receiver for receiver in ready if receiver.has_room(unit.nbytes, unit.n)]
        if not able:
            if any(r.session is None or r.session.takes(unit.nbytes) for r in self._receivers.values()):
                return False
            self._refuse(unit, WrongInput(f"unit of {unit.nbytes} bytes: no receiver takes one that large; send less"))
            return True
        best = able[0] if len(able) == 1 else min(able, key=ReceiverLink.load)
        if best.transmit(unit):
            return True
        self._clogged_s = now_s + CLOGGED_S
        self._due_s = min(self._due_s, self._clogged_s)
        return False

    def _refuse(self, unit: Unit, error: AsapoError) -> None:
        self._queue.settle(unit, [(index, error) for index in range(unit.n)])

    def _send_marks(self, now_s: float) -> None:
        marks = self._queue.marks_of_idle()
        if marks:
            receiver = next((r for r in self._receivers.values() if r.open), None)
            if receiver is not None and receiver.session is not None:
                receiver.beat(marks, receiver.session.beat_s)
        due = [receiver for receiver in self._receivers.values() if receiver.session and receiver.due_s() <= now_s]
        if not due:
            return
        marks = self._queue.marks()
        for receiver in due:
            if receiver.open:
                receiver.beat(marks, now_s)
            elif receiver.session is not None:
                receiver.session.beat_s = now_s  # no Beat before the Welcome: only look again later

    def _end(self) -> None:
        """Leave all links in good order and fail what has no outcome."""
        error = self._error or LinkLost("the producer was closed before the acknowledgement")
        self._queue.stop(error)
        units = [*self._again, *([self._held] if self._held else [])]
        for receiver in self._receivers.values():
            if receiver.session is not None:
                units += receiver.session.take_back()
                self._asked.extend(receiver.session.take_back_requests())
            receiver.part(self._waiter, final=True)
        self._discovery.close(self._waiter, final=True)
        for unit in units:
            if not unit.items[0].settled:
                self._refuse(unit, error)
        self.ended.set()
        self._fail_requests()
        self._bell.close()

    def _fail_requests(self) -> None:
        while self._asked:
            self._asked.popleft().finish({}, self._error or LinkLost("the producer is closed"))
