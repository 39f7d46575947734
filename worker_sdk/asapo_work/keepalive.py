"""Signs of life beside the caller's own thread, so that slow user code does not lose its leases (R27)."""

from __future__ import annotations

import logging
import threading
from typing import Final

from asapo_work.link import Channel
from asapo_work.overtime import Overtime

logger = logging.getLogger(__name__)

FIRST_S: Final = 1.0
"""Interval until the server has said what it wants."""
SHORTEST_S: Final = 0.05


class KeepAlive:
    """A daemon thread that beats for a channel from `start` to `stop`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._lease_s = float("inf")
        self._watched: list[Overtime] = []

    def start(self, lease_s: float) -> None:
        """Beat often enough for leases of this length; returns at once when that is done already."""
        if self._thread is not None and lease_s >= self._lease_s:
            return
        with self._lock:
            self._lease_s = min(lease_s, self._lease_s)
            if self._thread is None and not self._stopped.is_set():
                self._thread = threading.Thread(target=self._run, name="asapo-keep-alive", daemon=True)
                self._thread.start()

    def watch(self, overtime: Overtime) -> None:
        """Look with each beat whether user code is overdue; often enough to see it within half as long again."""
        with self._lock:
            self._watched = [*self._watched, overtime]
        self.start(overtime.limit_s)

    def forget(self, overtime: Overtime) -> None:
        """Look no more."""
        with self._lock:
            self._watched = [one for one in self._watched if one is not overtime]

    def stop(self) -> None:
        """End the thread and wait for that; nothing starts it again."""
        with self._lock:
            self._stopped.set()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s()):
            self._channel.beat()
            for overtime in self._watched:
                self._look_at(overtime)

    @staticmethod
    def _look_at(overtime: Overtime) -> None:
        try:
            overtime.look()
        except Exception:  # the session lives by this thread
            logger.exception("messages that user code hangs on could not be given up")

    def _interval_s(self) -> float:
        return max(SHORTEST_S, min(self._channel.heartbeat_s or FIRST_S, self._lease_s / 3))
