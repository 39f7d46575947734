"""User callbacks run on one thread of their own, so that a slow one delays neither sending nor acknowledgements."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

log = logging.getLogger(__name__)


class CallbackThread:
    """Runs callbacks in the order they are handed over; started with the first one."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[Any], None], Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def call(self, callback: Callable[[Any], None], handle: Any) -> None:
        """Run `callback(handle)` after those handed over before. Any thread."""
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="asapo-callbacks", daemon=True)
                    self._thread.start()
        self._calls.put((callback, handle))

    def stop(self, timeout_s: float) -> None:
        """Let the callbacks handed over so far finish, for at most `timeout_s`."""
        if self._thread is None:
            return
        self._calls.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            callback, handle = call
            try:
                callback(handle)
            except Exception:  # user code: whatever it raises must not stop the acknowledgements of others
                log.exception("callback %r raised for %r", callback, handle)
