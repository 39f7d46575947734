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
                self._waiter.wait(max(0.0, self._due_s - time.monotonic()))
                self._bell.hear()
                self._turn(time.monotonic())
        except AsapoError as exc:
            log.warning("producer %s stops: %s", self._hello.name, exc)
            self._error = exc
        except Exception as exc:
            log.exception("producer %s stops on a defect", self._hello.name)
            self._error = LocalProtocolError(f"the producer's I/O thread failed: {exc!r}")
        finally:
            self._end()

    def _turn(self, now_s: float) -> None:
        due_s = self._discovery.step(now_s, self._waiter)
        self._follow_targets()
        for receiver in list(self._receivers.values()):
            receiver.connect_when_due(now_s, self._waiter)
            self._listen(receiver, now_s)
        self._send_requests(now_s)
        self._send_units(now_s)
        self._send_marks(now_s)
        self._part_when_idle()
        dues = [due_s, *(receiver.due_s() for receiver in self._receivers.values())]
        dues += [unit.due_s for unit in self._again if unit.due_s > now_s]
        dues += [now_s + FIRST_RETRY_S] if self._asked else []
        if self._clogged_s > now_s:
            dues.append(self._clogged_s)
        self._due_s = min(dues)

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
        for receiver_id, receiver in list(self._receivers.items()):
            if receiver.leaving and (receiver.session is None or receiver.session.idle):
                receiver.part(self._waiter, final=False)
                del self._receivers[receiver_id]

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
        units, requests = receiver.lose(self._waiter, now_s)
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
        if passing:
            unit.failing_since_s = unit.failing_since_s or now_s
            if now_s - unit.failing_since_s < self._retry_s:
                unit.delay_s = min(LONGEST_RETRY_S, 2 * unit.delay_s or FIRST_RETRY_S)
                unit.due_s = now_s + unit.delay_s
                self._send_again([unit])
                return
        if errors:
            index, error = errors[0]
            log.warning("%s, message %d (and %d more): %s", unit.lane.stream, unit.ids[index], len(errors) - 1, error)
        self._queue.settle(unit, errors)

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
            ready = [r for r in self._receivers.values() if r.session and not r.leaving and r.session.has_room()]
            unit = self._next(now_s) if ready else None
            if unit is None:
                return
            if not self._send_unit(unit, ready, now_s):
                self._held = unit
                return

    def _next(self, now_s: float) -> Unit | None:
        if self._held is not None:
            unit, self._held = self._held, None
            return unit
        for index, unit in enumerate(self._again):
            if unit.due_s <= now_s:
                return self._again.pop(index)
        return self._queue.take()

    def _send_unit(self, unit: Unit, ready: list[ReceiverLink], now_s: float) -> bool:
        """Send by the link with the fewest unacknowledged bytes; False when no link has room now."""
        loads = []
        for number, receiver in enumerate(ready):
            session = receiver.session
            if session and session.takes(unit.nbytes) and session.has_room(unit.nbytes, unit.n):
                loads.append((session.in_flight_bytes, number))
        if not loads:
            able = [r for r in self._receivers.values() if r.session is None or r.session.takes(unit.nbytes)]
            if able:
                return False
            self._refuse(unit, WrongInput(f"unit of {unit.nbytes} bytes: no receiver takes one that large; send less"))
            return True
        receiver = ready[min(loads)[1]]
        try:
            if receiver.transmit(unit, self._queue.closed_below(unit.book)):
                return True
        except WrongInput as exc:
            self._refuse(unit, exc)
            return True
        self._clogged_s = now_s + CLOGGED_S
        return False

    def _refuse(self, unit: Unit, error: AsapoError) -> None:
        self._queue.settle(unit, [(index, error) for index in range(unit.n)])

    def _send_marks(self, now_s: float) -> None:
        marks = self._queue.marks_of_idle()
        opened = [receiver for receiver in self._receivers.values() if receiver.open]
        if marks and opened:
            opened[0].beat(marks, opened[0].session.beat_s if opened[0].session else now_s)
        due = [receiver for receiver in opened if receiver.due_s() <= now_s]
        if due:
            marks = self._queue.marks()
            for receiver in due:
                receiver.beat(marks, now_s)
        for receiver in self._receivers.values():
            if receiver.session is not None and not receiver.open and receiver.due_s() <= now_s:
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
            self._refuse(unit, error)
        self.ended.set()
        self._fail_requests()
        self._bell.close()

    def _fail_requests(self) -> None:
        while self._asked:
            self._asked.popleft().finish({}, self._error or LinkLost("the producer is closed"))
