"""Producers that run in this process, and what becomes of them when it ends."""

from __future__ import annotations

import atexit
import contextlib
import os
import time
from typing import Final
from weakref import WeakKeyDictionary

from asapo.errors import AsapoError, DeadlineExceeded, LinkLost
from asapo_produce.engine import Engine
from asapo_produce.send_queue import SendQueue

EXIT_FLUSH_S: Final = 5.0
"""How long the end of the interpreter waits for producers that were not closed, all together."""
CLOSE_AFTER_ERROR_S: Final = 1.0
"""How long the context manager waits for acknowledgements when its block raised."""
RUNNING: Final[WeakKeyDictionary[Engine, tuple[int, SendQueue]]] = WeakKeyDictionary()
"""Engine to the process that made it, and its queue; an engine that has ended goes by itself."""


def end(engine: Engine, timeout_s: float) -> None:
    """Stop an engine; what has no outcome fails."""
    engine.stop(timeout_s, LinkLost("the producer was closed before the acknowledgement"))


@atexit.register
def _end_all() -> None:
    """Give producers that were not closed a moment to get their acknowledgements."""
    deadline_s = time.monotonic() + EXIT_FLUSH_S
    for engine, (pid, queue) in list(RUNNING.items()):
        if pid != os.getpid() or engine.ended.is_set():
            continue
        with contextlib.suppress(AsapoError):  # nobody is left to tell
            queue.wait_flushed(left_s(deadline_s))
        end(engine, 0.5)


def left_s(deadline_s: float) -> float:
    """Return the seconds until a deadline on the monotonic clock, or raise DeadlineExceeded."""
    left = deadline_s - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("no time is left for the answer", after_s=0.0)
    return left
