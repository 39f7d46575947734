"""Keeping time: deadlines count from the start, so that rounding and late wake-ups do not add up."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pacer:
    """Waits until given moments after its start.

    Parameters
    ----------
    clock, sleep : callables
        Monotonic clock in seconds and how to wait; given by tests.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._start_s: float | None = None
        self.behind_s = 0.0
        """Most that a moment was missed by."""

    def wait_until(self, offset_s: float) -> None:
        """Return at `offset_s` seconds after the first call, at once when that has passed."""
        now_s = self._clock()
        if self._start_s is None:
            self._start_s = now_s
        due_s = self._start_s + offset_s
        if now_s >= due_s:
            self.behind_s = max(self.behind_s, now_s - due_s)
        while now_s < due_s:
            self._sleep(due_s - now_s)
            now_s = self._clock()

    def elapsed_s(self) -> float:
        """Return the time since the first call, 0 before it."""
        return 0.0 if self._start_s is None else self._clock() - self._start_s
