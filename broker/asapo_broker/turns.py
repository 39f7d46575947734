"""A queue from which the requests of many sessions are taken in turns, so that nobody waits for all of another's."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any


class TurnQueue:
    """Any thread may put, any number of threads take.

    Parameters
    ----------
    at_once : int
        How many requests of one session may be taken and not be done.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._changed = threading.Condition()
        self._waiting: dict[Any, deque[Any]] = {}
        """Requests by session; the session whose turn it is stands first."""
        self._taken: dict[Any, int] = {}
        self._size = 0
        self._closed = False

    def __len__(self) -> int:
        return self._size

    def put(self, session: Any, request: Any) -> None:
        """Add a request of a session."""
        with self._changed:
            self._waiting.setdefault(session, deque()).append(request)
            self._size += 1
            self._changed.notify()

    def take(self) -> tuple[Any, Any] | None:
        """Wait for the next session's turn and return it with its oldest request; None once the queue is closed."""
        with self._changed:
            while not self._closed:
                session = next((one for one in self._waiting if self._taken.get(one, 0) < self._at_once), None)
                if session is not None:
                    return session, self._pop(session)
                self._changed.wait()
            return None

    def _pop(self, session: Any) -> Any:
        queued = self._waiting.pop(session)
        request = queued.popleft()
        if queued:
            self._waiting[session] = queued  # behind all others
        self._taken[session] = self._taken.get(session, 0) + 1
        self._size -= 1
        return request

    def done(self, session: Any) -> None:
        """Say that a request of a session that was taken is answered."""
        with self._changed:
            self._taken[session] -= 1
            if not self._taken[session]:
                del self._taken[session]
            self._changed.notify()

    def close(self) -> None:
        """End the waits of all takers; what is queued is not given out any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
