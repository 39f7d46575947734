"""Counts outcomes and measures how long acknowledgements take."""

from __future__ import annotations

import random
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from asapo.errors import AsapoError, DeadlineExceeded, DuplicateId

KEPT_LATENCIES: Final = 200_000
"""Latencies kept for the percentiles; of more than that a uniform sample is kept."""
KEPT_ERRORS: Final = 5


class Ledger:
    """Outcomes of what was sent. Thread-safe."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._sample = random.Random(0)
        self._latencies_s = array("d")
        self._calls = 0
        self._settled_calls = 0
        self.sent = 0
        self.acked = 0
        self.duplicates = 0
        """Refused with DuplicateId."""
        self.failed = 0
        """Refused with any other error."""
        self.nbytes = 0
        self.errors: Counter[str] = Counter()
        """Error code to number of messages."""
        self.first_errors: list[str] = []

    def expect(self, n: int, nbytes: int) -> Callable[[Any], None]:
        """Count `n` messages as sent now; return the callback for their handle."""
        self.sent += n
        self.nbytes += nbytes
        self._calls += 1
        began_s = self._clock()

        def settled(handle: Any) -> None:
            self._settle(handle, n, self._clock() - began_s)

        return settled

    def _settle(self, handle: Any, n: int, latency_s: float) -> None:
        found: list[AsapoError] = []
        error = handle.exception(0)
        if error is not None:
            found = list(handle.errors.values()) if hasattr(handle, "errors") else [error]
        with self._changed:
            self.acked += n - len(found)
            for each in found:
                self._count(each)
            self._keep(latency_s)
            self._settled_calls += 1
            self._changed.notify_all()

    def _count(self, error: AsapoError) -> None:
        self.errors[error.code] += 1
        if isinstance(error, DuplicateId):
            self.duplicates += 1
            return
        self.failed += 1
        if len(self.first_errors) < KEPT_ERRORS:
            self.first_errors.append(str(error))

    def _keep(self, latency_s: float) -> None:
        if len(self._latencies_s) < KEPT_LATENCIES:
            self._latencies_s.append(latency_s)
        else:
            place = self._sample.randrange(self._settled_calls + 1)
            if place < KEPT_LATENCIES:
                self._latencies_s[place] = latency_s

    def wait_settled(self, stall_s: float) -> None:
        """Wait until everything expected so far has its outcome.

        Raises
        ------
        DeadlineExceeded
            If not one outcome comes within `stall_s`.
        """
        with self._changed:
            while (before := self._settled_calls) < self._calls:
                if not self._changed.wait_for(lambda: self._settled_calls > before, stall_s):  # noqa: B023 - called now
                    missing = self.sent - self.acked - self.duplicates - self.failed
                    raise DeadlineExceeded(
                        f"{missing} of {self.sent} messages without outcome, and none came for {stall_s} s; are the "
                        "services running at this address? `asapo doctor` tells",
                        after_s=stall_s,
                    )

    def ack_ms(self) -> dict[str, float | None]:
        """Return percentiles of the time from the call of `send` to its acknowledgement, milliseconds."""
        with self._changed:
            values = sorted(self._latencies_s)
        if not values:
            return {"p50": None, "p99": None, "max": None}
        at = {"p50": len(values) // 2, "p99": min(len(values) - 1, len(values) * 99 // 100), "max": -1}
        return {name: round(values[place] * 1e3, 3) for name, place in at.items()}
