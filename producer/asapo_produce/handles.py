"""What `send` and `send_batch` give back: outcomes that arrive later."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from asapo.errors import AsapoError, DeadlineExceeded

LOOK_S: Final = 0.0002
"""How often a buffer that the transport still holds is looked at: ZeroMQ does not tell when it lets go."""


class _Handle:
    """Common part: completed once, by the I/O thread, under `settled`."""

    __slots__ = ("_done", "_settled", "_trackers", "callbacks", "later")

    def __init__(self, settled: threading.Condition, later: Callable[[Any, Any], None]) -> None:
        self._settled = settled
        self._done = False
        self._trackers: tuple[Any, ...] = ()
        self.later = later
        """Registers a callback; belongs to the send queue."""
        self.callbacks: list[Callable[[Any], None]] | None = None
        """Callbacks not yet handed over; belongs to the send queue."""

    def done(self) -> bool:
        """Whether the outcome is known."""
        return self._done

    @property
    def released(self) -> bool:
        """Whether the buffer may be changed: the outcome is known and the transport has let go of it."""
        return self._done and all(tracker.done for tracker in self._trackers)

    def wait_released(self, timeout_s: float | None = 60.0) -> None:
        """Wait until the buffer may be changed, whatever the outcome.

        Raises
        ------
        DeadlineExceeded
            If it may not within `timeout_s`.
        """
        ends_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        self._wait(timeout_s)
        while not self.released:  # most often it is already: the transport lets go a moment before or after the outcome
            if time.monotonic() > ends_s:
                raise DeadlineExceeded(f"the transport still holds the buffer after {timeout_s} s", after_s=timeout_s)
            time.sleep(LOOK_S)

    def _wait(self, timeout_s: float | None) -> None:
        if self._done:
            return
        with self._settled:
            if not self._settled.wait_for(self.done, timeout_s):
                raise DeadlineExceeded(f"no acknowledgement within {timeout_s} s", after_s=timeout_s)


class SendHandle(_Handle):
    """The outcome of one message."""

    __slots__ = ("_error", "id")

    def __init__(self, settled: threading.Condition, later: Callable[[Any, Any], None]) -> None:
        # As `_Handle.__init__`, without its call: one of these is made for every message.
        self._settled = settled
        self._done = False
        self._trackers = ()
        self.later = later
        self.callbacks = None
        self.id = 0
        """The message's id; known before the acknowledgement."""
        self._error: AsapoError | None = None

    @property
    def first(self) -> int:
        """Lowest id."""
        return self.id

    def complete(self, errors: dict[int, AsapoError], trackers: tuple[Any, ...]) -> bool:
        """Take the outcome; for the send queue only. True when the handle is done by it."""
        if errors:
            self._error = next(iter(errors.values()))
        self._trackers = trackers
        self._done = True
        return True

    def result(self, timeout_s: float | None = 60.0) -> int:
        """Wait for the acknowledgement and return the message id.

        Raises
        ------
        DeadlineExceeded
            If the outcome is not known within `timeout_s`; it may still come.
        AsapoError
            What the message was refused for, for example DuplicateId or PayloadChanged.
        """
        self._wait(timeout_s)
        if self._error is not None:
            raise self._error
        return self.id

    def exception(self, timeout_s: float | None = 60.0) -> AsapoError | None:
        """Wait for the outcome and return the error, None when the message is acknowledged."""
        self._wait(timeout_s)
        return self._error

    def add_done_callback(self, callback: Callable[[SendHandle], None]) -> None:
        """Call `callback(handle)` on the SDK's callback thread when the outcome is known, in id order per stream."""
        self.later(self, callback)

    def __repr__(self) -> str:
        state = "waiting" if not self._done else f"failed: {self._error!r}" if self._error else "acknowledged"
        return f"<SendHandle id={self.id} {state}>"


class BatchHandle(_Handle):
    """The outcomes of the messages of one batch."""

    __slots__ = ("_errors", "_parts", "ids")

    def __init__(self, settled: threading.Condition, later: Callable[[Any, Any], None], parts: int) -> None:
        super().__init__(settled, later)
        self.ids: Sequence[int] = ()
        """The messages' ids, in the order of the frames."""
        self._errors: dict[int, AsapoError] = {}
        self._parts = parts

    @property
    def first(self) -> int:
        """Lowest id."""
        return self.ids[0]

    def complete(self, errors: dict[int, AsapoError], trackers: tuple[Any, ...]) -> bool:
        """Take the outcome of one part; for the send queue only. True when the handle is done by it."""
        self._errors.update(errors)
        self._trackers += trackers
        self._parts -= 1
        self._done = self._parts == 0
        return self._done

    @property
    def errors(self) -> dict[int, AsapoError]:
        """Refused messages so far: id to error."""
        return dict(self._errors)

    def result(self, timeout_s: float | None = 60.0) -> list[int]:
        """Wait for all acknowledgements and return the ids.

        Raises
        ------
        DeadlineExceeded
            If an outcome is not known within `timeout_s`.
        AsapoError
            The error of the first message that was refused; `errors` has all.
        """
        error = self.exception(timeout_s)
        if error is not None:
            raise error
        return list(self.ids)

    def exception(self, timeout_s: float | None = 60.0) -> AsapoError | None:
        """Wait for all outcomes and return the error of the first refused message, None when there is none."""
        self._wait(timeout_s)
        return next((self._errors[i] for i in self.ids if i in self._errors), None) if self._errors else None

    def add_done_callback(self, callback: Callable[[BatchHandle], None]) -> None:
        """Call `callback(handle)` on the SDK's callback thread when all outcomes are known."""
        self.later(self, callback)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[int, AsapoError | None]]:
        """Wait for all outcomes and give (id, error or None) for each message."""
        self._wait(60.0)
        return iter([(i, self._errors.get(i)) for i in self.ids])

    def __repr__(self) -> str:
        state = "done" if self._done else "waiting"
        return f"<BatchHandle {len(self.ids)} messages, {state}, {len(self._errors)} refused>"


@dataclass(frozen=True, slots=True)
class ProducerStats:
    """Counts since the producer was made; messages unless the name says otherwise."""

    sent: int
    """Taken by `send` and `send_batch`."""
    acked: int
    failed: int
    """Refused, or given up."""
    queued_bytes: int
    """Budget in use: from `send` to the outcome."""
    resent: int
    """Transmitted again after a lost link or a passing error."""
    links: int
    """Receivers connected now."""
    recycled: int
    """Buffers of `get_buffer` handed out again."""
