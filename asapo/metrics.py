"""Counters of a service: plain numbers that travel with its heartbeat; the HTTP front shows them to Prometheus."""

from __future__ import annotations

import threading
from collections.abc import Mapping

LabelledName = tuple[str, tuple[tuple[str, str], ...]]


class Counters:
    """Named numbers; names ending in `_total` only grow. Safe from any thread."""

    def __init__(self) -> None:
        self._values: dict[LabelledName, float] = {}
        self._lock = threading.Lock()

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Let a number grow."""
        key = (name, tuple(sorted(labels.items())) if labels else ())
        with self._lock:
            self._values[key] = self._values.get(key, 0) + amount

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a number."""
        key = (name, tuple(sorted(labels.items())) if labels else ())
        with self._lock:
            self._values[key] = value

    def get(self, name: str, **labels: str) -> float:
        """Return a number, 0 when it was never set."""
        return self._values.get((name, tuple(sorted(labels.items()))), 0)

    def snapshot(self) -> list[tuple[str, Mapping[str, str], float]]:
        """Return (name, labels, value) of all numbers."""
        with self._lock:
            return [(name, dict(labels), value) for (name, labels), value in self._values.items()]
