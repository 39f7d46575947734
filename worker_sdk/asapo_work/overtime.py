"""User code that does not come back: what it was given is handed on to others, with the place where it hangs (F27).

Signs of life renew leases as long as the process lives, so a worker that hangs would keep its messages for ever.
"""

from __future__ import annotations

import math
import sys
import threading
import traceback
from collections.abc import Callable

from asapo.delivery.letters import bounded
from asapo.errors import WrongInput

GiveUp = Callable[[dict[str, str]], None]
"""Hand back what user code is at; gets the fields that tell the broker why."""


class Overtime:
    """Tells when user code was given something, by one thread, and has been at it for too long, by another.

    Parameters
    ----------
    limit_s : float, unit seconds
        How long user code may work on what it is given at once; 0: for ever.
    clock : callable
        What time is told by, seconds.
    give_up : callable
        Called at most once for what user code was given, while user code cannot come back.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float], give_up: GiveUp) -> None:
        if not 0 <= limit_s < math.inf:
            raise WrongInput(f"work_timeout_s {limit_s!r}: expected seconds, not negative; 0 for no limit")
        self.limit_s = limit_s
        self._clock = clock
        self._give_up = give_up
        self._lock = threading.RLock()  # the garbage collector may end a loop in the middle of a look
        self._since_s = math.inf
        self._thread = 0

    def begin(self) -> None:
        """User code of this thread is given something now."""
        if self.limit_s:
            with self._lock:
                self._since_s, self._thread = self._clock(), threading.get_ident()

    def end(self) -> None:
        """User code is back; nothing is given up behind this."""
        if self.limit_s:
            with self._lock:
                self._since_s = math.inf

    def look(self) -> None:
        """Give up what user code has been at for too long."""
        with self._lock:
            if self._clock() - self._since_s <= self.limit_s:
                return
            self._since_s = math.inf
            frame = sys._current_frames().get(self._thread)  # noqa: SLF001 - the one way to see where it hangs
            where = "".join(traceback.format_stack(frame)) if frame is not None else ""
            line, text = bounded(f"user code did not come back within {self.limit_s:g} s", where)
            self._give_up({"reason": line, "traceback": text})
