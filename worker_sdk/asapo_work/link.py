"""A session on a real link: any thread may call, the thread that waits does the socket work.

There is no I/O thread between a caller and its answer (that would cost two thread switches per request). At any time at
most one thread has the *reader's role*: it polls and receives for all. Others hand their requests to it and wait for
their turn. A dedicated thread may take the role for good (`serve`), which is what the async consumer does.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from asapo.errors import AsapoError, ConnectFailed, DeadlineExceeded, LinkLost, LocalProtocolError, TransportError
from asapo.transport import Link, Waiter, Wakeup, connect, resolve
from asapo.wire.events import Event, ListReceivers
from asapo_work.session import Call, ClientSession, log_failure

logger = logging.getLogger(__name__)

ANSWER_GRACE_S: Final = 2.0
"""A connected server may be this late before we call it silent: it was told to answer at the deadline."""
RETRY_FIRST_S: Final = 0.02
RETRY_MAX_S: Final = 1.0
FAREWELL_S: Final = 0.5
"""How long the last messages of a closed channel may take to leave."""
LONGEST_WAIT_S: Final = 3600.0


class Channel:
    """Requests and answers of one session over whatever link is there at the time.

    Parameters
    ----------
    url : str
        Where the server listens.
    session : ClientSession
        Owned by the channel from now on.
    peer : str
        What the other end is, for error messages.
    """

    def __init__(self, url: str, session: ClientSession, *, peer: str = "broker") -> None:
        self.address = resolve(url)
        self._peer = peer
        self._session = session
        self._lock = threading.Lock()
        self._turn = threading.Condition(self._lock)
        self._reading = False
        self._n_waiting = 0
        """Threads that wait for their turn."""
        self._later: deque[Call | tuple[type[Any], dict[str, Any]]] = deque()
        self._link: Link | None = None
        self._bell = Wakeup()
        self._waiter = Waiter(self._bell)
        self._trouble: AsapoError | None = None
        self._retry_at_s = 0.0
        self._retry_pause_s = RETRY_FIRST_S
        self._wanted = False
        self._closed = False
        self._pid = os.getpid()

    @property
    def heartbeat_s(self) -> float | None:
        """How often the server wants a sign of life; None before it said so."""
        welcome = self._session.welcome
        return None if welcome is None else welcome.heartbeat_s

    @property
    def connected(self) -> bool:
        """True while the server has greeted us on the present link."""
        return self._session.welcome is not None

    @property
    def closed(self) -> bool:
        """True when no call is possible any more."""
        return self._closed

    def begin(self, kind: type[Any], fields: dict[str, Any], on_done: Callable[[Call], None] | None = None) -> Call:
        """Send a request and return at once.

        Raises
        ------
        WrongInput
            If a field is not acceptable.
        LocalProtocolError
            If the channel is closed, or belongs to the process that this one was forked from.
        """
        self._check_usable()
        with self._lock:
            self._check_usable()  # it may have been closed while we waited for the lock
            call = self._session.begin(kind, fields, on_done)
            self._push()
        return call

    def post(self, kind: type[Any], fields: dict[str, Any]) -> None:
        """Send a request whose answer nobody waits for; a refusal is logged.

        Never blocks and may run at any point of any thread, even inside the garbage collector while this very thread
        holds the lock; then the request leaves with the next socket work, at the latest with the next beat.
        """
        if self._closed or os.getpid() != self._pid:
            return
        self._soon((kind, fields))

    def result(self, call: Call, timeout_s: float) -> Event:
        """Wait for the answer of `call`; whatever ends the wait early abandons the call.

        Raises
        ------
        ConnectFailed, DeadlineExceeded
            No connection, or no answer, in time.
        AsapoError
            The error that came as the answer.
        """
        self.wait(call, timeout_s)
        return self.outcome(call, timeout_s)

    def wait(self, call: Call, timeout_s: float) -> bool:
        """Wait until `call` is done, True, or the time is over; an exception that ends the wait abandons the call."""
        try:
            self._wait_for(call, time.monotonic() + timeout_s)
        except BaseException:
            self.abandon(call)
            raise
        return call.done

    def glance(self, call: Call, timeout_s: float) -> bool:
        """Wait for an answer that may well come later; True when it is there."""
        if not call.done:
            self._wait_for(call, time.monotonic() + timeout_s - ANSWER_GRACE_S)
        return call.done

    def outcome(self, call: Call, timeout_s: float) -> Event:
        """Return the answer of a call, or abandon it and say why there is none after `timeout_s`; see `result`."""
        if not call.done:
            self.abandon(call)
            raise self._too_late(call, timeout_s)
        return call.result()

    def notify(self, call: Call, on_done: Callable[[Call], None]) -> None:
        """Have `on_done` called when `call` is done, at once if it is; it runs in any thread and must not block."""
        with self._lock:
            if not call.done:
                call.on_done = on_done
                return
        on_done(call)

    def check(self, call: Call) -> bool:
        """Take in what is there now, without waiting; True when `call` has its answer."""
        if not call.done:
            with self._lock:
                if not self._reading and not self._closed:
                    self._work(drain=True, until=call)
                    self._tell()
        return call.done

    def call(self, kind: type[Any], fields: dict[str, Any], timeout_s: float) -> Event:
        """Send a request and wait for its answer; see `begin` and `result`."""
        self._check_usable()
        with self._lock:
            self._check_usable()
            call = self._session.begin(kind, fields)
            if self._reading:
                self._bell.ring()  # else this thread is going to read, and sends before it waits
        return self.result(call, timeout_s)

    def abandon(self, call: Call) -> None:
        """Wait for this call no longer; messages that it still brings are given back. Never blocks, as `post`."""
        if not self._closed and os.getpid() == self._pid:
            self._soon(call)

    def patience(self, deadline_s: float) -> float:
        """Return how long to wait on; a server that did not fail us yet gets some grace to send its own answer."""
        grace_s = ANSWER_GRACE_S if self._session.welcome is not None or self._trouble is None else 0.0
        return deadline_s + grace_s - time.monotonic()

    def serve(self) -> None:
        """Do the socket work of all callers until the channel is closed."""
        while not self._closed:
            self._wait_for(None, time.monotonic() + LONGEST_WAIT_S)

    def beat(self) -> None:
        """Tell the server that this session lives, and take in what came while nobody waited."""
        with self._lock:
            if self._closed:
                return
            self._wanted = True
            if self._link is not None:
                self._session.beat()
            self._push(drain=True)

    def report(self, work: object, tell: Callable[[], dict[str, Any]]) -> None:
        """Have this told by every beat."""
        with self._lock:
            self._session.reports[work] = tell

    def close(self) -> None:
        """Say farewell and end the link; calls that still wait fail. Safe to call twice and in a forked child."""
        if self._closed or os.getpid() != self._pid:
            self._closed = True
            return
        self._settle()
        with self._lock:
            if self._link is not None:
                self._take_later()
                self._session.leave()
                self._flush()
            self._closed = True
            self._session.fail_all(LocalProtocolError(f"the {type(self).__name__.lower()} was closed by this program"))
            self._bell.ring()
            while self._reading:
                self._n_waiting += 1
                self._turn.wait()
                self._n_waiting -= 1
            self._tell()
            if self._link is not None:
                self._link.close(linger_s=FAREWELL_S)
                self._link = None
            self._bell.close()

    # -- below: called with the lock held, except for _check_usable, _settle, _soon and _wait_for ---------------------

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise LocalProtocolError(
                f"made in process {self._pid}, used in its fork {os.getpid()}: connections cannot be shared; "
                "make the consumer in the process that uses it"
            )
        if self._closed:
            raise LocalProtocolError("used after close; make a new one")

    def _tell(self) -> None:
        """Wake the threads that wait for their turn; mostly there is none, and asking the condition costs more."""
        if self._n_waiting:
            self._turn.notify_all()

    def _settle(self) -> None:
        """Before the farewell, give back what the server has sent for calls that nobody waits for.

        It may have answered a get_next that we gave up; were the session to end now, those attempts would count. When
        it has answered a later request, it has either sent that answer or is still waiting for messages.
        """
        with self._lock:
            self._take_later()
            if self._session.welcome is None or not self._session.is_owed_messages():
                return
            barrier = self._session.begin(ListReceivers, {})
            self._push()
        self._wait_for(barrier, time.monotonic() + FAREWELL_S - ANSWER_GRACE_S)

    def _soon(self, item: Call | tuple[type[Any], dict[str, Any]]) -> None:
        self._later.append(item)
        if self._lock.acquire(blocking=False):
            try:
                self._push()
            finally:
                self._lock.release()

    def _push(self, *, drain: bool = False) -> None:
        """Send what is queued, by this thread when nobody polls the socket, else by the one that does."""
        if self._reading:
            self._bell.ring()
            return
        try:
            self._work(drain=drain)
        finally:
            if drain:
                self._tell()

    def _wait_for(self, call: Call | None, deadline_s: float) -> None:
        """Return when `call` is done, the channel is closed or the deadline (and grace) has passed."""
        with self._lock:
            while not self._closed and not (call is not None and call.done):
                pause_s = self.patience(deadline_s)
                if pause_s <= 0:
                    return
                if self._reading:
                    self._n_waiting += 1
                    try:
                        self._turn.wait(pause_s)
                    finally:
                        self._n_waiting -= 1
                    continue
                self._reading = True
                try:
                    self._read(call, deadline_s)
                finally:
                    self._reading = False
                    self._tell()

    def _read(self, call: Call | None, deadline_s: float) -> None:
        """Have the reader's role until `call` is done; others are told when their answers came."""
        ready = False  # an idle socket is cheaper to wait on than to ask
        while True:
            self._bell.hear()
            if self._work(drain=ready, until=call):
                self._tell()
            if self._closed or (call is not None and call.done):
                return
            pause_s = self.patience(deadline_s)
            if pause_s <= 0:
                return
            if self._link is None and self._needed():
                pause_s = min(pause_s, max(0.0, self._retry_at_s - time.monotonic()))
            self._lock.release()
            try:
                ready = self._waiter.wait(pause_s)
            finally:
                self._lock.acquire()

    def _work(self, *, drain: bool, until: Call | None = None) -> bool:
        """Connect when it is due, send, receive; True when something came."""
        try:
            if self._link is None and not self._open():
                return False
            if self._later:
                self._take_later()
            if self._session.outgoing:
                self._flush()
            return drain and self._drain(until)
        except LinkLost as exc:
            self._drop(exc)
        except AsapoError as exc:  # the server ended the link, or broke the protocol
            self._drop(exc)
            if not exc.retriable:
                self._session.fail_all(exc)
        return True

    def _open(self) -> bool:
        """Make a new link unless it is too early for that or nobody needs one."""
        if self._closed or time.monotonic() < self._retry_at_s or not self._needed():
            return False
        self._wanted = False
        self._link = connect(self.address)
        self._waiter.add(self._link)
        self._session.opened()
        return True

    def _needed(self) -> bool:
        return self._wanted or bool(self._session.pending or self._later)

    def _take_later(self) -> None:
        while self._later:
            item = self._later.popleft()
            if isinstance(item, Call):
                self._session.abandon(item)
            else:
                self._session.begin(*item, log_failure)

    def _flush(self) -> None:
        outgoing, link = self._session.outgoing, self._link
        while outgoing and link is not None and link.send(outgoing[0]):
            outgoing.popleft()

    def _drain(self, until: Call | None) -> bool:
        came = False
        link = self._link
        while link is not None and (message := link.receive()) is not None:
            self._session.receive(message.header, message.payload)
            came = True
            if until is not None and until.done:
                break
        if came:
            self._trouble = None
            self._retry_pause_s = RETRY_FIRST_S
            if self._session.outgoing:
                self._flush()
        return came

    def _drop(self, trouble: AsapoError) -> None:
        """Give the link up; what is pending goes out again on the next one."""
        logger.info("%s at %s: %s", self._peer, self.address, trouble)
        self._trouble = trouble
        self._session.welcome = None
        if self._link is not None:
            self._waiter.remove(self._link)
            self._link.close()
            self._link = None
        self._retry_at_s = time.monotonic() + self._retry_pause_s
        self._retry_pause_s = min(2 * self._retry_pause_s, RETRY_MAX_S)

    def _too_late(self, call: Call, timeout_s: float) -> TransportError:
        if self._session.welcome is None:
            why = f" ({self._trouble.message})" if self._trouble is not None else ""
            return ConnectFailed(
                f"no {self._peer} answered at {self.address} within {timeout_s:g} s{why}; "
                "check the address and that the services run",
                address=self.address,
            )
        return DeadlineExceeded(
            f"the {self._peer} at {self.address} did not answer {type(call.request).__name__} "
            f"within {math.ceil(timeout_s + ANSWER_GRACE_S)} s",
            after_s=timeout_s + ANSWER_GRACE_S,
        )
